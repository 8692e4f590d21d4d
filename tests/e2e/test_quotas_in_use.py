"""Quotas and usage on a real cluster: through the library, through a mount, and by the command line."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fireflyfs.client.cli.main import app
from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.quotas import Quotas
from fireflyfs.common.limits import MiB
from fireflyfs.deploy.local import LocalCluster

pytestmark = pytest.mark.e2e


def errno_of(body: Callable[[], object]) -> int:
    try:
        body()
    except OSError as exc:
        return exc.errno or 0
    return 0


def usage(fs: FileSystem, path: str) -> tuple[int, int]:
    found, _ = Quotas(fs).usage(path)
    return found.bytes, found.inodes


def write_until_refused(fd: int, piece: bytes) -> tuple[int, int]:
    """(bytes that write(2) took, errno of the one that was refused)."""
    taken = 0
    while taken < 1 << 30:
        try:
            taken += os.write(fd, piece)
        except OSError as exc:
            return taken, exc.errno or 0
    return taken, 0


def test_a_directory_is_full_for_the_mount_and_the_library(
    cluster_factory: Callable[..., LocalCluster], mount_of: Callable[..., Any]
) -> None:
    cluster = cluster_factory(storage_nodes=1, replicas=1)
    point: Path = mount_of(cluster).point
    with FileSystem.connect(",".join(cluster.mgmtd_addresses())) as fs:
        _fill_and_free(point, fs)


def _fill_and_free(point: Path, fs: FileSystem) -> None:
    quotas = Quotas(fs)
    (point / "a/deep").mkdir(parents=True)
    (point / "free").write_bytes(bytes(3 * MiB))
    quotas.set_directory("/a", bytes_max=70 * MiB, inodes_max=20)
    # A program that writes more than there is room for hears of it from write(2), at the last byte that fits.
    with open(point / "a/deep/file", "wb", buffering=0) as file:
        assert write_until_refused(file.fileno(), bytes(MiB)) == (70 * MiB, errno.EDQUOT)
        os.fsync(file.fileno())  # what was taken is safe
        assert errno_of(lambda: os.truncate(point / "a/deep/file", 71 * MiB)) == errno.EDQUOT
        assert errno_of(lambda: os.posix_fallocate(file.fileno(), 70 * MiB, MiB)) == errno.EDQUOT
        assert os.pwrite(file.fileno(), b"inside", 5) == 6
    assert usage(fs, "/a") == (70 * MiB, 2)
    assert (point / "a/deep/file").read_bytes() == bytes(5) + b"inside" + bytes(70 * MiB - 11)
    with open(point / "a/other", "wb", buffering=0) as file:
        assert errno_of(lambda: os.write(file.fileno(), b"x")) == errno.EDQUOT
    with open(point / "a/other", "ab", buffering=0) as file:
        assert errno_of(lambda: os.write(file.fileno(), b"x")) == errno.EDQUOT
    assert errno_of(lambda: os.rename(point / "free", point / "a/free")) == errno.EDQUOT
    full = os.statvfs(point / "a/deep")
    assert (full.f_blocks * full.f_frsize, full.f_bfree, full.f_ffree) == (70 * MiB, 0, 17)
    assert os.statvfs(point).f_bfree > 0
    assert errno_of(lambda: fs.write_bytes("/a/more", b"x")) == errno.EDQUOT
    assert fs.statvfs("/a").f_bavail == 0
    fs.truncate("/a/deep/file", 30 * MiB)
    with fs.open_file("/a/more", os.O_WRONLY | os.O_CREAT) as file:
        assert errno_of(lambda: file.pwrite(bytes(41 * MiB), 0)) == errno.EDQUOT
        file.pwrite(bytes(30 * MiB), 0)
        assert errno_of(lambda: fs.write_batch([(file, 30 * MiB, bytes(10 * MiB + 1))])) == errno.EDQUOT
        fs.write_batch([(file, 30 * MiB, bytes(10 * MiB))])
        file.fsync()
    assert usage(fs, "/a") == (70 * MiB, 4)
    for number in range(16):
        (point / f"a/{number}").touch()
    assert errno_of((point / "a/16").touch) == errno.EDQUOT
    assert errno_of((point / "a/17").mkdir) == errno.EDQUOT
    # A quota that is lifted, or room that is made, counts at once.
    os.unlink(point / "a/more")
    (point / "a/16").write_bytes(bytes(40 * MiB))
    quotas.set_directory("/a", bytes_max=None, inodes_max=None)
    (point / "a/17").write_bytes(b"x")
    assert list(quotas.list()) == []


def test_quotas_by_the_command_line(cluster: LocalCluster) -> None:
    def ffs(*arguments: str, code: int = 0) -> Any:
        """In this process: only what the commands do is of interest here."""
        outcome = CliRunner().invoke(app, ["--root", str(cluster.root), "--json", *arguments], standalone_mode=False)
        if code:
            assert isinstance(outcome.exception, OSError)
            return outcome.exception.errno
        assert outcome.exception is None, outcome.exception
        return json.loads(outcome.stdout)

    with FileSystem.connect(",".join(cluster.mgmtd_addresses())) as fs:
        fs.makedirs("/quotas/below")
        fs.write_bytes("/quotas/below/f", b"12345")
        try:
            assert [(row["bytes"], row["inodes"]) for row in ffs("du", "/quotas")] == [(4096, 2)]
            ffs("quota", "set", "/quotas", "--bytes", "1.5G")
            ffs("quota", "set", "--user", "4242", "--inodes", "2K")
            listed = {(row["kind"], row["name"]): row for row in ffs("quota", "list")}
            assert listed["directory", "/quotas"]["bytes_max"] == 3 << 29
            assert listed["user", "4242"]["inodes_max"] == 2000
            shown = ffs("quota", "show", "/quotas/below")
            assert [(row["name"], row["bytes_max"]) for row in shown] == [("/quotas/below", None), ("/quotas", 3 << 29)]
            ffs("quota", "set", "/quotas", "--bytes", "0", "--inodes", "0")
            assert errno_of(lambda: fs.write_bytes("/quotas/g", b"")) == errno.EDQUOT
            checked = ffs("quota", "check")
            assert (checked["wrong"], checked["counting"]) == (0, False)
            assert checked["looked_at"] > 3
            assert ffs("quota", "set", "/quotas/below/f", "--bytes", "1", code=5) == errno.ENOTDIR
        finally:
            ffs("quota", "rm", "/quotas")
            ffs("quota", "rm", "--user", "4242")
            fs.rmtree("/quotas")


def test_usage_is_right_after_the_death_of_the_metadata_server(
    cluster_factory: Callable[..., LocalCluster],
) -> None:
    cluster = cluster_factory(storage_nodes=1, replicas=1)
    with FileSystem.connect(",".join(cluster.mgmtd_addresses())) as fs:
        for number in range(300):
            fs.makedirs(f"/d{number % 7}/e{number}")
            if number == 150:
                cluster.kill("meta")
                cluster.up()
        fs.rename("/d3", "/d4/d3")
        assert usage(fs, "/") == (0, 307)
        steps = list(Quotas(fs).check(repair=False))
    assert [step.differences for step in steps] == [[]] * len(steps)
    assert sum(step.looked_at for step in steps) == 308 * 2
