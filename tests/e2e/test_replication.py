"""Three real storage nodes: whichever of them is killed while clients write, nothing that was acknowledged is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import crc32c
import pytest

from fireflyfs.client.mgmtd_client import MgmtdClient
from fireflyfs.client.retry import RetryPolicy
from fireflyfs.client.routing import SERVING, Routing
from fireflyfs.client.routing_source import RoutingSource
from fireflyfs.client.storage_client import ReadSpan, StorageClient, WriteSpan
from fireflyfs.client.striping import FileLayout
from fireflyfs.common import config as configuration
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.ids import InodeId
from fireflyfs.common.net.blocking import BlockingPool
from fireflyfs.common.net.control import ControlClient
from fireflyfs.common.net.identity import Identity
from fireflyfs.mgmtd.server import MgmtdConfig
from fireflyfs.proto import mgmtd_pb2, storage_pb2
from fireflyfs.proto.common_pb2 import NODE_TYPE_STORAGE
from fireflyfs.storage.server import StorageConfig, TargetConfig, WorkerConfig

pytestmark = pytest.mark.e2e

CLUSTER = "replication-test"
CHUNK = 1 << 16
NODES = (1, 2, 3)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Server(Protocol):
    """What of subprocess.Popen is needed here."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class Cluster:
    """mgmtd and three storage nodes with one target each, in one chain."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.processes: dict[str, Server] = {}
        self.pools: list[BlockingPool] = []  # of its clients
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        mgmtd = MgmtdConfig(CLUSTER, kv_path=str(root / "mgmtd"), grpc_port=port)
        (root / "mgmtd.toml").write_text(configuration.dump(mgmtd))
        for node in NODES:
            target = TargetConfig(node * 1000, str(root / f"target-{node}"))
            worker = WorkerConfig([target], unix_path=str(root / f"storage-{node}.sock"))
            config = StorageConfig(CLUSTER, node, [self.address], [worker])
            (root / f"storage-{node}.toml").write_text(configuration.dump(config))

    def start(self, name: str) -> None:
        role = name.split("-")[0]
        self.processes[name] = self.launch(["run", role, "--config", str(self.root / f"{name}.toml")], f"{name}.log")

    def launch(self, arguments: Sequence[str], log_name: str) -> Server:
        with open(self.root / log_name, "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "fireflyfs.client.cli.main", *arguments], stdout=log, stderr=log
            )

    def kill(self, name: str) -> None:
        """The supervisor dies, and its worker with it."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def up(self) -> None:
        self.start("mgmtd")
        self.mgmtd = MgmtdClient([self.address], CLUSTER)
        self.wait_answers("mgmtd")
        for node in NODES:
            self.mgmtd.register_node(mgmtd_pb2.RegisterNodeRequest(node_id=node, type=NODE_TYPE_STORAGE))
            self.mgmtd.register_target(mgmtd_pb2.RegisterTargetRequest(target_id=node * 1000, node_id=node))
        chain = mgmtd_pb2.ChainSpec(chain_id=1, targets=[node * 1000 for node in NODES])
        self.mgmtd.set_chains(mgmtd_pb2.SetChainsRequest(chains=[chain]))
        for node in NODES:
            self.start(f"storage-{node}")
        self.routing = RoutingSource(self.mgmtd)
        self.wait_serving(3)

    def wait_answers(self, name: str) -> None:
        """Return when mgmtd answers, however long it takes to start: what is waited for is that it does, or ends."""
        while True:
            try:
                self.mgmtd.meet(0.1)
                return
            except FfsError:
                assert self.processes[name].poll() is None, (self.root / f"{name}.log").read_text()

    def wait_serving(self, count: int, timeout_s: float = 60.0, *, after: int = 0) -> Routing:
        """Return when so many replicas serve, in a version of the chain newer than `after`."""

        def enough(routing: Routing) -> bool:
            chain = routing.chains.get(1)
            if chain is None or chain.version <= after:
                return False
            return sum(state == SERVING for _, state in chain.targets) == count

        return self.routing.wait_until(enough, timeout_s, lacks=f"not {count} replicas serve")

    def head_node(self) -> int:
        return self.routing.current().chains[1].serving[0] // 1000

    def serving_nodes(self) -> list[int]:
        return [target // 1000 for target in self.routing.current().chains[1].serving]

    def client(self) -> StorageClient:
        identity = Identity(CLUSTER)
        self.pools.append(BlockingPool(identity))
        return StorageClient(self.pools[-1], self.routing, identity.client_id, policy=RetryPolicy(deadline_s=60.0))

    def down(self) -> None:
        self.routing.close()
        self.mgmtd.close()
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def running(made: Cluster) -> Iterator[Cluster]:
    """`made`, which is up and goes at the end; so do its clients, those of threads that a failed test leaves too."""
    try:
        made.up()
        yield made
        made.down()
    finally:
        for pool in made.pools:
            pool.close()
        for process in made.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running(Cluster(tmp_path)) as made:
        yield made


class Writer(threading.Thread):
    """Overwrites random ranges of its own file for as long as it is let; remembers what was acknowledged."""

    def __init__(self, cluster: Cluster, inode: int) -> None:
        super().__init__(daemon=True)
        self.file = FileLayout(InodeId(inode), CHUNK, (1,))
        self.content = bytearray(24 * CHUNK)
        self.client = cluster.client()
        self.chance = random.Random(inode)
        self.stop = threading.Event()
        self.writes = 0
        self.slowest_s = 0.0
        self.failure: FfsError | None = None

    def run(self) -> None:
        while not self.stop.is_set():
            length = self.chance.choice([100, 4096, 70_000, 300_000])
            offset = self.chance.randrange(len(self.content) - length)
            data = self.chance.randbytes(length)
            began = time.monotonic()
            failures = self.client.write([WriteSpan(self.file, offset, memoryview(data))])
            if failures:
                self.failure = failures[0]
                return
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self.content[offset : offset + length] = data
            self.writes += 1

    def check(self, client: StorageClient) -> None:
        for start in range(0, len(self.content), CHUNK):
            into = memoryview(bytearray(CHUNK))
            assert not client.read([ReadSpan(self.file, start, into)])
            assert into == self.content[start : start + CHUNK], f"file {self.file.inode} at {start}"


def test_killing_any_replica_loses_nothing(cluster: Cluster) -> None:
    writers = [Writer(cluster, inode) for inode in (11, 12)]
    for writer in writers:
        writer.start()
    time.sleep(1)
    for place in ("head", "middle", "tail"):
        node = cluster.serving_nodes()[{"head": 0, "middle": 1, "tail": 2}[place]]
        cluster.kill(f"storage-{node}")
        cluster.wait_serving(2)
        time.sleep(1)
        for writer in writers:
            assert writer.failure is None, f"{place}: {writer.failure}"
        cluster.start(f"storage-{node}")
        cluster.wait_serving(3)
        time.sleep(0.5)
    for writer in writers:
        writer.stop.set()
    for writer in writers:
        writer.join(70)
        assert writer.failure is None
        assert writer.writes > 20
    reader = cluster.client()
    for writer in writers:
        for _ in range(3):  # reads are spread over the replicas
            writer.check(reader)
    # Each replica alone holds everything.
    for node in NODES:
        others = [other for other in NODES if other != node]
        for other in others:
            os.kill(cluster.processes[f"storage-{other}"].pid, signal.SIGTERM)
            cluster.processes.pop(f"storage-{other}").wait(40)
        cluster.wait_serving(1)
        for writer in writers:
            writer.check(reader)
        for other in others:
            cluster.start(f"storage-{other}")
        cluster.wait_serving(3)


def test_all_killed_at_once_come_back_whole(cluster: Cluster) -> None:
    writer = Writer(cluster, 21)
    writer.start()
    time.sleep(2)
    before = cluster.routing.current().chains[1].version
    for node in NODES:
        cluster.kill(f"storage-{node}")
    time.sleep(0.5)
    for node in NODES:
        cluster.start(f"storage-{node}")
    cluster.wait_serving(3, 90, after=before)  # mgmtd may not have missed them yet
    writer.stop.set()
    writer.join(70)
    assert writer.failure is None
    writer.check(cluster.client())


def test_a_hung_replica_drops_out_and_its_write_goes_on(cluster: Cluster) -> None:
    writer = Writer(cluster, 31)
    writer.start()
    time.sleep(0.5)
    node = cluster.serving_nodes()[1]
    supervisor = cluster.processes[f"storage-{node}"].pid
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGSTOP)
    cluster.wait_serving(2)
    before = writer.writes
    time.sleep(2)
    assert writer.writes > before
    os.kill(int(children[0]), signal.SIGCONT)
    cluster.wait_serving(3)
    writer.stop.set()
    writer.join(70)
    assert writer.failure is None
    writer.check(cluster.client())


def test_any_language_can_write_and_read_a_chunk(cluster: Cluster) -> None:
    routing = cluster.routing.current()
    chain = routing.chains[1]
    service = storage_pb2.DESCRIPTOR.services_by_name["Storage"]
    head = ControlClient(service, routing.endpoints[chain.serving[0]].grpc)
    data = b"over gRPC"
    write = storage_pb2.WriteChunkRequest(
        chain_id=1,
        chain_version=chain.version,
        chunk=storage_pb2.ChunkId(inode=5, index=2),
        data=data,
        crc32c=crc32c.crc32c(data),
        chunk_size=CHUNK,
    )
    assert head.call("WriteChunk", write).version == 1
    for target_id in chain.serving:
        replica = ControlClient(service, routing.endpoints[target_id].grpc)
        read = storage_pb2.ReadChunkRequest(chain_id=1, chain_version=chain.version, chunk=write.chunk, length=100)
        assert replica.call("ReadChunk", read).data == data
        space = replica.call("Space", storage_pb2.SpaceRequest()).targets[0]
        assert (space.target_id, space.chain_id, space.chunks) == (target_id, 1, 1)
        assert replica.call("Stats", storage_pb2.StatsRequest()).values
        with pytest.raises(FfsError) as caught:
            replica.call("ReadChunk", storage_pb2.ReadChunkRequest(chain_id=9, length=1))
        assert caught.value.code is Code.NO_CHAIN
        replica.close()
    last = storage_pb2.QueryLastChunkRequest(
        ranges=[storage_pb2.ChunkRange(chain_id=1, chain_version=chain.version, inode=5)]
    )
    assert head.call("QueryLastChunk", last).results[0].index == 2
    head.call("SyncChains", storage_pb2.SyncChainsRequest(chains=[1]))
    remove = storage_pb2.RemoveChunksRequest(range=last.ranges[0])
    assert head.call("RemoveChunks", remove).removed == 1
    assert not head.call("QueryLastChunk", last).results[0].found
    head.close()
