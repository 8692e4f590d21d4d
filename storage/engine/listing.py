"""Which chunks there are: ranges and pages of states, in key order."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice

from fireflyfs.storage.engine.chunks import Chunks
from fireflyfs.storage.engine.interface import ChunkKey, ChunkState, LastChunk
from fireflyfs.storage.engine.metadata import MetaStore
from fireflyfs.storage.engine.record import COMMITTED, chunk_key, key_of, name_of, unpack
from fireflyfs.storage.engine.recovery import end_of

_INDEX_MAX = (1 << 64) - 1


class Listing:
    """Committed chunks as they are stored, and pending ones as the engine knows them; nobody need hold them."""

    def __init__(self, meta: MetaStore, chunks: Chunks) -> None:
        self._meta = meta
        self._chunks = chunks

    def last_chunk(self, inode: int, begin: int, end: int) -> LastChunk | None:
        highest: tuple[bytes, bytes] | None = None
        chunks = used = 0
        for row in self._meta.range(*_inode_range(inode, begin, end)):
            if name_of(row[1]) is not None:
                continue  # a block of the KV cache says nothing of a length
            highest = row
            shift = highest[1][2]
            chunks += 1
            used += 1 << shift if shift else 0
        if highest is None:
            return None
        return LastChunk(key_of(highest[0]).chunk_index, unpack(highest[1]).length, chunks, used)

    def scan(self, after: ChunkKey | None, limit: int) -> list[ChunkState]:
        begin = COMMITTED if after is None else chunk_key(COMMITTED, after) + b"\0"
        stored = (key_of(raw_key) for raw_key, _ in self._meta.range(begin, end_of(COMMITTED)))
        waiting = sorted(key for key in self._pending_keys() if after is None or key > after)
        return self._states(heapq.merge(stored, waiting), limit)

    def scan_inode(self, inode: int, begin: int, end: int, limit: int) -> list[ChunkState]:
        stored = (key_of(raw_key) for raw_key, _ in self._meta.range(*_inode_range(inode, begin, end)))
        waiting = [
            key
            for key in self._pending_keys()
            if key.inode == inode and key.chunk_index >= begin and (not end or key.chunk_index < end)
        ]
        return self._states(heapq.merge(stored, sorted(waiting)), limit)

    def pending(self, limit: int, after: ChunkKey | None = None) -> list[ChunkState]:
        keys = sorted(key for key in self._pending_keys() if after is None or key > after)
        states = (self._chunks.stat(key) for key in keys)
        return list(islice((state for state in states if state is not None and state.pending is not None), limit))

    def _pending_keys(self) -> list[ChunkKey]:
        while True:
            try:
                return list(self._chunks.waiting)
            except RuntimeError:  # another thread added one meanwhile
                continue

    def _states(self, keys: Iterator[ChunkKey] | list[ChunkKey], limit: int) -> list[ChunkState]:
        states: list[ChunkState] = []
        last: ChunkKey | None = None
        for key in keys:
            if len(states) >= limit:
                break
            if key != last:
                state = self._chunks.stat(key)
                if state is not None:
                    states.append(state)
            last = key
        return states


def _inode_range(inode: int, begin: int, end: int) -> tuple[bytes, bytes]:
    """Stored keys of inode's committed chunks with begin <= index < end (end 0: no end)."""
    first = chunk_key(COMMITTED, ChunkKey(inode, begin))
    if end:
        return first, chunk_key(COMMITTED, ChunkKey(inode, max(begin, end)))
    return first, chunk_key(COMMITTED, ChunkKey(inode, _INDEX_MAX)) + b"\0"
