"""The server's end of the rdma link on a device that is played: what is posted, what fails, what is closed when.

The fault model: the played device completes work in order when it is told to, really moves the bytes, and can fail any
work request; after that it flushes everything that was posted, signalled or not, as a device does.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Coroutine, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.ids import ClientId
from fireflyfs.common.limits import CONNECTION_REQUESTS_MAX, REGIONS_MAX, KiB
from fireflyfs.common.net.api import Peer
from fireflyfs.common.net.buffers import BufferPool
from fireflyfs.common.net.counting import Counts
from fireflyfs.common.net.frame import Buffer, Header, Kind, parse_header
from fireflyfs.common.net.rdma import endpoint
from fireflyfs.common.net.rdma import server as module
from fireflyfs.common.net.rdma.adapters import Adapters
from fireflyfs.common.net.rdma.buffers import RegisteredPool
from fireflyfs.common.net.rdma.choice import Choice
from fireflyfs.common.net.rdma.plan import Verb, Work
from fireflyfs.common.net.rdma.queues import POLL_MAX, Completion
from fireflyfs.common.net.rdma.sending import Grants
from fireflyfs.common.net.rdma.server import RdmaServer, ServerEnd
from fireflyfs.common.net.rdma.settings import RdmaSettings
from fireflyfs.common.net.rdma.verbs import Gid, Limits, Port, address_of
from fireflyfs.common.net.rdma.wire import Exposed, Parameters
from fireflyfs.common.net.request import Request

FLUSHED, ACCESS = 5, 10
PORT = Port(1, active=True, mtu=5, message_bytes_max=64 * KiB, lid=0, ethernet=True)
CHOICE = Choice("played0", PORT, Gid(1, "0000:0000:0000:0000:0000:ffff:0a4d:0001", roce_v2=True))
DEPTH = 8


class Played:
    """One device: its completion queue, its queue pair and its memory, with a diary of what was closed."""

    limits = Limits(10, DEPTH, 4, 4, 16, 16, 100, 100)
    name = "played0"

    def __init__(self, *, software: bool = False) -> None:
        self.software = software
        self.diary: list[str] = []
        self.posted: list[tuple[int, Work, bool]] = []
        self.chains: list[int] = []
        self.completed: list[tuple[int, int]] = []
        self.depth = 0
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.refuses_post = False
        self.registered = 0
        self.number = 7

    # the completion queue

    def take_event(self) -> None:
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass

    def rearm(self) -> None:
        if self.completed:
            os.eventfd_write(self.fd, 1)

    def poll(self) -> list[Completion]:
        found, self.completed = self.completed[:POLL_MAX], self.completed[POLL_MAX:]
        return [Completion(number, status, 0, self.number) for number, status in found]

    # the queue pair

    def connect(self, *_: object) -> None:
        return

    def end(self) -> None:
        self.diary.append("nothing moves")

    def close(self) -> None:
        self.diary.append("queue pair")

    def post(self, chain: list[tuple[int, Work, bool]]) -> None:
        if self.refuses_post:
            raise OSError(12, "no room")
        assert len(self.posted) + len(chain) <= DEPTH, "the send queue overflows"
        self.posted += chain
        self.chains.append(len(chain))

    # the memory

    def register(self, buffer: memoryview, *, remote: bool) -> PlayedRegion:
        assert not remote, "a peer has no right in the server's memory"
        self.registered += 1
        return PlayedRegion(self, buffer)

    # what a test does

    def work(self, count: int = 1000, fail_at: int | None = None) -> None:
        """Complete up to `count` work requests."""
        for _ in range(min(count, len(self.posted))):
            number, work, signalled = self.posted.pop(0)
            if number == fail_at:
                self.completed += [(number, ACCESS)] + [(n, FLUSHED) for n, _, _ in self.posted]
                self.posted.clear()
                break
            at = work.address
            for address, length, _ in work.local if work.verb is not Verb.SEND else ():
                read = work.verb is Verb.READ
                ctypes.memmove(address if read else at, at if read else address, length)
                at += length
            if signalled:
                self.completed.append((number, 0))
        assert len(self.completed) <= self.depth, "the completion queue overflows"
        if self.completed:
            os.eventfd_write(self.fd, 1)


class PlayedRegion:
    def __init__(self, device: Played, buffer: memoryview) -> None:
        self.device = device
        self.address, self._export = address_of(buffer)
        self.lkey = 3

    def close(self) -> None:
        self.device.diary.append("region")


@pytest.fixture(params=[False, True], ids=["card", "software"])
def played(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Played:
    played = Played(software=request.param)

    class Completions:
        def __init__(self, device: Played, depth: int, *, watched: bool) -> None:
            assert watched
            played.depth = depth
            self.fd, self.take_event, self.rearm, self.poll = played.fd, played.take_event, played.rearm, played.poll

        def close(self) -> None:
            played.diary.append("completions")

    monkeypatch.setattr(module, "Completions", Completions)
    monkeypatch.setattr(endpoint, "QueuePair", lambda *_, **__: played)
    return played


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


def end_of(played: Played) -> tuple[ServerEnd, RegisteredPool, list[FfsError]]:
    server = RdmaServer(Adapters(RdmaSettings()))
    pool = RegisteredPool(played, bytes_max=256 * KiB)  # type: ignore[arg-type]
    part = SimpleNamespace(
        device=played, domain=played, pool=pool, completions=None, add=lambda end: None,
        receives=SimpleNamespace(queue=None, enter=lambda: None, leave=lambda: played.diary.append("place")),
        remove=lambda end: played.diary.append("arrivals"), look=lambda: None,
    )  # fmt: skip
    end = ServerEnd(server, asyncio.get_running_loop(), CHOICE, part)  # type: ignore[arg-type]
    lost: list[FfsError] = []

    def ends(exc: FfsError) -> None:
        lost.append(exc)
        end.close(exc)

    end.on_lost(ends)
    return end, pool, lost


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0)


class Asker:
    """A connection as a request knows it; keeps what it is answered."""

    def __init__(self, end: ServerEnd) -> None:
        self.mover = end
        self.peer = Peer(ClientId(bytes(16)), "played")
        self.server = SimpleNamespace(buffers=BufferPool())
        self.answers: list[bytes] = []
        self.counts = Counts()

    def answer(self, request: Request, buffers: Sequence[Buffer], beside_bytes: int = 0) -> None:
        self.answers.append(b"".join(bytes(buffer) for buffer in buffers))
        request.release()

    def request(self, *into: tuple[int, int, int]) -> Request:
        head = Header(Kind.REQUEST, 7, 1, 0, 0, len(into), 0, 0, 1000)
        return Request(self, head, [], list(into), sum(s[1] for s in into), b"", later())  # type: ignore[arg-type]


def later() -> float:
    return asyncio.get_running_loop().time() + 5


def test_what_the_device_has_moved_when_it_was_posted_waits_for_no_event(played: Played) -> None:
    async def work() -> None:
        end, pool, lost = end_of(played)
        theirs = bytearray(os.urandom(40_000))
        address, _export = address_of(memoryview(theirs))
        end.expose(Exposed(1, 77, len(theirs), address))
        post = played.post

        def at_once(chain: list[tuple[int, Work, bool]]) -> None:
            post(chain)
            played.work()

        played.post = at_once  # type: ignore[method-assign]
        asyncio.get_running_loop().remove_reader(played.fd)  # nobody is woken
        buffer = await asyncio.wait_for(end.pull([(1, 40_000, 0)], later()), 5)
        assert bytes(buffer.view[:40_000]) == bytes(theirs)
        buffer.drop()
        end.close(error(Code.CANCELLED, "over"))
        pool.close()
        assert not lost

    run(work())


def test_bytes_come_and_go(played: Played) -> None:
    async def work() -> None:
        end, pool, lost = end_of(played)
        theirs = bytearray(os.urandom(40_000))
        address, _export = address_of(memoryview(theirs))
        end.expose(Exposed(1, 77, len(theirs), address))
        segments = [(1, 10_000, 0), (1, 5_000, 10_000), (1, 100, 39_900)]
        pulling = asyncio.create_task(end.pull(segments, later()))
        await until(lambda: played.posted)
        assert played.chains == [2]  # two pieces joined, one apart, one call to the device
        played.work()
        buffer = await pulling
        assert bytes(buffer.view[:15_100]) == bytes(theirs[:15_000] + theirs[39_900:])
        buffer.view[:100] = b"x" * 100
        end.push([(1, 20_000, 500)], [20_000], buffer)
        assert not played.posted, "it is posted in one call with its answer"
        end.endpoint.post()
        assert [work.verb for _, work, _ in played.posted] == [Verb.WRITE]
        buffer.drop()
        other = pool.take(buffer.size)
        assert other.address != buffer.address, "held until it has left"
        other.drop()
        played.work()
        assert bytes(theirs[500:601]) == b"x" * 100 + bytes(buffer.view[100:101])
        assert not played.completed, "nobody is woken for it"
        pulling = asyncio.create_task(end.pull(segments, later()))
        await until(lambda: played.posted)
        assert end.endpoint._queue.in_flight == 3
        played.work()
        (await pulling).drop()
        assert end.endpoint._queue.in_flight == 0, "what comes later tells of it"
        end.close(error(Code.CANCELLED, "over"))
        pool.close()
        assert pool.bytes == 0
        assert not lost

    run(work())


def test_pulls_of_one_turn_are_posted_together_and_with_what_is_sent_meanwhile(played: Played) -> None:
    async def work() -> None:
        end, pool, _ = end_of(played)
        theirs = bytearray(os.urandom(40_000))
        address, _export = address_of(memoryview(theirs))
        end.expose(Exposed(1, 77, len(theirs), address))
        pulling = [asyncio.create_task(end.pull([(1, 1000, at)], later())) for at in (0, 5000, 10_000)]
        await until(lambda: played.posted)
        assert played.chains == [3]
        played.work()
        for task, at in zip(pulling, (0, 5000, 10_000), strict=True):
            buffer = await task
            assert bytes(buffer.view[:1000]) == bytes(theirs[at : at + 1000])
            buffer.drop()
        played.chains.clear()
        end.connect(Parameters(9, 1, CHOICE.gid.gid, 0, 5, 16, 16))
        assert end.messages is not None
        later_pull = asyncio.create_task(end.pull([(1, 1000, 0)], later()))
        await asyncio.sleep(0)
        end.messages.send(b"an answer")
        assert [one.verb for _, one, _ in played.posted] == [Verb.SEND, Verb.READ], "in one call, the answer first"
        await asyncio.sleep(0)
        assert played.chains == [2], "nothing was left to post"
        played.posted.pop(0)
        played.work()
        (await later_pull).drop()
        end.close(error(Code.CANCELLED, "over"))
        pool.close()

    run(work())


@pytest.mark.parametrize("played", [True], ids=["software"], indirect=True)
def test_what_a_software_device_moves_is_given_to_it_in_few_calls(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It moves the bytes within the call, so that nothing is gained by an early one: what was asked for in one turn
    leaves with its answers, and what is pulled next goes along with the answers to what has come."""
    monkeypatch.setattr(module, "HELD_BYTES_MAX", 64 * KiB)  # a card would begin with the first of two answers

    async def work() -> None:
        end, pool, _ = end_of(played)
        theirs = bytearray(os.urandom(256 * KiB))
        address, _export = address_of(memoryview(theirs))
        end.expose(Exposed(1, 77, len(theirs), address))
        end.connect(Parameters(9, 1, CHOICE.gid.gid, 0, 5, 16, 16))
        assert end.messages is not None
        post = played.post

        def at_once(chain: list[tuple[int, Work, bool]]) -> None:
            post(chain)
            played.work()

        played.post = at_once  # type: ignore[method-assign]
        buffer = pool.take(60 * KiB)
        for _ in range(2):
            end.push([(1, buffer.size, 0)], [buffer.size], buffer)
        assert not played.chains
        end.messages.send(b"two answers")
        assert played.chains == [3]
        buffer.drop()
        played.chains.clear()

        async def write(offset: int) -> None:
            (await end.pull([(1, 4 * KiB, offset)], later())).drop()
            asyncio.get_running_loop().call_soon(end.messages.send, b"written")  # as streams do

        first = [asyncio.create_task(write(at * 4 * KiB)) for at in range(2)]
        second: list[asyncio.Task[None]] = []

        def two_more() -> None:
            if not second:
                second.extend(asyncio.create_task(write(at * 4 * KiB)) for at in (2, 3))

        end._part.look = two_more  # type: ignore[method-assign]
        await asyncio.gather(*first)
        await asyncio.gather(*second)
        await until(lambda: sum(played.chains) == 8)
        assert played.chains == [2, 3, 1, 1, 1], "READs of a turn together, and later ones with the first answer"
        end.close(error(Code.CANCELLED, "over"))
        pool.close()

    run(work())


def test_a_pull_of_the_same_turn_has_no_answer_leave_before_its_message(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HELD_BYTES_MAX", 64 * KiB)

    async def work() -> None:
        end, pool, _ = end_of(played)
        theirs = bytearray(256 * KiB)
        address, _export = address_of(memoryview(theirs))
        end.expose(Exposed(1, 77, len(theirs), address))
        end.connect(Parameters(9, 1, CHOICE.gid.gid, 0, 5, 16, 16))
        assert end.messages is not None
        pulling = asyncio.create_task(end.pull([(1, 60 * KiB, 0)], later()))
        await asyncio.sleep(0)
        buffer = pool.take(30 * KiB)
        for _ in range(2):
            end.push([(1, 30 * KiB, 0)], [30 * KiB], buffer)
            assert not played.chains
        end.messages.send(b"an answer")
        verbs = [one.verb for _, one, _ in played.posted]
        assert sorted(verbs) == sorted([Verb.WRITE, Verb.WRITE, Verb.SEND, Verb.READ])
        assert played.chains == [4]
        played.posted[:] = [one for one in played.posted if one[1].verb is Verb.READ]
        played.work()
        (await pulling).drop()
        buffer.drop()
        end.close(error(Code.CANCELLED, "over"))

    run(work())


def test_a_short_answer_keeps_no_large_buffer(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may ask for anything on that connection for hours, and others need buffers."""
    monkeypatch.setattr(module, "SILENT_BYTES_MAX", 8 * KiB, raising=False)

    async def work() -> None:
        end, pool, _ = end_of(played)
        probe_bytes = pool.bytes
        theirs = bytearray(200 * KiB)
        address, _export = address_of(memoryview(theirs))
        end.expose(Exposed(1, 77, len(theirs), address))
        for room, kept in ((128 * KiB, 0), (8 * KiB, 8 * KiB), (4 * KiB, 0)):
            buffer = pool.take(room)
            end.push([(1, room, 0)], [1], buffer)  # the end of a file, say
            end.endpoint.post()
            buffer.drop()
            played.work()
            await asyncio.sleep(0.05)
            idle = sum(size * len(buffers) for size, buffers in pool._free.items())
            assert pool.bytes - idle == probe_bytes + kept
        end.close(error(Code.CANCELLED, "over"))

    run(work())


def test_a_failed_transfer_ends_the_connection_in_the_right_order(played: Played) -> None:
    async def work() -> None:
        end, pool, lost = end_of(played)
        theirs = memoryview(bytearray(64 * KiB))
        address, _export = address_of(theirs)
        end.expose(Exposed(1, 77, len(theirs), address))
        # Apart from each other here, so that each is a work request: more than the queue holds.
        segments = [(1, 16, 64 * i) for i in range(3 * DEPTH)]
        pulls = [asyncio.create_task(end.pull(segments, later())) for _ in range(2)]
        await until(lambda: len(played.posted) == DEPTH)
        played.work(fail_at=2)
        failed = await asyncio.gather(*pulls, return_exceptions=True)
        assert [exc.code for exc in failed if isinstance(exc, FfsError)] == [Code.UNAVAILABLE] * 2
        assert len(lost) == 1
        # Before any buffer is given to anyone else; what has arrived is reaped while the queue pair is still known.
        assert played.diary == ["nothing moves", "arrivals", "queue pair", "completions", "region", "place"]
        pool.close()
        assert pool.bytes == 0, "every buffer came back"
        end.close(error(Code.CANCELLED, "again"))  # a second end is none
        with pytest.raises(FfsError) as caught:
            end.push([(1, 1, 0)], [1], pool.take(1))
        assert caught.value.code is Code.UNAVAILABLE, "who comes later is told what ended it"
        with pytest.raises(FfsError) as caught:
            await end.pull(segments, later())
        assert caught.value.code is Code.UNAVAILABLE

    run(work())


def test_a_caller_that_gives_up_leaves_its_buffer_to_the_transfer(played: Played) -> None:
    async def work() -> None:
        end, pool, _ = end_of(played)
        theirs = memoryview(bytearray(b"y" * 8192))
        address, _export = address_of(theirs)
        end.expose(Exposed(1, 77, len(theirs), address))
        pulling = asyncio.create_task(end.pull([(1, 8192, 0)], later()))
        await until(lambda: played.posted)
        pulling.cancel()
        await asyncio.gather(pulling, return_exceptions=True)
        other = pool.take(8192)
        assert other.address != played.posted[0][1].local[0][0]
        before = pool.bytes
        played.work()
        await until(lambda: end.endpoint._queue.in_flight == 0)
        again = pool.take(8192)
        assert pool.bytes == before, "the transfer is over: its buffer is used again"
        for buffer in (other, again):
            buffer.drop()
        end.close(error(Code.CANCELLED, "over"))

    run(work())


@pytest.mark.parametrize("why", ["the client withdraws its memory", "the connection is lost"])
def test_an_answer_that_cannot_be_brought_gives_everything_back(played: Played, why: str) -> None:
    """The handler has placed its bytes, and the place is gone before it answers."""

    async def work() -> None:
        end, pool, lost = end_of(played)
        theirs = memoryview(bytearray(8192))
        address, _export = address_of(theirs)
        end.expose(Exposed(1, 77, len(theirs), address))
        asker = Asker(end)
        request = asker.request((1, 8192, 0))
        request.push_views()[0][:] = b"p" * 8192
        if why == "the connection is lost":
            end.close(error(Code.UNAVAILABLE, "lost"))
        else:
            end.withdraw(1)
        request.reply(b"", [8192])
        assert len(asker.answers) == 1
        head = parse_header(asker.answers[0])
        assert head.status == (Code.UNAVAILABLE if why == "the connection is lost" else Code.PROTOCOL)
        assert not lost, "the client's other requests go on"
        end.close(error(Code.CANCELLED, "over"))
        pool.close()
        assert pool.bytes == 0, "every buffer came back"

    run(work())


def test_a_lost_connection_with_many_transfers_that_wait_their_turn(played: Played) -> None:
    """All that wait for a grant are of one connection when it is lost."""

    async def work() -> None:
        end, pool, _ = end_of(played)
        theirs = memoryview(bytearray(64))
        address, _export = address_of(theirs)
        end.expose(Exposed(1, 77, len(theirs), address))
        end._server.grants = Grants(64)
        pulls = [asyncio.create_task(end.pull([(1, 64, 0)], later())) for _ in range(CONNECTION_REQUESTS_MAX)]
        pool._bytes_max = CONNECTION_REQUESTS_MAX * 8 * KiB
        await until(lambda: len(played.posted) == 1)
        await asyncio.sleep(0)
        end.close(error(Code.UNAVAILABLE, "lost"))
        failed = await asyncio.gather(*pulls, return_exceptions=True)
        assert [exc.code for exc in failed if isinstance(exc, FfsError)] == [Code.UNAVAILABLE] * len(pulls)
        assert end._server.grants.bytes == 0
        pool.close()
        assert pool.bytes == 0, "every buffer came back"

    run(work())


def test_what_cannot_be_posted_ends_the_connection(played: Played) -> None:
    async def work() -> None:
        end, _, lost = end_of(played)
        theirs = memoryview(bytearray(100))
        address, _export = address_of(theirs)
        end.expose(Exposed(1, 77, 100, address))
        played.refuses_post = True
        with pytest.raises(FfsError, match="cannot be posted") as caught:
            await end.pull([(1, 100, 0)], later())
        assert caught.value.code is Code.UNAVAILABLE
        assert lost

    run(work())


def test_buffers_are_bounded_and_waited_for(played: Played) -> None:
    async def work() -> None:
        end, pool, _ = end_of(played)
        theirs = memoryview(bytearray(200 * KiB))
        address, _export = address_of(theirs)
        end.expose(Exposed(1, 77, len(theirs), address))
        held = pool.take(128 * KiB)  # leaves less than as much again: the connection has a buffer too
        with pytest.raises(FfsError) as caught:
            await end.pull([(1, 100 * KiB, 0)], asyncio.get_running_loop().time() + 0.05)
        assert caught.value.code is Code.OVERLOADED
        waiting = asyncio.create_task(end.pull([(1, 100 * KiB, 0)], later()))
        await asyncio.sleep(0)
        held.drop()
        await until(lambda: played.posted or waiting.done())
        played.work()
        buffer = await waiting
        assert len(buffer.view) == 128 * KiB
        assert pool.bytes <= 256 * KiB
        buffer.drop()
        end.close(error(Code.CANCELLED, "over"))

    run(work())


def test_buffers_are_handed_out_in_turn(played: Played) -> None:
    """Much is not passed by little, and who gives up is in nobody's way."""

    async def work() -> None:
        pool = RegisteredPool(played, bytes_max=64 * KiB)  # type: ignore[arg-type]
        held = [pool.take(16 * KiB) for _ in range(4)]
        much = asyncio.create_task(pool.take_in_turn(32 * KiB, later()))
        little = [asyncio.create_task(pool.take_in_turn(4 * KiB, later())) for _ in range(3)]
        await asyncio.sleep(0)
        held.pop().drop()
        await asyncio.sleep(0)
        assert not much.done()
        assert not any(task.done() for task in little)
        held.pop().drop()
        buffer = await much
        assert not any(task.done() for task in little)
        buffer.drop()
        little[0].cancel()  # at the moment at which it was given one
        others = await asyncio.gather(*little, return_exceptions=True)
        assert isinstance(others[0], asyncio.CancelledError)
        for left in [*held, *others[1:]]:
            assert not isinstance(left, BaseException)
            left.drop()
        pool.close()
        assert pool.bytes == 0, "every buffer came back"

    run(work())


def test_who_gives_up_waiting_lets_those_behind_it_through(played: Played) -> None:
    async def work() -> None:
        pool = RegisteredPool(played, bytes_max=64 * KiB)  # type: ignore[arg-type]
        held = [pool.take(4 * KiB), pool.take(32 * KiB)]
        much = asyncio.create_task(pool.take_in_turn(64 * KiB, asyncio.get_running_loop().time() + 0.05))
        little = asyncio.create_task(pool.take_in_turn(4 * KiB, later()))
        with pytest.raises(FfsError) as caught:
            await much
        assert caught.value.code is Code.OVERLOADED
        held.append(await asyncio.wait_for(little, 1))
        for buffer in held:
            buffer.drop()
        pool.close()
        assert pool.bytes == 0, "every buffer came back"

    run(work())


def test_what_a_client_names_is_checked(played: Played) -> None:
    async def work() -> None:
        end, _, lost = end_of(played)
        end.expose(Exposed(1, 77, 100, 4096))
        for segment in ((1, 101, 0), (1, 1, 100), (2, 1, 0)):
            with pytest.raises(FfsError) as caught:
                await end.pull([segment], later())
            assert caught.value.code is Code.PROTOCOL
            with pytest.raises(FfsError):
                end.check([segment])
        with pytest.raises(FfsError, match="already"):
            end.expose(Exposed(1, 78, 100, 4096))
        for number in range(2, REGIONS_MAX + 1):
            end.expose(Exposed(number, 77, 100, 4096))
        with pytest.raises(FfsError) as caught:
            end.expose(Exposed(REGIONS_MAX + 1, 77, 100, 4096))
        assert caught.value.code is Code.TOO_LARGE
        end.withdraw(1)
        with pytest.raises(FfsError, match="not registered"):
            end.withdraw(1)
        assert not played.posted
        assert not lost
        end.close(error(Code.CANCELLED, "over"))

    run(work())
