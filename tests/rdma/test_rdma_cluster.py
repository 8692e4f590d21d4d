"""A whole cluster that takes nothing but rdma: a storage node is killed under load, comes back, and holds everything.

A program through the library and another one on a mount write meanwhile. Every byte is read back and compared, and
asked of each replica alone.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import fireflyfs
from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.routing import Routing
from fireflyfs.client.routing_source import RoutingSource
from fireflyfs.client.storage_client import ReadSpan, StorageClient
from fireflyfs.client.striping import FileLayout
from fireflyfs.common.ids import InodeId
from fireflyfs.common.limits import KiB, MiB
from fireflyfs.common.net.blocking import BlockingPool
from fireflyfs.common.net.control import ControlClient
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.link_choice import LinkChoice
from fireflyfs.deploy.local import ClusterSpec
from fireflyfs.proto import storage_pb2
from rdma.forked import ForkedCluster, Forks

START_S = 200.0  # in a guest that translates instructions
CHUNK = 256 * KiB
FILE_BYTES_MAX = 2 * CHUNK
FILES_BETWEEN = 3  # that each program writes before and after each event
TARGETS = (1001, 2001, 3001)  # one on each node
PACE_S = 0.1  # between two of its files: all of them are read again
STORAGE = storage_pb2.DESCRIPTOR.services_by_name["Storage"]
pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="the kernel has no FUSE"),
]


@pytest.fixture
def cluster(forks: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ForkedCluster]:
    monkeypatch.setenv("FFS_LINK", "rdma")
    monkeypatch.setenv("FFS_BUSY_POLL_US", "0")  # processors are what the guest has least of
    local = ForkedCluster(forks, tmp_path / "cluster")
    # A process of this guest is slow to answer, and not dead.
    local.create(
        ClusterSpec(
            storage_nodes=3, replicas=3, targets_per_worker=1, capacity_bytes=512 * MiB, chunk_size=CHUNK,
            failed_after_s=15.0,
        )
    )  # fmt: skip
    try:
        local.up(START_S)
        yield local
    finally:
        local.down()


@pytest.fixture
def mountpoint(cluster: ForkedCluster, forks: Forks, tmp_path: Path) -> Iterator[Path]:
    path, log = tmp_path / "mnt", tmp_path / "mount.log"
    path.mkdir()
    arguments = ["--root", str(cluster.root), "mount", "--foreground", "--link", "rdma", str(path)]
    process = forks.start(arguments, os.environ, log)
    try:
        end_s = time.monotonic() + START_S
        while not os.path.ismount(path):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end_s, log.read_text()
            time.sleep(0.1)
        yield path
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        end_s = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < end_s:
            time.sleep(0.1)
        assert process.poll() is not None, log.read_text()
        assert not os.path.ismount(path), log.read_text()


class Load(threading.Thread):
    """Writes new files through `write` until it is told to stop, and remembers those that were written."""

    def __init__(self, name: str, write: Callable[[str, bytes], object], seed: int) -> None:
        super().__init__(daemon=True)
        self.written: dict[str, bytes] = {}
        self.failure: OSError | None = None
        self.enough = threading.Event()
        self._prefix = name
        self._write = write
        self._random = random.Random(seed)

    def run(self) -> None:
        while not self.enough.wait(PACE_S):
            name = f"{self._prefix}-{len(self.written)}"
            data = self._random.randbytes(self._random.randrange(1, FILE_BYTES_MAX))
            try:
                self._write(name, data)
            except OSError as exc:
                self.failure = exc
                return
            self.written[name] = data

    def go_on(self) -> None:
        """Return when it has written some more. Raises what stopped it."""
        wanted = len(self.written) + FILES_BETWEEN
        while len(self.written) < wanted:
            if self.failure is not None:
                raise self.failure
            time.sleep(0.05)


def assert_same(left: Path, right: Path) -> None:
    names = sorted(path.relative_to(left) for path in left.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(right) for path in right.rglob("*") if path.is_file())
    _, different, unread = filecmp.cmpfiles(left, right, list(map(str, names)), shallow=False)
    assert not different
    assert not unread


class OneReplica:
    """Routing as if `target` were alone in its chain: whoever reads asks it, until it may answer."""

    def __init__(self, source: RoutingSource, target: int) -> None:
        self._source = source
        self._target = target

    def current(self) -> Routing:
        return self._of(self._source.current())

    def wait_newer(self, version: int, timeout_s: float) -> Routing:
        return self._of(self._source.wait_newer(version, timeout_s))

    def _of(self, routing: Routing) -> Routing:
        alone = {
            chain_id: replace(chain, targets=tuple(row for row in chain.targets if row[0] == self._target))
            for chain_id, chain in routing.chains.items()
        }
        return replace(routing, chains=alone)


def content_of(client: StorageClient, inode: int, chain_id: int, length: int) -> bytearray:
    content = bytearray(length)
    file = FileLayout(InodeId(inode), CHUNK, (chain_id,))
    failures = client.read([ReadSpan(file, 0, memoryview(content))])
    assert not failures, failures
    return content


def test_a_killed_node_comes_back_whole(cluster: ForkedCluster, mountpoint: Path, tmp_path: Path) -> None:
    began_s = time.monotonic()

    def note(what: str) -> None:
        print(f"{time.monotonic() - began_s:6.1f} s {what}")

    tree = tmp_path / "tree"
    package = Path(fireflyfs.__file__).parent
    shutil.copytree(package / "common" / "net" / "rdma", tree / "rdma", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "large").write_bytes(os.urandom(3 * MiB + 17))
    shutil.copytree(tree, mountpoint / "tree")
    assert_same(tree, mountpoint / "tree")
    note("a tree was copied to the mount")

    def through_mount(name: str, data: bytes) -> None:
        with open(mountpoint / name, "wb") as file:
            file.write(data)
            os.fsync(file.fileno())

    with FileSystem.connect(cluster.mgmtd_addresses(), link="rdma") as fs:
        loads = [Load("library", fs.write_bytes, 1), Load("mount", through_mount, 2)]
        for load in loads:
            load.start()
        for load in loads:
            load.go_on()
        cluster.kill("storage-2")
        note("a node is killed")
        for load in loads:
            load.go_on()
        (chain,) = cluster.routing().chains.values()
        assert TARGETS[1] not in chain.serving
        note("writes went on")
        cluster.restart("storage-2", START_S)
        note("the node is back")
        cluster.wait_serving(START_S)
        for load in loads:
            load.go_on()
        for load in loads:
            load.enough.set()
        for load in loads:
            load.join(60)
            assert load.failure is None
        note("all replicas serve")

        identity = Identity(cluster.cluster_id, link=LinkChoice.RDMA)
        with (
            contextlib.closing(cluster.mgmtd()) as mgmtd,
            contextlib.closing(RoutingSource(mgmtd)) as source,
            contextlib.closing(BlockingPool(identity)) as pool,
        ):
            source.wait_until(lambda routing: bool(routing.chains), START_S)
            replicas = {
                target: StorageClient(pool, OneReplica(source, target), identity.client_id) for target in TARGETS
            }
            for name, data in {**loads[0].written, **loads[1].written}.items():
                assert fs.read_bytes(f"/{name}") == data, name
                assert (mountpoint / name).read_bytes() == data, name
                inode = fs.inode(f"/{name}").id
                for target, replica in replicas.items():
                    assert content_of(replica, inode, chain.chain_id, len(data)) == data, f"{name} on {target}"
            assert {row.link for row in pool.traffic()} == {"rdma"}
            endpoints = source.current().endpoints
        assert_same(tree, mountpoint / "tree")
        note(f"{[len(load.written) for load in loads]} files are the same everywhere")

        moved: set[str] = set()  # "link.rdma.bytes_in" of clients, "peers.rdma.bytes_out" of other servers
        for target in TARGETS:
            with contextlib.closing(ControlClient(STORAGE, endpoints[target].grpc)) as worker:
                values = worker.call("Stats", storage_pb2.StatsRequest()).values
                moved |= {name for name, value in values.items() if ".bytes_" in name and value}
        links = [row.row() for row in fs.context.link.traffic()]  # type: ignore[attr-defined]
        links += json.loads((mountpoint / ".ffs" / "stats").read_text())["links"]
    assert {row["link"] for row in links if row["bytes_out"] or row["bytes_in"]} == {"rdma"}, links
    assert {name.split(".")[1] for name in moved if name.startswith(("link.", "peers."))} == {"rdma"}, moved
    assert "peers.rdma.bytes_out" in moved
    note("nothing but rdma")
