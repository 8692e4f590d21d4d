"""Inode ids: 64 bits, given out once and for all."""

from __future__ import annotations

import threading

from fireflyfs.common.kv.interface import KvEngine, Transaction, read, run
from fireflyfs.meta.core import keys

BATCH = 4096  # ids taken from the store at a time; those left over at a stop are skipped for ever
FIRST = 2  # 1 is the root directory


class InodeIds:
    """Gives out ids; the store is asked once for each batch."""

    def __init__(self, engine: KvEngine, *, batch: int = BATCH) -> None:
        self._engine = engine
        self._batch = batch
        self._next = self._end = 0
        self._lock = threading.Lock()

    def take(self) -> int:
        """A new id. Runs a transaction of its own when the batch is used up."""
        with self._lock:
            if self._next == self._end:
                begin = run(self._engine, self._take_batch)
                # Chunks of a file may reach disks before its name does: an id that was given out must stay so, whatever
                # a power cut takes away.
                self._engine.sync()
                self._next = begin
                self._end = self._next + self._batch
            taken = self._next
            self._next += 1
            return taken

    def floor(self) -> int:
        """No id below it will be taken here any more; every id from it on is still to come."""
        with self._lock:
            if self._next != self._end:
                return self._next
            stored = read(self._engine, lambda txn: txn.get(keys.NEXT_INODE))
            return int.from_bytes(stored, "big") if stored is not None else FIRST

    def _take_batch(self, txn: Transaction) -> int:
        stored = txn.get(keys.NEXT_INODE)
        begin = int.from_bytes(stored, "big") if stored is not None else FIRST
        txn.put(keys.NEXT_INODE, (begin + self._batch).to_bytes(8, "big"))
        return begin
