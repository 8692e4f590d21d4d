"""Trees that go into a mount and out of it again, with everything that rsync and tar know of: nothing changes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e


def run(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def differences(left: Path, right: Path) -> str:
    """What rsync would still have to do: contents, modes, owners, times, links, ACLs, attributes."""
    return run("rsync", "-aHAXnc", "--delete", "--itemize-changes", f"{left}/", f"{right}/")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Some of everything, on a local file system."""
    root = tmp_path / "tree"
    for number in range(12):
        folder = root / f"d{number % 4}" / f"deep{number}"
        folder.mkdir(parents=True)
        for size in (0, 1, 4095, 70_000):
            (folder / f"file{size}").write_bytes(os.urandom(size))
    some = sorted(path for path in root.rglob("*") if path.is_file())
    (root / "large").write_bytes(os.urandom(3 << 20))
    with (root / "sparse").open("wb") as sparse:
        sparse.seek(5 << 20)
        sparse.write(b"end")
    os.link(some[0], root / "hard")
    os.symlink("d0/deep0/file1", root / "symbolic")
    os.symlink("nowhere", root / "dangling")
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    os.chmod(some[1], 0o4711)
    os.chmod(root / "d1", 0o2775)
    os.chown(some[2], 1000, 1001)
    os.utime(some[3], ns=(1_000_000_007, 1_234_567_890_123_456_789))
    os.setxattr(some[4], "user.color", b"blue")
    os.setxattr(root / "d2", "user.empty", b"")
    run("setfacl", "-m", "u:1000:rw,g:1001:r", some[5])
    run("setfacl", "-d", "-m", "u:1000:rwx", root / "d3")
    return root


def test_rsync_into_the_mount_and_out_of_it(
    cluster: Any, mount_of: Callable[..., Any], tree: Path, tmp_path: Path
) -> None:
    inside = mount_of(cluster).point / f"rsync-{os.getpid()}"
    run("rsync", "-aHAXS", f"{tree}/", f"{inside}/")
    assert differences(tree, inside) == ""
    outside = tmp_path / "outside"
    run("rsync", "-aHAXS", f"{inside}/", f"{outside}/")
    assert differences(tree, outside) == ""
    # A second time, over what is there: only what changed is sent.
    (tree / "large").write_bytes(os.urandom(2 << 20))
    (tree / "d0" / "deep0" / "file1").unlink()
    run("rsync", "-aHAXS", "--delete", "--inplace", f"{tree}/", f"{inside}/")
    assert differences(tree, inside) == ""


def test_tar_with_acls_and_attributes(cluster: Any, mount_of: Callable[..., Any], tree: Path) -> None:
    point = mount_of(cluster).point
    inside = point / f"tar-{os.getpid()}"
    inside.mkdir()
    options = ("--acls", "--xattrs", "--xattrs-include=*", "--sparse", "--numeric-owner")
    run("tar", *options, "-cf", point / "tree.tar", "-C", tree, ".")
    run("tar", *options, "-xpf", point / "tree.tar", "-C", inside)
    assert differences(tree, inside) == ""
