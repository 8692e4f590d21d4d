"""Bytes that rot on the disks of a real cluster: readers never see them, and the scrubber mends them."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.deploy.local import LocalCluster

pytestmark = pytest.mark.e2e

FILES = 12
FILE_BYTES = 3_000_000
STRIDE = 64 * 1024


def connect(cluster: LocalCluster) -> FileSystem:
    return FileSystem.connect(",".join(cluster.mgmtd_addresses()))


def blocks_of(cluster: LocalCluster, target_id: int) -> list[Path]:
    folder = cluster.root / "data" / f"storage-{target_id // 1000}" / str(target_id) / "blocks"
    return sorted(folder.iterdir())


def flip(files: list[Path]) -> int:
    """One bit in every 64 KiB that holds data: how many."""
    flipped = 0
    for path in files:
        with path.open("r+b") as file:
            for at in range(0, path.stat().st_size, STRIDE):
                file.seek(at)
                if not any(file.read(512)):
                    continue
                file.seek(at + 100)
                byte = file.read(1)[0]
                file.seek(at + 100)
                file.write(bytes([byte ^ 16]))
                flipped += 1
            file.flush()
            os.fsync(file.fileno())
    return flipped


def written(cluster: LocalCluster) -> dict[str, bytes]:
    """Files on every chain, on the disks."""
    chance = random.Random(3)
    content = {f"/file-{number}": chance.randbytes(FILE_BYTES) for number in range(FILES)}
    with connect(cluster) as fs:
        for name, data in content.items():
            with fs.open(name, "wb", buffering=0) as file:
                file.write(data)
                file.fsync()
    return content


def wait_for(what: str, ready: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline_s, f"{what}: not after {timeout_s:g} s"
        time.sleep(0.2)


def errno_of(attempt: Callable[..., object], *arguments: object) -> int | None:
    try:
        attempt(*arguments)
    except OSError as exc:
        return exc.errno
    return None


class Reader(threading.Thread):
    """Reads all files again and again, and compares."""

    def __init__(self, cluster: LocalCluster, content: dict[str, bytes]) -> None:
        super().__init__(daemon=True)
        self.cluster = cluster
        self.content = content
        self.stop = threading.Event()
        self.rounds = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with connect(self.cluster) as fs:
                while not self.stop.is_set():
                    for name, data in self.content.items():
                        assert fs.read_bytes(name) == data, f"{name} differs"
                    self.rounds += 1
        except BaseException as exc:
            self.failure = exc


def test_rot_on_one_replica_is_never_read_and_mended(
    cluster_factory: Callable[..., LocalCluster], ffs_json: Callable[..., Any]
) -> None:
    cluster = cluster_factory(storage_nodes=2, replicas=2, targets_per_worker=1)
    content = written(cluster)
    target_id = 1001
    readers = [Reader(cluster, content) for _ in range(2)]
    for reader in readers:
        reader.start()
    wait_for("reads", lambda: all(reader.rounds or reader.failure for reader in readers))
    assert flip(blocks_of(cluster, target_id)) > 50
    found = ffs_json(cluster, "targets", "scrub", target_id, "--wait")
    (row,) = found["targets"]
    assert (row["lost"], row["damaged"], row["state"]) == (0, 0, "done")
    assert row["repaired"] > 5  # by the pass, or because a reader was there first
    assert row["done_chunks"] == row["total_chunks"] > 5
    assert found["damaged"] == []
    rounds = [reader.rounds for reader in readers]
    wait_for("reads", lambda: all(r.rounds > before or r.failure for r, before in zip(readers, rounds, strict=True)))
    for reader in readers:
        reader.stop.set()
    for reader in readers:
        reader.join(60)
        assert reader.failure is None
    # It never left its chain, and alone it has everything.
    status = ffs_json(cluster, "status")
    assert (status["healthy"], status["damaged_chunks"], status["resyncs"]) == (True, 0, [])
    wait_for("the report", lambda: any(each["repaired"] for each in ffs_json(cluster, "targets", "list")))
    again = ffs_json(cluster, "targets", "scrub", target_id, "--wait")["targets"][0]
    assert (again["found"], again["repaired"]) == (0, row["repaired"])
    cluster.kill("storage-2")
    wait_for("failover", lambda: all(c.serving == (target_id,) for c in cluster.routing().chains.values()))
    with connect(cluster) as fs:
        for name, data in content.items():
            assert fs.read_bytes(name) == data


def test_what_nobody_has_any_more_is_an_error_and_no_hole(
    cluster_factory: Callable[..., LocalCluster], ffs_json: Callable[..., Any]
) -> None:
    cluster = cluster_factory(storage_nodes=1, replicas=1, targets_per_worker=1)
    content = written(cluster)
    flip(blocks_of(cluster, 1001))
    found = ffs_json(cluster, "targets", "scrub", "--all", "--wait")
    (row,) = found["targets"]
    chunks = FILES * -(-FILE_BYTES // (1 << 20))
    assert (row["done_chunks"], row["lost"], row["damaged"], row["repaired"]) == (chunks, chunks, chunks, 0)
    assert len(found["damaged"]) == chunks
    for turn in range(2):
        with connect(cluster) as fs:
            with ThreadPoolExecutor(2) as pool:  # a client tries for seconds before it believes it
                errors = list(pool.map(lambda name: errno_of(fs.read_bytes, name), list(content)[:2]))
            assert errors == [errno.EIO] * 2
        if turn == 0:
            cluster.restart("storage-1")
    wait_for("the report", lambda: bool(ffs_json(cluster, "status")["damaged_chunks"] == chunks))
    assert [row["target"] for row in ffs_json(cluster, "status")["damaged"]] == [1001]
    with connect(cluster) as fs:
        for number, name in enumerate(content):
            if number % 2:
                fs.remove(name)
            else:
                fs.write_bytes(name, b"written anew" * 1000)
                assert fs.read_bytes(name) == b"written anew" * 1000
    wait_for("garbage collection", lambda: ffs_json(cluster, "status")["damaged_chunks"] == 0)
