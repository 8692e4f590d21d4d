"""The server's end: pulls from and pushes into what a client has exposed, on the event loop.

Nothing here waits: work requests are posted in chains, completions come through a watched descriptor and are reaped
in batches. Whatever goes wrong ends the connection, queue pair first, so that no transfer outlives its buffers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import REGIONS_MAX, KiB, MiB
from fireflyfs.common.net.frame import Segment
from fireflyfs.common.net.rdma.adapters import Adapters, parameters
from fireflyfs.common.net.rdma.arrivals import Arrivals
from fireflyfs.common.net.rdma.buffers import RegisteredBuffer
from fireflyfs.common.net.rdma.choice import Choice
from fireflyfs.common.net.rdma.credits import send_completions
from fireflyfs.common.net.rdma.endpoint import Endpoint, Posted
from fireflyfs.common.net.rdma.messages import Messages
from fireflyfs.common.net.rdma.plan import Piece, Verb, Work, plan
from fireflyfs.common.net.rdma.queues import Completions
from fireflyfs.common.net.rdma.sending import Grants, Operation, SendQueue, Silence
from fireflyfs.common.net.rdma.wire import PROBE_BYTES, Exposed, Parameters

SEND_DEPTH: Final = 128  # work requests of one connection that the device holds
SGES: Final = 16
IN_FLIGHT_BYTES_MAX: Final = 16 * MiB  # WRITE on one connection
READ_BYTES_MAX: Final = 4 * MiB  # READ on one connection: a card is busy with it for longer than we take to post more
HELD_BYTES_MAX: Final = 256 * KiB  # of answers that leave together: with more, the device begins with the first
HELD_BYTES_MAX_SOFTWARE: Final = 4 * MiB  # where only we could: what matters there is that the calls are few
# Of buffers that one connection keeps for WRITEs without a signal, be it idle. More would spare few completions, and
# have payload go through more memory than the processor's caches hold.
SILENT_BYTES_MAX: Final = MiB
SILENT_BYTES_MAX_IN_ALL: Final = 16 * MiB
INCAST_BYTES_MAX: Final = 64 * MiB  # READ at once over all connections
CONNECTIONS_MAX: Final = 1024  # with a queue pair; more go on over tcp


class RdmaServer:
    """What the connections of one link server share: for each device a domain, its buffers and its messages."""

    def __init__(self, adapters: Adapters) -> None:
        self.adapters = adapters
        self.grants = Grants(INCAST_BYTES_MAX)
        self.silence = Silence(SILENT_BYTES_MAX_IN_ALL, SILENT_BYTES_MAX)
        self.connections = 0
        self.stats = RdmaStats()
        self._parts: dict[str, Arrivals] = {}

    def open(self, loop: asyncio.AbstractEventLoop, address: str) -> ServerEnd:
        """A queue pair for a connection whose socket has our `address`. Raises OSError."""
        if self.connections >= CONNECTIONS_MAX:
            raise OSError(f"{CONNECTIONS_MAX} connections have a queue pair")
        choice = self.adapters.choose(address)
        if choice is None:
            raise OSError("no port is active")
        part = self._parts.get(choice.device)
        if part is None:
            part = self._parts[choice.device] = Arrivals(self.adapters.device(choice.device), loop, CONNECTIONS_MAX)
        return ServerEnd(self, loop, choice, part)

    @property
    def registered_bytes(self) -> int:
        """Buffers that payload goes through."""
        return sum(part.pool.bytes for part in self._parts.values())

    @property
    def receive_bytes(self) -> int:
        """Buffers that messages land in."""
        return sum(part.receives.bytes for part in self._parts.values())

    def close(self) -> None:
        """After the last connection."""
        for part in self._parts.values():
            part.close()
        self._parts.clear()


class RdmaStats(Posted):
    """Counts since the start."""

    __slots__ = ("completions", "connections", "failures", "pulled_bytes", "pushed_bytes")

    def __init__(self) -> None:
        super().__init__()
        self.connections = self.failures = self.completions = 0
        self.pulled_bytes = self.pushed_bytes = 0


class ServerEnd:
    """One client's queue pair at the server."""

    def __init__(
        self,
        server: RdmaServer,
        loop: asyncio.AbstractEventLoop,
        choice: Choice,
        part: Arrivals,
    ) -> None:
        """Raises OSError, or OVERLOADED when no memory can be registered."""
        self._server = server
        self._loop = loop
        self._choice = choice
        self._lost: Callable[[FfsError], None] = self.close
        self._part = part
        self.pool = part.pool
        limits = part.device.limits
        depth = min(SEND_DEPTH, limits.work_requests, limits.completions - 1)
        self._sges = min(SGES, limits.sges, limits.sges_read)
        self._software = part.device.software
        self._held_bytes_max = HELD_BYTES_MAX_SOFTWARE if self._software else HELD_BYTES_MAX
        self._check = self.pool.take(2 * PROBE_BYTES)  # where reads land that only make sure of writes
        try:
            completions = Completions(part.device, send_completions(depth), watched=True)
            try:
                part.receives.enter()
            except BaseException:
                completions.close()
                raise
            queue = SendQueue(
                depth, IN_FLIGHT_BYTES_MAX, read_bytes_max=READ_BYTES_MAX, silence=server.silence,
                whole_chains=self._software,
            )  # fmt: skip
            self.endpoint = Endpoint(
                part.domain, completions, part.receives, queue, self._sges, remote=False, posted=server.stats,
                received=part.completions,
            )  # fmt: skip
        except BaseException:
            self._check.drop()
            raise
        self._completions = completions
        self._regions: dict[int, Exposed] = {}
        self._closed: FfsError | None = None
        self._posting = False  # `_post` will be called
        self.messages: Messages | None = None  # once connected
        self.mine: Parameters = parameters(self.endpoint.pair, choice, part.device)
        part.add(self)
        self._loop.add_reader(self._completions.fd, self._woken)
        server.connections += 1
        server.stats.connections += 1
        server.adapters.count(choice.device, 1)

    @property
    def device(self) -> str:
        return self._choice.device

    def on_lost(self, lost: Callable[[FfsError], None]) -> None:
        """Until now a failure closed this end alone; from now on it is the connection's."""
        self._lost = lost

    def connect(self, theirs: Parameters) -> None:
        """Raises OSError."""
        self.messages = self.endpoint.connect(self._choice, self.mine, theirs)
        self.messages.watch(self._loop)

    async def probe(self, address: int, rkey: int) -> None:
        """Read the client's bytes and write them behind: the path works both ways. Raises FfsError."""
        here, lkey = self._check.address, self._check.lkey
        read = Work(Verb.READ, address, rkey, PROBE_BYTES, ((here, PROBE_BYTES, lkey),))
        await self._done([read])
        write = Work(Verb.WRITE, address + PROBE_BYTES, rkey, PROBE_BYTES, ((here, PROBE_BYTES, lkey),))
        await self._done([write, self._make_sure(address + PROBE_BYTES, rkey)])

    # Regions

    def expose(self, exposed: Exposed) -> None:
        """Raises PROTOCOL or TOO_LARGE."""
        if exposed.region in self._regions:
            raise error(Code.PROTOCOL, f"region {exposed.region} is registered already")
        if len(self._regions) >= REGIONS_MAX:
            raise error(Code.TOO_LARGE, f"a connection may register {REGIONS_MAX} regions")
        self._regions[exposed.region] = exposed

    def withdraw(self, region: int) -> None:
        """Raises PROTOCOL for an unknown region."""
        if self._regions.pop(region, None) is None:
            raise error(Code.PROTOCOL, f"region {region} is not registered")

    def __len__(self) -> int:
        return len(self._regions)

    def _remote(self, segment: Segment) -> tuple[int, int]:
        """(address, rkey) of a segment. Raises PROTOCOL, or what ended the connection."""
        if self._closed is not None:
            raise error(self._closed.code, self._closed.message)
        region, length, offset = segment
        exposed = self._regions.get(region)
        if exposed is None:
            raise error(Code.PROTOCOL, f"region {region} is not registered")
        if offset + length > exposed.length:
            raise error(
                Code.PROTOCOL, f"[{offset}, {offset} + {length}) is outside region {region} of {exposed.length} bytes"
            )
        return exposed.address + offset, exposed.rkey

    def check(self, segments: Sequence[Segment]) -> None:
        """Raises PROTOCOL for a segment outside what was exposed."""
        for segment in segments:
            self._remote(segment)

    # Moving

    async def pull(self, segments: Sequence[Segment], deadline_s: float) -> RegisteredBuffer:
        """The segments' bytes one after the other in a buffer, held for the caller. Raises FfsError."""
        lengths = [segment[1] for segment in segments]
        total = sum(lengths)
        length = max(total, 1)
        buffer = self.pool.take_at_once(length) or await self.pool.take_in_turn(length, deadline_s)
        try:
            works = self._plan(segments, lengths, buffer, read=True)
        except BaseException:
            buffer.drop()
            raise
        grants = self._server.grants
        done: asyncio.Future[None] = self._loop.create_future()
        buffer.hold()  # for the transfer: it goes on when the caller is cancelled

        def finish(exc: FfsError | None) -> None:
            grants.give_back(total)
            buffer.drop()
            _settle(done, exc)

        grants.ask(total, lambda: self._submit(Operation(works, finish)))
        try:
            await done
        except BaseException:
            buffer.drop()
            raise
        self._server.stats.pulled_bytes += total
        return buffer

    def push(self, segments: Sequence[Segment], lengths: Sequence[int], buffer: RegisteredBuffer) -> None:
        """Write the first `lengths[i]` bytes of each segment's place in the buffer. They are in the client's memory
        before any message that is sent from now on; the buffer is held until a later one is signalled, for to be
        woken costs more than to move what is small. Raises FfsError: the region was withdrawn, the connection is
        lost."""
        works = self._plan(segments, lengths, buffer, read=False)
        if not works:
            return
        operation = Operation(works, lambda _: buffer.drop(), signalled=False, keeps=buffer.size)
        self._server.stats.pushed_bytes += operation.size
        buffer.hold()
        # Posted in one call with the answer, unless others wait for theirs already: the device may begin with those.
        endpoint = self.endpoint
        if endpoint.held_bytes and endpoint.held_bytes + operation.size > self._held_bytes_max:
            endpoint.post()
            if endpoint.failed is not None:
                self._loop.call_soon(self.settle)
        endpoint.put_before(operation, operation.size)

    def _make_sure(self, address: int, rkey: int) -> Work:
        """A completed WRITE has reached the peer's adapter. A READ behind it is answered from memory, after it."""
        check = self._check
        return Work(Verb.READ, address, rkey, 1, ((check.address + PROBE_BYTES, 1, check.lkey),))

    def _plan(
        self, segments: Sequence[Segment], lengths: Sequence[int], buffer: RegisteredBuffer, *, read: bool
    ) -> list[Work]:
        pieces = []
        at = buffer.address
        for segment, length in zip(segments, lengths, strict=True):
            address, rkey = self._remote(segment)
            pieces.append(Piece(address, rkey, length, at, buffer.lkey))
            at += segment[1]
        return plan(pieces, read=read, sges_max=self._sges, message_bytes_max=self._choice.port.message_bytes_max)

    async def _done(self, works: Sequence[Work]) -> None:
        done: asyncio.Future[None] = self._loop.create_future()
        self._submit(Operation(works, lambda exc: _settle(done, exc)))
        await done

    def _submit(self, operation: Operation) -> None:
        if self._closed is not None:
            operation.finish(self._closed)
        elif not operation.works:
            operation.finish(None)
        else:
            self.endpoint.put_before(operation)
            self._post_soon()

    def _post_soon(self) -> None:
        if self._posting:
            return
        self._posting = True
        if self._software:  # with the answers to what has completed: they are sent in the turn after next
            self._loop.call_soon(self._loop.call_soon, self._post)
        else:
            self._loop.call_soon(self._post)

    def _post(self) -> None:
        """What was submitted in this turn of the loop, and was not posted together with an answer. Some adapters have
        moved it when that call ends: a look costs less than to be woken."""
        self._posting = False
        self.endpoint.post()
        self._reap()
        if self._software and self._closed is None:  # messages have come in that time
            self._part.look()

    def _woken(self) -> None:
        """Completions are there, or were: armed again before they are taken, or one could be missed."""
        try:
            self._completions.take_event()
            self._completions.rearm()
        except OSError as exc:
            self.endpoint.fail(error(Code.UNAVAILABLE, str(exc)))
        self._reap()

    def _reap(self) -> None:
        self._server.stats.completions += self.endpoint.reap(post=not self._software)
        if self._software and self.endpoint.waits:
            self._post_soon()
        self.settle()

    def settle(self) -> None:
        """After completions or messages: end what has failed, or call who waits."""
        failed = self.endpoint.failed
        if failed is None:
            if self.messages is not None:
                self.messages.settle()
        elif self._closed is None:
            self._server.stats.failures += 1
            exc = error(failed.code, f"rdma on {self.device}: {failed.message}")
            self.close(exc)
            self._lost(exc)

    def close(self, exc: FfsError) -> None:
        """Queue pair, completions, channel: after that the device touches no buffer, and all that waited fails."""
        if self._closed is not None:
            return
        self._closed = exc
        self._loop.remove_reader(self._completions.fd)
        self.endpoint.end()
        self._part.remove(self)
        self.endpoint.close(exc)
        self._regions.clear()
        self._server.connections -= 1
        self._server.adapters.count(self.device, -1)
        self._check.drop()


def _settle(done: asyncio.Future[None], exc: FfsError | None) -> None:
    if done.done():
        return
    if exc is None:
        done.set_result(None)
    else:
        done.set_exception(exc)
