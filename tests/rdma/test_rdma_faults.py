"""What goes wrong on an rdma link: each time the other side stays whole, and nobody writes into memory taken back."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.limits import KiB
from fireflyfs.common.net.api import Address, Call
from fireflyfs.common.net.blocking import BlockingPool
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.link_choice import LinkChoice
from fireflyfs.common.net.rdma import adapters
from fireflyfs.common.net.rdma.adapters import Adapters
from fireflyfs.common.net.rdma.verbs import Region
from rdma.peers import DIGEST, FILL, HELD, OFFERED_BYTES, Process, fill, until

RETRIED = (Code.UNAVAILABLE, Code.TIMEOUT)


def test_a_stopped_client_s_memory_is_read_and_written(
    server: tuple[Process, Address], processes: Callable[..., Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One-sided: with the client's process stopped, the server moves both ways."""
    monkeypatch.setenv("FFS_LINK", "rdma")
    process, address = server
    client = processes("ask", address.tcp, str(tmp_path / "go"))
    assert client.line() == "sent"
    until(lambda: process.counts()["requests"] == 1)
    before = process.counts()
    client.stop()
    (tmp_path / "go").touch()
    until(lambda: process.counts()["requests"] == 0)
    after = process.counts()
    assert after["held"][len(before["held"]) :] == [hashlib.sha256(b"o" * OFFERED_BYTES).hexdigest()]
    assert after["pulled_bytes"] - before["pulled_bytes"] == OFFERED_BYTES
    assert after["pushed_bytes"] - before["pushed_bytes"] == OFFERED_BYTES
    assert after["failures"] == before["failures"]
    client.signal(signal.SIGCONT)
    assert client.line() == "True"


def test_a_killed_server_fails_calls_at_once_and_another_takes_its_place(
    server: tuple[Process, Address], link: BlockingPool, processes: Callable[..., Process], tmp_path: Path
) -> None:
    process, address = server
    fill(link, address)
    failed: list[FfsError] = []

    def wait() -> None:
        memory = link.pool.allocate(OFFERED_BYTES)
        try:
            link.call(address, Call(HELD, str(tmp_path / "never").encode(), out=[memory.slice(0, OFFERED_BYTES)]))
        except FfsError as exc:
            failed.append(exc)

    waiter = threading.Thread(target=wait)
    waiter.start()
    until(lambda: process.counts()["requests"] == 1)
    started_s = time.monotonic()
    process.signal(signal.SIGKILL)
    waiter.join(20)
    assert [exc.code for exc in failed] == [Code.UNAVAILABLE]
    assert time.monotonic() - started_s < 10
    again = processes("serve", address.tcp.rpartition(":")[2])
    assert json.loads(again.line()) == address.tcp
    fill(link, address, b"g")


def test_a_killed_client_leaves_nothing_at_the_server(
    server: tuple[Process, Address], link: BlockingPool, processes: Callable[..., Process], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Killed while its request runs: the transfer fails or is never begun, buffers and queue pair are given back."""
    monkeypatch.setenv("FFS_LINK", "rdma")
    process, address = server
    client = processes("ask", address.tcp, str(tmp_path / "go"))
    assert client.line() == "sent"
    until(lambda: process.counts()["requests"] == 1)
    client.signal(signal.SIGKILL)
    (tmp_path / "go").touch()
    until(lambda: process.counts()["connections"] == 0 and process.counts()["requests"] == 0)
    for _ in range(5):  # a second buffer while the first has no completion behind it
        fill(link, address)
    registered = process.counts()["registered_bytes"]
    assert registered < 3 * OFFERED_BYTES
    for _ in range(20):
        fill(link, address)
    assert process.counts()["registered_bytes"] == registered


def test_a_stopped_server_never_writes_what_was_taken_back(server: tuple[Process, Address], link: BlockingPool) -> None:
    """The call times out, its memory is the caller's again: what the server does later does not reach it."""
    process, address = server
    fill(link, address)
    process.stop()
    memory = link.pool.allocate(OFFERED_BYTES)
    view = memory.view
    view[:] = b"." * OFFERED_BYTES
    with pytest.raises(FfsError) as caught:
        link.call(address, Call(FILL, b"x", into=[memory.slice(0, OFFERED_BYTES)], deadline_s=1.0))
    assert caught.value.code is Code.TIMEOUT
    process.signal(signal.SIGCONT)
    until(lambda: process.counts()["connections"] == 0)
    assert bytes(view) == b"." * OFFERED_BYTES
    fill(link, address, b"y")
    assert bytes(view) == b"." * OFFERED_BYTES


@pytest.mark.parametrize("lie", ["stale key", "longer than it is"])
def test_a_client_that_lies_about_its_memory_loses_its_connection_only(
    server: tuple[Process, Address], link: BlockingPool, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    process, address = server
    fill(link, address)
    honest = BlockingPool(Identity("test"))
    fill(honest, address)
    failures = process.counts()["failures"]
    expose = adapters.ClientMemory.expose

    def lying(self: adapters.ClientMemory, memory: Any, user: object) -> Any:
        region = expose(self, memory, user)
        wrong = Region.__new__(Region)
        wrong.address = region.address + (OFFERED_BYTES if lie == "longer than it is" else 0)
        wrong.rkey = region.rkey ^ (0x0F0F00 if lie == "stale key" else 0)
        return wrong

    with monkeypatch.context() as patch:
        patch.setattr(adapters.ClientMemory, "expose", lying)
        for pieces in ("out", "into"):
            memory = link.pool.allocate(OFFERED_BYTES)
            with pytest.raises(FfsError) as caught:
                link.call(address, Call(DIGEST if pieces == "out" else FILL, b"x", **{pieces: [memory.slice(0, KiB)]}))
            assert caught.value.code is Code.UNAVAILABLE
    assert process.counts()["failures"] == failures + 2
    fill(honest, address)
    fill(link, address)
    honest.close()


def test_pieces_outside_a_region_are_refused_in_words(
    server: tuple[Process, Address], link: BlockingPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, address = server
    failures = process.counts()["failures"]
    memory = link.pool.allocate(4 * KiB)
    piece = memory.slice(0, 4 * KiB)
    object.__setattr__(piece, "offset", KiB)
    with pytest.raises(FfsError, match="outside region") as caught:
        link.call(address, Call(DIGEST, b"", out=[piece]))
    assert caught.value.code is Code.PROTOCOL
    fill(link, address)
    assert process.counts()["failures"] == failures


def test_memory_closed_under_load_is_never_written_again(server: tuple[Process, Address], link: BlockingPool) -> None:
    """Its owner closes it while the server fills it: those calls may fail, their memory stays as it is then."""
    _, address = server
    fill(link, address)
    for turn in range(10):
        memory = link.pool.allocate(OFFERED_BYTES)
        view = memory.view
        outcome: list[object] = []

        def ask(memory: Any = memory, outcome: list[object] = outcome) -> None:
            try:
                outcome.append(link.call(address, Call(FILL, b"w", into=[memory.slice(0, OFFERED_BYTES)])))
            except FfsError as exc:
                outcome.append(exc)

        asker = threading.Thread(target=ask)
        asker.start()
        time.sleep(0.002 * turn)
        memory.close()
        view[:] = b"c" * OFFERED_BYTES
        seen = hashlib.sha256(view).digest()
        asker.join(30)
        assert len(outcome) == 1
        if isinstance(outcome[0], FfsError):
            assert outcome[0].code in (*RETRIED, Code.INVALID), outcome[0]
        assert hashlib.sha256(view).digest() == seen
    fill(link, address)


def test_what_a_process_registered_goes_when_it_is_done(server: tuple[Process, Address], link: BlockingPool) -> None:
    process, address = server
    for _ in range(5):
        fill(link, address)
    mine = adapters.adapters()
    client = mine.client(mine.names[0], "test")
    assert len(client) == 0
    memory = link.pool.allocate(OFFERED_BYTES)
    link.call(address, Call(FILL, b"x", into=[memory.slice(0, KiB)]))
    assert len(client) == 1
    link.close()
    assert len(client) == 0
    until(lambda: process.counts()["connections"] == 0)
    used = subprocess.run(["rdma", "resource", "show", "qp"], capture_output=True, text=True, check=True).stdout
    assert f"pid {os.getpid()} " not in used


def test_a_link_that_goes_down_and_up(server: tuple[Process, Address], use: Callable[[LinkChoice], Adapters]) -> None:
    """Down: what moves fails, new connections carry payload over tcp. Up: new connections use rdma again."""
    process, address = server
    use(LinkChoice.AUTO)
    before = BlockingPool(Identity("test"))
    fill(before, address)
    assert process.counts()["connections"] == 1
    subprocess.run(["ip", "link", "set", "eth0", "down"], check=True)
    try:
        memory = before.pool.allocate(OFFERED_BYTES)
        with pytest.raises(FfsError) as caught:
            before.call(address, Call(FILL, b"x", into=[memory.slice(0, OFFERED_BYTES)]))
        assert caught.value.code in RETRIED
        memory.close()
        fill(before, address, b"t")
        assert process.counts()["connections"] == 0
    finally:
        subprocess.run(["ip", "link", "set", "eth0", "up"], check=True)
    until(lambda: any(port.active for port in adapters.adapters().device("rxe0").ports()))
    again = BlockingPool(Identity("test"))
    fill(again, address, b"u")
    assert process.counts()["connections"] == 1
    again.close()
    before.close()


def test_a_process_that_ends_without_closing_says_nothing() -> None:
    lines = (
        "from fireflyfs.common.net.rdma.adapters import adapters\n"
        "kept = adapters().client(adapters().names[0], 'test')\n"
        "print(kept.device.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "rxe0\n", "")
