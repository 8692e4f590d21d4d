"""An in-memory KV store with versions and true conflict detection; for tests and the simulator."""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Iterator
from contextlib import AbstractContextManager

from fireflyfs.common.errors import Code, error
from fireflyfs.common.kv.interface import Transaction
from fireflyfs.common.kv.occ import WINDOW_KEYS_MAX, ConflictWindow, OccTransaction

SCAN_STEP = 64  # pairs that a scan copies under one hold of the lock


class _View:
    """One open snapshot; as long as it is held, versions it can see are kept."""

    __slots__ = ("_store", "version")

    def __init__(self, store: MemoryKv, version: int) -> None:
        self._store = store
        self.version = version

    def get(self, key: bytes) -> bytes | None:
        with self._store._lock:
            return self._store._value_at(key, self.version)

    def scan(self, begin: bytes, end: bytes, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        while True:
            with self._store._lock:
                step, begin, end = self._store._step(begin, end, self.version, reverse)
            yield from step
            if begin >= end:
                return

    def release(self) -> None:
        self._store._release(self.version)


class MemoryKv:
    """A `KvEngine`. Each key has a short list of (version, value); values that no open snapshot sees are dropped."""

    def __init__(self, *, window_keys_max: int = WINDOW_KEYS_MAX) -> None:
        self._lock = threading.RLock()
        self._keys: list[bytes] = []  # sorted; has every key of _history
        self._history: dict[bytes, list[tuple[int, bytes | None]]] = {}
        self._version = 0
        self._open: dict[int, int] = {}  # snapshot version to how many hold it
        self._stale: set[bytes] = set()  # keys with a version to drop once no snapshot needs it
        self._window = ConflictWindow(window_keys_max)
        self._closed = False

    def transaction(self, *, read_only: bool = False) -> AbstractContextManager[Transaction]:
        if self._closed:
            raise error(Code.UNAVAILABLE, "the KV store is closed")
        return OccTransaction(self, read_only)

    def sync(self) -> None:
        """Memory survives no power cut; there is nothing to wait for."""

    def close(self) -> None:
        self._closed = True

    def open_snapshot(self) -> _View:
        with self._lock:
            self._open[self._version] = self._open.get(self._version, 0) + 1
            return _View(self, self._version)

    def apply(self, transaction: OccTransaction) -> None:
        with self._lock:
            if self._window.conflicts(transaction.snapshot_version, transaction.keys, transaction.ranges):
                raise error(Code.TXN_CONFLICT)
            self._version += 1
            for key, value in transaction.writes.items():
                history = self._history.get(key)
                if history is None:
                    if value is None:
                        continue
                    self._history[key] = [(self._version, value)]
                    insort(self._keys, key)
                else:
                    history.append((self._version, value))
                    self._stale.add(key)
            self._window.add(self._version, transaction.writes)

    def _release(self, version: int) -> None:
        with self._lock:
            left = self._open[version] - 1
            if left:
                self._open[version] = left
                return
            del self._open[version]
            if self._stale and not self._open:
                for key in self._stale:
                    last = self._history[key][-1]
                    if last[1] is None:
                        del self._history[key]
                        del self._keys[bisect_left(self._keys, key)]
                    else:
                        self._history[key] = [last]
                self._stale.clear()

    def _value_at(self, key: bytes, version: int) -> bytes | None:
        for written, value in reversed(self._history.get(key, ())):
            if written <= version:
                return value
        return None

    def _step(
        self, begin: bytes, end: bytes, version: int, reverse: bool
    ) -> tuple[list[tuple[bytes, bytes]], bytes, bytes]:
        """Up to SCAN_STEP keys of [begin, end) as of `version`, and the range that is left."""
        low, high = bisect_left(self._keys, begin), bisect_left(self._keys, end)
        if reverse:
            part = self._keys[max(low, high - SCAN_STEP) : high][::-1]
        else:
            part = self._keys[low : min(high, low + SCAN_STEP)]
        pairs = [(key, value) for key in part if (value := self._value_at(key, version)) is not None]
        if len(part) == high - low:
            return pairs, end, end
        return (pairs, begin, part[-1]) if reverse else (pairs, part[-1] + b"\0", end)
