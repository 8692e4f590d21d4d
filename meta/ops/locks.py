"""Advisory locks as transactions: asking, setting, queueing, granting, dropping (docs/data_and_locks.md, Locks).

A lock that is dropped is given to whoever waits for it in the same transaction: nobody can come in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import LOCKS_AWAITED_MAX
from fireflyfs.common.lock_spans import Span, covers, with_span, without
from fireflyfs.meta.core.keys import ID_BYTES
from fireflyfs.meta.core.locks import (
    RANGE_END,
    Held,
    Kind,
    Owner,
    Waiter,
    behind,
    blockers,
    closes_ring,
    first_of,
    grants,
)
from fireflyfs.meta.core.permission import READ, WRITE, may
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.ops.reply import to_message
from fireflyfs.meta.store.lock_table import LockTable
from fireflyfs.proto import meta_pb2

GRANTS_MAX = 12  # in one transaction: each is six of its writes
RING_OWNERS_MAX = 64  # looked at before a request may wait
TOLD_MAX = 64  # grants in one answer, and heard in one request


def get_lock(op: Op, request: meta_pb2.GetLockRequest) -> meta_pb2.GetLockReply:
    """What is in the way of a lock for reading or writing; asked with UNLOCK, what the owner itself has in the range.

    So newer kernels answer F_OFD_GETLK with F_UNLCK. F_GETLK with it gets no further than the kernel.
    """
    kind, owner, span = _asked(op, request.lock)
    held = _table(op).held(request.inode, kind)
    if request.lock.type == meta_pb2.LOCK_UNLOCK:
        mine = held.get(owner)
        first = first_of(mine, span)
        return meta_pb2.GetLockReply(conflict=_message(kind, mine, first) if mine and first else None)
    in_the_way = blockers(held.values(), owner, span)
    return meta_pb2.GetLockReply(conflict=_message(kind, *in_the_way[0]) if in_the_way else None)


def set_lock(op: Op, request: meta_pb2.SetLockRequest) -> meta_pb2.SetLockReply:
    kind, owner, span = _asked(op, request.lock)
    if request.lock.type == meta_pb2.LOCK_UNLOCK:
        drop_range(op, request.inode, kind, owner, span.start, span.end)
        return meta_pb2.SetLockReply(granted=True)
    inode = op.tree.inode(request.inode)
    if not may(inode, op.who, READ) and not may(inode, op.who, WRITE):
        raise error(Code.ACCESS_DENIED)
    table = _table(op)
    held = table.held(inode.id, kind)
    mine = held.get(owner)
    if kind is Kind.FLOCK and mine is not None and mine.spans != (span,):
        # flock(2): converting takes the old lock away first; whoever waits may get it, or two would wait for ever.
        drop_range(op, inode.id, kind, owner, 0, RANGE_END)
        held = table.held(inode.id, kind)
        mine = None
    in_the_way = blockers(held.values(), owner, span)
    queue = table.queue(inode.id, kind) if request.wait else []
    if not in_the_way and not behind(queue, held, owner, request.lock.pid, span):
        spans = mine.spans if mine is not None else ()
        after = Held(owner, request.lock.pid, with_span(spans, span))
        table.room(held, owner.client_id, len(after.spans) - len(spans))
        table.put_held(inode.id, kind, mine, after)
        if mine is not None:
            give(op, inode.id, kind)  # a lock for writing may have become one for reading
        return meta_pb2.SetLockReply(granted=True, inode=to_message(inode))
    if not request.wait:
        return meta_pb2.SetLockReply(conflict=_message(kind, *in_the_way[0]))
    if len(request.mutation.request_id) != ID_BYTES:
        raise error(Code.INVALID, "a request that waits has a request id")
    if kind is Kind.RANGE and closes_ring(owner, _waits_for(table, owner, in_the_way), RING_OWNERS_MAX):
        raise error(Code.DEADLOCK)
    table.room({}, owner.client_id, 1)
    waiter = Waiter(0, bytes(request.mutation.request_id), owner, request.lock.pid, span, op.now_ns)
    return meta_pb2.SetLockReply(ticket=table.enqueue(inode.id, kind, queue, waiter))


def cancel_lock(op: Op, request: meta_pb2.CancelLockRequest) -> meta_pb2.CancelLockReply:
    table = _table(op)
    queued = request.queued
    kind = _kind(queued.kind)
    waiter = table.waiter(queued.inode, kind, queued.ticket)
    if waiter is not None and (waiter.request_id, waiter.owner.client_id) == (queued.request_id, op.who.client_id):
        table.dequeue(queued.inode, kind, waiter)
        give(op, queued.inode, kind)  # others may have waited behind it
        return meta_pb2.CancelLockReply()
    granted = table.is_granted(op.who.client_id, queued.request_id)
    if granted:
        table.heard(op.who.client_id, queued.request_id)
    return meta_pb2.CancelLockReply(granted=granted)


def hear(op: Op, request: meta_pb2.AwaitLocksRequest) -> meta_pb2.SetLockReply:
    """Forget grants that were told."""
    for request_id in request.heard[:TOLD_MAX]:
        if len(request_id) == ID_BYTES:
            _table(op).heard(op.who.client_id, request_id)
    return meta_pb2.SetLockReply()


def keep(op: Op, request: meta_pb2.AwaitLocksRequest) -> list[int]:
    """Which of `request.held` the client has lost; the rest is kept for a while, as if it was locked now."""
    if len(request.held) > LOCKS_AWAITED_MAX:
        raise error(Code.TOO_LARGE, f"{len(request.held)} locked ranges, at most {LOCKS_AWAITED_MAX} at once")
    table = _table(op)
    dropped = []
    for place, mine in enumerate(request.held):
        held = table.held_by(mine.inode, _kind(mine.kind), Owner(op.who.client_id, mine.owner))
        if held is None or not covers(held.spans, mine.start, mine.end):
            dropped.append(place)
    table.touch(op.who.client_id)
    return dropped


def news(op: Op, request: meta_pb2.AwaitLocksRequest) -> meta_pb2.AwaitLocksReply:
    """What became of a client's queued requests."""
    if len(request.waiting) > LOCKS_AWAITED_MAX:
        raise error(Code.TOO_LARGE, f"{len(request.waiting)} requests wait, at most {LOCKS_AWAITED_MAX} may")
    table = _table(op)
    granted = table.granted(op.who.client_id, TOLD_MAX)
    lost = []
    for queued in request.waiting:
        if queued.request_id in granted or table.is_granted(op.who.client_id, queued.request_id):
            continue
        waiter = table.waiter(queued.inode, _kind(queued.kind), queued.ticket)
        if waiter is None or waiter.request_id != queued.request_id:
            lost.append(queued.request_id)
    return meta_pb2.AwaitLocksReply(granted=granted, lost=lost)


def can_give(table: LockTable, inode_id: int, number: int, now_ns: int) -> bool:
    """Whether `give` would change anything."""
    kind = _kind(number)
    queue = table.queue(inode_id, kind)
    return bool(queue) and bool(grants(table.held(inode_id, kind).values(), queue, now_ns, 1).now)


def give(op: Op, inode_id: int, kind: Kind) -> None:
    """Grant what can be granted of a queue."""
    table = _table(op)
    queue = table.queue(inode_id, kind)
    if not queue:
        return
    held = table.held(inode_id, kind)
    found = grants(held.values(), queue, op.now_ns, GRANTS_MAX)
    for waiter in found.now:
        before = held.get(waiter.owner)
        after = Held(waiter.owner, waiter.pid, with_span(before.spans if before is not None else (), waiter.span))
        table.dequeue(inode_id, kind, waiter)
        table.put_held(inode_id, kind, before, after)
        held[waiter.owner] = after
        table.grant(waiter.owner.client_id, waiter.request_id)
        op.granted.add(waiter.owner.client_id)
    if found.more:
        op.regrant.append((inode_id, int(kind)))


def drop_range(op: Op, inode_id: int, kind: Kind, owner: Owner, start: int, end: int) -> None:
    """Unlock; what was not locked is no error."""
    table = _table(op)
    held = table.held(inode_id, kind)
    mine = held.get(owner)
    if mine is None:
        return
    spans = without(mine.spans, start, end)
    if spans == mine.spans:
        return
    if len(spans) > len(mine.spans):
        table.room(held, owner.client_id, len(spans) - len(mine.spans))
    table.put_held(inode_id, kind, mine, mine._replace(spans=spans))
    give(op, inode_id, kind)


def drop_some_of(op: Op, client_id: bytes, limit: int, oldest_ns: int) -> bool:
    """Drop locks and queued requests of a client that is gone, up to `limit` of each; whether there may be more.

    Nothing if it was heard of after `oldest_ns`: it may have come back since it was looked for.
    """
    last_ns = _table(op).count(client_id).changed_ns
    if last_ns >= oldest_ns:
        return False
    table = LockTable(op.tree.txn, last_ns)  # what is done here is not done by the client
    owned = table.owned_by(client_id, limit)
    queued = table.blocked_by(client_id, limit)
    unheard = table.granted(client_id, limit)
    for owner, inode_id, kind, ticket in queued:
        waiter = table.waiter(inode_id, kind, ticket)
        if waiter is not None and waiter.owner == owner:
            table.dequeue(inode_id, kind, waiter)
        else:
            table.unmark_blocked(owner, inode_id, kind, ticket)
    for owner, kind, inode_id in owned:
        mine = table.held(inode_id, kind).get(owner)
        if mine is not None:
            table.put_held(inode_id, kind, mine, mine._replace(spans=()))
        else:
            table.unmark_owned(owner, kind, inode_id)
    for request_id in unheard:
        table.heard(client_id, request_id)
    # Given out in transactions of their own: many locks of many queues would be too much for this one.
    op.regrant += sorted({(inode, int(kind)) for _, inode, kind, _ in queued} | {(i, int(k)) for _, k, i in owned})
    more = max(len(owned), len(queued), len(unheard)) == limit
    if not more:
        table.forget(client_id)
    return more


def _waits_for(
    table: LockTable, asker: Owner, in_the_way: Iterable[tuple[Held, Span]]
) -> Callable[[Owner], list[Owner]]:
    """Who is in the way of each owner's queued requests; of `asker`'s new one too."""
    mine = [held.owner for held, _ in in_the_way]

    def look(owner: Owner) -> list[Owner]:
        found = list(mine) if owner == asker else []
        for inode_id, kind, ticket in table.blocked(owner):
            waiter = table.waiter(inode_id, kind, ticket)
            if waiter is not None and kind is Kind.RANGE:
                found += [held.owner for held, _ in blockers(table.held(inode_id, kind).values(), owner, waiter.span)]
        return found

    return look


def _table(op: Op) -> LockTable:
    return LockTable(op.tree.txn, op.now_ns)


def _kind(number: int) -> Kind:
    try:
        return Kind(number)
    except ValueError:
        raise error(Code.INVALID, f"no kind of lock {number}") from None


def _asked(op: Op, lock: meta_pb2.Lock) -> tuple[Kind, Owner, Span]:
    """Raises INVALID."""
    kind = _kind(lock.kind)
    if len(op.who.client_id) != ID_BYTES:
        raise error(Code.INVALID, f"a client id has {ID_BYTES} bytes")
    if lock.type not in (meta_pb2.LOCK_READ, meta_pb2.LOCK_WRITE, meta_pb2.LOCK_UNLOCK):
        raise error(Code.INVALID, f"no type of lock {lock.type}")
    if not lock.start <= lock.end <= RANGE_END:
        raise error(Code.INVALID, f"no range of bytes: {lock.start} to {lock.end}")
    if kind is Kind.FLOCK and (lock.start, lock.end) != (0, RANGE_END):
        raise error(Code.INVALID, "flock locks whole files")
    return kind, Owner(op.who.client_id, lock.owner), Span(lock.start, lock.end, lock.type == meta_pb2.LOCK_WRITE)


def _message(kind: Kind, held: Held, span: Span) -> meta_pb2.Lock:
    return meta_pb2.Lock(
        kind=meta_pb2.LOCK_FLOCK if kind is Kind.FLOCK else meta_pb2.LOCK_RANGE,
        type=meta_pb2.LOCK_WRITE if span.write else meta_pb2.LOCK_READ,
        start=span.start,
        end=span.end,
        owner=held.owner.number,
        pid=held.pid,
    )
