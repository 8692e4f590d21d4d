"""Nonsense and malice at the data link's door: a clear refusal, and the server lives on."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.limits import FRAME_BODY_BYTES_MAX, FRAME_DATA_BYTES_MAX, REGIONS_MAX, KiB, MiB
from fireflyfs.common.net import connection as connection_module
from fireflyfs.common.net import frame
from fireflyfs.common.net.api import Address, Call
from fireflyfs.common.net.blocking import BlockingPool
from fireflyfs.common.net.dial import dial
from fireflyfs.common.net.frame import HEADER, HEADER_BYTES, Hello, Kind, LinkKind
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.memory import SharedPool
from fireflyfs.common.net.methods import Method
from fireflyfs.common.net.server import LinkServer

IDENTITY = Identity("test")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LinkServer]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = LinkServer(IDENTITY, {}, unix_path=str(tmp_path / "s"))
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(5)
    yield server
    with BlockingPoolOf(server) as alive:  # whatever was done to it, it still serves
        assert bytes(alive.call(Address(server.tcp), Call(Method.PING, b"alive")).body) == b"alive"
    asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


class BlockingPoolOf:
    def __init__(self, server: LinkServer) -> None:
        self.link = BlockingPool(IDENTITY)

    def __enter__(self) -> BlockingPool:
        return self.link

    def __exit__(self, *_: object) -> None:
        self.link.close()


def raw(server: LinkServer) -> socket.socket:
    host, _, port = server.tcp.rpartition(":")
    sock = socket.create_connection((host, int(port)))
    sock.settimeout(10)
    return sock


def greeted(server: LinkServer, *, unix: bool = False) -> socket.socket:
    address = Address("", server.unix, IDENTITY.host_id) if unix else Address(server.tcp)
    sock = dial(IDENTITY, address, 5).sock
    sock.settimeout(10)
    return sock


def answer_of(sock: socket.socket) -> tuple[int, int, str]:
    """Kind, status and text of the next frame; (0, 0, "") when the connection ends without a word."""
    data = bytearray()
    try:
        while len(data) < HEADER_BYTES or len(data) < HEADER_BYTES + frame.parse_header(data).body_len:
            part = sock.recv(4096)
            if not part:
                return 0, 0, ""
            data += part
    except ConnectionError:
        return 0, 0, ""
    header = frame.parse_header(data)
    return header.kind, header.status, bytes(data[HEADER_BYTES:]).decode()


def header(kind: int, **fields: int) -> bytes:
    f = {"body": 0, "n_out": 0, "n_into": 0, "data": 0, "method": 1, "version": 1} | fields
    return HEADER.pack(
        frame.MAGIC, f["version"], kind, f["method"], 0, 1, f["body"], f["n_out"], f["n_into"], f["data"], 0, 1000
    )


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", bytes(64), b"\xff" * 64])
def test_other_protocols_are_told_so(server, first) -> None:
    with raw(server) as sock:
        sock.sendall(first)
        assert answer_of(sock)[:2] == (Kind.REFUSE, Code.PROTOCOL)


def test_random_bytes(server) -> None:
    rng = random.Random(5)
    for turn in range(150):
        with raw(server) if turn % 2 else greeted(server, unix=turn % 4 == 0) as sock:
            data = bytearray(rng.randbytes(rng.randrange(1, 300)))
            if turn % 3:
                data[:4] = header(rng.randrange(0, 9))[:4]
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                answer_of(sock)
            except (OSError, FfsError):
                pass


def test_absurd_lengths_are_refused_before_memory_is_taken(server) -> None:
    for bad in (
        header(Kind.REQUEST, body=FRAME_BODY_BYTES_MAX + 1),
        header(Kind.REQUEST, data=FRAME_DATA_BYTES_MAX + 1),
        header(Kind.REQUEST, n_out=5000),
    ):
        with greeted(server) as sock:
            sock.sendall(bad)
            assert answer_of(sock)[:2] == (Kind.REFUSE, Code.TOO_LARGE)


def test_order_matters(server) -> None:
    with raw(server) as sock:
        sock.sendall(header(Kind.REQUEST))
        assert answer_of(sock)[:2] == (Kind.REFUSE, Code.PROTOCOL)
    for kind in (Kind.HELLO, Kind.WELCOME, Kind.REPLY, Kind.REGISTER):
        with greeted(server) as sock:
            sock.sendall(header(kind))
            assert answer_of(sock)[:2] == (Kind.REFUSE, Code.PROTOCOL)


def test_another_version_and_another_cluster(server) -> None:
    with raw(server) as sock:
        sock.sendall(frame.pack_hello(Hello("test", bytes(16), "", LinkKind.TCP, 7, 9)))
        kind, status, text = answer_of(sock)
        assert (kind, status) == (Kind.REFUSE, Code.VERSION_MISMATCH)
        assert "7 to 9" in text
    with raw(server) as sock:
        sock.sendall(frame.pack_hello(Hello("elsewhere", bytes(16), "", LinkKind.TCP)))
        kind, status, text = answer_of(sock)
        assert (kind, status) == (Kind.REFUSE, Code.WRONG_CLUSTER)
        assert "elsewhere" in text
        assert "test" in text


def test_silence_is_ended(server, monkeypatch) -> None:
    monkeypatch.setattr(connection_module, "HANDSHAKE_S_MAX", -1.0)
    with raw(server) as sock:
        assert answer_of(sock) == (0, 0, "")


def memfd(size: int, *, sealed: bool = True) -> int:
    fd = os.memfd_create("hostile", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


def register(sock: socket.socket, region: int, length: int, *fds: int) -> None:
    socket.send_fds(sock, [frame.pack_register(region, length)], fds)
    for fd in fds:
        os.close(fd)


def fetch(sock: socket.socket, segment: tuple[int, int, int]) -> tuple[int, int, str]:
    sock.sendall(frame.pack_request(Method.PING, 1, [], [segment], 0, 1000))
    return answer_of(sock)


@pytest.mark.parametrize("case", ["unsealed", "not memfd", "too short", "no fd", "twice", "many fds", "zero"])
def test_regions_that_could_hurt_are_refused(server, case, tmp_path) -> None:
    with greeted(server, unix=True) as sock:
        if case == "unsealed":
            register(sock, 1, 4096, memfd(4096, sealed=False))
        elif case == "not memfd":
            (tmp_path / "f").write_bytes(bytes(4096))
            register(sock, 1, 4096, os.open(tmp_path / "f", os.O_RDWR))
        elif case == "too short":
            register(sock, 1, 8192, memfd(4096))
        elif case == "no fd":
            sock.sendall(frame.pack_register(1, 4096))
        elif case == "twice":
            register(sock, 1, 4096, memfd(4096))
            register(sock, 1, 4096, memfd(4096))
        elif case == "zero":
            register(sock, 1, 0, memfd(4096))
        else:
            register(sock, 1, 4096, *[memfd(4096) for _ in range(40)])
        assert answer_of(sock)[:2] == (Kind.REFUSE, Code.PROTOCOL)


def test_too_many_regions(server) -> None:
    with greeted(server, unix=True) as sock:
        for region in range(REGIONS_MAX + 1):
            register(sock, region, 4096, memfd(4096))
        assert answer_of(sock)[:2] == (Kind.REFUSE, Code.TOO_LARGE)


def test_pieces_outside_their_region(server) -> None:
    with greeted(server, unix=True) as sock:
        register(sock, 1, 4096, memfd(4096))
        assert fetch(sock, (1, 4096, 0))[:2] == (Kind.REPLY, 0)
        for segment in [(1, 4097, 0), (1, 1, 4096), (1, 1, 2**64 - 1), (2, 1, 0)]:
            assert fetch(sock, segment)[:2] == (Kind.REPLY, Code.PROTOCOL)
        sock.sendall(frame.pack_withdraw(1))
        assert fetch(sock, (1, 1, 0))[:2] == (Kind.REPLY, Code.PROTOCOL)


def test_regions_are_for_the_unix_door_alone(server) -> None:
    with greeted(server) as sock:
        assert fetch(sock, (1, 1, 0))[:2] == (Kind.REPLY, Code.PROTOCOL)


def test_descriptors_do_not_leak(server) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with greeted(server, unix=True) as sock:
            register(sock, 1, 4096, memfd(4096, sealed=False))
            answer_of(sock)
        with greeted(server, unix=True) as sock:
            socket.send_fds(sock, [header(Kind.REQUEST)], [memfd(4096)] * 3)
            answer_of(sock)
    for _ in range(50):
        if len(os.listdir("/proc/self/fd")) <= before + 15:  # the last loop's descriptors of this side included
            break
        threading.Event().wait(0.05)
    else:
        pytest.fail("file descriptors stay open")


def test_a_client_that_takes_no_answers_does_not_fill_the_server(server) -> None:
    with greeted(server) as sock:
        sock.settimeout(2)
        request = frame.pack_request(Method.PING, 1, [], [(frame.INLINE, MiB, 0)], 0, 1000)
        try:
            for _ in range(20_000):
                sock.sendall(request * 16)
        except TimeoutError:
            pass
        held = [c for c in server._connections if c.queued_bytes > MiB]
        assert all(c.queued_bytes < 160 * MiB for c in held)
        assert held


def test_a_server_that_chooses_a_link_that_was_not_offered() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def lie() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(4 * KiB)
                sock.sendall(frame.pack_welcome(frame.Welcome(1, LinkKind.SHM, 16, 1 << 20)))
                sock.recv(1)

        liar = threading.Thread(target=lie)
        liar.start()
        link = BlockingPool(IDENTITY, pool=SharedPool())
        with pytest.raises(FfsError, match="not offered") as caught:
            link.call(Address(f"127.0.0.1:{listener.getsockname()[1]}"), Call(Method.PING, b"", deadline_s=5))
        liar.join(5)
        link.close()
    assert caught.value.code is Code.PROTOCOL


def test_a_server_that_talks_nonsense_to_a_client() -> None:
    rng = random.Random(9)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        welcome = frame.pack_welcome(frame.Welcome(1, LinkKind.TCP, 16, 1 << 20))
        replies = [
            rng.randbytes(200),
            frame.pack_reply(77, [], 0, 0),
            frame.pack_reply(1, [9], 0, 9),
            frame.pack_reply(1, [4], 0, 2) + bytes(2),
            frame.pack_refuse(Code.OVERLOADED, "full"),
            struct.pack("<HBBHHIIHHIII", frame.MAGIC, 1, 5, 0, 0, 1, 2**32 - 1, 0, 0, 0, 0, 0),
        ]

        def lie() -> None:
            for reply in replies:
                sock, _ = listener.accept()
                with sock:
                    sock.recv(4 * KiB)
                    sock.sendall(welcome)
                    sock.recv(4 * KiB)
                    sock.sendall(reply)
                    sock.recv(1)

        liar = threading.Thread(target=lie)
        liar.start()
        link = BlockingPool(IDENTITY, pool=SharedPool())
        address = Address(f"127.0.0.1:{listener.getsockname()[1]}")
        codes = []
        for _ in replies:
            with pytest.raises(FfsError) as caught:
                link.call(address, Call(Method.PING, b"", into=[memoryview(bytearray(4))], deadline_s=5))
            codes.append(caught.value.code)
        liar.join(5)
        link.close()
    assert codes[-2:] == [Code.OVERLOADED, Code.TOO_LARGE]
    assert set(codes[:4]) == {Code.PROTOCOL}


@pytest.mark.parametrize("end", ["whole", "closed", "stalled"])
def test_a_large_answer_that_comes_in_pieces_of_every_size(end: str) -> None:
    """The client wakes for much at a time; what is left at the end, and a server that stops, must wake it too."""
    rng = random.Random(10)
    data = rng.randbytes(3 * MiB + 12_345)
    into = memoryview(bytearray(len(data)))
    parts = [memoryview(into[:MiB]), memoryview(into[MiB : MiB + 100]), memoryview(into[MiB + 100 :])]
    sent = len(data) if end == "whole" else 2 * MiB + 100_000
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.recv(4 * KiB)
                sock.sendall(frame.pack_welcome(frame.Welcome(1, LinkKind.TCP, 16, 1 << 30)))
                for number in (1, 2):
                    sock.recv(4 * KiB)
                    head = frame.pack_reply(number, [len(part) for part in parts], 0, len(data))
                    stream, at = head + data[:sent], 0
                    while at < len(stream):
                        step = rng.choice([1, 1000, 70_000, 128 * KiB, 200_000, 900_000])
                        sock.sendall(stream[at : at + step])
                        at += step
                    if end == "closed":
                        return
                    if end == "stalled":
                        sock.recv(1)
                        return

        server = threading.Thread(target=trickle)
        server.start()
        link = BlockingPool(IDENTITY, pool=SharedPool())
        address = Address(f"127.0.0.1:{listener.getsockname()[1]}")
        call = Call(Method.PING, b"", into=parts, deadline_s=1.0 if end == "stalled" else 20)
        if end == "whole":
            for _ in range(2):
                assert list(link.call(address, call).pushed) == [len(part) for part in parts]
                assert into == data
                into[:] = bytes(len(into))
        else:
            with pytest.raises(FfsError) as caught:
                link.call(address, call)
            assert caught.value.code is (Code.UNAVAILABLE if end == "closed" else Code.TIMEOUT)
        server.join(5)
        link.close()
