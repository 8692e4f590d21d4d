"""A stream whose frames a wire carries: what is sent in one turn of the loop leaves together."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

import pytest

from fireflyfs.common.errors import FfsError
from fireflyfs.common.net.frame import Buffer
from fireflyfs.common.net.stream import CORKED_BYTES_MAX, Stream


class PlayedWire:
    """Takes all it is given while it has room, and keeps what each call brought."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []
        self.room = True
        self.writable: Callable[[], None] | None = None

    def look(self) -> bool:
        return False

    def send(self, data: Buffer, /) -> int:
        return self.sendmsg([data])

    def sendmsg(self, pieces: Sequence[Buffer], /) -> int:
        if not self.room:
            raise BlockingIOError
        self.calls.append(b"".join(bytes(piece) for piece in pieces))
        return len(self.calls[-1])

    def recv_into(self, sink: memoryview, /) -> int:
        raise BlockingIOError

    def recvmsg_into(self, sinks: Sequence[memoryview], /) -> tuple[int]:
        raise BlockingIOError

    def on_readable(self, callback: Callable[[], None] | None, /) -> None: ...

    def on_writable(self, callback: Callable[[], None] | None, /) -> None:
        self.writable = callback


class Carried(Stream):
    def __init__(self, sock: socket.socket, wire: PlayedWire) -> None:
        super().__init__(asyncio.get_running_loop(), sock)
        self.start()
        self.carry_by(wire)
        self.why: list[FfsError] = []

    def on_closed(self, exc: FfsError) -> None:
        self.why.append(exc)


@pytest.mark.parametrize("ending", ["kept", "closed", "closed after it was sent"])
def test_answers_of_one_turn_leave_in_one_call(ending: str) -> None:
    async def work() -> None:
        ours, theirs = socket.socketpair()
        wire = PlayedWire()
        stream = Carried(ours, wire)
        sent: list[int] = []
        for number in range(3):
            stream.send([b"%d" % number, b";"], lambda n=number: sent.append(n))
        assert wire.calls == [], "others may join"
        if ending == "closed":
            stream.close(FfsError(5, "over"))
            assert sent == [0, 1, 2], "buffers come back"
        elif ending == "closed after it was sent":
            stream.close_after_send()
            assert not stream.closed
        await asyncio.sleep(0)
        assert wire.calls == ([] if ending == "closed" else [b"0;1;2;"])
        assert sent == [0, 1, 2]
        if ending == "kept":
            stream.send([b"alone"])
            await asyncio.sleep(0)
            assert wire.calls[1:] == [b"alone"]
            stream.send([b"x" * CORKED_BYTES_MAX])
            assert len(wire.calls) == 3, "much does not wait"
        stream.close(FfsError(5, "over"))
        theirs.close()

    asyncio.run(work())


def test_what_a_full_wire_did_not_take_leaves_when_it_has_room(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        ours, theirs = socket.socketpair()
        wire = PlayedWire()
        stream = Carried(ours, wire)
        wire.room = False
        stream.send([b"a"])
        await asyncio.sleep(0)
        stream.send([b"b"])
        await asyncio.sleep(0)
        assert wire.calls == []
        assert stream.queued_bytes == 2
        wire.room = True
        assert wire.writable is not None
        wire.writable()
        assert wire.calls == [b"ab"]
        assert wire.writable is None
        stream.close(FfsError(5, "over"))
        theirs.close()

    asyncio.run(work())
    assert not caplog.records
