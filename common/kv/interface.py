"""The transaction contract that every KV driver keeps.

An ordered map from bytes to bytes with serializable, optimistic transactions. The contract is small enough for etcd
(reads at a revision, compare on key and range revisions, about 128 writes a transaction), FoundationDB and a
SERIALIZABLE SQL store:

- Reads see one snapshot, taken at the transaction's first read, overlaid with the transaction's own writes.
- `get` and `scan` put what they read into the conflict set; `snapshot=True` does not, and
  `add_read_conflict` / `add_read_conflict_range` add keys explicitly.
- `commit` is atomic. It raises `TXN_CONFLICT` (nothing happened, run it again) when a conflict key changed after the
  snapshot, `TXN_UNKNOWN` when it may or may not have happened. A read-only transaction always commits.
- A store remembers a bounded past: a read in a transaction that is too old raises `TXN_CONFLICT` too.
- Nothing may rely on being alone: even on an embedded store the conflict rules are kept and tested.

Calls block; a driver for a remote store runs each transaction in a thread. `run` is the retry loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from fireflyfs.common.errors import Code, FfsError

KEY_BYTES_MAX = 4096
VALUE_BYTES_MAX = 1 << 20
TRANSACTION_WRITES_MAX = 120
TRANSACTION_ATTEMPTS_MAX = 20

T = TypeVar("T")


class Transaction(Protocol):
    """One transaction. Not shared between threads. Use after commit or cancel raises INTERNAL."""

    def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        """The value of `key`, or None."""

    def scan(
        self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False, snapshot: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs of [begin, end) in key order; at most `limit` if it is not 0.

        Conflicts on the part of the range that was actually walked.
        """

    def put(self, key: bytes, value: bytes) -> None: ...

    def delete(self, key: bytes) -> None:
        """Remove `key`; one that does not exist is no error."""

    def add_read_conflict(self, key: bytes) -> None: ...

    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None: ...

    def commit(self) -> None: ...

    def cancel(self) -> None:
        """Forget everything; calling it again, or after commit, does nothing."""


class KvEngine(Protocol):
    """A store. Safe to use from several threads, each with its own transactions."""

    def transaction(self, *, read_only: bool = False) -> AbstractContextManager[Transaction]:
        """A new transaction; leaving the block without commit cancels it."""

    def sync(self) -> None:
        """Returns when every commit so far survives a power cut."""

    def close(self) -> None: ...


def run(engine: KvEngine, body: Callable[[Transaction], T], *, attempts_max: int = TRANSACTION_ATTEMPTS_MAX) -> T:
    """Run `body` in a transaction and commit it, again on TXN_CONFLICT; `body` must bear being run again.

    Raises what `body` raises (nothing is committed then), TXN_CONFLICT after `attempts_max` conflicts, and
    TXN_UNKNOWN at once: only the caller knows how to tell whether it happened.
    """
    for attempt in range(attempts_max):
        with engine.transaction() as txn:
            try:
                result = body(txn)
                txn.commit()
            except FfsError as exc:
                if exc.code is not Code.TXN_CONFLICT or attempt + 1 == attempts_max:
                    raise
                continue
            return result
    raise AssertionError("unreachable: the loop returns or raises")


def read(engine: KvEngine, body: Callable[[Transaction], T], *, attempts_max: int = TRANSACTION_ATTEMPTS_MAX) -> T:
    """Run a read-only `body` on one snapshot, again on a newer one when it took too long for the store."""
    for attempt in range(attempts_max):
        with engine.transaction(read_only=True) as txn:
            try:
                return body(txn)
            except FfsError as exc:
                if exc.code is not Code.TXN_CONFLICT or attempt + 1 == attempts_max:
                    raise
    raise AssertionError("unreachable: the loop returns or raises")
