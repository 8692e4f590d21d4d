"""Folding: deltas whose commit is durable are written into their blocks, and then forgotten.

Order, for each round: (1) the record with the delta is durable; (2) write the bytes in place; (3) fdatasync the block
files; (4) replace the record by one without deltas and delete their values; (5) the blocks of patches get new owners
when (4) is durable. A crash after (2) finds record and values and reads through them, whatever the block holds; a
reader with an older record gets a mismatch and asks again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container

from fireflyfs.storage.engine.blocks import BlockStore
from fireflyfs.storage.engine.checkpoint import Epochs
from fireflyfs.storage.engine.interface import ChunkKey
from fireflyfs.storage.engine.metadata import MetaStore, new_batch
from fireflyfs.storage.engine.record import COMMITTED, PATCH, Record, chunk_key, delta_key, pack, unpack
from fireflyfs.storage.engine.stage import DeltaRoom

FOLD_CHUNKS_MAX = 1024  # in one round
# Waiting in a store: beyond the maximum, overwrites copy their chunk; from what is due on, a round starts at once.
LOGGED_BYTES_MAX = 64 << 20
LOGGED_BYTES_DUE = 16 << 20
PATCHED_BYTES_MAX = 512 << 20
PATCHED_BYTES_DUE = 32 << 20


class Folder:
    """Knows which chunks have deltas (bounded by their bytes) and folds them."""

    def __init__(
        self,
        meta: MetaStore,
        blocks: BlockStore,
        epochs: Epochs,
        pending: Container[ChunkKey],
        lock_of: Callable[[ChunkKey], threading.Lock],
    ) -> None:
        self._meta = meta
        self._blocks = blocks
        self._epochs = epochs
        self._pending = pending
        self._lock_of = lock_of
        self._waiting: dict[ChunkKey, tuple[int, int]] = {}  # logged and patched bytes over each committed chunk
        self._count_lock = threading.Lock()
        self.logged_bytes = 0
        self.patched_bytes = 0
        self.folded_bytes = 0

    def note(self, key: ChunkKey, record: Record | None) -> None:
        """A chunk's committed record changed; the caller holds the chunk."""
        deltas = record.deltas if record is not None else ()
        if not deltas and key not in self._waiting:
            return
        logged = patched = 0
        for _, length, number in deltas:
            if number & PATCH:
                patched += length
            else:
                logged += length
        with self._count_lock:
            was_logged, was_patched = self._waiting.pop(key, (0, 0))
            if deltas:
                self._waiting[key] = logged, patched
            self.logged_bytes += logged - was_logged
            self.patched_bytes += patched - was_patched

    @property
    def room(self) -> DeltaRoom:
        return DeltaRoom(self.logged_bytes < LOGGED_BYTES_MAX, self.patched_bytes < PATCHED_BYTES_MAX)

    @property
    def due(self) -> bool:
        return self.logged_bytes >= LOGGED_BYTES_DUE or self.patched_bytes >= PATCHED_BYTES_DUE

    def fold(self, chunks_max: int = FOLD_CHUNKS_MAX) -> int:
        """One round over at most chunks_max chunks; how many were folded. Raises DISK_FAILED."""
        keys = list(self._waiting)[:chunks_max]
        written: list[tuple[ChunkKey, Record]] = []
        for key in keys:
            with self._lock_of(key):
                record = self._foldable(key)
                if record is not None and self._write_in_place(key, record):
                    written.append((key, record))
        if not written:
            return 0
        self._blocks.sync()
        done = 0
        for key, record in written:
            with self._lock_of(key):
                now = self._foldable(key)
                if now is None or now.version != record.version or now.deltas != record.deltas:
                    continue
                batch = new_batch()
                clean = now._replace(deltas=())
                batch.put(chunk_key(COMMITTED, key), pack(clean))
                for ref in record.deltas:
                    if ref.place is None:
                        batch.delete(delta_key(key, ref.id))
                self._meta.write(batch)
                self._epochs.hold([ref.place for ref in record.deltas if ref.place is not None], ())
                self.note(key, clean)
                self.folded_bytes += sum(ref.length for ref in record.deltas)
                done += 1
        return done

    def _foldable(self, key: ChunkKey) -> Record | None:
        """The committed record, where its deltas may go into the block now."""
        if key in self._pending:  # the pending record names the same deltas
            return None
        raw = self._meta.get(chunk_key(COMMITTED, key))
        record = unpack(raw) if raw is not None else None
        if record is None or not record.deltas or record.epoch > self._epochs.durable:
            return None
        return record

    def _write_in_place(self, key: ChunkKey, record: Record) -> bool:
        for ref in record.deltas:
            if ref.place is not None:
                data = memoryview(bytearray(ref.length))
                whole = self._blocks.read(*ref.place, 0, [data])
            else:
                data = memoryview(self._meta.get(delta_key(key, ref.id)) or b"")
                whole = len(data) == ref.length
            if not whole:
                return False  # damaged: readers find out by the checksum
            self._blocks.write(record.block_shift, record.block, ref.offset, [data])
        return True
