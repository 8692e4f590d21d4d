"""Which link a cluster's clients take, and what they and the servers say of it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.common.limits import MiB
from fireflyfs.common.net.control import ControlClient
from fireflyfs.deploy.local import LocalCluster
from fireflyfs.proto import meta_pb2, storage_pb2

pytestmark = pytest.mark.e2e

STORAGE = storage_pb2.DESCRIPTOR.services_by_name["Storage"]


def storage_counts(cluster: LocalCluster) -> dict[str, float]:
    """Sums over all storage workers."""
    found: dict[str, float] = {}
    routing = cluster.routing()
    for node_id in {target.node_id for target in routing.targets.values()}:
        for worker in routing.nodes[node_id].workers:
            with contextlib.closing(ControlClient(STORAGE, worker.endpoint.grpc)) as control:
                for name, value in control.call("Stats", storage_pb2.StatsRequest()).values.items():
                    found[name] = found.get(name, 0) + value
    return found


def connections_of(cluster: LocalCluster, ffs_json: Callable[..., Any], description: str) -> dict[str, int]:
    """What mgmtd knows of a client's connections: some seconds after they were made."""
    end_s = time.monotonic() + 20
    while True:
        mine = [row for row in ffs_json(cluster, "sessions", "list") if description in row["description"]]
        if mine and mine[0]["connections"]:
            return dict(mine[0]["connections"])
        assert time.monotonic() < end_s, "nobody told mgmtd of any connection"
        time.sleep(0.2)


def test_a_metadata_server_counts_too(cluster: LocalCluster) -> None:
    with FileSystem.connect(cluster.mgmtd_addresses(), link="tcp") as fs:
        before = fs.context.meta.stats(meta_pb2.MetaStatsRequest()).values
        fs.mkdir("/counted")
        fs.rmdir("/counted")
        after = fs.context.meta.stats(meta_pb2.MetaStatsRequest()).values
    assert after["link.tcp.requests"] - before["link.tcp.requests"] >= 3
    assert after["commits"] - before["commits"] >= 2


@pytest.mark.parametrize("link", ["tcp", "shm"])
def test_the_library_takes_the_link_it_is_told(cluster: LocalCluster, link: str) -> None:
    before = storage_counts(cluster)
    with FileSystem.connect(cluster.mgmtd_addresses(), link=link) as fs:
        with fs.open(f"/over-{link}", "wb") as file:
            file.write(os.urandom(MiB))
        rows = fs.context.link.traffic()  # type: ignore[attr-defined]
        fs.unlink(f"/over-{link}")
    assert {row.link for row in rows} == {link}
    assert sum(row.bytes_out for row in rows) >= MiB
    after = storage_counts(cluster)
    assert after[f"link.{link}.bytes_out"] - before.get(f"link.{link}.bytes_out", 0) >= MiB
    assert sum(value for name, value in after.items() if name.startswith("peers.") and name.endswith(".requests"))


@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse")
def test_a_mount_takes_the_link_it_is_told_and_shows_it(
    cluster: LocalCluster, mount_of: Callable[..., Any], ffs_json: Callable[..., Any]
) -> None:
    mounted = mount_of(cluster, "--link", "tcp")
    (mounted.point / "over-tcp").write_bytes(os.urandom(MiB))
    (mounted.point / "over-tcp").read_bytes()
    (mounted.point / "over-tcp").unlink()
    links = ffs_json(cluster, "stats", mounted.point)["links"]
    assert {row["link"] for row in links} == {"tcp"}
    assert "tcp" in connections_of(cluster, ffs_json, f"mount at {mounted.point}")
    assert ffs_json(cluster, "status")["clients"]["connections"]["tcp"] > 0
    assert sum(row["bytes_out"] for row in links) >= MiB
    assert json.loads((mounted.point / ".ffs" / "config").read_text())["link"] == "tcp"


def test_a_mount_that_insists_on_what_is_not_there_says_what_to_do(cluster: LocalCluster, tmp_path) -> None:
    command = [sys.executable, "-P", "-m", "fireflyfs.client.cli.main", "--root", str(cluster.root)]
    # No such device is named, so there is none, on whatever machine this runs.
    done = subprocess.run(
        [*command, "mount", str(tmp_path / "mnt"), "--link", "rdma"],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "FFS_RDMA_DEVICES": "none"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "ffs rdma check" in done.stderr
    assert not os.path.ismount(tmp_path / "mnt")


def test_status_shows_what_servers_offer(cluster: LocalCluster, ffs_json: Callable[..., Any]) -> None:
    doors = [door for node in ffs_json(cluster, "status")["node_list"] for door in node["doors"] if door]
    assert len(doors) == 4  # three storage nodes and the metadata server
    assert all(door.split()[:2] == ["tcp", "unix"] for door in doors)
