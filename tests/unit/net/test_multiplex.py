"""Calls that wait for their turn on a pipelined connection, and connections that end; the peer is played."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable

import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.limits import FRAME_BODY_BYTES_MAX
from fireflyfs.common.net import frame, multiplex
from fireflyfs.common.net.api import Address, Call
from fireflyfs.common.net.dial import Dialed
from fireflyfs.common.net.frame import HEADER_BYTES, LinkKind, Welcome
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.multiplex import MultiplexLink

ADDRESS = Address("played")
PAYLOAD_MAX = 100


class Peer:
    """A server that takes requests one by one and answers when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, requests_max: int) -> None:
        self.requests_max = requests_max
        self.theirs: list[socket.socket] = []
        self.link = MultiplexLink(Identity("test"))
        monkeypatch.setattr(multiplex, "dial", self._dial)

    def _dial(self, identity: Identity, address: Address, timeout_s: float) -> Dialed:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.theirs.append(theirs)
        return Dialed(ours, Welcome(1, LinkKind.TCP, self.requests_max, PAYLOAD_MAX), "played")

    def call(
        self, method: int, *, body: bytes = b"", payload: int = 0, deadline_s: float = 30.0
    ) -> asyncio.Task[object]:
        into = [memoryview(bytearray(payload))] if payload else ()
        call = Call(method, body, into=into, deadline_s=deadline_s)
        return asyncio.ensure_future(self.link.call(ADDRESS, call))

    async def request(self) -> frame.Header:
        """The next request, within a second."""
        async with asyncio.timeout(1):
            while not self.theirs:  # it is being dialed
                await asyncio.sleep(0.01)
            loop, sock = asyncio.get_running_loop(), self.theirs[-1]
            data = b""
            while len(data) < HEADER_BYTES:
                data += await loop.sock_recv(sock, HEADER_BYTES - len(data))
            header = frame.parse_header(data)
            rest = header.table_bytes + header.body_len
            while rest:
                rest -= len(await loop.sock_recv(sock, rest))
            return header

    def answer(self, header: frame.Header) -> None:
        self.theirs[-1].send(frame.pack_failure(header.request_id, int(Code.NO_ENTRY), "answered"))

    async def nothing_comes(self) -> None:
        await asyncio.sleep(0.05)
        with pytest.raises(BlockingIOError):
            self.theirs[-1].recv(1)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[Peer], Awaitable[None]]], None]:
    """play(requests_max, scene): a scene with a peer that takes so many requests at once."""

    def run(requests_max: int, scene: Callable[[Peer], Awaitable[None]]) -> None:
        async def main() -> None:
            peer = Peer(monkeypatch, requests_max)
            try:
                await scene(peer)
            finally:
                await peer.link.close()
                for sock in peer.theirs:
                    sock.close()

        asyncio.run(main())

    return run


async def ended(*tasks: asyncio.Task[object]) -> list[Code | None]:
    """What the calls ended with; None: cancelled."""
    found: list[Code | None] = []
    for task in tasks:
        try:
            async with asyncio.timeout(2):
                await task
        except FfsError as exc:
            found.append(exc.code)
        except asyncio.CancelledError:
            found.append(None)
    return found


def test_who_gives_up_as_its_turn_comes_lets_the_next_one_through(play) -> None:
    async def scene(peer: Peer) -> None:
        first = peer.call(1)
        request = await peer.request()
        waiting, behind = peer.call(2), peer.call(3)
        await peer.nothing_comes()
        connection = peer.link._connections[ADDRESS]
        on_frame = connection.on_frame

        def then_give_up(*parts):
            result = on_frame(*parts)
            waiting.cancel()
            return result

        connection.on_frame = then_give_up  # type: ignore[method-assign]
        peer.answer(request)
        last = await peer.request()
        assert last.method == 3
        peer.answer(last)
        assert await ended(first, waiting, behind) == [Code.NO_ENTRY, None, Code.NO_ENTRY]

    play(1, scene)


def test_who_gives_up_while_it_waits_lets_those_through_that_need_less(play) -> None:
    async def scene(peer: Peer) -> None:
        first = peer.call(1, payload=60)
        request = await peer.request()
        waiting, behind = peer.call(2, payload=60), peer.call(3, payload=10)
        await peer.nothing_comes()
        waiting.cancel()
        small = await peer.request()
        assert small.method == 3
        peer.answer(small)
        peer.answer(request)
        assert await ended(first, waiting, behind) == [Code.NO_ENTRY, None, Code.NO_ENTRY]

    play(8, scene)


def test_a_request_that_cannot_be_sent_lets_the_next_one_through(play) -> None:
    async def scene(peer: Peer) -> None:
        first = peer.call(1)
        request = await peer.request()
        unsendable, behind = peer.call(2, body=bytes(FRAME_BODY_BYTES_MAX + 1)), peer.call(3)
        await peer.nothing_comes()
        peer.answer(request)
        last = await peer.request()
        assert last.method == 3
        peer.answer(last)
        assert await ended(first, unsendable, behind) == [Code.NO_ENTRY, Code.TOO_LARGE, Code.NO_ENTRY]

    play(1, scene)


def test_calls_go_in_turn(play) -> None:
    """One with much payload is not overtaken by small ones until it is too late for it."""

    async def scene(peer: Peer) -> None:
        first = peer.call(1, payload=60)
        request = await peer.request()
        large = peer.call(2, payload=60)
        await asyncio.sleep(0)
        small = peer.call(3, payload=10)
        await peer.nothing_comes()
        peer.answer(request)
        for method in (2, 3):
            request = await peer.request()
            assert request.method == method
            peer.answer(request)
        assert await ended(first, large, small) == [Code.NO_ENTRY] * 3

    play(8, scene)


def test_a_call_larger_than_the_bound_goes_alone(play) -> None:
    async def scene(peer: Peer) -> None:
        first, large, small = peer.call(1, payload=10), peer.call(2, payload=200), peer.call(3, payload=10)
        for method in (1, 2, 3):
            request = await peer.request()
            assert request.method == method
            await peer.nothing_comes()
            peer.answer(request)
        assert await ended(first, large, small) == [Code.NO_ENTRY] * 3

    play(8, scene)


def test_a_lost_connection_ends_calls_that_wait_and_is_forgotten(play) -> None:
    async def scene(peer: Peer) -> None:
        sent, waiting = peer.call(1), peer.call(2)
        await peer.request()
        connection = peer.link._connections[ADDRESS]
        peer.theirs.pop().close()
        assert await ended(sent, waiting) == [Code.UNAVAILABLE] * 2
        assert not peer.link._connections
        with pytest.raises(FfsError) as caught:  # who still holds it is told at once
            await connection.call(Call(3, b""), asyncio.get_running_loop().time() + 1)
        assert caught.value.code is Code.UNAVAILABLE
        again = peer.call(4)
        peer.answer(await peer.request())
        assert await ended(again) == [Code.NO_ENTRY]

    play(1, scene)


def test_a_link_that_is_closed_while_it_connects(play, monkeypatch) -> None:
    """Calls are told so, and what was connected all the same is closed."""

    async def scene(peer: Peer) -> None:
        dialing, go = threading.Event(), threading.Event()
        dialed: list[Dialed] = []

        def slowly(*arguments) -> Dialed:
            dialing.set()
            go.wait(5)
            dialed.append(peer._dial(*arguments))
            return dialed[0]

        monkeypatch.setattr(multiplex, "dial", slowly)
        first, second = peer.call(1), peer.call(2)
        await asyncio.to_thread(dialing.wait, 5)
        await peer.link.close()
        assert await ended(first, second) == [Code.CANCELLED] * 2
        go.set()
        async with asyncio.timeout(2):
            while not dialed or dialed[0].sock.fileno() != -1:
                await asyncio.sleep(0.01)

    play(8, scene)


def test_a_call_that_is_cancelled_while_it_connects_is_cancelled(play, monkeypatch) -> None:
    async def scene(peer: Peer) -> None:
        go = threading.Event()

        def slowly(*arguments) -> Dialed:
            go.wait(5)
            return peer._dial(*arguments)

        monkeypatch.setattr(multiplex, "dial", slowly)
        given_up, other = peer.call(1), peer.call(2)
        await asyncio.sleep(0.05)
        given_up.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await given_up
        assert given_up.cancelled()
        go.set()
        peer.answer(await peer.request())
        assert await ended(other) == [Code.NO_ENTRY]

    play(8, scene)


def test_each_call_ends_at_its_own_deadline(play) -> None:
    """One timer serves all: neither an earlier deadline that comes later nor an answered call may set it wrong."""

    async def scene(peer: Peer) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        late, soon, answered, waiting = (
            peer.call(n, deadline_s=d) for n, d in ((1, 0.3), (2, 0.1), (3, 0.2), (4, 0.2))
        )
        headers = [await peer.request() for _ in range(4)]
        peer.answer(headers[2])
        assert await ended(soon) == [Code.TIMEOUT]
        assert 0.1 <= loop.time() - began_s < 0.2
        assert await ended(answered, waiting, late) == [Code.NO_ENTRY, Code.TIMEOUT, Code.TIMEOUT]
        assert 0.3 <= loop.time() - began_s < 0.6
        peer.answer(headers[0])  # nobody waits for it any more
        after = peer.call(5, deadline_s=5)
        peer.answer(await peer.request())
        assert await ended(after) == [Code.NO_ENTRY]

    play(4, scene)


def test_a_call_that_waits_for_room_ends_at_its_deadline(play) -> None:
    async def scene(peer: Peer) -> None:
        first, second = peer.call(1), peer.call(2, deadline_s=0.1)
        header = await peer.request()
        assert await ended(second) == [Code.TIMEOUT]
        await peer.nothing_comes()
        peer.answer(header)
        assert await ended(first) == [Code.NO_ENTRY]

    play(1, scene)
