"""The pool of blocking connections between threads and across a fork; peers and the rdma device are played."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.net import blocking
from fireflyfs.common.net.api import Address, Call
from fireflyfs.common.net.blocking import BlockingPool
from fireflyfs.common.net.busy_poll import Waiters
from fireflyfs.common.net.dial import Dialed
from fireflyfs.common.net.exchange import Exchange
from fireflyfs.common.net.frame import LinkKind, Welcome
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.memory import SharedMemory, SharedPool
from fireflyfs.common.net.pending import Pending
from fireflyfs.common.net.rdma import client as client_module
from fireflyfs.common.net.rdma.adapters import Adapters, ClientMemory
from fireflyfs.common.net.rdma.choice import Choice
from fireflyfs.common.net.rdma.client import ClientEnd
from fireflyfs.common.net.rdma.settings import RdmaSettings
from fireflyfs.common.net.rdma.verbs import Gid, Port

HERE, THERE = Address("here"), Address("there")


class Domain:
    """Registers nothing, and counts."""

    def __init__(self) -> None:
        self.registered = 0

    def register(self, buffer: memoryview, *, remote: bool) -> Any:
        assert remote
        self.registered += 1
        return SimpleNamespace(address=4096, rkey=7, close=lambda: None)


def client_memory() -> ClientMemory:
    played = ClientMemory.__new__(ClientMemory)
    played.device, played.domain = SimpleNamespace(name="d"), Domain()  # type: ignore[assignment]
    played._lock = threading.RLock()
    played._receives = [SimpleNamespace(full=False, depth=1, enter=lambda: None, _lock=threading.RLock())]  # type: ignore[list-item]
    played._regions = {}
    return played


@pytest.fixture
def memory_of_rdma(monkeypatch: pytest.MonkeyPatch) -> ClientMemory:
    def endpoint(_domain: object, _completions: object, receives: Any, *_: object, **__: object) -> Any:
        def close(_: FfsError) -> None:
            with receives._lock:
                return

        pair = SimpleNamespace(closed=False)
        return SimpleNamespace(pair=pair, failed=None, end=lambda: None, reap=lambda: 0, close=close)

    monkeypatch.setattr(client_module, "Completions", lambda *_, **__: None)
    monkeypatch.setattr(client_module, "Endpoint", endpoint)
    monkeypatch.setattr(client_module, "parameters", lambda *_: None)
    return client_memory()


def rdma_end(adapters: Adapters, memory: ClientMemory, monkeypatch: pytest.MonkeyPatch) -> ClientEnd:
    monkeypatch.setattr(adapters, "client", lambda *_: memory)
    port = Port(1, active=True, mtu=5, message_bytes_max=4096, lid=0, ethernet=True)
    end = ClientEnd(adapters, Choice("d", port, Gid(0, "", roce_v2=True)), "test")
    end.messages = SimpleNamespace(recv_into=None, pending=False)  # type: ignore[assignment]
    return end


def end_of(child: int, within_s: float = 5.0) -> int | None:
    """Its wait status; None: it had not ended by then, and was killed."""
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


@contextlib.contextmanager
def held_elsewhere(locks: Sequence[Any]) -> Iterator[None]:
    """Another thread holds them all."""
    have, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with contextlib.ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            have.set()
            enough.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    assert have.wait(5)
    try:
        yield
    finally:
        enough.set()
        thread.join()


def dialed_pair(link: LinkKind = LinkKind.TCP, rdma: ClientEnd | None = None) -> tuple[Dialed, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(2)
    return Dialed(ours, Welcome(1, link, 16, 1 << 20), "played", rdma), theirs


def test_memory_that_another_thread_has_closed_is_not_exposed() -> None:
    """Its owner was told that no peer reaches it any more."""
    memory = SharedPool().allocate(4096)
    exposed = client_memory()
    memory.close()
    with pytest.raises(OSError, match="closed"):
        exposed.expose(memory, object())
    assert len(exposed) == 0


@pytest.mark.parametrize("pieces", ["out", "into"])
def test_a_piece_in_closed_memory_is_refused_and_the_connection_goes_on(pieces: str) -> None:
    """Over tcp as well: what has no bytes any more is not sent as none."""
    dialed, theirs = dialed_pair()
    exchange = Exchange(dialed, None, Waiters(0.0))
    memory = SharedPool().allocate(4096)
    piece = memory.slice(0, 100)
    memory.close()
    pending = Pending(Call(1, b"", **{pieces: [piece]}), time.monotonic())  # type: ignore[arg-type]
    exchange.send([pending])
    assert isinstance(pending.outcome, FfsError)
    assert pending.outcome.code is Code.INVALID
    assert exchange.broken is None
    exchange.close()
    theirs.close()


def test_a_forked_child_waits_for_no_lock_of_its_parent_s_threads(
    memory_of_rdma: ClientMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = Adapters(RdmaSettings())
    pool = BlockingPool(Identity("test"))
    assert isinstance(pool.pool, SharedPool)
    peers = []

    def dial(*_: object) -> Dialed:
        dialed, theirs = dialed_pair(LinkKind.RDMA, rdma_end(adapters, memory_of_rdma, monkeypatch))
        peers.append(theirs)
        return dialed

    monkeypatch.setattr(blocking, "dial", dial)
    server = pool._server(HERE)
    idle, busy = (pool._acquire(HERE, server, time.monotonic() + 5) for _ in range(2))
    fds = [idle.sock.fileno(), busy.sock.fileno()]
    for connection in (idle, busy):
        assert connection._know(pool.pool.allocate(4096), Pending(Call(1, b""), 0.0))
    pool._put_back(server, idle)
    dropped = pool._staging_pool.allocate(4096)
    locks = [
        adapters._lock,
        memory_of_rdma._lock,
        memory_of_rdma._receives[0]._lock,
        pool._lock,
        server.lock,
        pool.pool._lock,
        pool._staging_pool._lock,
        pool._receivers._lock,
    ]
    with held_elsewhere(locks):
        child = os.fork()
        if child == 0:
            try:
                del dropped
                pool.pool.allocate(4096).close()
                for fd in fds:
                    with contextlib.suppress(OSError):
                        os.fstat(fd)
                        os._exit(1)  # a connection of the parent's is still open here
                plain = dialed_pair()  # the device that is played here knows of no fork
                monkeypatch.setattr(blocking, "dial", lambda *_: plain[0])
                fresh = pool._server(HERE)
                pool._put_back(fresh, pool._acquire(HERE, fresh, time.monotonic() + 5))
                os._exit(0)
            except BaseException:
                os._exit(2)
        status = end_of(child)
    assert status is not None, "the child hangs"
    assert os.waitstatus_to_exitcode(status) == 0
    pool._put_back(server, busy)
    pool.close()
    for sock in peers:
        sock.close()


def test_a_batch_that_is_interrupted_leaves_nothing_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller has its memory again: an answer that comes later must not land there."""
    peers = []

    def dial(*_: object) -> Dialed:
        dialed, theirs = dialed_pair()
        theirs.settimeout(5)
        peers.append(theirs)
        return dialed

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(blocking, "dial", dial)
    pool = BlockingPool(Identity("test"))
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            pool.call_many([(where, Call(1, b"", into=[memoryview(bytearray(10))])) for where in (HERE, THERE)])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    for sock in peers:
        assert sock.recv(4096)  # the request
        assert sock.recv(4096) == b""
        sock.close()
    pool.close()


def test_a_closed_connection_ends_although_a_forked_child_has_its_socket() -> None:
    dialed, theirs = dialed_pair()
    exchange = Exchange(dialed, None, Waiters(0.0))
    inherited = os.dup(exchange.sock.fileno())
    exchange.close()
    assert theirs.recv(1) == b""
    os.close(inherited)
    theirs.close()


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[BlockingPool]:
    """It remembers one server at a time."""
    peers = []

    def dial(*_: object) -> Dialed:
        dialed, theirs = dialed_pair()
        peers.append(theirs)
        return dialed

    monkeypatch.setattr(blocking, "dial", dial)
    monkeypatch.setattr(blocking, "SERVERS_MAX", 1)
    pool = BlockingPool(Identity("test"))
    yield pool
    pool.close()
    for sock in peers:
        sock.close()


def acquire(pool: BlockingPool, address: Address) -> Exchange:
    return pool._acquire(address, pool._server(address), time.monotonic() + 5)


def test_a_server_is_not_forgotten_while_a_thread_takes_a_connection_to_it(pool: BlockingPool) -> None:
    connection = acquire(pool, HERE)
    server = pool._server(HERE)
    pool._put_back(server, connection)
    forgetting = threading.Thread(target=pool._server, args=(THERE,))
    with server.lock:
        forgetting.start()
        forgetting.join(0.2)
        assert connection.sock.fileno() != -1, "closed under the hands of who looks at it"
    forgetting.join(5)
    assert connection.sock.fileno() == -1


def test_a_connection_to_a_server_that_was_forgotten_is_closed_when_it_comes_back(pool: BlockingPool) -> None:
    server = pool._server(HERE)
    pool._server(THERE)  # HERE has no connection yet, and is forgotten
    connection = pool._acquire(HERE, server, time.monotonic() + 5)
    pool._put_back(server, connection)
    assert connection.sock.fileno() == -1


def test_a_server_whose_connections_are_in_use_is_not_forgotten(pool: BlockingPool) -> None:
    connection = acquire(pool, HERE)
    with pytest.raises(FfsError) as caught:
        pool._server(THERE)
    assert caught.value.code is Code.OVERLOADED
    pool._put_back(pool._server(HERE), connection)
    pool._put_back(pool._server(THERE), acquire(pool, THERE))


def test_memory_is_revoked_once(memory_of_rdma: ClientMemory) -> None:
    memory: SharedMemory = SharedPool().allocate(4096)
    user = object()
    memory_of_rdma.expose(memory, user)
    memory_of_rdma.expose(memory, object())
    assert memory_of_rdma.domain.registered == 1  # type: ignore[attr-defined]
    memory_of_rdma.revoke(memory.region)
    memory_of_rdma.release(memory.region, user)
    assert len(memory_of_rdma) == 0
    memory.close()
