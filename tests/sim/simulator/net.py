"""The network between simulated processes.

Fault model: each message takes its own time, so they overtake each other. A message to a node that cannot be reached is
lost, or is held and delivered late, when its sender has given up long ago. Now and then a message arrives twice. A dead
process refuses or resets at once, if its machine can be reached; otherwise there is silence. A frozen one answers when
it thaws. Partitions are one-way: an ordered pair of nodes.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fireflyfs.client.mgmtd_client import HEARTBEAT_DEADLINE_S
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.ids import ClientId
from fireflyfs.common.net.api import Address, Call, Handler, Peer, Reply, Slice
from simulator.loop import Process, SimLoop

HELD_S_MAX = 20.0  # a message that waits longer for its way is lost


@dataclass
class Weather:
    """What the network does to messages, as probabilities and seconds."""

    delay_s: tuple[float, float] = (0.0001, 0.002)
    slow: float = 0.0  # of messages take up to slow_s
    slow_s: float = 1.0
    lost: float = 0.0
    twice: float = 0.0
    twice_s: float = 5.0  # the second one comes up to so much later
    held: float = 0.5  # of what meets a partition is delivered late rather than lost


@dataclass
class Station:
    """Where a process listens."""

    process: Process
    node: str
    handlers: dict[int, Handler] = field(default_factory=dict)
    service: Any = None  # for rpcs by name
    open_calls: dict[int, Callable[[], None]] = field(default_factory=dict)


class Net:
    """All messages of one world. `rng` decides what happens to each."""

    def __init__(self, loop: SimLoop, rng: random.Random, on_bug: Callable[[str], None]) -> None:
        self.loop = loop
        self.rng = rng
        self.weather = Weather()
        self.stations: dict[str, Station] = {}
        self.cut: set[tuple[str, str]] = set()  # (from node, to node)
        self.silent: set[str] = set()  # nodes without power: nobody refuses
        self.messages = 0
        self._on_bug = on_bug
        self._number = 0

    def delay_s(self) -> float:
        weather = self.weather
        delay_s = self.rng.uniform(*weather.delay_s)
        if weather.slow and self.rng.random() < weather.slow:
            delay_s += self.rng.uniform(0, weather.slow_s)
        return delay_s

    def carry(self, source: str, dest: str, deliver: Callable[[], None], since_s: float | None = None) -> None:
        """Bring a message from node to node; `deliver` is called in the world, if ever."""
        self.messages += 1
        loop = self.loop
        if since_s is None:
            since_s = loop.now_s
            if self.weather.lost and self.rng.random() < self.weather.lost:
                return

        def arrive() -> None:
            if (source, dest) in self.cut:
                if loop.now_s - since_s < HELD_S_MAX and self.rng.random() < self.weather.held:
                    loop.in_world(self.rng.uniform(0.2, 1.0), lambda: self.carry(source, dest, deliver, since_s))
                return
            deliver()

        loop.in_world(self.delay_s(), arrive)

    async def call(
        self,
        source: Process,
        source_node: str,
        address: str,
        start: Callable[[Station, _Answer], None],
        deadline_s: float,
    ) -> Any:
        """One request and its answer. `start` begins the work in the server's process."""
        future: asyncio.Future[Any] = self.loop.create_future()
        self._number += 1
        number = self._number
        connected = self.stations.get(address)  # what is under way to one process never reaches the next one there

        def finish(result: Any, failure: FfsError | None) -> None:
            if source.dead:
                return

            def tell() -> None:
                if future.done():
                    return
                if failure is not None:
                    future.set_exception(failure)
                else:
                    future.set_result(result)

            self.loop.call_soon(tell, context=source.context)

        def request(first: bool) -> Callable[[], None]:
            def arrive() -> None:
                station = self.stations.get(address)
                if station is None or station.process.dead or (connected is not None and station is not connected):
                    node = address.split(":")[0]
                    if first and node not in self.silent:
                        self.carry(node, source_node, lambda: finish(None, error(Code.UNAVAILABLE, address)))
                    return
                answer = _Answer(self, station, source_node, finish if first else lambda result, failure: None)
                if first:
                    station.open_calls[number] = answer.reset
                    answer.on_end = lambda: station.open_calls.pop(number, None)
                self.loop.call_soon(start, station, answer, context=station.process.context)

            return arrive

        node = address.split(":")[0]
        self.carry(source_node, node, request(True))
        if self.weather.twice and self.rng.random() < self.weather.twice:
            late_s = self.rng.uniform(0, self.weather.twice_s)
            self.loop.in_world(late_s, lambda: self.carry(source_node, node, request(False)))
        try:
            async with asyncio.timeout(deadline_s):
                return await future
        except TimeoutError:
            raise error(Code.TIMEOUT, f"{address} did not answer within {deadline_s:g} s") from None

    def gone(self, address: str, *, silent: bool) -> None:
        """The process there has ended: whoever waits for it hears of it, unless its machine is gone too."""
        station = self.stations.pop(address, None)
        if station is not None and not silent:
            for reset in list(station.open_calls.values()):
                reset()

    def run_handler(self, answer: _Answer, work: Callable[[], Any]) -> None:
        """Run a handler in the process of `answer`, which gets what it raises."""
        try:
            outcome = work()
        except FfsError as exc:
            answer.fail(exc)
            return
        except Exception as exc:
            self._bug(answer, exc)
            return
        if inspect.isawaitable(outcome):
            self.loop.create_task(self._finish(answer, outcome))
        elif outcome is not None:
            answer.reply(outcome)

    async def _finish(self, answer: _Answer, outcome: Awaitable[Any]) -> None:
        try:
            result = await outcome
        except FfsError as exc:
            answer.fail(exc)
        except asyncio.CancelledError:
            answer.fail(error(Code.CANCELLED))
            raise
        except Exception as exc:
            self._bug(answer, exc)
        else:
            if result is not None:
                answer.reply(result)

    def _bug(self, answer: _Answer, exc: BaseException) -> None:
        if answer.station.process.dead:
            return  # it is being buried
        text = "".join(traceback.format_exception(exc)[-6:])
        self.loop.world.run(self._on_bug, f"{answer.station.process.name} raised {exc!r}\n{text}")
        answer.fail(error(Code.INTERNAL, repr(exc)))


class _Answer:
    """The way back of one request."""

    __slots__ = ("_done", "_finish", "_net", "_source", "on_end", "station")

    def __init__(self, net: Net, station: Station, source: str, finish: Callable[[Any, FfsError | None], None]) -> None:
        self._net = net
        self.station = station
        self._source = source
        self._finish = finish
        self._done = False
        self.on_end: Callable[[], Any] = lambda: None

    def reply(self, result: Any) -> None:
        self._send(result, None)

    def fail(self, exc: FfsError) -> None:
        self._send(None, error(exc.code, exc.message))

    def reset(self) -> None:
        if not self._done:
            self._send(None, error(Code.UNAVAILABLE, "connection reset"))

    def _send(self, result: Any, failure: FfsError | None) -> None:
        if self._done:
            return
        self._done = True
        self.on_end()
        self._net.carry(self.station.node, self._source, lambda: self._finish(result, failure))


class _Request:
    """A `ServerRequest`."""

    def __init__(
        self, call: Call, peer: Peer, process: Process, answer: _Answer, loop: SimLoop, rng: random.Random
    ) -> None:
        self.method = call.method
        self.body = memoryview(bytes(call.body))
        self.peer = peer
        self.deadline_s = process.monotonic_s() + call.deadline_s
        self._out = [bytes(piece.view if isinstance(piece, Slice) else piece) for piece in call.out]
        self.pull_lengths = [len(piece) for piece in self._out]
        self.push_lengths = [len(piece.view if isinstance(piece, Slice) else piece) for piece in call.into]
        self._views = [memoryview(bytearray(length)) for length in self.push_lengths]
        self._answer = answer

    async def pull(self) -> list[memoryview]:
        await asyncio.sleep(0)
        return [memoryview(piece) for piece in self._out]

    def push_views(self) -> list[memoryview]:
        return self._views

    def reply(self, body: bytes | bytearray | memoryview = b"", pushed: Sequence[int] = ()) -> None:
        data = [bytes(view[:count]) for view, count in zip(self._views, pushed, strict=False)]
        self._answer.reply((bytes(body), data))

    def fail(self, code: Code, message: str = "") -> None:
        self._answer.fail(error(code, message))


class SimLink:
    """An `AsyncLink` of one process."""

    pool: Any = None

    def __init__(self, net: Net, process: Process, node: str, client_id: ClientId) -> None:
        self._net = net
        self._process = process
        self._node = node
        self._peer = Peer(client_id, process.name)

    async def call(self, address: Address, call: Call) -> Reply:
        net = self._net
        sent = Call(
            call.method,
            bytes(call.body),
            [memoryview(bytes(piece.view if isinstance(piece, Slice) else piece)) for piece in call.out],
            call.into,
            call.deadline_s,
        )

        def start(station: Station, answer: _Answer) -> None:
            request = _Request(sent, self._peer, station.process, answer, net.loop, net.rng)
            handler = station.handlers.get(sent.method)
            if handler is None:
                answer.fail(error(Code.UNKNOWN_METHOD, str(sent.method)))
                return
            net.run_handler(answer, lambda: handler(request))  # type: ignore[arg-type]

        body, data = await net.call(self._process, self._node, address.tcp, start, call.deadline_s)
        pushed = []
        for piece, filled in zip(call.into, data, strict=False):
            view = piece.view if isinstance(piece, Slice) else piece
            view[: len(filled)] = filled
            pushed.append(len(filled))
        return Reply(body, pushed)

    async def close(self) -> None:
        pass


class SimStub:
    """An asyncio client of a gRPC service: `await stub.method(request)`."""

    def __init__(self, net: Net, process: Process, node: str, address: str, cluster_id: str, deadline_s: float) -> None:
        self._net = net
        self._process = process
        self._node = node
        self._address = address
        self._cluster_id = cluster_id
        self._deadline_s = deadline_s

    def __getattr__(self, name: str) -> Callable[[Any], Awaitable[Any]]:
        async def call(request: Any) -> Any:
            copy = type(request)()
            copy.CopyFrom(request)
            if hasattr(copy, "cluster_id"):
                copy.cluster_id = self._cluster_id

            def start(station: Station, answer: _Answer) -> None:
                self._net.run_handler(answer, lambda: getattr(station.service, name)(copy))

            deadline_s = HEARTBEAT_DEADLINE_S if name == "heartbeat" else self._deadline_s
            deadline_s += getattr(request, "wait_ms", 0) / 1000
            found = await self._net.call(self._process, self._node, self._address, start, deadline_s)
            reply = type(found)()
            reply.CopyFrom(found)
            return reply

        return call
