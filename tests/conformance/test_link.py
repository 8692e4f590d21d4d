"""What every link must do, on each of its doors: run over tcp and shm, with the blocking and the asyncio client.

Where the machine has an rdma device, over rdma as well: `make test-rdma` runs this in a guest that has one.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import FRAME_BODY_BYTES_MAX, REGIONS_MAX, KiB, MiB
from fireflyfs.common.net.api import Address, Call, Reply, ServerRequest, Spread
from fireflyfs.common.net.blocking import BlockingPool
from fireflyfs.common.net.counting import Traffic, as_numbers
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.link_choice import LINK_ENV
from fireflyfs.common.net.memory import SharedPool
from fireflyfs.common.net.methods import Method
from fireflyfs.common.net.multiplex import MultiplexLink
from fireflyfs.common.net.rdma.library import device_names
from fireflyfs.common.net.receivers import Receivers
from fireflyfs.common.net.server import LinkServer

ECHO, DIGEST, FILL, SHORT, FAIL, CRASH, SLOW, SILENT, REVERSE = range(0x7001, 0x700A)


class Handlers:
    """A server that moves bytes and misbehaves on request."""

    def __init__(self) -> None:
        self.seen = 0
        self.map = {
            ECHO: self.echo,
            DIGEST: self.digest,
            FILL: self.fill,
            SHORT: self.short,
            FAIL: self.fail,
            CRASH: self.crash,
            SLOW: self.slow,
            SILENT: self.silent,
            REVERSE: self.reverse,
        }

    def echo(self, request: ServerRequest) -> None:
        self.seen += 1
        request.reply(request.body)

    async def digest(self, request: ServerRequest) -> None:
        digest = hashlib.sha256()
        for piece in await request.pull():
            digest.update(piece)
        request.reply(digest.digest())

    def fill(self, request: ServerRequest) -> None:
        for index, view in enumerate(request.push_views()):
            view[:] = bytes([index % 251 + 1]) * len(view)
        request.reply(b"", request.push_lengths)

    def short(self, request: ServerRequest) -> None:
        views = request.push_views()
        pushed = [len(view) // 2 for view in views]
        for view, length in zip(views, pushed, strict=True):
            view[:length] = b"s" * length
        request.reply(b"half", pushed)

    def fail(self, request: ServerRequest) -> None:
        raise error(Code.NO_ENTRY, "not here")

    async def crash(self, request: ServerRequest) -> None:
        raise KeyError("a bug")

    async def slow(self, request: ServerRequest) -> None:
        await asyncio.sleep(int(bytes(request.body)) / 1000)
        request.reply(b"late")

    def silent(self, request: ServerRequest) -> None:
        return None

    async def reverse(self, request: ServerRequest) -> None:
        """Pull and push in one request."""
        for source, view in zip(await request.pull(), request.push_views(), strict=True):
            view[:] = bytes(source)[::-1]
        request.reply(b"", request.push_lengths)


class Served:
    """A link server on its own thread and loop."""

    def __init__(self, unix_path: str, cluster: str = "test", port: int = 0) -> None:
        self.handlers = Handlers()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.server = self.run(self._start(unix_path, cluster, port))
        self.address = Address(self.server.tcp, self.server.unix, self.server.identity.host_id)

    async def _start(self, unix_path: str, cluster: str, port: int) -> LinkServer:
        server = LinkServer(Identity(cluster), self.handlers.map, unix_path=unix_path, port=port)
        await server.start()
        return server

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def stop(self) -> None:
        if self.loop.is_running():
            self.run(self.server.stop(0.1))
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(5)
            self.loop.close()


class AsyncFace:
    """The asyncio link behind the blocking link's face, so that one suite fits both."""

    def __init__(self, identity: Identity) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.link = MultiplexLink(identity, pool=SharedPool())
        self.pool = self.link.pool

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def call(self, address: Address, call: Call) -> Reply:
        return self._run(self.link.call(address, call))

    def call_many(self, calls: Sequence[tuple[Address, Call]]) -> list[Reply | FfsError]:
        async def all_of() -> list[Reply | FfsError]:
            return await asyncio.gather(*[self.link.call(a, c) for a, c in calls], return_exceptions=True)

        return self._run(all_of())

    def traffic(self) -> list[Traffic]:
        async def now() -> list[Traffic]:
            return self.link.traffic()

        return self._run(now())

    def close(self) -> None:
        self._run(self.link.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()


LINKS = {"tcp": "tcp", "shm": "auto", "rdma": "rdma"}


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    if "door" in request.fixturenames:
        request.getfixturevalue("door")
    served = Served(str(tmp_path / "link.sock"))
    yield served
    served.stop()


RDMA_DOORS = ["rdma-blocking", "rdma-multiplex"] if device_names() else []
DOORS = [*RDMA_DOORS, "tcp-blocking", "shm-blocking", "tcp-multiplex", "shm-multiplex"]
BLOCKING_DOORS = [door for door in DOORS if door.endswith("blocking")]


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    # Of a machine with a device every tcp connection would be an rdma one.
    monkeypatch.setenv(LINK_ENV, LINKS[request.param.partition("-")[0]])
    return request.param


@pytest.fixture
def where(door: str) -> Callable[[Served], Address]:
    return lambda served: served.address if door.startswith("shm") else Address(served.address.tcp)


@pytest.fixture
def link(door: str) -> Iterator[BlockingPool | AsyncFace]:
    link = BlockingPool(Identity("test")) if door.endswith("blocking") else AsyncFace(Identity("test"))
    yield link
    link.close()


@pytest.fixture
def address(served: Served, where) -> Address:
    return where(served)


def test_round_trip(link, address) -> None:
    assert bytes(link.call(address, Call(ECHO, b"hello")).body) == b"hello"
    assert bytes(link.call(address, Call(ECHO, b"")).body) == b""
    assert bytes(link.call(address, Call(Method.PING, b"ping")).body) == b"ping"


def test_big_bodies(link, address) -> None:
    for size in (65 * KiB, 300_000, FRAME_BODY_BYTES_MAX):
        body = os.urandom(size)
        assert bytes(link.call(address, Call(ECHO, body)).body) == body


@pytest.mark.parametrize("memory", ["plain", "slices", "both"])
@pytest.mark.parametrize("sizes", [[1], [4096], [MiB], [0, 1, 4096, 70_000, MiB + 7, 3], [5 * MiB], [100] * 1500])
def test_pull_and_push(link, address, memory, sizes) -> None:
    rng = random.Random(7)
    data = [rng.randbytes(size) for size in sizes]
    region = link.pool.allocate(2 * sum(sizes) + 1)
    out, into, position = [], [], 0
    for index, piece in enumerate(data):
        if memory == "slices" or (memory == "both" and index % 2):
            region.view[position : position + len(piece)] = piece
            out.append(region.slice(position, len(piece)))
            into.append(region.slice(sum(sizes) + position, len(piece)))
        else:
            out.append(memoryview(piece))
            into.append(memoryview(bytearray(len(piece))))
        position += len(piece)

    def view(piece) -> memoryview:
        return piece if isinstance(piece, memoryview) else piece.view

    assert bytes(link.call(address, Call(DIGEST, b"", out=out)).body) == hashlib.sha256(b"".join(data)).digest()
    reply = link.call(address, Call(FILL, b"", into=into))
    assert list(reply.pushed) == sizes
    assert all(bytes(view(p)) == bytes([i % 251 + 1]) * sizes[i] for i, p in enumerate(into))
    reply = link.call(address, Call(REVERSE, b"", out=out, into=into))
    assert all(bytes(view(piece)) == data[i][::-1] for i, piece in enumerate(into))


def test_pieces_without_a_byte_cost_nothing(link, address, served, door) -> None:
    region = link.pool.allocate(4096)
    empty = [region.slice(7, 0)]
    for _ in range(20):
        assert list(link.call(address, Call(REVERSE, b"", out=empty, into=empty)).pushed) == [0]
    if door.startswith("rdma"):
        link.call(address, Call(FILL, b"", into=[region.slice(0, 4096)]))
        assert served.server.rdma.registered_bytes <= 64 * KiB


def test_short_pushes_leave_the_rest_alone(link, address) -> None:
    into = [memoryview(bytearray(b"." * size)) for size in (10, 4096, 100_000)]
    reply = link.call(address, Call(SHORT, b"", into=into))
    assert list(reply.pushed) == [5, 2048, 50_000]
    assert bytes(reply.body) == b"half"
    for view in into:
        half = len(view) // 2
        assert bytes(view) == b"s" * half + b"." * half


def test_errors_keep_code_and_text_and_the_connection(link, address) -> None:
    with pytest.raises(FfsError, match="not here") as caught:
        link.call(address, Call(FAIL, b""))
    assert caught.value.code is Code.NO_ENTRY
    for method, code in ((CRASH, Code.INTERNAL), (SILENT, Code.INTERNAL), (0x7FFF, Code.UNKNOWN_METHOD)):
        with pytest.raises(FfsError) as caught:
            link.call(address, Call(method, b""))
        assert caught.value.code is code
    assert bytes(link.call(address, Call(ECHO, b"still")).body) == b"still"


def test_too_large_is_refused_before_it_is_sent(link, address) -> None:
    with pytest.raises(FfsError) as caught:
        link.call(address, Call(ECHO, bytes(FRAME_BODY_BYTES_MAX + 1)))
    assert caught.value.code is Code.TOO_LARGE
    with pytest.raises(FfsError) as caught:
        link.call(address, Call(FILL, b"", into=[memoryview(bytearray(1))] * 5000))
    assert caught.value.code is Code.TOO_LARGE
    assert bytes(link.call(address, Call(ECHO, b"still")).body) == b"still"


def test_deadline(link, address) -> None:
    started = time.monotonic()
    with pytest.raises(FfsError) as caught:
        link.call(address, Call(SLOW, b"3000", deadline_s=0.15))
    assert caught.value.code is Code.TIMEOUT
    assert time.monotonic() - started < 1.5
    assert bytes(link.call(address, Call(ECHO, b"still")).body) == b"still"


@pytest.mark.parametrize("door", BLOCKING_DOORS, indirect=True)
def test_a_call_in_two_halves(link, address) -> None:
    into = memoryview(bytearray(100_000))
    begun = link.begin(address, Call(FILL, b"", into=[into]))
    assert bytes(link.call(address, Call(ECHO, b"meanwhile")).body) == b"meanwhile"
    assert list(begun.finish().pushed) == [100_000]
    assert bytes(into) == b"\1" * 100_000
    begun = link.begin(address, Call(FAIL, b""))
    with pytest.raises(FfsError, match="not here"):
        begun.finish()
    begun = link.begin(address, Call(SLOW, b"3000", deadline_s=0.15))
    with pytest.raises(FfsError) as caught:
        begun.finish()
    assert caught.value.code is Code.TIMEOUT
    with pytest.raises(FfsError) as caught:
        link.begin(Address("127.0.0.1:1"), Call(ECHO, b""))
    assert caught.value.code is Code.UNAVAILABLE
    assert bytes(link.call(address, Call(ECHO, b"still")).body) == b"still"


@pytest.mark.parametrize("door", BLOCKING_DOORS, indirect=True)
def test_what_is_given_up_between_its_halves_lands_nowhere(link, address) -> None:
    region = link.pool.allocate(4096)
    link.begin(address, Call(SLOW, b"100", into=[region.slice(0, 4096)])).give_up()
    link.begin(address, Call(SLOW, b"100", into=[region.slice(0, 4096)]))  # as where its caller is interrupted
    assert sum(each.in_flight for each in link.traffic()) == 0
    assert bytes(link.call(address, Call(ECHO, b"still")).body) == b"still"
    time.sleep(0.2)
    assert bytes(region.view) == bytes(4096) or region.tainted


class Scattered(Spread):
    """Remembers what it was asked; bytes go to buffers of `sizes`, and what comes after these to one more."""

    def __init__(self, room: int, sizes: Sequence[int]) -> None:
        super().__init__(room)
        self.sizes = sizes
        self.asked: list[tuple[bytes, int]] = []
        self.parts: list[bytearray] = []
        self.found = b""  # once it landed

    def places(self, body: bytes, count: int) -> list[memoryview]:
        self.asked.append((bytes(body), count))
        left = count
        for size in [*self.sizes, count]:
            self.parts.append(bytearray(min(size, left)))
            left -= len(self.parts[-1])
        return [memoryview(part) for part in self.parts if part]

    def landed(self) -> None:
        self.found = b"".join(self.parts)


@pytest.fixture(params=["few", "many"])
def processors(request: pytest.FixtureRequest, link: BlockingPool | AsyncFace) -> None:
    """Blocking clients receive in other ways where there are many."""
    if request.param == "many" and isinstance(link, BlockingPool):
        link._receivers = Receivers(2)
        link._waiters.many_processors = True


@pytest.mark.usefixtures("processors")
@pytest.mark.parametrize("room", [1, 5000, 40 * KiB, 600 * KiB, 3 * MiB])
@pytest.mark.parametrize("size", [100, 4 * KiB, MiB])
def test_a_piece_that_is_spread(link, address, room: int, size: int) -> None:
    """Several at once, beside a piece of the usual kind: each lands where its owner says when the body is there."""
    spreads = [Scattered(room, [size] * min(900, room // size)) for _ in range(3)]
    pieces = [memoryview(bytearray(5000)) for _ in spreads]
    calls = [
        (address, Call(SHORT, b"", into=[each], spread=spread)) for each, spread in zip(pieces, spreads, strict=True)
    ]
    for reply, spread in zip(link.call_many(calls), spreads, strict=True):
        assert bytes(reply.body) == b"half"
        assert list(reply.pushed) == [2500, room // 2]
        assert spread.asked == ([(b"half", room // 2)] if room > 1 else [])
        assert spread.found == b"s" * (room // 2)
    assert all(bytes(piece[:2500]) == b"s" * 2500 for piece in pieces)
    failed = Scattered(room, [size])
    with pytest.raises(FfsError):
        link.call(address, Call(FAIL, b"", spread=failed))
    assert failed.asked == []


@pytest.mark.usefixtures("processors")
def test_large_answers_of_several_servers(link, where, served, tmp_path) -> None:
    """Each is whole, and so is the next batch."""
    others = [Served(str(tmp_path / f"other{n}.sock")) for n in range(3)]
    try:
        addresses = [where(each) for each in (served, *others)]
        for size in (300 * KiB, 2 * MiB):
            spreads = [Scattered(size, [1000, 70_000]) for _ in addresses]
            plain = [[memoryview(bytearray(size)), memoryview(bytearray(4000))] for _ in addresses]
            calls = [
                (each, Call(FILL, b"", into=into, spread=spread))
                for each, into, spread in zip(addresses, plain, spreads, strict=True)
            ]
            for reply, into, spread in zip(link.call_many(calls), plain, spreads, strict=True):
                assert list(reply.pushed) == [size, 4000, size]
                assert into == [b"\1" * size, b"\2" * 4000]
                assert spread.found == b"\3" * size
    finally:
        for each in others:
            each.stop()


@pytest.mark.usefixtures("processors")
@pytest.mark.parametrize("size", [10, 64 * KiB, 2 * MiB])
def test_a_server_that_hangs_costs_no_answer_of_another(link, where, served, tmp_path, size: int) -> None:
    """Whichever is waited for first: the others have answered by then."""
    if isinstance(link, BlockingPool):
        link._waiters.wait_s = 0.0  # nothing is found by looking again
    others = [Served(str(tmp_path / f"other{n}.sock")) for n in range(2)]
    try:
        addresses = [where(each) for each in (served, *others)]
        for hangs in range(3):
            assert all(isinstance(each, Reply) for each in link.call_many([(at, Call(ECHO, b"")) for at in addresses]))
            into = [memoryview(bytearray(size)) for _ in addresses]
            calls = [
                (at, Call(FILL, b"", into=[piece], deadline_s=0.6)) for at, piece in zip(addresses, into, strict=True)
            ]
            calls[hangs] = (addresses[hangs], Call(SLOW, b"3000", deadline_s=0.6))
            began_s = time.monotonic()
            answers = link.call_many(calls)
            assert time.monotonic() - began_s < 2
            failure = answers[hangs]
            assert isinstance(failure, FfsError)
            assert failure.code is Code.TIMEOUT
            for answer, piece in zip(answers, into, strict=True):
                assert answer is failure or (list(answer.pushed) == [size] and piece == b"\1" * size)
    finally:
        for each in others:
            each.stop()


def test_many_in_flight_and_out_of_order(link, address) -> None:
    calls = [(address, Call(SLOW, b"%d" % ((i * 7) % 20))) for i in range(100)]
    calls += [(address, Call(ECHO, b"%d" % i)) for i in range(600)]
    replies = link.call_many(calls)
    assert all(bytes(reply.body) == b"late" for reply in replies[:100])
    assert [bytes(reply.body) for reply in replies[100:]] == [b"%d" % i for i in range(600)]


def test_both_sides_full_do_not_lock_up(link, address) -> None:
    """Far more than the sockets and the server's bound hold, in both directions at once."""
    source = os.urandom(2 * MiB)
    calls = [
        (
            address,
            Call(REVERSE, b"", out=[memoryview(source)], into=[memoryview(bytearray(len(source)))], deadline_s=60),
        )
        for _ in range(48)
    ]
    for (_, call), reply in zip(calls, link.call_many(calls), strict=True):
        assert isinstance(reply, Reply), reply
        assert call.into[0] == source[::-1]


def test_failures_in_a_batch_stay_with_their_call(link, address) -> None:
    nowhere = Address("127.0.0.1:1")
    replies = link.call_many(
        [
            (address, Call(ECHO, b"a")),
            (nowhere, Call(ECHO, b"b")),
            (address, Call(FAIL, b"")),
            (address, Call(ECHO, b"c")),
        ]
    )
    assert bytes(replies[0].body) == b"a"
    assert replies[1].code is Code.UNAVAILABLE
    assert replies[2].code is Code.NO_ENTRY
    assert bytes(replies[3].body) == b"c"


def test_server_gone_and_back(link, where, served, tmp_path) -> None:
    address = where(served)
    assert bytes(link.call(address, Call(ECHO, b"1")).body) == b"1"
    failed: list[Code] = []

    def wait() -> None:
        try:
            link.call(address, Call(SLOW, b"20000"))
        except FfsError as exc:
            failed.append(exc.code)

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.1)
    served.stop()
    waiter.join(10)
    assert failed == [Code.UNAVAILABLE]
    with pytest.raises(FfsError) as caught:
        link.call(address, Call(ECHO, b"2"))
    assert caught.value.code is Code.UNAVAILABLE
    again = Served(str(tmp_path / "link.sock"), port=int(served.server.tcp.rpartition(":")[2]))
    try:
        assert bytes(link.call(address, Call(ECHO, b"3")).body) == b"3"
    finally:
        again.stop()


def test_many_threads(link, address) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        rng = random.Random(number)
        for turn in range(40):
            data = rng.randbytes(rng.choice([10, 5000, 80_000]))
            into = memoryview(bytearray(len(data)))
            try:
                link.call(address, Call(REVERSE, b"", out=[memoryview(data)], into=[into]))
                if into != data[::-1]:
                    wrong.append((number, turn))
            except Exception as exc:
                wrong.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_wrong_cluster_is_refused_in_words(door, address) -> None:
    link = BlockingPool(Identity("other")) if door.endswith("blocking") else AsyncFace(Identity("other"))
    try:
        with pytest.raises(FfsError, match=r"'other'.*'test'") as caught:
            link.call(address, Call(ECHO, b""))
        assert caught.value.code is Code.WRONG_CLUSTER
    finally:
        link.close()


def test_what_went_over_is_counted_at_both_ends(link, address, door, served) -> None:
    link.call(address, Call(DIGEST, b"", out=[memoryview(bytes(100_000)), memoryview(bytes(1))]))
    link.call(address, Call(SHORT, b"", into=[memoryview(bytearray(5000))]))
    with pytest.raises(FfsError):
        link.call(address, Call(FAIL, b""))
    counted = {
        "link": door.partition("-")[0],
        "connections": 1,
        "in_flight": 0,
        "requests": 3,
        "failures": 1,
        "bytes_out": 100_001,
        "bytes_in": 2500,
    }
    assert [traffic.row() for traffic in link.traffic()] == [{"peer": address.tcp or address.unix, **counted}]
    assert [traffic.row() for traffic in served.server.traffic()] == [{"peer": "", **counted}]
    assert as_numbers("link", served.server.traffic())[f"link.{counted['link']}.bytes_out"] == 100_001
    failing = threading.Thread(target=lambda: link.call_many([(address, Call(SLOW, b"20000"))]))
    failing.start()
    while link.traffic()[0].in_flight != 1:
        time.sleep(0.01)
    served.stop()
    failing.join(10)
    with pytest.raises(FfsError):  # it finds the connection closed, and nobody there
        link.call(address, Call(ECHO, b""))
    lost = link.traffic()
    requests, failures, connections = (
        sum(getattr(row, of) for row in lost) for of in ("requests", "failures", "connections")
    )
    assert (requests - failures, connections) == (2, 0)  # the last one is a request where it was sent before it failed
    assert requests >= 4


def test_closed_memory_is_withdrawn(link, address, door, served) -> None:
    memories = [link.pool.allocate(4096) for _ in range(300)]  # more than a connection may register
    for memory in memories:
        assert list(link.call(address, Call(FILL, b"", into=[memory.slice(0, 4096)])).pushed) == [4096]
        assert bytes(memory.view[:3]) == b"\1\1\1"
    for memory in memories:
        memory.close()
    link.call(address, Call(ECHO, b""))
    if door == "shm-blocking":
        assert sum(len(c.regions) for c in served.server._connections) == 0
    with pytest.raises(FfsError):
        memories[0].slice(0, 5000)


def test_a_call_that_names_more_memories_than_a_connection_registers(link, address) -> None:
    memories = [link.pool.allocate(64) for _ in range(REGIONS_MAX + 20)]
    for number, memory in enumerate(memories):
        memory.view[:] = number.to_bytes(2, "little") * 32
    pieces = [memory.slice(0, 64) for memory in memories]
    digest = hashlib.sha256(b"".join(bytes(piece.view) for piece in pieces)).digest()
    assert bytes(link.call(address, Call(DIGEST, b"", out=pieces)).body) == digest
    # The oldest and a new one in one call: what goes to make room must not be the oldest.
    both = [pieces[0], link.pool.allocate(64).slice(0, 64)]
    assert list(link.call(address, Call(FILL, b"", into=both)).pushed) == [64, 64]
    assert bytes(both[0].view) == b"\1" * 64
    assert bytes(both[1].view) == b"\2" * 64


def test_falls_back_to_tcp_when_the_path_does_not_open(link, served) -> None:
    address = Address(served.address.tcp, "/nonexistent/socket", served.address.host_id)
    assert bytes(link.call(address, Call(ECHO, b"x")).body) == b"x"
    elsewhere = Address(served.address.tcp, served.address.unix, "another host")
    assert bytes(link.call(elsewhere, Call(ECHO, b"y")).body) == b"y"


def test_a_forked_child_opens_connections_of_its_own(served) -> None:
    """A data loader forks its workers: parent and child must not share a socket."""
    link = BlockingPool(Identity("test"))
    into = memoryview(bytearray(MiB))
    assert list(link.call(served.address, Call(FILL, b"", into=[into])).pushed) == [MiB]
    child = os.fork()
    if child == 0:
        try:
            reply = link.call(served.address, Call(FILL, b"", into=[into], deadline_s=5))
            os._exit(0 if list(reply.pushed) == [MiB] and into[0] == 1 else 1)
        except BaseException:
            os._exit(2)
    for turn in range(20):
        assert bytes(link.call(served.address, Call(ECHO, b"%d" % turn)).body) == b"%d" % turn
    assert os.waitpid(child, 0)[1] == 0
    link.close()
