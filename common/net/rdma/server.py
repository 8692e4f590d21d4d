"""The server's end: pulls from and pushes into what a client has exposed, on the event loop.

Nothing here waits: work requests are posted in chains, completions come through a watched descriptor and are reaped
in batches. Whatever goes wrong ends the connection, queue pair first, so that no transfer outlives its buffers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import REGIONS_MAX, MiB
from fireflyfs.common.net.frame import Segment
from fireflyfs.common.net.rdma.adapters import Adapters, parameters
from fireflyfs.common.net.rdma.buffers import RegisteredBuffer, RegisteredPool
from fireflyfs.common.net.rdma.choice import Choice
from fireflyfs.common.net.rdma.plan import Piece, Work, plan
from fireflyfs.common.net.rdma.sending import Grants, Operation, SendQueue
from fireflyfs.common.net.rdma.verbs import SUCCESS, Completions, Device, Domain, QueuePair
from fireflyfs.common.net.rdma.wire import PROBE_BYTES, Exposed, Parameters

log = logging.getLogger(__name__)

SEND_DEPTH: Final = 128  # work requests of one connection that the device holds
SGES: Final = 16
IN_FLIGHT_BYTES_MAX: Final = 16 * MiB  # of one connection
INCAST_BYTES_MAX: Final = 64 * MiB  # READ at once over all connections
CONNECTIONS_MAX: Final = 1024  # with a queue pair; more go on over tcp


class RdmaServer:
    """What the connections of one link server share: for each device a domain and its buffers."""

    def __init__(self, adapters: Adapters) -> None:
        self.adapters = adapters
        self.grants = Grants(INCAST_BYTES_MAX)
        self.connections = 0
        self.stats = RdmaStats()
        self._parts: dict[str, tuple[Device, Domain, RegisteredPool]] = {}

    def open(self, loop: asyncio.AbstractEventLoop, address: str) -> ServerEnd:
        """A queue pair for a connection whose socket has our `address`. Raises OSError."""
        if self.connections >= CONNECTIONS_MAX:
            raise OSError(f"{CONNECTIONS_MAX} connections have a queue pair")
        choice = self.adapters.choose(address)
        if choice is None:
            raise OSError("no port is active")
        parts = self._parts.get(choice.device)
        if parts is None:
            device = self.adapters.device(choice.device)
            domain = Domain(device)
            parts = self._parts[choice.device] = device, domain, RegisteredPool(domain)
        return ServerEnd(self, loop, choice, parts)

    @property
    def registered_bytes(self) -> int:
        return sum(pool.bytes for _, _, pool in self._parts.values())

    def close(self) -> None:
        """After the last connection."""
        for _, domain, pool in self._parts.values():
            pool.close()
            try:
                domain.close()
            except OSError as exc:  # a request still holds a buffer: it goes with the process
                log.debug("a protection domain stays: %s", exc)
        self._parts.clear()


class RdmaStats:
    """Counts since the start."""

    __slots__ = ("chains", "completions", "connections", "failures", "pulled_bytes", "pushed_bytes", "work_requests")

    def __init__(self) -> None:
        self.connections = self.failures = 0
        self.chains = self.work_requests = self.completions = 0
        self.pulled_bytes = self.pushed_bytes = 0


class ServerEnd:
    """One client's queue pair at the server."""

    def __init__(
        self,
        server: RdmaServer,
        loop: asyncio.AbstractEventLoop,
        choice: Choice,
        parts: tuple[Device, Domain, RegisteredPool],
    ) -> None:
        """Raises OSError, or OVERLOADED when no memory can be registered."""
        self._server = server
        self._loop = loop
        self._choice = choice
        self._lost: Callable[[FfsError], None] = self.close
        device, domain, self.pool = parts
        depth = min(SEND_DEPTH, device.limits.work_requests, device.limits.completions - 1)
        self._sges = min(SGES, device.limits.sges, device.limits.sges_read)
        # Every work request may complete, signalled or not, when the queue pair fails: there is room for all.
        self._completions = Completions(device, depth + 1, watched=True)
        try:
            self._check = self.pool.take(2 * PROBE_BYTES)  # where reads land that only make sure of writes
            try:
                self._pair = QueuePair(domain, self._completions, depth, self._sges, remote=False)
            except BaseException:
                self._check.drop()
                raise
        except BaseException:
            self._completions.close()
            raise
        self._queue = SendQueue(depth, IN_FLIGHT_BYTES_MAX)
        self._regions: dict[int, Exposed] = {}
        self._closed: FfsError | None = None
        self.mine: Parameters = parameters(self._pair, choice, device)
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
        self._pair.connect(self._choice.port.number, self._choice.gid.number, self.mine, theirs)

    async def probe(self, address: int, rkey: int) -> None:
        """Read the client's bytes and write them behind: the path works both ways. Raises FfsError."""
        here, lkey = self._check.address, self._check.lkey
        read = Work(True, address, rkey, PROBE_BYTES, ((here, PROBE_BYTES, lkey),))
        await self._done([read])
        write = Work(False, address + PROBE_BYTES, rkey, PROBE_BYTES, ((here, PROBE_BYTES, lkey),))
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
        total = sum(segment[1] for segment in segments)
        buffer = await self.pool.take_in_turn(max(total, 1), deadline_s)
        try:
            works = self._plan(segments, [segment[1] for segment in segments], buffer, read=True)
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

    def push(
        self,
        segments: Sequence[Segment],
        lengths: Sequence[int],
        buffer: RegisteredBuffer,
        done: Callable[[FfsError | None], None],
    ) -> None:
        """Write the first `lengths[i]` bytes of each segment's place in the buffer; `done` is called when they are
        in the client's memory, or with why they will not be: the region was withdrawn, the connection is lost."""
        try:
            works = self._plan(segments, lengths, buffer, read=False)
        except FfsError as exc:
            done(exc)
            return
        if not works:
            done(None)
            return
        # A completed WRITE has reached the peer's adapter. A READ behind it is answered from memory, after it.
        last = works[-1]
        works.append(self._make_sure(last.address + last.length - 1, last.rkey))
        self._server.stats.pushed_bytes += sum(lengths)
        self._submit(Operation(works, done))

    def _make_sure(self, address: int, rkey: int) -> Work:
        check = self._check
        return Work(True, address, rkey, 1, ((check.address + PROBE_BYTES, 1, check.lkey),))

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
            self._queue.submit(operation)
            self._post()

    def _post(self) -> None:
        chain = self._queue.take()
        if not chain:
            return
        try:
            self._pair.post(chain)
        except OSError as exc:
            self._fail(f"work requests cannot be posted: {exc}")
            return
        self._server.stats.chains += 1
        self._server.stats.work_requests += len(chain)

    def _woken(self) -> None:
        """Completions are there, or were: armed again before they are taken, or one could be missed."""
        try:
            self._completions.take_event()
            self._completions.rearm()
            while self._closed is None:
                found = self._completions.poll()
                if not found:
                    break
                self._server.stats.completions += len(found)
                finished: list[Operation] = []
                for number, status in found:
                    if status != SUCCESS:
                        self._fail(f"a transfer ended with status {status}")
                        break
                    finished += self._queue.completed(number)
                for operation in finished:
                    operation.finish(None)
        except OSError as exc:
            self._fail(str(exc))
        if self._closed is None:
            self._post()

    def _fail(self, why: str) -> None:
        if self._closed is None:
            self._server.stats.failures += 1
            self._lost(error(Code.UNAVAILABLE, f"rdma on {self.device}: {why}"))

    def close(self, exc: FfsError) -> None:
        """Queue pair, completions, channel: after that the device touches no buffer, and all that waited fails."""
        if self._closed is not None:
            return
        self._closed = exc
        self._loop.remove_reader(self._completions.fd)
        for owned in (self._pair, self._completions):
            try:
                owned.close()
            except OSError as problem:
                log.warning("rdma on %s: %s", self.device, problem)
        self._regions.clear()
        self._server.connections -= 1
        self._server.adapters.count(self.device, -1)
        for operation in self._queue.drop():
            operation.finish(exc)
        self._check.drop()


def _settle(done: asyncio.Future[None], exc: FfsError | None) -> None:
    if done.done():
        return
    if exc is None:
        done.set_result(None)
    else:
        done.set_exception(exc)
