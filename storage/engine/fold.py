"""Folding: deltas whose commit is durable are written into their blocks, and then forgotten.

It can wait: what is overwritten again meanwhile need never be folded. So a chunk is folded when it has been left alone
for QUIET_S, or when so much waits that what was left alone for longest has to go, and that not just now.

Order, for each round: (1) the record with the delta is durable; (2) write the bytes in place; (3) fdatasync the block
files; (4) replace the record by one without deltas and delete their values; (5) the blocks of patches get new owners
when (4) is durable. A crash after (2) finds record and values and reads through them, whatever the block holds; a
reader with an older record gets a mismatch and asks again.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Container, Sequence
from typing import NamedTuple

from fireflyfs.common.clock import Clock
from fireflyfs.storage.engine.blocks import BlockStore
from fireflyfs.storage.engine.checkpoint import Epochs
from fireflyfs.storage.engine.deltas import NO_DELTAS
from fireflyfs.storage.engine.interface import ChunkKey
from fireflyfs.storage.engine.metadata import MetaStore, new_batch
from fireflyfs.storage.engine.newest import Committed
from fireflyfs.storage.engine.record import COMMITTED, Record, chunk_key, delta_key, pack, unpack
from fireflyfs.storage.engine.stage import DeltaRoom

FOLD_CHUNKS_MAX = 1024  # in one round
QUIET_S = 15.0  # so long a chunk's deltas are left where they are after the last change
QUIET_BYTES_MAX = 32 << 20  # folded in one round of chunks that were left alone: nobody waits for it
# Waiting in a store: beyond the maximum, overwrites copy their chunk; from what is due on, a round starts at once and
# folds until half of that is left.
WAITING_CHUNKS_MAX = 65_536
WAITING_CHUNKS_DUE = 16_384
LOGGED_BYTES_MAX = 64 << 20
LOGGED_BYTES_DUE = 16 << 20
PATCHED_BYTES_MAX = 1 << 30
PATCHED_BYTES_DUE = 512 << 20
# What changed a moment ago changes again before the disks are synced, and then was written in place for nothing. So to
# make room, it is left alone as well, until this part of the maximum waits.
HOT_S = 2.0
URGENT_PART = 0.75


class _Waiting(NamedTuple):
    """What lies beside one chunk's block, in bytes, and since when it has not changed."""

    logged: int
    patched: int
    since_s: float


_NOTHING = _Waiting(0, 0, 0.0)


class Folder:
    """Knows which chunks have deltas (bounded in number and bytes) and folds them."""

    def __init__(
        self,
        meta: MetaStore,
        blocks: BlockStore,
        epochs: Epochs,
        pending: Container[ChunkKey],
        newest: Committed,
        lock_of: Callable[[ChunkKey], threading.Lock],
        clock: Clock,
    ) -> None:
        self._meta = meta
        self._blocks = blocks
        self._epochs = epochs
        self._pending = pending
        self._newest = newest
        self._lock_of = lock_of
        self._waiting: dict[ChunkKey, _Waiting] = {}  # committed chunks with deltas, the longest unchanged first
        self._clock = clock
        self._count_lock = threading.Lock()
        self.logged_bytes = 0
        self.patched_bytes = 0
        self.folded_bytes = 0

    def note(self, key: ChunkKey, record: Record | None) -> None:
        """A chunk's committed record changed; the caller holds the chunk."""
        deltas = record.deltas if record is not None else NO_DELTAS
        if not deltas and key not in self._waiting:
            return
        logged, patched = deltas.logged_bytes, deltas.patched_bytes
        with self._count_lock:
            was = self._waiting.pop(key, _NOTHING)
            if deltas:
                self._waiting[key] = _Waiting(logged, patched, self._clock.monotonic_s())
            self.logged_bytes += logged - was.logged
            self.patched_bytes += patched - was.patched

    @property
    def room(self) -> DeltaRoom:
        few = len(self._waiting) < WAITING_CHUNKS_MAX
        return DeltaRoom(few and self.logged_bytes < LOGGED_BYTES_MAX, few and self.patched_bytes < PATCHED_BYTES_MAX)

    @property
    def due(self) -> bool:
        if (
            self.logged_bytes < LOGGED_BYTES_DUE
            and self.patched_bytes < PATCHED_BYTES_DUE
            and len(self._waiting) < WAITING_CHUNKS_DUE
        ):
            return False
        if self._urgent:
            return True
        with self._count_lock:
            longest = next(iter(self._waiting.values()), _NOTHING)
        return longest.since_s <= self._clock.monotonic_s() - HOT_S

    @property
    def _urgent(self) -> bool:
        return (
            self.logged_bytes >= URGENT_PART * LOGGED_BYTES_MAX
            or self.patched_bytes >= URGENT_PART * PATCHED_BYTES_MAX
            or len(self._waiting) >= URGENT_PART * WAITING_CHUNKS_MAX
        )

    def fold_quiet(self) -> int:
        """One round over chunks that were left alone, or that have to make room; how many. Raises DISK_FAILED."""
        return self._fold(self._choose())

    def fold(self) -> int:
        """One round over whatever waits; how many were folded. Raises DISK_FAILED."""
        with self._count_lock:
            keys = list(itertools.islice(self._waiting, FOLD_CHUNKS_MAX))
        return self._fold(keys)

    def _choose(self) -> list[ChunkKey]:
        chosen: list[ChunkKey] = []
        now_s = self._clock.monotonic_s()
        quiet_since_s = now_s - QUIET_S
        made_room_since_s = now_s if self._urgent else now_s - HOT_S
        with self._count_lock:
            chunks = _excess(len(self._waiting), WAITING_CHUNKS_DUE)
            logged = _excess(self.logged_bytes, LOGGED_BYTES_DUE)
            patched = _excess(self.patched_bytes, PATCHED_BYTES_DUE)
            spare = QUIET_BYTES_MAX
            for key, waiting in itertools.islice(self._waiting.items(), FOLD_CHUNKS_MAX):
                quiet = waiting.since_s <= quiet_since_s and spare > 0
                if not quiet and (max(chunks, logged, patched) <= 0 or waiting.since_s > made_room_since_s):
                    break
                chosen.append(key)
                spare -= waiting.logged + waiting.patched
                chunks -= 1
                logged -= waiting.logged
                patched -= waiting.patched
        return chosen

    def _fold(self, keys: Sequence[ChunkKey]) -> int:
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
                clean = now._replace(deltas=NO_DELTAS)
                batch.put(chunk_key(COMMITTED, key), pack(clean))
                for ref in record.deltas:
                    if ref.place is None:
                        batch.delete(delta_key(key, ref.id))
                self._newest.drop(key)
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
        if record is None or not record.deltas or record.damaged or record.epoch > self._epochs.durable:
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


def _excess(waits: int, due: int) -> int:
    """How much has to go."""
    return waits - due // 2 if waits >= due else 0
