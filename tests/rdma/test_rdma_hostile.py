"""Clients that break the rules of messages on a real queue pair: they lose their connection, nobody else does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.net.api import Address
from fireflyfs.common.net.blocking import BlockingPool
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.link_choice import LinkChoice
from fireflyfs.common.net.rdma import messages as module
from fireflyfs.common.net.rdma.adapters import Adapters
from fireflyfs.common.net.rdma.credits import RECEIVE_BYTES, WINDOW, Credits
from fireflyfs.common.net.rdma.messages import Messages
from fireflyfs.common.net.rdma.wire import MESSAGE_HEADER
from rdma.peers import OFFERED_BYTES, Process, fill, until


class Lies:
    """In place of the header's format: says that more follows than does."""

    size = MESSAGE_HEADER.size

    @staticmethod
    def pack_into(view: memoryview, at: int, told: int, length: int) -> None:
        MESSAGE_HEADER.pack_into(view, at, told, length + 1)


@pytest.fixture
def honest(server: tuple[Process, Address], link: BlockingPool) -> Iterator[BlockingPool]:
    """Another client, which has a connection and must keep it."""
    other = BlockingPool(Identity("test"))
    fill(other, server[1])
    before = server[0].counts()["opened"]
    yield other
    fill(other, server[1])
    assert server[0].counts()["opened"] == before + 1, "only the other one's connection was opened since"
    other.close()


def connected(link: BlockingPool, address: Address) -> Messages:
    """The messages of its one connection."""
    fill(link, address)
    [connection] = link._server(address).idle
    assert connection._rdma is not None
    return connection._rdma.messages


def refused(link: BlockingPool, address: Address) -> FfsError:
    """What the next call on the connection is told."""
    [connection] = link._server(address).idle
    connection.last_used_s = float("inf")  # so that it is used, not thrown away as stale
    with pytest.raises(FfsError) as caught:
        fill(link, address)
    return caught.value


def send_without_leave(messages: Messages, monkeypatch: pytest.MonkeyPatch, count: int) -> int:
    """Send so many messages, whatever was granted; returns how many the device took."""
    with monkeypatch.context() as patch:
        patch.setattr(Credits, "room", 1)
        for sent in range(count):
            try:
                until(lambda: messages.reap is not None and messages.reap() >= 0 and messages._ready, 2.0)
                messages.send(b"x")
            except (FfsError, AssertionError):  # the device has given up, or waits
                return sent
    return count


@pytest.mark.parametrize("count", [WINDOW + 1, 500])
def test_more_than_was_granted(
    server: tuple[Process, Address],
    link: BlockingPool,
    honest: BlockingPool,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    """One too many, or all that the server has buffers for: those are there again afterwards."""
    process, address = server
    failures, receive_bytes = process.counts()["failures"], process.counts()["receive_bytes"]
    messages = connected(link, address)
    process.stop()
    try:
        sent = send_without_leave(messages, monkeypatch, count)
    finally:
        process.signal(signal.SIGCONT)
    assert sent > WINDOW
    until(lambda: process.counts()["connections"] == 1)
    assert process.counts()["failures"] == failures + 1
    exc = refused(link, address)
    assert exc.code in (Code.PROTOCOL, Code.UNAVAILABLE), exc
    if count == WINDOW + 1:
        assert "were granted" in exc.message
    for _ in range(3 * WINDOW):
        fill(honest, address)
    assert process.counts()["receive_bytes"] == receive_bytes


@pytest.mark.parametrize("what", ["a length that is not its own", "a grant of more than there is", "too long"])
def test_messages_that_make_no_sense(
    server: tuple[Process, Address],
    link: BlockingPool,
    honest: BlockingPool,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    process, address = server
    failures = process.counts()["failures"]
    messages = connected(link, address)
    with monkeypatch.context() as patch:
        if what == "a length that is not its own":
            patch.setattr(module, "MESSAGE_HEADER", Lies)
        elif what == "a grant of more than there is":
            messages._credits._window += 1
        else:
            messages._message_bytes = 2 * RECEIVE_BYTES
            messages._buffers.free.sort(reverse=True)  # one that another follows
        messages.send(b"x" * 2 * RECEIVE_BYTES)
    until(lambda: process.counts()["connections"] == 1)
    assert process.counts()["failures"] == failures + 1
    exc = refused(link, address)
    assert exc.code is (Code.UNAVAILABLE if what == "too long" else Code.PROTOCOL), exc
    fill(honest, address)


def test_bytes_on_the_socket_where_the_queue_pair_carries_frames(
    server: tuple[Process, Address], link: BlockingPool, honest: BlockingPool
) -> None:
    process, address = server
    connected(link, address)
    [connection] = link._server(address).idle
    connection.sock.send(b"\xff\xf5")
    until(lambda: process.counts()["connections"] == 1)
    assert refused(link, address).code is Code.PROTOCOL


def test_a_server_s_connections_share_one_queue_under_load(
    server: tuple[Process, Address], use: Callable[[LinkChoice], Adapters], link: BlockingPool
) -> None:
    """More threads than one window, on several connections: no message is lost, no buffer either."""
    process, address = server
    wrong: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(15):
                fill(link, address)
        except BaseException as exc:
            wrong.append(exc)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert process.counts()["receive_bytes"] <= 12 * WINDOW * RECEIVE_BYTES + OFFERED_BYTES
