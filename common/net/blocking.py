"""`BlockingLink`: a bounded pool of blocking connections to each server.

One thread uses a connection at a time. A batch takes one connection to each server it names, sends everything, then
takes the answers. Connections to several servers are always taken in the same order, so that two batches cannot wait
for each other.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Final

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import DEADLINE_S_MAX
from fireflyfs.common.net.api import Address, Begun, Call, MemoryPool, Reply
from fireflyfs.common.net.busy_poll import Waiters, busy_poll_s
from fireflyfs.common.net.counting import Counts, Tally, Traffic
from fireflyfs.common.net.dial import dial
from fireflyfs.common.net.exchange import Exchange
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.memory import SharedMemory, SharedPool, WithdrawListener
from fireflyfs.common.net.pending import Pending
from fireflyfs.common.net.rdma.adapters import revoke
from fireflyfs.common.net.receivers import Receivers
from fireflyfs.common.net.staging import StagingPool

CONNECT_S_MAX: Final = 10.0
SERVERS_MAX: Final = 4096  # remembered addresses; idle ones are dropped first
STALE_CHECK_S: Final = 0.05  # a connection idle for longer is looked at before it is used


def _reply_of(pending: Pending) -> Reply:
    """Raises what the call failed with."""
    outcome = pending.outcome
    if isinstance(outcome, Reply):
        return outcome
    raise outcome if outcome is not None else error(Code.INTERNAL, "a call without an outcome")


class _Server:
    """The connections to one address. Changed with the lock held."""

    __slots__ = ("ended", "forgotten", "idle", "lock", "open", "used", "waiting")

    def __init__(self) -> None:
        self.lock = threading.Condition(threading.Lock())
        self.idle: list[Exchange] = []
        self.open: set[Exchange] = set()  # idle ones and those in use
        self.ended: dict[str, Counts] = {}  # of closed connections, by link
        self.used = 0
        self.waiting = 0
        self.forgotten = False  # what comes back is closed

    def close(self, connection: Exchange) -> None:
        connection.close()
        self.open.discard(connection)
        self.ended.setdefault(connection.link, Counts()).add(connection.counts)

    def forget(self) -> None:
        self.forgotten = True
        while self.idle:
            self.close(self.idle.pop())
        self.lock.notify_all()


class _Begun:
    """Has the connection to itself until it ends; who is interrupted before drops it."""

    __slots__ = ("_connection", "_ended", "_pending", "_pool", "_server")

    def __init__(self, pool: BlockingPool, server: _Server, connection: Exchange, pending: Pending) -> None:
        self._pool = pool
        self._server = server
        self._connection = connection
        self._pending = pending
        self._ended = False
        if not pool._waiters.many_processors:
            pool._waiters.enter(connection)  # two servers are at work: who looks for the other's answer is in the way

    def finish(self) -> Reply:
        self._pool._waiters.leave(self._connection)
        try:
            self._connection.receive()
        finally:
            self.give_up()
        return _reply_of(self._pending)

    def give_up(self) -> None:
        if not self._ended:
            self._ended = True
            self._pool._waiters.leave(self._connection)
            self._pool._put_back(self._server, self._connection)

    def __del__(self) -> None:
        self.give_up()


class BlockingPool(WithdrawListener):
    """A `BlockingLink`. `pool` is what `allocate` comes from; a `SharedPool` lets shm move data without a copy."""

    pool: MemoryPool

    def __init__(self, identity: Identity, *, pool: MemoryPool | None = None, connections_max: int = 8) -> None:
        self.identity = identity
        self.pool = pool if pool is not None else SharedPool()
        self._connections_max = connections_max
        self._reset()
        if isinstance(self.pool, SharedPool):
            self.pool.subscribe(self)
        _pools.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._withdrawals = 0
        self._servers: dict[Address, _Server] = {}
        self._staging_pool = SharedPool()
        self._staging_pool.subscribe(self)
        self._staging = StagingPool(self._staging_pool)
        self._waiters = Waiters(busy_poll_s())
        self._receivers = Receivers()
        self._closed = False

    def call(self, address: Address, call: Call) -> Reply:
        server, connection, pending = self._send(address, call)
        try:
            connection.receive()
        finally:
            self._put_back(server, connection)
        return _reply_of(pending)

    def begin(self, address: Address, call: Call) -> Begun:
        return _Begun(self, *self._send(address, call))

    def _send(self, address: Address, call: Call) -> tuple[_Server, Exchange, Pending]:
        """The connection is taken until `_put_back`."""
        now_s = time.monotonic()
        pending = Pending(call, now_s)
        server = self._servers.get(address) or self._server(address)
        connection = self._acquire(address, server, now_s + call.deadline_s)
        try:
            connection.send((pending,))
        except BaseException:
            self._put_back(server, connection)
            raise
        return server, connection, pending

    def call_many(self, calls: Sequence[tuple[Address, Call]]) -> list[Reply | FfsError]:
        now_s = time.monotonic()
        pendings = [Pending(call, now_s) for _, call in calls]
        groups: dict[Address, list[Pending]] = {}
        for (address, _), pending in zip(calls, pendings, strict=True):
            group = groups.get(address)
            if group is None:
                groups[address] = [pending]
            else:
                group.append(pending)
        taken: list[tuple[_Server, Exchange]] = []
        try:
            for address in sorted(groups, key=_order) if len(groups) > 1 else groups:
                group = groups[address]
                server = self._servers.get(address) or self._server(address)
                try:
                    connection = self._acquire(address, server, min(pending.deadline_s for pending in group))
                except FfsError as exc:
                    for pending in group:
                        pending.outcome = exc
                    continue
                taken.append((server, connection))
                connection.send(group)
            self._receivers.receive([connection for _, connection in taken])
        finally:
            for server, connection in taken:
                self._put_back(server, connection)
        return [p.outcome if p.outcome is not None else error(Code.INTERNAL, "no outcome") for p in pendings]

    def close(self) -> None:
        """Close idle connections now and busy ones when they come back."""
        with self._lock:
            self._closed = True
            servers = list(self._servers.values())
            self._servers.clear()
        for server in servers:
            with server.lock:
                server.forget()
        self._staging.close()
        self._receivers.close()

    def traffic(self) -> list[Traffic]:
        """What went to and came from each server that is remembered, by link."""
        tally = Tally()
        with self._lock:
            servers = list(self._servers.items())
        for address, server in servers:
            peer = address.tcp or address.unix
            with server.lock:
                for connection in server.open:
                    tally.open(peer, connection.link, connection.counts, connection.in_flight)
                for link, counts in server.ended.items():
                    tally.ended(peer, link, counts)
        return tally.traffic()

    def memory_closed(self, memory: SharedMemory) -> None:
        """Idle connections withdraw it now, busy ones when they come back. No rdma peer reaches it from now on."""
        revoke(memory)
        with self._lock:
            self._withdrawals += 1
            servers = list(self._servers.values())
        for server in servers:
            with server.lock:
                for connection in server.idle:
                    connection.withdraw_closed()

    # Ours

    def _server(self, address: Address) -> _Server:
        with self._lock:
            if self._closed:
                raise error(Code.CANCELLED, "the link is closed")
            server = self._servers.get(address)
            if server is None:
                if len(self._servers) >= SERVERS_MAX:
                    self._forget_one()
                server = self._servers[address] = _Server()
            return server

    def _forget_one(self) -> None:
        for address, server in self._servers.items():
            with server.lock:
                if server.used:
                    continue
                server.forget()
            del self._servers[address]
            return
        raise error(Code.OVERLOADED, f"connections to {SERVERS_MAX} servers are in use")

    def _acquire(self, address: Address, server: _Server, deadline_s: float) -> Exchange:
        with server.lock:
            while True:
                while server.idle:
                    connection = server.idle.pop()
                    if connection.broken is None and (
                        time.monotonic() - connection.last_used_s < STALE_CHECK_S or not connection.is_stale()
                    ):
                        server.used += 1
                        return connection
                    server.close(connection)
                if server.used < self._connections_max:
                    server.used += 1
                    break
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or self._closed:
                    raise error(Code.OVERLOADED, f"{self._connections_max} connections to {address.tcp} are in use")
                server.waiting += 1
                try:
                    server.lock.wait(min(left_s, DEADLINE_S_MAX))
                finally:
                    server.waiting -= 1
        try:
            left_s = max(deadline_s - time.monotonic(), 0.0)
            dialed = dial(self.identity, address, min(left_s, CONNECT_S_MAX))
            connection = Exchange(dialed, self._staging, self._waiters)
        except BaseException:
            self._leave(server)
            raise
        with server.lock:
            server.open.add(connection)
        return connection

    def _leave(self, server: _Server) -> None:
        with server.lock:
            server.used -= 1
            server.lock.notify()

    def _put_back(self, server: _Server, connection: Exchange) -> None:
        if connection.in_flight and connection.broken is None:
            connection.give_up()  # the caller was interrupted: answers must not land in its memory later
        with server.lock:
            if connection.broken is None and connection.withdrawals_seen != self._withdrawals:
                connection.withdrawals_seen = self._withdrawals
                connection.withdraw_closed()
            server.used -= 1
            if connection.broken is None and not self._closed and not server.forgotten:
                server.idle.append(connection)
            else:
                server.close(connection)
            if server.waiting:
                server.lock.notify()


def _order(address: Address) -> tuple[str, str, str]:
    return (address.tcp, address.unix, address.host_id)


_pools: weakref.WeakSet[BlockingPool] = weakref.WeakSet()


def _after_fork() -> None:
    """A child must not speak on its parent's connections: it opens its own. No lock of before is ever free here."""
    for pool in list(_pools):
        for server in pool._servers.values():
            for connection in server.open:
                connection.abandon()
        pool._reset()


os.register_at_fork(after_in_child=_after_fork)
