"""The local cluster as a whole: start, stop, death of any process and of all, and what is told when it cannot start."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.deploy import plan as planning
from fireflyfs.deploy.local import PORT_GRACE_S, ClusterSpec, LocalCluster

pytestmark = pytest.mark.e2e

DATA = os.urandom(3_000_000)


def connect(cluster: LocalCluster) -> FileSystem:
    return FileSystem.connect(",".join(cluster.mgmtd_addresses()))


def pids(cluster: LocalCluster) -> dict[str, int]:
    return {process.name: process.pid for process in cluster.status()}


@contextlib.contextmanager
def taken(port: int) -> Iterator[None]:
    """Another program listens on `port`, as soon as nothing of a process that was killed holds it any more."""
    deadline_s = time.monotonic() + PORT_GRACE_S
    while not planning.port_is_free("127.0.0.1", port):
        assert time.monotonic() < deadline_s, port
        time.sleep(0.05)
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that ended may still be known
        holder.bind(("127.0.0.1", port))
        holder.listen()
        yield


def test_up_is_idempotent_and_down_keeps_the_data(own_cluster: LocalCluster) -> None:
    before = pids(own_cluster)
    assert all(before.values())
    own_cluster.up()
    assert pids(own_cluster) == before
    with connect(own_cluster) as fs:
        fs.write_bytes("/kept", DATA)
    began = time.monotonic()
    own_cluster.down()
    assert time.monotonic() - began < 15
    assert not any(pids(own_cluster).values())
    own_cluster.down()  # nothing to do is no error
    own_cluster.up()
    with connect(own_cluster) as fs:
        assert fs.read_bytes("/kept") == DATA


def test_everything_killed_at_once_comes_back_whole(own_cluster: LocalCluster) -> None:
    with connect(own_cluster) as fs:
        fs.write_bytes("/kept", DATA)
    for turn in range(2):
        for name in own_cluster.names():
            own_cluster.kill(name)
        own_cluster.up()
        with connect(own_cluster) as fs:
            assert fs.read_bytes("/kept") == DATA, turn
            for chain in own_cluster.routing().chains.values():
                assert len(chain.serving) == len(chain.targets)


def test_up_restarts_only_what_died(own_cluster: LocalCluster) -> None:
    before = pids(own_cluster)
    own_cluster.kill("storage-2")
    own_cluster.kill("mgmtd")
    own_cluster.up()
    after = pids(own_cluster)
    assert {name for name in before if before[name] != after[name]} == {"storage-2", "mgmtd"}


def test_a_hung_storage_node_drops_out_and_comes_back(own_cluster: LocalCluster) -> None:
    with connect(own_cluster) as fs:
        own_cluster.kill("storage-1", signal.SIGSTOP)
        fs.write_bytes("/while-hung", DATA)
        lost = {
            target for chain in own_cluster.routing().chains.values() for target, state in chain.targets if state != 1
        }
        assert lost
        assert all(target // 1000 == 1 for target in lost)
        own_cluster.kill("storage-1", signal.SIGCONT)
        own_cluster.wait_serving(60)
        assert fs.read_bytes("/while-hung") == DATA


def test_down_ends_a_hung_process(cluster_factory: Callable[..., LocalCluster]) -> None:
    local = cluster_factory(storage_nodes=1, replicas=1)
    local.kill("storage-1", signal.SIGSTOP)
    local.down()
    assert not any(pids(local).values())


def test_a_failure_to_start_shows_the_log(cluster_factory: Callable[..., LocalCluster]) -> None:
    local = cluster_factory(storage_nodes=1, replicas=1)
    local.down()
    (local.root / "data" / "meta" / "CURRENT").write_text("nonsense")
    with pytest.raises(FfsError) as failure:
        local.up(timeout_s=20)
    assert failure.value.code is Code.UNAVAILABLE
    assert "meta" in failure.value.message
    assert "meta.log" in failure.value.message or "meta.err" in failure.value.message


def test_ports_that_were_taken_meanwhile_are_replaced_but_for_the_one_that_clients_know(
    own_cluster: LocalCluster,
) -> None:
    before = own_cluster.plan().ports
    with connect(own_cluster) as fs:  # from before, as a mount is
        fs.write_bytes("/x", b"1")
        for name in own_cluster.names():
            own_cluster.kill(name)
        with taken(before["mgmtd_grpc"]):
            with pytest.raises(FfsError, match=f"port {before['mgmtd_grpc']}") as refused:
                own_cluster.up()
            assert refused.value.code is Code.BUSY
            assert "ss -ltnp" in refused.value.message
            assert own_cluster.plan().ports == before
            assert not any(pids(own_cluster).values())
        with taken(before["meta_tcp"]), taken(before["storage-1_0_tcp"]):
            own_cluster.up()
            now = own_cluster.plan().ports
            assert {name for name in before if now[name] != before[name]} == {"meta_tcp", "storage-1_0_tcp"}
            assert fs.read_bytes("/x") == b"1"
            fs.write_bytes("/y", b"2")


def test_before_its_first_start_mgmtd_takes_another_port(tmp_path: Path) -> None:
    local = LocalCluster(tmp_path / "c")
    local.create(ClusterSpec(storage_nodes=1, replicas=1, capacity_bytes=1 << 30))
    port = local.plan().ports["mgmtd_grpc"]
    with taken(port):
        try:
            local.up()
            assert local.plan().ports["mgmtd_grpc"] != port
        finally:
            local.down()


def test_a_lost_target_directory_is_noticed_not_recreated(cluster_factory: Callable[..., LocalCluster]) -> None:
    local = cluster_factory(storage_nodes=1, replicas=1)
    local.down()
    folder = next((local.root / "data" / "storage-1").iterdir())
    folder.rename(folder.with_suffix(".lost"))
    with pytest.raises(FfsError, match="storage-1"):
        local.up(timeout_s=6)


def test_several_workers_and_a_deep_folder(tmp_path: Path) -> None:
    root = tmp_path / ("deep-" * 20)
    local = LocalCluster(root)
    local.create(ClusterSpec(storage_nodes=2, workers_per_node=2, targets_per_worker=1, capacity_bytes=1 << 30))
    try:
        local.up()
        routing = local.routing()
        assert {len(node.workers) for node in routing.nodes.values() if node.node_id < 10} == {2}
        assert all(
            len(worker.endpoint.unix) <= planning.UNIX_PATH_BYTES_MAX
            for node in routing.nodes.values()
            for worker in node.workers
        )
        with connect(local) as fs:
            fs.write_bytes("/x", DATA)
            assert fs.read_bytes("/x") == DATA
    finally:
        local.down()
