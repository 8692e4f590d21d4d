"""Frames over SEND and RECV on queues that are played: what is cut, what waits, and what a hostile peer gets for it.

The fault model: the played device completes sends in order when it is told to, delivers each into the receive buffer
that was posted first, refuses one that finds none, and tells nothing of what was not signalled.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.net.rdma import arrivals, endpoint, receiving
from fireflyfs.common.net.rdma.arrivals import Arrivals
from fireflyfs.common.net.rdma.choice import Choice
from fireflyfs.common.net.rdma.credits import RECEIVE_BYTES, SPARE, WINDOW, Credits, receive_buffers
from fireflyfs.common.net.rdma.endpoint import Endpoint, Posted
from fireflyfs.common.net.rdma.library import Owned
from fireflyfs.common.net.rdma.messages import Messages
from fireflyfs.common.net.rdma.plan import Verb, Work
from fireflyfs.common.net.rdma.queues import POLL_MAX, RECEIVED, Completion
from fireflyfs.common.net.rdma.receiving import Receives
from fireflyfs.common.net.rdma.sending import SendQueue
from fireflyfs.common.net.rdma.verbs import SRQ_LIMIT, Gid, Limits, Port, address_of
from fireflyfs.common.net.rdma.wire import MESSAGE_HEADER, Parameters

NO_GID = "0000:0000:0000:0000:0000:ffff:0a4d:0001"
PORT = Port(1, active=True, mtu=5, message_bytes_max=1 << 20, lid=0, ethernet=True)
CHOICE = Choice("played0", PORT, Gid(1, NO_GID, roce_v2=True))
PARAMETERS = Parameters(7, 7, NO_GID, 0, 5, 16, 16)
DEPTH = WINDOW
FLUSHED = 5


class PlayedCompletions:
    """A completion queue that must not overflow."""

    def __init__(self, _device: object, depth: int, *, watched: bool) -> None:
        self.depth = depth
        self.found: deque[Completion] = deque()
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)

    def add(self, completion: Completion) -> None:
        self.found.append(completion)
        assert len(self.found) <= self.depth, "the completion queue overflows"
        os.eventfd_write(self.fd, 1)

    def take_event(self) -> None:
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return

    def rearm(self) -> None:
        if self.found:
            os.eventfd_write(self.fd, 1)

    def poll(self) -> list[Completion]:
        return [self.found.popleft() for _ in range(min(POLL_MAX, len(self.found)))]

    def close(self) -> None:
        os.close(self.fd)


class PlayedReceives:
    """A shared receive queue."""

    def __init__(self, _domain: object, depth: int) -> None:
        self.depth = depth
        self.posted: deque[tuple[int, int, int]] = deque()
        self.level = 0

    def request(self, number: int, address: int, length: int, lkey: int) -> tuple[int, int, int]:
        return number, address, length

    def post(self, request: tuple[int, int, int]) -> None:
        assert request not in self.posted, "posted twice"
        self.posted.append(request)
        assert len(self.posted) <= self.depth, "the receive queue overflows"

    def warn_below(self, count: int) -> None:
        self.level = count

    def close(self) -> None:
        return


class PlayedPair:
    """A queue pair. `peer` is where what it sends goes."""

    numbers = iter(range(100, 1 << 20))

    def __init__(
        self, _domain: object, completions: Any, depth: int, _sges: int, *, remote: bool, receives: Any, received: Any
    ) -> None:
        self.number = next(self.numbers)
        self.completions = completions
        self.received = received if received is not None else completions
        self.receives: PlayedReceives = receives
        self.depth = depth
        self.posted: deque[tuple[int, Work, bool]] = deque()
        self.peer: PlayedPair | None = None
        self.closed = self.ended = False

    def connect(self, *_: object) -> None:
        return

    def post(self, chain: Sequence[tuple[int, Work, bool]]) -> None:
        self.posted += chain
        assert len(self.posted) <= self.depth, "the send queue overflows"

    def end(self) -> None:
        self.ended = True

    def close(self) -> None:
        assert self.ended
        self.closed = True

    def work(self, count: int = 1000) -> int:
        """Deliver up to so many messages; returns how many."""
        done = 0
        while self.posted and done < count:
            number, work, signalled = self.posted.popleft()
            assert work.verb is Verb.SEND
            assert self.peer is not None
            [(address, length, _)] = work.local
            self.peer.take(ctypes.string_at(address, length))
            if signalled:
                self.completions.add(Completion(number, 0, 0, self.number))
            done += 1
        return done

    def take(self, message: bytes) -> None:
        """What the peer sends."""
        if self.ended:
            return
        assert self.receives.posted, "no receive buffer is posted"
        number, address, length = self.receives.posted.popleft()
        assert len(message) <= length
        ctypes.memmove(address, message, len(message))
        self.received.add(Completion(RECEIVED + number, 0, len(message), self.number))


class PlayedDomain:
    closed = False

    def __init__(self, *_: object) -> None:
        self.registered = 0

    def register(self, buffer: memoryview, *, remote: bool) -> Any:
        assert not remote
        self.registered += len(buffer)
        address, export = address_of(buffer)
        return SimpleNamespace(address=address, lkey=3, close=lambda: None, export=export)

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "QueuePair", PlayedPair)
    monkeypatch.setattr(receiving, "SharedReceives", PlayedReceives)
    monkeypatch.setattr(arrivals, "Completions", PlayedCompletions)
    monkeypatch.setattr(arrivals, "Domain", PlayedDomain)


def client_of(receives: Receives, theirs: Parameters = PARAMETERS) -> tuple[Endpoint, Messages]:
    receives.enter()
    completions = PlayedCompletions(None, DEPTH + 1 + receives.depth, watched=True)
    end = Endpoint(
        PlayedDomain(),
        completions,
        receives,
        SendQueue(DEPTH, 1 << 20),
        1,
        remote=True,
        posted=Posted(),  # type: ignore[arg-type]
    )
    messages = end.connect(CHOICE, PARAMETERS, theirs)
    messages.reap = end.reap
    return end, messages


def pair_of(end: Endpoint) -> PlayedPair:
    pair = end.pair
    assert isinstance(pair, PlayedPair)
    return pair


@pytest.fixture
def both() -> Iterator[tuple[tuple[Endpoint, Messages], tuple[Endpoint, Messages]]]:
    """Two ends, each as a client's: it reaps when it looks."""
    ours, theirs = (client_of(Receives(PlayedDomain(), 2)) for _ in range(2))  # type: ignore[arg-type]
    pair_of(ours[0]).peer, pair_of(theirs[0]).peer = pair_of(theirs[0]), pair_of(ours[0])
    yield ours, theirs
    for end, _ in (ours, theirs):
        end.end()
        end.reap()
        end.close(FfsError(Code.CANCELLED, "over"))
        queue = end._receives.queue
        assert isinstance(queue, PlayedReceives)
        assert len(queue.posted) == end._receives.bytes // RECEIVE_BYTES, "every buffer came back"


def test_a_stream_of_any_pieces_arrives_as_it_was_sent(both: Any) -> None:
    rng = random.Random(1)
    sent, got, left = [bytearray(), bytearray()], [bytearray(), bytearray()], [400_000, 400_000]
    while left != [0, 0] or got != sent:
        which = rng.randrange(2)
        end, messages = both[which]
        peer, reader = both[1 - which]
        if left[which]:
            pieces = [rng.randbytes(rng.choice([1, 7, 100, 5000, 30_000])) for _ in range(rng.randrange(1, 5))]
            try:
                count = messages.sendmsg(pieces)
            except BlockingIOError:
                count = 0
            sent[which] += b"".join(pieces)[:count]
            left[which] = max(left[which] - count, 0)
        pair_of(end).work(rng.randrange(4))
        pair_of(peer).work(rng.randrange(4))
        if rng.random() < 0.6:
            sinks = [memoryview(bytearray(rng.choice([1, 50, 9000]))) for _ in range(rng.randrange(1, 4))]
            try:
                count = reader.recvmsg_into(sinks)[0]
            except BlockingIOError:
                count = 0
            got[which] += b"".join(bytes(sink) for sink in sinks)[:count]
    assert len(sent[0]) >= 400_000


def test_messages_are_no_longer_than_the_peer_takes() -> None:
    end, messages = client_of(Receives(PlayedDomain(), 2), PARAMETERS._replace(receive_bytes=512, receives=9))  # type: ignore[arg-type]
    assert messages.send(bytes(100_000)) == 8 * 504, "one credit is kept"
    assert [work.length for _, work, _ in pair_of(end).posted] == [512] * 8
    with pytest.raises(BlockingIOError):
        messages.send(b"x")


def test_two_ends_never_wait_for_each_other() -> None:
    """Whatever is sent, delivered and read in which order, something moves until all has arrived."""
    for seed in range(60):
        rng = random.Random(seed)
        ends = [client_of(Receives(PlayedDomain(), 2)) for _ in range(2)]  # type: ignore[arg-type]
        pair_of(ends[0][0]).peer, pair_of(ends[1][0]).peer = pair_of(ends[1][0]), pair_of(ends[0][0])
        size = [rng.choice([1, 20, 8000]) for _ in range(2)]
        left = [each * rng.choice([0, 5, 100]) for each in size]
        wanted, got, idle = left[::-1], [0, 0], 0
        while got != wanted:
            moved = 0
            for which in rng.sample([0, 1], 2):
                end, messages = ends[which]
                for step in rng.sample(["send", "deliver", "read"], 3):
                    try:
                        if step == "send" and left[which] and rng.random() < 0.6:
                            count = messages.send(bytes(min(size[which], left[which])))
                            left[which] -= count
                            moved += count
                        elif step == "deliver" and rng.random() < 0.6:
                            moved += pair_of(end).work(rng.randrange(1, 20))
                        elif step == "read" and rng.random() < 0.6:
                            count = messages.recv_into(memoryview(bytearray(rng.choice([1, 100, 70_000]))))
                            got[which] += count
                            moved += count
                    except BlockingIOError:
                        continue
            idle = 0 if moved else idle + 1
            assert idle < 100, f"seed {seed}: {left} to send, {got} of {wanted} read"


def test_a_peer_is_told_when_there_is_a_buffer_again_to_tell_it_from(both: Any) -> None:
    """It came to be due while every send was on its way; nothing more comes, for the peer has no credit left."""
    (end, messages), (peer_end, peer) = both
    peer.send(bytes(5))
    pair_of(peer_end).work()
    for _ in range(WINDOW - 2):
        messages.send(b"x")  # nothing of it is delivered
    for _ in range(WINDOW - 2):
        peer.send(bytes(5))
    with pytest.raises(BlockingIOError):
        peer.send(bytes(5))
    messages._buffers.free, kept = [], messages._buffers.free
    pair_of(peer_end).work()
    sink = memoryview(bytearray(1000))
    assert messages.recv_into(sink) == 5 * (WINDOW - 1)
    messages._buffers.free += kept
    pair_of(end).work()
    assert not messages.look()
    pair_of(end).work()
    assert peer.send(bytes(5)) == 5


def test_few_sends_are_signalled_and_no_buffer_waits_for_ever(both: Any) -> None:
    (end, messages), (_, reader) = both
    signals = 0
    sink = memoryview(bytearray(100))
    for _ in range(400):
        assert messages.send(b"0123456789") == 10
        signals += sum(signalled for _, _, signalled in pair_of(end).posted)
        pair_of(end).work()
        assert reader.recv_into(sink) == 10
        pair_of(both[1][0]).work()
        messages.look()
    assert signals == 100
    assert len(messages._buffers.free) >= WINDOW - 4


@pytest.mark.parametrize(
    "message",
    [b"", b"1234567", MESSAGE_HEADER.pack(WINDOW, 1), MESSAGE_HEADER.pack(WINDOW, 0) + b"x",
     MESSAGE_HEADER.pack(WINDOW + 1, 0), MESSAGE_HEADER.pack(0, 0)],
)  # fmt: skip
def test_a_message_that_makes_no_sense_ends_the_connection(both: Any, message: bytes) -> None:
    (end, messages), _ = both
    pair_of(end).take(message)
    with pytest.raises(FfsError) as caught:
        messages.recv_into(memoryview(bytearray(10)))
    assert caught.value.code is Code.PROTOCOL
    with pytest.raises(FfsError):
        messages.send(b"x")


def test_what_had_arrived_is_received_before_the_failure(both: Any) -> None:
    (end, messages), _ = both
    pair_of(end).take(MESSAGE_HEADER.pack(WINDOW, 3) + b"abc")
    end.reap()
    pair_of(end).completions.add(Completion(1, FLUSHED, 0, 0))
    end.reap()
    sink = memoryview(bytearray(10))
    assert messages.recv_into(sink) == 3
    with pytest.raises(FfsError, match="status 5") as caught:
        messages.recv_into(sink)
    assert caught.value.code is Code.UNAVAILABLE


# A server's connections, which share a queue.


class ServersEnd:
    """One connection of `Arrivals`; keeps what comes until it fails."""

    def __init__(self, shared: Arrivals, lost: Callable[[ServersEnd], None]) -> None:
        shared.receives.enter()
        completions = PlayedCompletions(None, DEPTH + 1, watched=True)
        self.endpoint = Endpoint(
            shared.domain, completions, shared.receives, SendQueue(DEPTH, 1 << 20), 1, remote=False, posted=Posted(),  # type: ignore[arg-type]
            received=shared.completions,
        )  # fmt: skip
        self.messages = self.endpoint.connect(CHOICE, PARAMETERS, PARAMETERS)
        self.messages.watch(asyncio.get_running_loop())
        self.messages.on_readable(self.read)
        self.got = bytearray()
        self.shared = shared
        self.lost = lost
        shared.add(self)

    def read(self) -> None:
        sink = memoryview(bytearray(1 << 20))
        self.got += sink[: self.messages.recv_into(sink)]

    def settle(self) -> None:
        if self.endpoint.failed is not None and not self.endpoint.closed:
            self.close()
            self.lost(self)
        elif not self.endpoint.closed:
            self.messages.settle()

    def close(self) -> None:
        self.endpoint.end()
        self.shared.remove(self)
        self.endpoint.close(FfsError(Code.UNAVAILABLE, "over"))

    def say(self, body: bytes, told: int = WINDOW) -> None:
        """As a peer of it."""
        pair_of(self.endpoint).take(MESSAGE_HEADER.pack(told, len(body)) + body)


def arrivals_of(connections_max: int = 64) -> tuple[Arrivals, PlayedReceives]:
    limits = Limits(10, 64, 4, 4, 16, 16, 100, 4096, 4096)
    device = SimpleNamespace(name="played0", limits=limits, events_fd=-1, software=False)
    shared = Arrivals(device, asyncio.get_running_loop(), connections_max)  # type: ignore[arg-type]
    queue = shared.receives.queue
    assert isinstance(queue, PlayedReceives)
    return shared, queue


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


def test_a_peer_that_sends_more_than_it_may_loses_its_connection_and_no_other_does() -> None:
    async def work() -> None:
        shared, queue = arrivals_of()
        lost: list[ServersEnd] = []
        ends = [ServersEnd(shared, lost.append) for _ in range(4)]
        greedy, others = ends[0], ends[1:]
        greedy.messages.on_readable(None)  # its handler is busy: what comes stays in the buffers
        for turn in range(WINDOW + SPARE // 2):
            greedy.say(b"more")
            if turn < WINDOW:
                for number, other in enumerate(others):
                    other.say(b"%d,%d;" % (turn, number))
        await until(lambda: bool(lost))
        await until(lambda: all(end.got.count(b";") == WINDOW for end in others))
        assert lost == [greedy]
        assert greedy.endpoint.failed is not None
        assert greedy.endpoint.failed.code is Code.PROTOCOL
        for number, other in enumerate(others):
            assert other.got == b"".join(b"%d,%d;" % (turn, number) for turn in range(WINDOW)), "in order"
            other.close()
        assert len(queue.posted) == shared.receives.bytes // RECEIVE_BYTES, "every buffer is posted again"
        shared.close()

    run(work())


def test_a_connection_that_ends_another_while_messages_are_handed_out() -> None:
    """What came for it is dropped, what came for others is in order."""

    async def work() -> None:
        shared, queue = arrivals_of()
        first, second, third = (ServersEnd(shared, lambda end: None) for _ in range(3))

        def end_second() -> None:
            first.read()
            third.say(b"2")  # comes while it is being ended
            second.close()

        first.messages.on_readable(end_second)
        for end in (first, second, third):
            end.say(b"1")
        await until(lambda: third.got == b"12")
        assert first.got == b"1"
        assert second.got == b""
        for end in (first, third):
            end.close()
        assert len(queue.posted) == shared.receives.bytes // RECEIVE_BYTES
        shared.close()

    run(work())


def test_late_messages_of_a_closed_connection_give_their_buffers_back() -> None:
    async def work() -> None:
        shared, queue = arrivals_of()
        end = ServersEnd(shared, lambda end: None)
        number, _, _ = queue.posted.popleft()
        end.close()
        completions = shared.completions
        assert isinstance(completions, PlayedCompletions)
        completions.add(Completion(RECEIVED + number, FLUSHED, 0, 99))
        await until(lambda: len(queue.posted) == shared.receives.bytes // RECEIVE_BYTES)
        shared.close()

    run(work())


@pytest.mark.parametrize("first_found", [False, True])
def test_a_queue_that_runs_low_is_looked_into_and_filled(first_found: bool) -> None:
    """By the peer that took too much; where none did, buffers are missing."""

    async def work() -> None:
        shared, queue = arrivals_of(connections_max=2)
        lost: list[ServersEnd] = []
        end, greedy = (ServersEnd(shared, lost.append) for _ in range(2))
        buffers = shared.receives.bytes // RECEIVE_BYTES
        for _ in range(WINDOW + 1):
            greedy.say(b"x")
        queue.level = 0
        if not first_found:
            shared.on_events([SRQ_LIMIT])
        await until(lambda: bool(lost))
        if first_found:
            shared.on_events([SRQ_LIMIT])
        await until(lambda: queue.level > 0)
        assert lost == [greedy]
        assert shared.receives.bytes // RECEIVE_BYTES == buffers, "none was missing"
        for _ in range(buffers - SPARE // 2):
            queue.posted.popleft()  # gone with queue pairs
        for _ in range(9):
            queue.level = 0
            shared.on_events([SRQ_LIMIT])
            await until(lambda: queue.level > 0)
        assert shared.receives.bytes // RECEIVE_BYTES == receive_buffers(2), "a bound on what is posted anew"
        end.close()
        shared.close()

    run(work())


def test_a_device_that_fails_ends_every_connection() -> None:
    async def work() -> None:
        shared, _ = arrivals_of()
        lost: list[ServersEnd] = []
        ends = [ServersEnd(shared, lost.append) for _ in range(3)]
        shared.on_events(["IBV_EVENT_DEVICE_FATAL"])
        await until(lambda: len(lost) == 3)
        assert {end.endpoint.failed.code for end in ends if end.endpoint.failed} == {Code.UNAVAILABLE}
        shared.close()

    run(work())


def test_the_memory_of_a_server_s_messages_is_bounded() -> None:
    async def work() -> None:
        shared, _ = arrivals_of(connections_max=1024)
        ends = []
        for _ in range((4096 - 2 * SPARE) // WINDOW):  # as many as the device has room for
            ends.append(ServersEnd(shared, lambda end: None))
        with pytest.raises(OSError, match="share"):
            shared.receives.enter()
        assert shared.receives.bytes <= 4096 * RECEIVE_BYTES
        for end in ends:
            end.close()
        shared.close()

    run(work())


def test_what_is_dropped_in_a_cycle_is_not_destroyed() -> None:
    """The collector destroys in any order: a device before its queues would end the process."""

    class Raw:
        pass

    owned = Owned("thing", Raw())
    owned.cycle = owned  # type: ignore[attr-defined]
    del owned
    gc.collect()
    assert any(type(kept) is Raw for kept in gc.get_objects())


def test_credits_of_a_smaller_peer_are_respected() -> None:
    credits = Credits(WINDOW, 4)
    assert credits.room == 3
