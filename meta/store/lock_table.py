"""The lock tables inside one transaction: every change keeps records, indexes and counts together."""

from __future__ import annotations

from collections.abc import Iterator

from fireflyfs.common.errors import Code, error
from fireflyfs.common.kv.interface import Transaction
from fireflyfs.common.limits import LOCKS_CLIENT_MAX, LOCKS_INODE_MAX, LOCKS_QUEUED_MAX
from fireflyfs.meta.core import lock_keys
from fireflyfs.meta.core.lock_keys import MARK, Count
from fireflyfs.meta.core.locks import Held, Kind, Owner, Waiter


class LockTable:
    """Everything read is in the transaction's conflict set."""

    __slots__ = ("_now_ns", "_txn")

    def __init__(self, txn: Transaction, now_ns: int) -> None:
        self._txn = txn
        self._now_ns = now_ns

    def held(self, inode: int, kind: Kind) -> dict[Owner, Held]:
        found = {}
        for key, value in self._txn.scan(*lock_keys.held_of(inode, kind)):
            owner = lock_keys.owner_of_held(key)
            found[owner] = lock_keys.unpack_held(owner, value)
        return found

    def held_by(self, inode: int, kind: Kind, owner: Owner) -> Held | None:
        data = self._txn.get(lock_keys.held(inode, kind, owner))
        return None if data is None else lock_keys.unpack_held(owner, data)

    def put_held(self, inode: int, kind: Kind, before: Held | None, after: Held) -> None:
        """`after` in place of what its owner had; without spans, nothing."""
        owner = after.owner
        key = lock_keys.held(inode, kind, owner)
        index = lock_keys.owned(owner, kind, inode)
        grown = len(after.spans) - (len(before.spans) if before is not None else 0)
        if after.spans:
            self._txn.put(key, lock_keys.pack_held(after))
            if before is None:
                self._txn.put(index, MARK)
        elif before is not None:
            self._txn.delete(key)
            self._txn.delete(index)
        self._count(owner.client_id, spans=grown)

    def room(self, held: dict[Owner, Held], client_id: bytes, spans: int) -> None:
        """Raises NO_LOCKS when `spans` more would be over a bound."""
        if sum([len(each.spans) for each in held.values()]) + spans > LOCKS_INODE_MAX:
            raise error(Code.NO_LOCKS, f"{LOCKS_INODE_MAX} ranges of one file may be locked")
        count = self.count(client_id)
        if count.spans + count.waiters + spans > LOCKS_CLIENT_MAX:
            raise error(Code.NO_LOCKS, f"{LOCKS_CLIENT_MAX} ranges may be locked by one client")

    def queue(self, inode: int, kind: Kind) -> list[Waiter]:
        begin, end = lock_keys.queue(inode, kind)
        return [lock_keys.unpack_waiter(lock_keys.ticket_of(key), value) for key, value in self._txn.scan(begin, end)]

    def waiter(self, inode: int, kind: Kind, ticket: int) -> Waiter | None:
        data = self._txn.get(lock_keys.waiter(inode, kind, ticket))
        return None if data is None else lock_keys.unpack_waiter(ticket, data)

    def enqueue(self, inode: int, kind: Kind, queue: list[Waiter], waiter: Waiter) -> int:
        """Put `waiter` at the end; its ticket. Raises NO_LOCKS when the queue is full."""
        if len(queue) >= LOCKS_QUEUED_MAX:
            raise error(Code.NO_LOCKS, f"{LOCKS_QUEUED_MAX} requests may wait for locks of one file")
        ticket = queue[-1].ticket + 1 if queue else 1
        self._txn.put(lock_keys.waiter(inode, kind, ticket), lock_keys.pack_waiter(waiter))
        self._txn.put(lock_keys.blocked(waiter.owner, inode, kind, ticket), MARK)
        self._count(waiter.owner.client_id, waiters=1)
        return ticket

    def dequeue(self, inode: int, kind: Kind, waiter: Waiter) -> None:
        self._txn.delete(lock_keys.waiter(inode, kind, waiter.ticket))
        self._txn.delete(lock_keys.blocked(waiter.owner, inode, kind, waiter.ticket))
        self._count(waiter.owner.client_id, waiters=-1)

    def blocked(self, owner: Owner) -> list[tuple[int, Kind, int]]:
        """(inode, kind, ticket) of what an owner waits for."""
        return [lock_keys.unpack_blocked(key)[1:] for key, _ in self._txn.scan(*lock_keys.blocked_of(owner))]

    def grant(self, client_id: bytes, request_id: bytes) -> None:
        self._txn.put(lock_keys.granted(client_id, request_id), MARK)

    def is_granted(self, client_id: bytes, request_id: bytes) -> bool:
        return self._txn.get(lock_keys.granted(client_id, request_id)) is not None

    def heard(self, client_id: bytes, request_id: bytes) -> None:
        self._txn.delete(lock_keys.granted(client_id, request_id))

    def granted(self, client_id: bytes, limit: int) -> list[bytes]:
        begin, end = lock_keys.granted_to(client_id)
        return [lock_keys.request_of_granted(key) for key, _ in self._txn.scan(begin, end, limit=limit)]

    def count(self, client_id: bytes) -> Count:
        data = self._txn.get(lock_keys.count(client_id))
        return Count(0, 0, 0) if data is None else lock_keys.unpack_count(data)

    def _count(self, client_id: bytes, *, spans: int = 0, waiters: int = 0) -> None:
        if not spans and not waiters:
            return
        was = self.count(client_id)
        now = Count(was.spans + spans, was.waiters + waiters, self._now_ns)
        if now.spans or now.waiters:
            self._txn.put(lock_keys.count(client_id), lock_keys.pack_count(now))
        else:
            self._txn.delete(lock_keys.count(client_id))

    def touch(self, client_id: bytes) -> None:
        """The client has just shown that it is there."""
        count = self.count(client_id)
        if count.spans or count.waiters:
            self._txn.put(lock_keys.count(client_id), lock_keys.pack_count(count._replace(changed_ns=self._now_ns)))

    # For clients that are gone

    def clients(self, after: bytes, limit: int) -> list[tuple[bytes, Count]]:
        """Those behind the client `after` that have anything, in order. Who has unlocked what it was granted, and not
        heard of the grant, is not counted any more."""
        found = dict.fromkeys(self._told_nothing(after, limit), Count(0, 0, 0))
        for key, value in self._txn.scan(*lock_keys.counts(after), limit=limit):
            found[lock_keys.client_of_count(key)] = lock_keys.unpack_count(value)
        return sorted(found.items())[:limit]

    def _told_nothing(self, after: bytes, limit: int) -> Iterator[bytes]:
        """Clients with grants that they have not heard of: a look for each, however many grants it has."""
        for _ in range(limit):
            first = next(iter(self._txn.scan(*lock_keys.grants(after), limit=1)), None)
            if first is None:
                return
            after = lock_keys.client_of_granted(first[0])
            yield after

    def owned_by(self, client_id: bytes, limit: int) -> list[tuple[Owner, Kind, int]]:
        begin, end = lock_keys.owned_by_client(client_id)
        return [lock_keys.unpack_owned(key) for key, _ in self._txn.scan(begin, end, limit=limit)]

    def blocked_by(self, client_id: bytes, limit: int) -> list[tuple[Owner, int, Kind, int]]:
        begin, end = lock_keys.blocked_of_client(client_id)
        return [lock_keys.unpack_blocked(key) for key, _ in self._txn.scan(begin, end, limit=limit)]

    def unmark_owned(self, owner: Owner, kind: Kind, inode: int) -> None:
        """A mark that leads nowhere."""
        self._txn.delete(lock_keys.owned(owner, kind, inode))

    def unmark_blocked(self, owner: Owner, inode: int, kind: Kind, ticket: int) -> None:
        """The same of a queued request."""
        self._txn.delete(lock_keys.blocked(owner, inode, kind, ticket))

    def forget(self, client_id: bytes) -> None:
        """The client has nothing any more, whatever was counted."""
        self._txn.delete(lock_keys.count(client_id))
