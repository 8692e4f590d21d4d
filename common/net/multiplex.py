"""`AsyncLink`: one connection to each server, many requests on it at once. Used between servers.

Plain memory travels on the socket, straight from and to where it lies. Slices of a `SharedPool` go by descriptor
where the server shares memory with us. With rdma plain pieces of some length go through registered memory (one copy),
for what lies anywhere cannot be registered as fast as it is copied.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import DEADLINE_S_MAX, REGIONS_MAX
from fireflyfs.common.net import frame
from fireflyfs.common.net.admission import Admission
from fireflyfs.common.net.api import Address, Call, MemoryPool, Piece, Reply, Slice
from fireflyfs.common.net.counting import Counts, Tally, Traffic
from fireflyfs.common.net.dial import Dialed, dial
from fireflyfs.common.net.frame import INLINE, Buffer, Header, Kind, Segment
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.memory import PrivatePool, SharedMemory, SharedPool, WithdrawListener
from fireflyfs.common.net.pending import view_of
from fireflyfs.common.net.rdma.adapters import revoke
from fireflyfs.common.net.rdma.client import last_words
from fireflyfs.common.net.staging import StagedCall, StagingPool
from fireflyfs.common.net.stream import Stream
from fireflyfs.common.start_now import answer_now

CONNECT_S_MAX: Final = 10.0


class _Pending:
    """A call on its way."""

    __slots__ = ("body", "deadline_s", "future", "into", "payload", "pushed", "rooms", "shared", "staged")

    def __init__(self, future: asyncio.Future[Reply], deadline_s: float) -> None:
        self.future = future
        self.deadline_s = deadline_s  # on the loop's clock
        self.into: list[memoryview | None] = []
        self.rooms: list[int] = []
        self.shared: list[SharedMemory] = []
        self.payload = 0
        self.staged: StagedCall | None = None  # whose registered memory the server reads and fills
        self.pushed: Sequence[int] = ()
        self.body = b""


class _Connection(Stream):
    """The client's end of a pipelined connection."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        dialed: Dialed,
        staging: StagingPool,
        gone: Callable[[_Connection], None],
    ) -> None:
        """`gone` is called when it is closed."""
        super().__init__(loop, dialed.sock)
        self.name = dialed.name
        self.shares = dialed.shares
        self.link = dialed.link
        self.counts = Counts()
        self._rdma = dialed.rdma
        self._staging = staging
        self._gone = gone
        welcome = dialed.welcome
        self._admission = Admission(loop, dialed.name, welcome.requests_max, welcome.data_bytes_max)
        self._outstanding: dict[int, _Pending] = {}
        self._next_id = 1
        self._landing: _Pending | None = None
        self._regions: dict[int, SharedMemory] = {}
        self._alarm: asyncio.TimerHandle | None = None  # at the earliest deadline there was when it was set

    # Stream

    def on_frame(self, header: Header, table: memoryview, body: memoryview) -> Sequence[memoryview] | None:
        if header.kind == Kind.REFUSE:
            frame.parse_answer(header, body)
        if header.kind != Kind.REPLY:
            raise error(Code.PROTOCOL, f"{self.name} sent a frame of kind {header.kind} where a reply belongs")
        pending = self._outstanding.get(header.request_id)
        if pending is None:
            raise error(Code.PROTOCOL, f"{self.name} answered request {header.request_id}, which is not outstanding")
        if header.status:
            if header.data_len:
                raise error(Code.PROTOCOL, "a failure carries payload")
            self._finish(header.request_id, pending)
            self.counts.failures += 1
            if not pending.future.done():
                pending.future.set_exception(error(header.status, bytes(body).decode("utf-8", "replace")))
            return ()
        pending.pushed = frame.parse_pushed(header, table, pending.rooms) if header.n_into else ()
        self.counts.bytes_in += sum(pending.pushed)
        pending.body = bytes(body)
        sinks = [s[:n] for s, n in zip(pending.into, pending.pushed, strict=False) if s is not None and n]
        if sum(map(len, sinks)) != header.data_len:
            raise error(Code.PROTOCOL, f"{self.name} sent {header.data_len} bytes of payload, its table says otherwise")
        self._finish(header.request_id, pending)
        if header.data_len:
            self._landing = pending
            if pending.future.done():  # nobody waits: the caller may use its memory for something else by now
                return [memoryview(bytearray(header.data_len))]
            return sinks
        self._answered(pending)
        return ()

    def on_data(self) -> None:
        pending = self._landing
        self._landing = None
        if pending is not None:
            self._answered(pending)

    def on_last_words(self, data: bytes) -> FfsError:
        return last_words(data, self.name)

    def on_closed(self, exc: FfsError) -> None:
        if self._rdma is not None:
            self._rdma.close()  # first: then no peer writes into what the calls offered
        pendings = list(self._outstanding.values())
        if self._landing is not None:
            pendings.append(self._landing)
        for pending in self._outstanding.values():
            if pending.staged is not None:
                pending.staged.leave()
        self._outstanding.clear()
        if self._alarm is not None:
            self._alarm.cancel()
        self.counts.failures += len(pendings)
        for pending in pendings:
            for memory in pending.shared:
                memory.tainted = True
            if not pending.future.done():
                pending.future.set_exception(error(exc.code, exc.message))
        self._admission.end(exc)
        self._regions.clear()
        self._gone(self)

    # Ours

    @property
    def in_flight(self) -> int:
        return len(self._outstanding)

    def _answered(self, pending: _Pending) -> None:
        if not pending.future.done():
            answer_now(self.loop, pending.future, Reply(pending.body, pending.pushed))

    def _finish(self, request_id: int, pending: _Pending) -> None:
        del self._outstanding[request_id]
        if pending.staged is not None:
            pending.staged.leave()
        self._admission.leave(pending.payload)

    async def call(self, call: Call, deadline_s: float) -> Reply:
        """Send, wait, return the answer. Raises TIMEOUT at `deadline_s` of the loop's clock."""
        staged = StagedCall.of(call, self._staging) if self._rdma is not None else None
        if staged is None:
            return await self._call(call, deadline_s, None)
        try:
            reply = await self._call(staged.call, deadline_s, staged)
            staged.land(reply.pushed)
            return reply
        finally:
            staged.leave()

    async def _call(self, call: Call, deadline_s: float, staged: StagedCall | None) -> Reply:
        payload = 0
        for piece in (*call.out, *call.into):
            payload += piece.length if isinstance(piece, Slice) else len(piece)
        if not self._admission.enter_now(payload):
            async with asyncio.timeout_at(deadline_s):
                await self._admission.enter(payload)
        pending = _Pending(self.loop.create_future(), deadline_s)
        pending.payload = payload
        try:
            inline = self._send(call, pending, staged)
        except BaseException:
            self._admission.leave(payload)
            raise
        if self._alarm is None or deadline_s < self._alarm.when():
            self._watch(deadline_s)
        try:
            return await pending.future
        except (asyncio.CancelledError, TimeoutError):
            # Nobody waits any more: queued views of the caller's memory may still be sent, and an answer may still
            # be landing in it, so its owner must not have it back while this connection lives.
            if (inline and self.queued_bytes) or self._landing is pending:
                self.close(error(Code.CANCELLED, "a call was given up while its payload moved"))
            for memory in pending.shared:
                memory.tainted = True
            raise

    def _watch(self, deadline_s: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self.loop.call_at(deadline_s, self._end_late) if not self.closed else None

    def _end_late(self) -> None:
        """End the calls whose time is over; the alarm is set to the next one. One timer serves all calls: nearly none
        ends by it."""
        self._alarm = None
        now_s = self.loop.time()
        earliest_s = float("inf")
        landing = [self._landing] if self._landing is not None else []
        for pending in [*self._outstanding.values(), *landing]:
            if pending.future.done():
                continue
            if pending.deadline_s <= now_s:
                pending.future.set_exception(TimeoutError())
            else:
                earliest_s = min(earliest_s, pending.deadline_s)
        if earliest_s < float("inf"):
            self._watch(earliest_s)

    def _send(self, call: Call, pending: _Pending, staged: StagedCall | None) -> bool:
        """Queue a request that has entered; returns whether payload of its own is in the queue."""
        out: list[Segment] = []
        into: list[Segment] = []
        inline: list[Buffer] = []
        for piece in call.out:
            segment = self._shared(piece, pending)
            if segment is None:
                view = view_of(piece)
                segment = (INLINE, len(view), 0)
                inline.append(view)
            out.append(segment)
        for piece in call.into:
            segment = self._shared(piece, pending)
            if segment is None:
                view = view_of(piece)
                segment = (INLINE, len(view), 0)
                pending.into.append(view)
            else:
                pending.into.append(None)
            into.append(segment)
            pending.rooms.append(segment[1])
        while self._next_id in self._outstanding:
            self._next_id = self._next_id % 0xFFFFFFFE + 1
        request_id = self._next_id
        self._next_id = request_id % 0xFFFFFFFE + 1
        head = frame.pack_request(
            call.method, request_id, out, into, len(call.body), frame.deadline_ms(call.deadline_s)
        )
        self._outstanding[request_id] = pending
        if staged is not None:
            pending.staged = staged
            staged.hold()  # until it is answered: a call that is given up may still be written to
        self.counts.requests += 1
        if out:
            self.counts.bytes_out += sum(segment[1] for segment in out)
        self.send([head, bytes(call.body), *inline])
        return bool(inline)

    def _shared(self, piece: Piece, pending: _Pending) -> Segment | None:
        if not self.shares or not isinstance(piece, Slice) or not isinstance(piece.memory, SharedMemory):
            return None
        memory = piece.memory
        if memory.closed:
            raise error(Code.INVALID, "a piece lies in memory that is closed")
        if memory.region not in self._regions and not self._register(memory, pending):
            return None
        pending.shared.append(memory)
        return (memory.region, piece.length, piece.offset)

    def _register(self, memory: SharedMemory, pending: _Pending) -> bool:
        """Send the descriptor at once; False when something is queued before it or the table is full."""
        if self.closed or (self.queued_bytes and self._rdma is None):
            return False
        if len(self._regions) >= REGIONS_MAX:
            if not self._outstanding:
                named = {each.region for each in pending.shared}
                oldest = next((known for region, known in self._regions.items() if region not in named), None)
                if oldest is not None:
                    self.withdraw(oldest)
            return False  # this one time it travels on the socket; the place is free for the next
        if self._rdma is not None:
            shown = self._rdma.expose(memory)
            if shown is None:
                return False
            self._regions[memory.region] = memory
            self.send([shown])
            return True
        register = frame.pack_register(memory.region, memory.length)
        try:
            sent = socket.send_fds(self.sock, [register], [memory.fd])
        except OSError:
            return False
        self._regions[memory.region] = memory
        if sent < len(register):
            self.send([register[sent:]])
        return True

    def withdraw(self, memory: SharedMemory) -> None:
        if self._regions.pop(memory.region, None) is not None:
            if self._rdma is not None:
                self._rdma.withdraw(memory.region)
            self.send([frame.pack_withdraw(memory.region)])


def _close_unused(dialing: asyncio.Future[Dialed]) -> None:
    """What was dialed for a link that is closed."""
    if not dialing.cancelled() and dialing.exception() is None:
        dialing.result().close()


class MultiplexLink(WithdrawListener):
    """An `AsyncLink`; made anywhere, used on the loop of its first call."""

    pool: MemoryPool

    def __init__(self, identity: Identity, *, pool: MemoryPool | None = None) -> None:
        self.identity = identity
        self.pool = pool if pool is not None else PrivatePool()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections: dict[Address, _Connection] = {}
        self._ended: dict[str, Counts] = {}  # of lost connections, by link
        self._dialing: dict[Address, asyncio.Task[_Connection]] = {}
        self._closed = False
        staging_pool = SharedPool()
        staging_pool.subscribe(self)
        self._staging = StagingPool(staging_pool)
        if isinstance(self.pool, SharedPool):
            self.pool.subscribe(self)

    async def call(self, address: Address, call: Call) -> Reply:
        if call.spread is not None:
            memory = memoryview(bytearray(call.spread.length))
            reply = await self.call(address, replace(call, into=[*call.into, memory], spread=None))
            if len(reply.pushed) > len(call.into) and reply.pushed[-1]:
                call.spread.fill(bytes(reply.body), memory[: reply.pushed[-1]])
            return reply
        deadline_s = asyncio.get_running_loop().time() + min(call.deadline_s, DEADLINE_S_MAX)
        try:
            connection = self._connections.get(address)
            if connection is None or connection.closed:
                async with asyncio.timeout_at(deadline_s):
                    connection = await self._connect(address)
            return await connection.call(call, deadline_s)
        except TimeoutError as exc:
            raise error(Code.TIMEOUT, f"{address.tcp or address.unix} did not answer in time") from exc

    async def _connect(self, address: Address) -> _Connection:
        if self._closed:
            raise error(Code.CANCELLED, "the link is closed")
        self._loop = asyncio.get_running_loop()
        task = self._dialing.get(address)
        if task is None:
            task = self._dialing[address] = self._loop.create_task(self._dial(address))
        try:
            # One caller's deadline must not end the connection that others wait for.
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # by `close`; our caller is as it was
                raise error(Code.CANCELLED, "the link is closed") from None
            raise

    async def _dial(self, address: Address) -> _Connection:
        dialing = asyncio.ensure_future(asyncio.to_thread(dial, self.identity, address, CONNECT_S_MAX))
        try:
            dialed = await asyncio.shield(dialing)
        except asyncio.CancelledError:
            dialing.add_done_callback(_close_unused)  # the thread goes on
            raise
        finally:
            self._dialing.pop(address, None)
        gone = functools.partial(self._forget, address)
        connection = _Connection(asyncio.get_running_loop(), dialed, self._staging, gone)
        self._connections[address] = connection
        connection.start()
        if dialed.rdma is not None:
            connection.carry_by(dialed.rdma.watch(connection.loop, connection.close))
        return connection

    def _forget(self, address: Address, connection: _Connection) -> None:
        if self._connections.get(address) is connection:
            del self._connections[address]
        self._ended.setdefault(connection.link, Counts()).add(connection.counts)

    def traffic(self) -> list[Traffic]:
        """What went to and came from each server, by link; lost connections together, without a name. On the loop."""
        tally = Tally()
        for address, connection in self._connections.items():
            tally.open(address.tcp or address.unix, connection.link, connection.counts, connection.in_flight)
        for link, counts in self._ended.items():
            tally.ended("", link, counts)
        return tally.traffic()

    async def close(self) -> None:
        self._closed = True
        for task in list(self._dialing.values()):
            task.cancel()
        for connection in list(self._connections.values()):
            connection.close(error(Code.CANCELLED, "the link is closed"))
        self._staging.close()

    def memory_closed(self, memory: SharedMemory) -> None:
        revoke(memory)
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        loop.call_soon_threadsafe(self._withdraw, memory)

    def _withdraw(self, memory: SharedMemory) -> None:
        for connection in list(self._connections.values()):  # one that is found lost goes
            if not connection.closed:
                connection.withdraw(memory)
