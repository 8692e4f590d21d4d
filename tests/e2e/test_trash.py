"""Removed through a mount, restored by the command line, on a real cluster."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.deploy.local import LocalCluster

pytestmark = pytest.mark.e2e
DATA = os.urandom(3_000_000)


def test_a_tree_that_rm_took_comes_back(
    cluster_factory: Callable[..., LocalCluster], ffs_json: Callable[..., Any], tmp_path: Path
) -> None:
    cluster = cluster_factory(storage_nodes=1, replicas=1, trash_keep_s=3600.0)
    point = tmp_path / "mnt"
    point.mkdir()
    ffs_json(cluster, "mount", point)
    try:
        (point / "work/deep").mkdir(parents=True)
        (point / "work/deep/file").write_bytes(DATA)
        (point / "single").write_bytes(DATA)
        os.unlink(point / "single")
        ffs_json(cluster, "rm", "-r", "/work")
        listed = {row["path"]: row for row in ffs_json(cluster, "trash", "list")}
        assert listed.keys() == {"/single", "/work"}
        assert listed["/single"]["length"] == len(DATA)
        assert (listed["/work"]["kind"], listed["/single"]["kind"]) == ("directory", "file")
        assert [row["path"] for row in ffs_json(cluster, "trash", "list", "/work")] == []

        ffs_json(cluster, "trash", "restore", listed["/work"]["id"])
        assert (point / "work/deep/file").read_bytes() == DATA
        (point / "single").write_text("another one")
        assert "taken" in ffs_json(cluster, "trash", "restore", listed["/single"]["id"], code=5)
        ffs_json(cluster, "trash", "restore", listed["/single"]["id"], "/work/single")
        assert (point / "work/single").read_bytes() == DATA
        assert "`ffs trash list`" in ffs_json(cluster, "trash", "restore", listed["/single"]["id"], code=3)

        shutil.rmtree(point / "work")
        (point / "single").unlink()
        assert len(ffs_json(cluster, "trash", "list")) == 3, "two files of the tree, one by one, and another one"
        assert ffs_json(cluster, "trash", "empty", "--older-than", 1, "--yes")["entries"] == 0
        assert ffs_json(cluster, "trash", "empty", "--all", "--yes")["entries"] == 3
        assert ffs_json(cluster, "trash", "list") == []
    finally:
        ffs_json(cluster, "umount", point)
    with FileSystem.connect(",".join(cluster.mgmtd_addresses())) as fs:
        deadline_s = time.monotonic() + 30
        while fs.statvfs().f_files - fs.statvfs().f_ffree > 1:
            assert time.monotonic() < deadline_s, "what was given up does not go"
            time.sleep(0.2)
    assert ffs_json(cluster, "fsck")["findings"] == []
