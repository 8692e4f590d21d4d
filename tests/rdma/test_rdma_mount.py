"""A mount that takes rdma to its servers: a tree is copied there, and a storage node dies under load."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import fireflyfs
from fireflyfs.common.limits import KiB, MiB
from fireflyfs.deploy.local import ClusterSpec, LocalCluster
from fireflyfs.fuse import device

START_S = 200.0  # in a guest that translates instructions
pytestmark = [
    pytest.mark.timeout(500),
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="the kernel has no FUSE"),
]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    monkeypatch.setenv("FFS_LINK", "rdma")
    local = LocalCluster(tmp_path / "cluster")
    # A process of this guest is slow to answer, and not dead.
    local.create(ClusterSpec(storage_nodes=2, targets_per_worker=1, capacity_bytes=256 * MiB, failed_after_s=15.0))
    try:
        local.up(START_S)
        yield local
    finally:
        local.down()


@pytest.fixture
def mountpoint(cluster: LocalCluster, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    ffs = [sys.executable, "-P", "-m", "fireflyfs.client.cli.main", "--root", str(cluster.root)]
    try:
        with open(tmp_path / "mount.log", "wb") as log:
            process = subprocess.Popen([*ffs, "mount", "--foreground", "--link", "rdma", str(path)], stderr=log)
        try:
            for _ in range(int(START_S * 10)):
                if os.path.ismount(path):
                    break
                assert process.poll() is None, (tmp_path / "mount.log").read_text()
                try:
                    process.wait(0.1)
                except subprocess.TimeoutExpired:
                    continue
            assert os.path.ismount(path)
            yield path
        finally:
            process.terminate()
            process.wait(30)
    finally:
        if os.path.ismount(path):
            device.unmount(path, lazy=True)


def assert_same(left: Path, right: Path) -> None:
    names = sorted(path.relative_to(left) for path in left.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(right) for path in right.rglob("*") if path.is_file())
    _, different, unread = filecmp.cmpfiles(left, right, list(map(str, names)), shallow=False)
    assert not different
    assert not unread


def test_mount_over_rdma(cluster: LocalCluster, mountpoint: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    package = Path(fireflyfs.__file__).parent
    shutil.copytree(package / "common" / "net", tree / "net", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "large").write_bytes(os.urandom(3 * MiB + 17))
    shutil.copytree(tree, mountpoint / "tree")
    assert_same(tree, mountpoint / "tree")

    written: dict[str, bytes] = {}
    failed: list[OSError] = []
    enough = threading.Event()

    def load() -> None:
        number = 0
        while not enough.is_set():
            data = os.urandom(200 * KiB)
            try:
                with open(mountpoint / f"load-{number}", "wb") as file:
                    file.write(data)
                    os.fsync(file.fileno())
            except OSError as exc:
                failed.append(exc)
                return
            written[f"load-{number}"] = data
            number += 1

    loading = threading.Thread(target=load)
    loading.start()
    try:
        while len(written) < 3 and not failed:
            enough.wait(0.1)
        cluster.kill("storage-2")
        before = len(written)
        while len(written) < before + 3 and not failed:
            enough.wait(0.1)
    finally:
        enough.set()
        loading.join(120)
    assert not failed
    for name, data in written.items():
        assert (mountpoint / name).read_bytes() == data, name
    assert_same(tree, mountpoint / "tree")
    links = json.loads((mountpoint / ".ffs" / "stats").read_text())["links"]
    moved = [row for row in links if row["bytes_out"] or row["bytes_in"]]
    assert {row["link"] for row in moved} == {"rdma"}, links
    print(f"{len(written)} files under load;", *(f"{r['peer']} {r['requests']} requests" for r in links))
