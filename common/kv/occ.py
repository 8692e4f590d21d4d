"""Optimistic transactions over a versioned store: what the embedded drivers share.

A driver gives snapshots and applies writes; this module keeps the read set, the overlay of own writes and the window
of recent commits against which conflicts are decided. The window is bounded: a transaction that is older than the
window conflicts, as it would on a remote store that forgot its revision.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Protocol

from fireflyfs.common.errors import Code, error
from fireflyfs.common.kv.interface import KEY_BYTES_MAX, TRANSACTION_WRITES_MAX, VALUE_BYTES_MAX

WINDOW_KEYS_MAX = 65_536  # recently written keys that are remembered for conflict checks


class SnapshotView(Protocol):
    """The store as of one version."""

    version: int

    def get(self, key: bytes) -> bytes | None: ...

    def scan(self, begin: bytes, end: bytes, reverse: bool) -> Iterator[tuple[bytes, bytes]]: ...

    def release(self) -> None: ...


class VersionedStore(Protocol):
    """What a driver must offer to `OccTransaction`."""

    def open_snapshot(self) -> SnapshotView: ...

    def apply(self, transaction: OccTransaction) -> None:
        """Check conflicts, write, and move the version on, all or nothing. Raises TXN_CONFLICT."""


class ConflictWindow:
    """The keys of the latest commits, newest last. Guarded by the driver's lock."""

    __slots__ = ("_commits", "_floor", "_keys", "_keys_max")

    def __init__(self, keys_max: int = WINDOW_KEYS_MAX) -> None:
        self._commits: deque[tuple[int, tuple[bytes, ...]]] = deque()
        self._floor = 0  # snapshots below this version cannot be checked any more
        self._keys = 0
        self._keys_max = keys_max

    def add(self, version: int, keys: Iterable[bytes]) -> None:
        """Remember a commit. `version` grows with every call."""
        written = tuple(keys)
        self._commits.append((version, written))
        self._keys += len(written)
        while self._keys > self._keys_max and len(self._commits) > 1:
            self._floor, dropped = self._commits.popleft()
            self._keys -= len(dropped)

    def conflicts(self, snapshot: int, keys: set[bytes], ranges: list[list[bytes]]) -> bool:
        """Whether a commit after `snapshot` wrote one of `keys` or a key inside one of `ranges`."""
        if not keys and not ranges:
            return False
        if snapshot < self._floor:
            return True
        for version, written in reversed(self._commits):
            if version <= snapshot:
                return False
            for key in written:
                if key in keys:
                    return True
                for begin, end in ranges:
                    if begin <= key < end:
                        return True
        return False

    def changed_since(self, snapshot: int) -> set[bytes]:
        """Keys that commits after `snapshot` wrote. Raises TXN_CONFLICT when that is forgotten."""
        if snapshot < self._floor:
            raise error(Code.TXN_CONFLICT, "the transaction is older than what this store remembers")
        changed: set[bytes] = set()
        for version, written in reversed(self._commits):
            if version <= snapshot:
                break
            changed.update(written)
        return changed


class OccTransaction:
    """A `Transaction` on a `VersionedStore`, and the context manager that cancels it."""

    __slots__ = ("_done", "_read_only", "_store", "_view", "keys", "ranges", "writes")

    def __init__(self, store: VersionedStore, read_only: bool) -> None:
        self._store = store
        self._read_only = read_only
        self._view: SnapshotView | None = None
        self._done = False
        self.keys: set[bytes] = set()
        self.ranges: list[list[bytes]] = []  # [begin, end), grown in place while a scan walks
        self.writes: dict[bytes, bytes | None] = {}  # None: deleted

    @property
    def snapshot_version(self) -> int:
        """The version that the reads saw; meaningful only with a non-empty read set."""
        return self._view.version if self._view is not None else 0

    def __enter__(self) -> OccTransaction:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.cancel()

    def _snapshot(self) -> SnapshotView:
        view = self._view
        if view is None or self._done:
            if self._done:
                raise error(Code.INTERNAL, "transaction used after commit or cancel")
            view = self._view = self._store.open_snapshot()
        return view

    def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        view = self._view
        if view is None or self._done:
            view = self._snapshot()
        if not self._read_only:
            if key in self.writes:
                return self.writes[key]
            if not snapshot:
                self.keys.add(key)
        return view.get(key)

    def scan(
        self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False, snapshot: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Own writes made while the iterator is being walked are not seen by it."""
        view = self._snapshot()
        if begin >= end:
            return iter(())
        own = {key: value for key, value in self.writes.items() if begin <= key < end} if self.writes else {}
        pairs = view.scan(begin, end, reverse)
        if own:
            pairs = overlay(pairs, own, reverse)
        return self._walk(pairs, begin, end, limit, reverse, snapshot or self._read_only)

    def _walk(
        self, pairs: Iterator[tuple[bytes, bytes]], begin: bytes, end: bytes, limit: int, reverse: bool, quiet: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        walked = [end, end] if reverse else [begin, begin]
        if not quiet:
            self.ranges.append(walked)
        for count, pair in enumerate(pairs, 1):
            if reverse:
                walked[0] = pair[0]
            else:
                walked[1] = pair[0] + b"\0"
            yield pair
            if self._done:
                raise error(Code.INTERNAL, "scan continued after commit or cancel")
            if count == limit:
                return
        walked[0], walked[1] = begin, end

    def _writing(self, key: bytes) -> None:
        if self._done or self._read_only:
            raise error(Code.INTERNAL, "write in a transaction that is read-only or has ended")
        if not key or len(key) > KEY_BYTES_MAX:
            raise error(Code.TOO_LARGE, f"key of {len(key)} bytes; 1 to {KEY_BYTES_MAX} are allowed")
        if len(self.writes) >= TRANSACTION_WRITES_MAX and key not in self.writes:
            raise error(Code.TOO_LARGE, f"more than {TRANSACTION_WRITES_MAX} writes in one transaction")

    def put(self, key: bytes, value: bytes) -> None:
        self._writing(key)
        if len(value) > VALUE_BYTES_MAX:
            raise error(Code.TOO_LARGE, f"value of {len(value)} bytes; at most {VALUE_BYTES_MAX} are allowed")
        self.writes[key] = value

    def delete(self, key: bytes) -> None:
        self._writing(key)
        self.writes[key] = None

    def add_read_conflict(self, key: bytes) -> None:
        self._snapshot()
        if not self._read_only:
            self.keys.add(key)

    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None:
        self._snapshot()
        if not self._read_only and begin < end:
            self.ranges.append([begin, end])

    def commit(self) -> None:
        if self._done:
            raise error(Code.INTERNAL, "transaction used after commit or cancel")
        self._done = True
        try:
            if self.writes:
                self._store.apply(self)
        finally:
            self._release()

    def cancel(self) -> None:
        self._done = True
        self._release()

    def _release(self) -> None:
        if self._view is not None:
            self._view.release()
            self._view = None


def overlay(
    pairs: Iterator[tuple[bytes, bytes]], own: Mapping[bytes, bytes | None], reverse: bool
) -> Iterator[tuple[bytes, bytes]]:
    """Merge stored pairs with `own` (None: deleted) in the scan's order; `own` wins."""
    keys = sorted(own, reverse=reverse)
    place = 0
    for pair in pairs:
        key = pair[0]
        while place < len(keys) and (keys[place] > key if reverse else keys[place] < key):
            value = own[keys[place]]
            if value is not None:
                yield keys[place], value
            place += 1
        if key in own:
            value = own[key]
            place += 1
            if value is not None:
                yield key, value
        else:
            yield pair
    for mine in keys[place:]:
        value = own[mine]
        if value is not None:
            yield mine, value
