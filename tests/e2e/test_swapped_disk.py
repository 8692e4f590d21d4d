"""A disk that was exchanged behind the cluster's back, on a real cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fireflyfs.client.cli.formatting import format_target
from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.routing import SERVING
from fireflyfs.deploy.local import LocalCluster

pytestmark = pytest.mark.e2e

DATA = os.urandom(3_000_000)


def folder_of(cluster: LocalCluster, target_id: int) -> Path:
    return cluster.root / "data" / f"storage-{target_id // 1000}" / str(target_id)


def exchange(cluster: LocalCluster, name: str, targets: list[int], old: str, new: str | None) -> None:
    """With its process stopped: targets' folders become `*.old`, and others take their place; None: empty ones."""
    cluster.kill(name)
    for target_id in targets:
        folder = folder_of(cluster, target_id)
        folder.rename(folder.with_name(f"{target_id}.{old}"))
        if new is None:
            format_target(folder, cluster.cluster_id, target_id)
        else:
            folder.with_name(f"{target_id}.{new}").rename(folder)
    cluster.restart(name)


def wait_for(what: str, ready: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline_s, f"{what}: not after {timeout_s:g} s"
        time.sleep(0.2)


def refused(cluster: LocalCluster) -> list[int]:
    routing = cluster.routing()
    return sorted(target_id for target_id, target in routing.targets.items() if target.note)


def test_the_last_replica_comes_back_with_another_disk(
    cluster_factory: Callable[..., LocalCluster], ffs_json: Callable[..., Any]
) -> None:
    cluster = cluster_factory(storage_nodes=1, replicas=1)
    addresses = ",".join(cluster.mgmtd_addresses())
    with FileSystem.connect(addresses) as fs:
        fs.write_bytes("/file", DATA)
    targets = sorted(cluster.routing().targets)
    name = "storage-1"
    exchange(cluster, name, targets, "old", None)
    wait_for("the empty disks are refused", lambda: refused(cluster) == targets)
    status = ffs_json(cluster, "status", code=1)
    assert not status["healthy"]
    assert [row["target"] for row in status["refused"]] == targets
    assert "accept-disk" in status["refused"][0]["note"]

    # The old ones are put back: nothing was lost, nothing was done by hand.
    exchange(cluster, name, targets, "new", "old")
    cluster.wait_serving()
    assert refused(cluster) == []
    with FileSystem.connect(addresses) as fs:
        assert fs.read_bytes("/file") == DATA
    assert "not refused" in ffs_json(cluster, "targets", "accept-disk", targets[0], "--yes", code=5)
    assert "no target 77" in ffs_json(cluster, "targets", "accept-disk", 77, "--yes", code=3)

    # They are gone for good, and the chain goes on without what they held.
    exchange(cluster, name, targets, "lost", None)
    wait_for("the empty disks are refused", lambda: refused(cluster) == targets)
    for target_id in targets:
        ffs_json(cluster, "targets", "accept-disk", target_id, "--yes")
    cluster.wait_serving()
    with FileSystem.connect(addresses) as fs:
        fs.write_bytes("/new", DATA)
        assert fs.read_bytes("/new") == DATA


def test_one_of_three_comes_back_empty(
    cluster_factory: Callable[..., LocalCluster], ffs_json: Callable[..., Any]
) -> None:
    """While others serve, a new disk is filled like one that is far behind, without a hand."""
    cluster = cluster_factory()
    addresses = ",".join(cluster.mgmtd_addresses())
    with FileSystem.connect(addresses) as fs:
        fs.write_bytes("/file", DATA)
        name = "storage-1"
        targets = [target for target in sorted(cluster.routing().targets) if target // 1000 == 1]
        assert targets
        exchange(cluster, name, targets, "old", None)
        cluster.wait_serving()
        assert refused(cluster) == []
        assert fs.read_bytes("/file") == DATA
    assert ffs_json(cluster, "fsck")["findings"] == []


def test_a_disk_that_is_missing_at_the_start_takes_only_its_own_target_out(
    cluster_factory: Callable[..., LocalCluster],
) -> None:
    cluster = cluster_factory(storage_nodes=2, replicas=2)
    addresses = ",".join(cluster.mgmtd_addresses())
    folder = folder_of(cluster, 1001)
    cluster.kill("storage-1")
    folder.rename(folder.with_name("pulled"))
    cluster.restart("storage-1")

    def serving() -> set[int]:
        states = cluster.routing().chains.values()
        return {target for chain in states for target, state in chain.targets if state == SERVING}

    wait_for("the other target of its worker serves", lambda: serving() == {1002, 2001, 2002})
    with FileSystem.connect(addresses) as fs:
        fs.write_bytes("/file", DATA)
        folder.with_name("pulled").rename(folder)
        wait_for("the disk is back", lambda: serving() == {1001, 1002, 2001, 2002})
        assert fs.read_bytes("/file") == DATA
