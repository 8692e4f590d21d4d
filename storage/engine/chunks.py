"""The records of the moment: what is committed of a chunk, and what waits to be."""

from __future__ import annotations

from collections.abc import Iterable

from fireflyfs.storage.engine.commit import Change
from fireflyfs.storage.engine.interface import ChunkKey, ChunkState
from fireflyfs.storage.engine.metadata import MetaStore
from fireflyfs.storage.engine.newest import Committed
from fireflyfs.storage.engine.record import COMMITTED, PENDING, Record, chunk_key, unpack

PENDING_RECORDS_MAX = 4096  # kept in memory; of further pending chunks only the keys


class Chunks:
    """Looks up records, as they are stored (`*_raw`) or parsed. Anybody may look; who changes a chunk holds it."""

    def __init__(self, meta: MetaStore, newest: Committed, waiting: Iterable[ChunkKey]) -> None:
        self._meta = meta
        self._newest = newest
        # Chunks with a pending version; of the first so many also the record, as it is stored.
        self.waiting: dict[ChunkKey, bytes | None] = dict.fromkeys(waiting)

    def committed_raw(self, key: ChunkKey) -> bytes | None:
        return self._newest.get(key) or self._meta.get(chunk_key(COMMITTED, key))

    def pending_raw(self, key: ChunkKey) -> bytes | None:
        if key not in self.waiting:
            return None
        return self.waiting.get(key) or self._meta.get(chunk_key(PENDING, key))

    def committed(self, key: ChunkKey) -> Record | None:
        raw = self.committed_raw(key)
        return unpack(raw) if raw is not None else None

    def pending(self, key: ChunkKey) -> Record | None:
        raw = self.pending_raw(key)
        return unpack(raw) if raw is not None else None

    def stat(self, key: ChunkKey) -> ChunkState | None:
        pending = self.pending(key)
        committed = self.committed(key)
        if pending and committed and pending.version == committed.version and key not in self.waiting:
            pending = None  # committed between the two looks, by a caller who holds the chunk when we do not
        either = committed or pending
        if either is None:
            return None
        return ChunkState(
            key,
            either.chunk_size,
            committed.to_version() if committed else None,
            pending.to_version() if pending else None,
        )

    def expect(self, changes: Iterable[Change]) -> None:
        """These are about to be stored as pending: from now on, who looks finds the old record or the new one."""
        for change in changes:
            self.waiting.setdefault(change.key)

    def keep_pending(self, changes: Iterable[Change]) -> None:
        """These are stored as pending."""
        few = len(self.waiting) <= PENDING_RECORDS_MAX
        for change in changes:
            self.waiting[change.key] = change.raw if few else None

    def settle(self, key: ChunkKey) -> None:
        """Nothing is pending there any more."""
        self.waiting.pop(key, None)
