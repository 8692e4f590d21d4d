"""These tests need an rdma device. `make test-rdma` runs them in a guest that has one, or here where there is one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator

import pytest

from fireflyfs.common.net.api import Address
from fireflyfs.common.net.blocking import BlockingPool
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.link_choice import LinkChoice
from fireflyfs.common.net.rdma import adapters
from fireflyfs.common.net.rdma.adapters import Adapters
from fireflyfs.common.net.rdma.library import device_names
from fireflyfs.common.net.rdma.settings import RdmaSettings
from rdma.forked import Forks
from rdma.peers import Process, until

collect_ignore_glob = [] if device_names() else ["test_*.py"]
if not os.environ.get("FFS_RDMA_CLUSTER"):
    collect_ignore_glob.append("test_rdma_replication.py")


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """What the servers of whole clusters fork off; its imports are paid for once."""
    with contextlib.closing(Forks()) as made:
        yield made


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[LinkChoice], Adapters]:
    """use(link): what this process takes from now on."""

    def choose(link: LinkChoice) -> Adapters:
        monkeypatch.setenv("FFS_LINK", link.value)
        mine = Adapters(RdmaSettings())
        monkeypatch.setattr(adapters, "_adapters", mine)
        return mine

    return choose


@pytest.fixture
def processes() -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def make(*arguments: str) -> Process:
        made.append(Process(*arguments))
        return made[-1]

    yield make
    for process in made:
        process.end()


@pytest.fixture(scope="module")
def shared() -> Iterator[list[Process]]:
    """The server of the last test: one that still lives serves the next, for to start one takes long in a guest."""
    made: list[Process] = []
    yield made
    for process in made:
        process.end()


@pytest.fixture
def server(shared: list[Process]) -> tuple[Process, Address]:
    if not shared or shared[-1].popen.poll() is not None:
        shared.append(Process("serve"))
        shared[-1].address = json.loads(shared[-1].line())
    until(lambda: shared[-1].counts()["connections"] == 0)
    return shared[-1], Address(shared[-1].address)


@pytest.fixture
def link(use: Callable[[LinkChoice], Adapters]) -> Iterator[BlockingPool]:
    use(LinkChoice.RDMA)
    pool = BlockingPool(Identity("test"))
    yield pool
    pool.close()
