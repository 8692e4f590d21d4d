"""Which call changes which of the three times, of what it names and of the directories around it."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from semantics.actors import Actor, fails
from semantics.syscalls import (
    AT_SYMLINK_NOFOLLOW,
    RENAME_EXCHANGE,
    S_TO_NS,
    UTIME_NOW,
    UTIME_OMIT,
    linkat,
    renameat2,
    utimensat,
)

pytestmark = pytest.mark.e2e
ME = Actor(1001, 2001)
OTHER = Actor(1003, 2003)
TICK_S = 0.012  # longer than a file system's clock is coarse


class Times(NamedTuple):
    atime: int
    mtime: int
    ctime: int


def times(path: Path) -> Times:
    found = path.lstat()
    return Times(found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)


def changed(before: Times, after: Times) -> str:
    """ "m", "c", "mc", "amc" or ""."""
    assert all(new >= old for new, old in zip(after, before, strict=True)) or after.atime < before.atime
    return "".join(
        letter for letter, old, new in zip("amc", before, after, strict=True) if letter != "a" and old != new
    )


class Tree(NamedTuple):
    """Two directories, a file with two names, and what goes with them."""

    top: Path

    @property
    def d(self) -> Path:
        return self.top / "d"

    @property
    def e(self) -> Path:
        return self.top / "e"

    @property
    def f(self) -> Path:
        return self.top / "d" / "f"


@pytest.fixture
def tree(root: Path) -> Tree:
    (root / "d" / "sub").mkdir(parents=True)
    (root / "e" / "old").mkdir(parents=True)
    (root / "d" / "f").write_bytes(b"0123456789")
    (root / "e" / "g").write_bytes(b"g")
    os.link(root / "d" / "f", root / "hard")
    os.link(root / "e" / "g", root / "hard-g")
    os.symlink("f", root / "d" / "soft")
    return Tree(root)


def through_descriptor(path: Path, flags: int, body: Callable[[int], object]) -> None:
    fd = os.open(path, flags)
    try:
        body(fd)
    finally:
        os.close(fd)


# call, then what changes: of the file (or what it names), of directory d, of directory e
CASES: dict[str, tuple[Callable[[Tree], object], str, str, str]] = {
    "chmod": (lambda t: t.f.chmod(0o600), "c", "", ""),
    "chmod to the same": (lambda t: t.f.chmod(t.f.stat().st_mode & 0o7777), "c", "", ""),
    "chown": (lambda t: os.chown(t.f, 5, 6), "c", "", ""),
    "link": (lambda t: os.link(t.f, t.e / "new"), "c", "", "mc"),
    "unlink": (lambda t: os.unlink(t.f), "c", "mc", ""),
    "rename in a directory": (lambda t: os.rename(t.f, t.d / "new"), "c", "mc", ""),
    "rename to another": (lambda t: os.rename(t.f, t.e / "new"), "c", "mc", "mc"),
    "rename over": (lambda t: os.rename(t.f, t.e / "g"), "c", "mc", "mc"),
    "exchange": (lambda t: renameat2(t.f, t.e / "g", RENAME_EXCHANGE), "c", "mc", "mc"),
    "rename to another name of it": (lambda t: os.rename(t.f, t.top / "hard"), "", "", ""),
    "move a directory": (lambda t: os.rename(t.d / "sub", t.e / "sub"), "", "mc", "mc"),
    "replace a directory": (lambda t: os.rename(t.d / "sub", t.e / "old"), "", "mc", "mc"),
    "truncate": (lambda t: os.truncate(t.f, 3), "mc", "", ""),
    "truncate longer": (lambda t: os.truncate(t.f, 300), "mc", "", ""),
    "ftruncate": (lambda t: through_descriptor(t.f, os.O_RDWR, lambda fd: os.ftruncate(fd, 3)), "mc", "", ""),
    "write": (lambda t: through_descriptor(t.f, os.O_WRONLY, lambda fd: os.write(fd, b"x")), "mc", "", ""),
    "pwrite": (lambda t: through_descriptor(t.f, os.O_WRONLY, lambda fd: os.pwrite(fd, b"x", 99)), "mc", "", ""),
    "write nothing": (lambda t: through_descriptor(t.f, os.O_WRONLY, lambda fd: os.write(fd, b"")), "", "", ""),
    "open for writing": (lambda t: through_descriptor(t.f, os.O_RDWR, lambda fd: None), "", "", ""),
    "open with O_TRUNC": (lambda t: through_descriptor(t.f, os.O_WRONLY | os.O_TRUNC, lambda fd: None), "mc", "", ""),
    "open with O_CREAT": (lambda t: through_descriptor(t.f, os.O_WRONLY | os.O_CREAT, lambda fd: None), "", "", ""),
    "fsync": (lambda t: through_descriptor(t.f, os.O_RDWR, os.fsync), "", "", ""),
    "read": (lambda t: t.f.read_bytes(), "", "", ""),
    "setxattr": (lambda t: os.setxattr(t.f, "user.a", b"1"), "c", "", ""),
    "getxattr": (lambda t: fails(os.getxattr, t.f, "user.a"), "", "", ""),
    "create": (lambda t: os.close(os.open(t.e / "new", os.O_CREAT | os.O_WRONLY)), "", "", "mc"),
    "mkdir": (lambda t: os.mkdir(t.e / "new"), "", "", "mc"),
    "mkfifo": (lambda t: os.mkfifo(t.e / "new"), "", "", "mc"),
    "mknod": (lambda t: os.mknod(t.e / "new", stat.S_IFCHR | 0o600, os.makedev(1, 3)), "", "", "mc"),
    "symlink": (lambda t: os.symlink("x", t.e / "new"), "", "", "mc"),
    "rmdir": (lambda t: os.rmdir(t.d / "sub"), "", "mc", ""),
    "unlink of a link": (lambda t: os.unlink(t.d / "soft"), "", "mc", ""),
    "link to a link": (lambda t: linkat(t.d / "soft", t.e / "new"), "", "", "mc"),
    "list": (lambda t: os.listdir(t.d), "", "", ""),
    "failed mkdir": (lambda t: fails(os.mkdir, t.d / "sub"), "", "", ""),
    "failed rmdir": (lambda t: fails(os.rmdir, t.d), "", "", ""),
    "failed unlink": (lambda t: fails(os.unlink, t.d / "sub"), "", "", ""),
    "failed link": (lambda t: fails(os.link, t.f, t.e / "g"), "", "", ""),
    "failed rename": (lambda t: fails(os.rename, t.f, t.e / "old"), "", "", ""),
    "failed chown": (lambda t: ME.fails(os.chown, t.f, 1001, -1), "", "", ""),
    "failed chmod": (lambda t: ME.fails(os.chmod, t.f, 0o777), "", "", ""),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("held", [False, True])
def test_which_times_change(tree: Tree, name: str, held: bool) -> None:
    """`held`: the file and the directories are open the while, and asked through their descriptors too."""
    call, of_file, of_d, of_e = CASES[name]
    hard = tree.top / "hard"
    fds = [os.open(path, os.O_RDONLY) for path in (hard, tree.d, tree.e)] if held else []
    before = [times(path) for path in (hard, tree.d, tree.e)]
    time.sleep(TICK_S)
    call(tree)
    by_descriptor = [os.fstat(fd) for fd in fds]
    for fd in fds:
        os.close(fd)
    after = [times(path) for path in (hard, tree.d, tree.e)]
    assert [changed(*pair) for pair in zip(before, after, strict=True)] == [of_file, of_d, of_e]
    for found, expected in zip(by_descriptor, after, strict=False):
        assert (found.st_mtime_ns, found.st_ctime_ns) == (expected.mtime, expected.ctime)


def test_renaming_changes_the_ctime_of_what_moves_and_of_what_it_replaces(tree: Tree) -> None:
    before = times(tree.top / "hard-g")
    directory = times(tree.d / "sub")
    link = times(tree.d / "soft")
    time.sleep(TICK_S)
    os.rename(tree.f, tree.e / "g")
    assert changed(before, times(tree.top / "hard-g")) == "c"
    os.rename(tree.d / "sub", tree.e / "sub")
    assert changed(directory, times(tree.e / "sub")) in ("c", "mc")
    os.rename(tree.d / "soft", tree.e / "soft")
    assert changed(link, times(tree.e / "soft")) == "c"


def test_new_things_have_the_time_of_now(root: Path) -> None:
    makers: dict[str, Callable[[Path], object]] = {
        "file": lambda path: path.touch(),
        "directory": lambda path: path.mkdir(),
        "fifo": os.mkfifo,
        "link": lambda path: os.symlink("x", path),
    }
    for name, make in makers.items():
        before = time.time_ns() - int(TICK_S * S_TO_NS)
        make(root / name)
        found = times(root / name)
        assert before <= found.atime == found.mtime == found.ctime <= time.time_ns()


def test_the_time_of_a_write_shows_at_once_and_stays(root: Path) -> None:
    fd = os.open(root / "f", os.O_CREAT | os.O_RDWR)
    first = os.fstat(fd).st_mtime_ns
    time.sleep(TICK_S)
    os.write(fd, b"x")
    written = os.fstat(fd)
    assert written.st_mtime_ns > first
    assert written.st_ctime_ns >= written.st_mtime_ns
    time.sleep(TICK_S)
    os.close(fd)
    assert (root / "f").stat().st_mtime_ns == written.st_mtime_ns


def test_utimensat_sets_nanoseconds(root: Path) -> None:
    (root / "f").touch()
    for seconds, ns in ((0, 0), (1, 1), (1234567890, 123456789), (-1, 999999999), (2**31, 5), (2**32 + 7, 999_999_999)):
        utimensat(root / "f", (seconds, ns), (seconds + 1, ns))
        found = (root / "f").stat()
        assert found.st_atime_ns == seconds * S_TO_NS + ns
        assert found.st_mtime_ns == (seconds + 1) * S_TO_NS + ns


def test_utimensat_now_and_omit(root: Path) -> None:
    (root / "f").touch()
    utimensat(root / "f", (100, 7), (200, 8))
    utimensat(root / "f", (0, UTIME_OMIT), (300, 9))
    assert ((root / "f").stat().st_atime_ns, (root / "f").stat().st_mtime_ns) == (100 * S_TO_NS + 7, 300 * S_TO_NS + 9)
    utimensat(root / "f", (400, 1), (0, UTIME_OMIT))
    assert ((root / "f").stat().st_atime_ns, (root / "f").stat().st_mtime_ns) == (400 * S_TO_NS + 1, 300 * S_TO_NS + 9)
    before = time.time_ns() - int(TICK_S * S_TO_NS)
    utimensat(root / "f", (0, UTIME_NOW), (0, UTIME_OMIT))
    assert (root / "f").stat().st_atime_ns >= before
    assert (root / "f").stat().st_mtime_ns == 300 * S_TO_NS + 9
    utimensat(root / "f", (0, UTIME_NOW), (0, UTIME_NOW))
    assert (root / "f").stat().st_mtime_ns >= before
    ctime = times(root / "f").ctime
    time.sleep(TICK_S)
    utimensat(root / "f", (0, UTIME_OMIT), (0, UTIME_OMIT))
    assert times(root / "f").ctime == ctime
    utimensat(root / "f", (5, 5), (5, 5))
    assert times(root / "f").ctime > ctime


def test_utimensat_of_a_link(root: Path) -> None:
    (root / "f").touch()
    os.symlink("f", root / "soft")
    mtime = times(root / "f").mtime
    utimensat(root / "soft", (5, 5), (6, 6), AT_SYMLINK_NOFOLLOW)
    assert times(root / "soft").mtime == 6 * S_TO_NS + 6
    assert times(root / "f").mtime == mtime
    utimensat(root / "soft", (7, 7), (8, 8))
    assert times(root / "f").mtime == 8 * S_TO_NS + 8


NOW, OMIT, THEN = (0, UTIME_NOW), (0, UTIME_OMIT), (77, 7)


@pytest.mark.parametrize("bits", [0o644, 0o666, 0o444])
@pytest.mark.parametrize("atime", [NOW, OMIT, THEN])
@pytest.mark.parametrize("mtime", [NOW, OMIT, THEN])
def test_who_may_set_times(root: Path, bits: int, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    (root / "f").touch()
    os.chown(root / "f", ME.uid, ME.gid)
    (root / "f").chmod(bits)
    assert ME.fails(utimensat, root / "f", atime, mtime) == "OK"
    if atime == mtime == OMIT:
        expected = "OK"
    elif atime == mtime == NOW:
        expected = "OK" if bits & 0o002 else "EACCES"
    else:
        expected = "EPERM"
    assert OTHER.fails(utimensat, root / "f", atime, mtime) == expected
    assert fails(utimensat, root / "f", atime, mtime) == "OK"


def test_times_far_away_become_the_nearest(root: Path) -> None:
    (root / "f").touch()
    for seconds in (2**40, -(2**40)):
        utimensat(root / "f", (seconds, 0), (seconds, 0))
        assert (root / "f").stat().st_mtime_ns * seconds >= 0


def test_a_file_keeps_its_times_when_it_is_copied_with_them(root: Path) -> None:
    (root / "f").write_bytes(b"x" * 100_000)
    fd = os.open(root / "f", os.O_RDWR)
    os.write(fd, b"y" * 1000)
    os.utime(fd, ns=(1_000_000_007, 2_000_000_009))
    assert os.fstat(fd).st_mtime_ns == 2_000_000_009
    os.close(fd)
    assert (root / "f").stat().st_mtime_ns == 2_000_000_009
