"""What was stored lately and will soon be asked for again, in bounded memory.

`Parsed` goes by content: the same bytes always mean the same record, so anybody may put in what they read. `Committed`
goes by chunk, and is right only because whoever changes a chunk's committed record holds the chunk and says so here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Generic, TypeVar

from fireflyfs.storage.engine.interface import ChunkKey

R = TypeVar("R")

COMMITTED_RECORDS_MAX = 1024


class Parsed(Generic[R]):
    """The stored form of records to the records.

    Two generations instead of an order: each step is one operation on a dict, so threads need no lock.
    """

    def __init__(self, records_max: int) -> None:
        self._young_max = records_max // 2
        self._young: dict[bytes, R] = {}
        self._old: dict[bytes, R] = {}

    def get(self, raw: bytes) -> R | None:
        record = self._young.get(raw)
        if record is None:
            record = self._old.get(raw)
            if record is not None:
                self.put(raw, record)
        return record

    def put(self, raw: bytes, record: R) -> None:
        if len(self._young) >= self._young_max:
            self._old, self._young = self._young, {}
        self._young[raw] = record


class Committed:
    """Chunks to their committed records as they are stored: those that were committed last.

    Changed only by who holds the chunk: dropped before another record is stored, put when it is. Read by anybody.
    """

    def __init__(self, records_max: int = COMMITTED_RECORDS_MAX) -> None:
        self._records_max = records_max
        self._records: dict[ChunkKey, bytes] = {}
        self._lock = threading.Lock()
        self.get = self._records.get

    def put_all(self, stored: Iterable[tuple[ChunkKey, bytes]]) -> None:
        with self._lock:
            for key, raw in stored:
                self._records.pop(key, None)
                self._records[key] = raw
            while len(self._records) > self._records_max:
                del self._records[next(iter(self._records))]

    def drop(self, key: ChunkKey) -> None:
        """The record is about to be another one."""
        with self._lock:
            self._records.pop(key, None)
