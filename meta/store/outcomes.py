"""Mutations that were done, by request id, so that one sent twice is done once."""

from __future__ import annotations

from fireflyfs.common.kv.interface import KvEngine, Transaction, run
from fireflyfs.meta.core import keys
from fireflyfs.meta.core.records import Outcome

BUCKET_NS = 600 * 1_000_000_000  # outcomes lie in buckets of ten minutes, so that old ones go as one range
BUCKETS_KEPT = 4  # a retry may come up to half an hour late
EXPIRE_BATCH = 100


def bucket_of(now_ns: int) -> int:
    return now_ns // BUCKET_NS


def find(txn: Transaction, request_id: bytes, now_ns: int, *, retry: bool) -> Outcome | None:
    """The outcome of `request_id`, if it was done.

    A first sending looks too, in the newest two buckets: its own retry, on another connection, may have overtaken it.
    """
    newest = bucket_of(now_ns)
    for back in range(BUCKETS_KEPT if retry else 2):
        data = txn.get(keys.outcome(newest - back, request_id))
        if data is not None:
            return Outcome.unpack(data)
    return None


def record(txn: Transaction, request_id: bytes, outcome: Outcome) -> None:
    txn.put(keys.outcome(bucket_of(outcome.done_ns), request_id), outcome.pack())


def expire(engine: KvEngine, now_ns: int, after: bytes = b"") -> list[bytes]:
    """Remove one batch of expired outcomes; their keys. None: all are gone.

    With `after`, keys before it are not looked at: those that the batches before deleted are not passed over again.
    """
    begin, end = keys.outcomes_before(bucket_of(now_ns) - BUCKETS_KEPT + 1)

    def body(txn: Transaction) -> list[bytes]:
        old = [key for key, _ in txn.scan(max(begin, after), end, limit=EXPIRE_BATCH, snapshot=True)]
        for key in old:
            txn.delete(key)
        return old

    return run(engine, body)
