"""Names and what is behind them: rename in every combination, what is open after its name is gone, O_TMPFILE."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from semantics.actors import Actor, fails
from semantics.syscalls import (
    AT_EMPTY_PATH,
    AT_SYMLINK_FOLLOW,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    linkat,
    renameat2,
)

pytestmark = pytest.mark.e2e
ME = Actor(1001, 2001)
KINDS = ["file", "directory", "fifo", "link", "full directory"]


def put(path: Path, kind: str) -> int:
    """Something of that kind; its inode."""
    if kind == "file":
        path.write_bytes(b"file")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        os.symlink("nowhere", path)
    else:
        path.mkdir()
        if kind != "directory":
            (path / "in it").touch()
    return path.lstat().st_ino


@pytest.mark.parametrize("other_directory", [False, True])
@pytest.mark.parametrize("old", KINDS)
@pytest.mark.parametrize("new", [*KINDS, "nothing"])
def test_rename(root: Path, old: str, new: str, other_directory: bool) -> None:
    (root / "d").mkdir()
    (root / "e").mkdir()
    source = root / "d" / "x"
    goal = root / ("e" if other_directory else "d") / "y"
    moved = put(source, old)
    replaced = put(goal, new) if new != "nothing" else 0
    old_is_dir, new_is_dir = "directory" in old, "directory" in new
    if new == "nothing" or old_is_dir == new_is_dir:
        expected = ("ENOTEMPTY", "EEXIST") if new == "full directory" else ("OK",)
    else:
        expected = ("EISDIR",) if new_is_dir else ("ENOTDIR",)
    assert fails(renameat2, source, goal, RENAME_NOREPLACE) == ("OK" if not replaced else "EEXIST")
    if not replaced:
        os.rename(goal, source)
    assert fails(os.rename, source, goal) in expected
    if expected == ("OK",):
        assert goal.lstat().st_ino == moved
        assert not os.path.lexists(source)
        if old_is_dir:
            assert os.stat(goal / "..").st_ino == goal.parent.stat().st_ino
    else:
        assert (source.lstat().st_ino, goal.lstat().st_ino) == (moved, replaced)
    subdirectories = [sum(child.is_dir() and not child.is_symlink() for child in (root / d).iterdir()) for d in "de"]
    assert [(root / d).stat().st_nlink for d in "de"] == [2 + count for count in subdirectories]


@pytest.mark.parametrize("other_directory", [False, True])
@pytest.mark.parametrize("old", KINDS)
@pytest.mark.parametrize("new", KINDS)
def test_exchange(root: Path, old: str, new: str, other_directory: bool) -> None:
    (root / "d").mkdir()
    (root / "e").mkdir()
    one, two = root / "d" / "x", root / ("e" if other_directory else "d") / "y"
    inodes = put(one, old), put(two, new)
    renameat2(one, two, RENAME_EXCHANGE)
    assert (two.lstat().st_ino, one.lstat().st_ino) == inodes
    for path, kind in ((two, old), (one, new)):
        if "directory" in kind:
            assert os.stat(path / "..").st_ino == path.parent.stat().st_ino
    subdirectories = [sum(child.is_dir() and not child.is_symlink() for child in (root / d).iterdir()) for d in "de"]
    assert [(root / d).stat().st_nlink for d in "de"] == [2 + count for count in subdirectories]


def test_rename_flags(root: Path) -> None:
    (root / "x").touch()
    assert fails(renameat2, root / "x", root / "y", RENAME_EXCHANGE) == "ENOENT"
    assert fails(renameat2, root / "x", root / "y", RENAME_EXCHANGE | RENAME_NOREPLACE) == "EINVAL"
    assert fails(renameat2, root / "x", root / "y", 64) == "EINVAL"
    assert fails(renameat2, root / "x", root / "x", RENAME_NOREPLACE) == "EEXIST"
    assert fails(renameat2, root / "x", root / "x", RENAME_EXCHANGE) == "OK"


def test_renaming_below_itself(root: Path) -> None:
    (root / "a" / "b" / "c").mkdir(parents=True)
    (root / "x").mkdir()
    assert fails(os.rename, root / "a", root / "a" / "n") == "EINVAL"
    assert fails(os.rename, root / "a", root / "a" / "b" / "c") == "EINVAL"
    assert fails(os.rename, root / "a", root / "a" / "b" / "n") == "EINVAL"
    assert fails(os.rename, root / "a" / "b", root / "a") == "ENOTEMPTY"
    assert fails(os.rename, root / "a" / "b" / "c", root / "a") == "ENOTEMPTY"
    assert fails(renameat2, root / "a", root / "a" / "b", RENAME_EXCHANGE) == "EINVAL"
    assert fails(renameat2, root / "a" / "b" / "c", root / "a", RENAME_EXCHANGE) == "EINVAL"
    assert fails(os.rename, root / "a", root / "a") == "OK"


def test_renaming_to_another_name_of_the_same_file_does_nothing(root: Path) -> None:
    (root / "x").touch()
    os.link(root / "x", root / "y")
    os.rename(root / "x", root / "y")
    assert sorted(os.listdir(root)) == ["x", "y"]
    assert (root / "x").stat().st_nlink == 2
    with open(root / "x", "rb") as file:
        os.rename(root / "x", root / "y")
        assert os.fstat(file.fileno()).st_nlink == 2


def test_link_counts(root: Path) -> None:
    (root / "f").touch()
    with open(root / "f", "rb") as file:
        for number in range(1, 20):
            os.link(root / "f", root / f"l{number}")
            assert os.fstat(file.fileno()).st_nlink == number + 1
            assert (root / "f").stat().st_nlink == number + 1
        for number in range(1, 20):
            os.unlink(root / f"l{number}")
            assert os.fstat(file.fileno()).st_nlink == 20 - number
    before = root.stat().st_nlink
    (root / "d").mkdir()
    assert root.stat().st_nlink == before + 1
    assert (root / "d").stat().st_nlink == 2
    (root / "d").rmdir()
    assert root.stat().st_nlink == before


def test_a_file_stays_while_it_is_open(root: Path) -> None:
    fd = os.open(root / "f", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"before")
    os.unlink(root / "f")
    assert os.fstat(fd).st_nlink == 0
    assert os.fstat(fd).st_size == 6
    os.write(fd, b" and after")
    assert os.pread(fd, 100, 0) == b"before and after"
    os.ftruncate(fd, 3)
    os.fchmod(fd, 0o600)
    os.fchown(fd, 5, 6)
    os.utime(fd, ns=(5, 6))
    found = os.fstat(fd)
    assert (found.st_size, found.st_uid, stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (3, 5, 0o600, 6)
    os.fsync(fd)
    (root / "f").write_bytes(b"another")
    assert os.pread(fd, 100, 0) == b"bef"
    os.close(fd)
    assert (root / "f").read_bytes() == b"another"


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_a_replaced_file_stays_while_it_is_open(root: Path, flags: int) -> None:
    (root / "f").write_bytes(b"old")
    (root / "g").write_bytes(b"new")
    fd = os.open(root / "f", flags)
    os.rename(root / "g", root / "f")
    assert os.fstat(fd).st_nlink == 0
    time.sleep(0.05)
    assert os.pread(fd, 10, 0) == b"old"
    assert (root / "f").read_bytes() == b"new"
    os.close(fd)


def test_what_was_removed_and_is_held_has_attributes(root: Path) -> None:
    for kind in ("file", "directory", "fifo", "link"):
        put(root / "x", kind)
        fd = os.open(root / "x", os.O_PATH | os.O_NOFOLLOW)
        ctime = os.fstat(fd).st_ctime_ns
        time.sleep(0.012)
        (root / "x").rmdir() if kind == "directory" else (root / "x").unlink()
        found = os.fstat(fd)
        assert found.st_nlink == 0, kind
        assert found.st_ctime_ns > ctime, kind
        time.sleep(1.1)  # longer than attributes are believed
        assert os.fstat(fd).st_nlink == 0, kind
        os.close(fd)


def test_a_removed_directory_has_a_mode_and_times_to_set(root: Path) -> None:
    (root / "d").mkdir()
    fd = os.open(root / "d", os.O_RDONLY)
    (root / "d").rmdir()
    os.fchmod(fd, 0o511)
    os.fchown(fd, 5, 6)
    os.utime(fd, ns=(7, 8))
    found = os.fstat(fd)
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns) == (0o511, 5, 6, 8)
    os.close(fd)


def test_the_working_directory_may_be_removed(root: Path) -> None:
    (root / "d").mkdir()
    os.chdir(root / "d")
    (root / "d").rmdir()
    assert fails(os.stat, "x") == "ENOENT"
    assert fails(os.mkdir, "x") == "ENOENT"
    assert os.stat(".").st_nlink == 0
    assert os.listdir(".") == []
    os.chdir(root)


def test_files_without_a_name(root: Path) -> None:
    before = root.stat()
    fd = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, b"x" * 100_000)
    found = os.fstat(fd)
    assert (found.st_nlink, found.st_size, stat.S_IMODE(found.st_mode)) == (0, 100_000, 0o640)
    assert os.listdir(root) == []
    assert root.stat().st_mtime_ns == before.st_mtime_ns
    linkat(f"/proc/self/fd/{fd}", root / "named", AT_SYMLINK_FOLLOW)
    assert os.fstat(fd).st_nlink == 1
    linkat("", root / "again", AT_EMPTY_PATH, old_fd=fd)
    assert os.fstat(fd).st_nlink == 2
    os.write(fd, b"more")
    os.close(fd)
    assert (root / "named").read_bytes() == b"x" * 100_000 + b"more"
    assert (root / "named").stat().st_ino == found.st_ino


def test_no_file_without_a_name_in_a_removed_directory(root: Path) -> None:
    (root / "gone").mkdir()
    held = os.open(root / "gone", os.O_RDONLY)
    (root / "gone").rmdir()
    # ext4's word is EPERM, as for no other name.
    assert fails(os.open, f"/proc/self/fd/{held}", os.O_TMPFILE | os.O_RDWR) in ("ENOENT", "EPERM")
    os.close(held)


def test_a_file_without_a_name_that_may_get_none(root: Path) -> None:
    fd = os.open(root, os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o640)
    assert fails(linkat, f"/proc/self/fd/{fd}", root / "named", AT_SYMLINK_FOLLOW) == "ENOENT"
    os.close(fd)
    assert fails(os.open, root, os.O_TMPFILE | os.O_RDONLY) == "EINVAL"
    (root / "f").touch()
    assert fails(os.open, root / "f", os.O_TMPFILE | os.O_RDWR) == "ENOTDIR"
    (root / "d").mkdir(mode=0o755)
    assert ME.fails(os.open, root / "d", os.O_TMPFILE | os.O_RDWR) == "EACCES"
    fd = os.open(root / "f", os.O_RDWR)
    os.unlink(root / "f")
    assert fails(linkat, f"/proc/self/fd/{fd}", root / "f", AT_SYMLINK_FOLLOW) == "ENOENT"
    os.close(fd)


def test_file_systems_say_their_size(root: Path) -> None:
    found = os.statvfs(root)
    assert found.f_namemax == 255
    assert found.f_blocks >= found.f_bfree >= found.f_bavail > 0
    assert found.f_files > found.f_ffree > 0
    assert found.f_frsize in (1024, 4096)
    fd = os.open(root, os.O_RDONLY)
    assert os.fstatvfs(fd).f_blocks == found.f_blocks
    os.close(fd)
    assert os.pathconf(root, "PC_NAME_MAX") == 255


def test_the_size_of_things(root: Path) -> None:
    os.symlink("12345", root / "soft")
    assert os.lstat(root / "soft").st_size == 5
    (root / "f").write_bytes(b"x" * 10_000)
    found = (root / "f").stat()
    assert (found.st_size, found.st_nlink) == (10_000, 1)
    assert found.st_blocks * 512 >= 10_000
