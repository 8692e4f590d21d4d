"""Removed through a mount, restored by the command line, on a real cluster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.deploy.local import LocalCluster

pytestmark = pytest.mark.e2e
DATA = os.urandom(3_000_000)


def ffs(cluster: LocalCluster, *arguments: object, code: int = 0) -> Any:
    command = [sys.executable, "-P", "-m", "fireflyfs.client.cli.main", "--root", str(cluster.root), "--json"]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"
    return json.loads(done.stdout) if code == 0 else done.stderr


def test_a_tree_that_rm_took_comes_back(cluster_factory: Callable[..., LocalCluster], tmp_path: Path) -> None:
    cluster = cluster_factory(storage_nodes=1, replicas=1, trash_keep_s=3600.0)
    point = tmp_path / "mnt"
    point.mkdir()
    ffs(cluster, "mount", point)
    try:
        (point / "work/deep").mkdir(parents=True)
        (point / "work/deep/file").write_bytes(DATA)
        (point / "single").write_bytes(DATA)
        os.unlink(point / "single")
        ffs(cluster, "rm", "-r", "/work")
        listed = {row["path"]: row for row in ffs(cluster, "trash", "list")}
        assert listed.keys() == {"/single", "/work"}
        assert listed["/single"]["length"] == len(DATA)
        assert (listed["/work"]["kind"], listed["/single"]["kind"]) == ("directory", "file")
        assert [row["path"] for row in ffs(cluster, "trash", "list", "/work")] == []

        ffs(cluster, "trash", "restore", listed["/work"]["id"])
        assert (point / "work/deep/file").read_bytes() == DATA
        (point / "single").write_text("another one")
        assert "taken" in ffs(cluster, "trash", "restore", listed["/single"]["id"], code=5)
        ffs(cluster, "trash", "restore", listed["/single"]["id"], "/work/single")
        assert (point / "work/single").read_bytes() == DATA
        assert "`ffs trash list`" in ffs(cluster, "trash", "restore", listed["/single"]["id"], code=3)

        shutil.rmtree(point / "work")
        (point / "single").unlink()
        assert len(ffs(cluster, "trash", "list")) == 3, "two files of the tree, one by one, and another one"
        assert ffs(cluster, "trash", "empty", "--older-than", 1, "--yes")["entries"] == 0
        assert ffs(cluster, "trash", "empty", "--all", "--yes")["entries"] == 3
        assert ffs(cluster, "trash", "list") == []
    finally:
        ffs(cluster, "umount", point)
    with FileSystem.connect(",".join(cluster.mgmtd_addresses())) as fs:
        deadline_s = time.monotonic() + 30
        while fs.statvfs().f_files - fs.statvfs().f_ffree > 1:
            assert time.monotonic() < deadline_s, "what was given up does not go"
            time.sleep(0.2)
    assert ffs(cluster, "fsck")["findings"] == []
