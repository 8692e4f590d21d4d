"""Which error a path gives, for every call that takes one."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semantics.actors import Actor, fails
from semantics.syscalls import AT_SYMLINK_FOLLOW, RENAME_EXCHANGE, RENAME_NOREPLACE, linkat, renameat2

pytestmark = pytest.mark.e2e
USER = Actor(65534, 65534)
Call = Callable[[Any], object]


def bind(path: Any) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(path))


def opens(flags: int) -> Call:
    def call(path: Any) -> None:
        os.close(os.open(path, flags, 0o644))

    return call


def from_aside(call: Callable[[Any, Any], object]) -> Call:
    """A call of two paths as one of the second; the first is a file beside the test's things."""

    def second(path: Any) -> None:
        call(os.path.join(os.environ["SEMANTICS_ASIDE"], "file"), path)

    return second


MAKES: dict[str, Call] = {
    "mkdir": lambda path: os.mkdir(path),
    "mkfifo": lambda path: os.mkfifo(path),
    "mknod": lambda path: os.mknod(path, stat.S_IFREG | 0o644),
    "symlink": lambda path: os.symlink("anything", path),
    "link": from_aside(os.link),
    "open_creat_excl": opens(os.O_CREAT | os.O_EXCL | os.O_WRONLY),
    "rename_to": from_aside(lambda old, new: renameat2(old, new, RENAME_NOREPLACE)),
}
TAKES: dict[str, Call] = {  # what they take must exist
    "stat": os.stat,
    "chmod": lambda path: os.chmod(path, 0o777),
    "chown": lambda path: os.chown(path, -1, -1),
    "utime": os.utime,
    "access": lambda path: os.stat(path),
    "open": opens(os.O_RDONLY),
    "truncate": lambda path: os.truncate(path, 3),
    "unlink": os.unlink,
    "link_from": lambda path: os.link(path, os.path.join(os.environ["SEMANTICS_ASIDE"], "new")),
    "rename_from": lambda path: os.rename(path, os.path.join(os.environ["SEMANTICS_ASIDE"], "new")),
    "exchange": from_aside(lambda old, new: renameat2(old, new, RENAME_EXCHANGE)),
    "getxattr": lambda path: os.listxattr(path),
    "setxattr": lambda path: os.setxattr(path, "user.a", b"1"),
}
DIRECTORIES: dict[str, Call] = {"rmdir": os.rmdir, "opendir": os.listdir, "chdir": lambda path: os.chdir(path)}
ALL = MAKES | TAKES | DIRECTORIES


@pytest.fixture(autouse=True)
def aside(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = root / "aside"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "file").touch()
    (folder / "file").chmod(0o666)
    os.chown(folder / "file", 65534, 65534)
    monkeypatch.setenv("SEMANTICS_ASIDE", str(folder))
    return folder


@pytest.mark.parametrize("name", ALL)
def test_a_prefix_that_is_no_directory(root: Path, name: str) -> None:
    (root / "file").touch()
    os.mkfifo(root / "fifo")
    for prefix in ("file", "fifo"):
        assert fails(ALL[name], root / prefix / "x") == "ENOTDIR"


@pytest.mark.parametrize("name", ALL)
def test_a_prefix_that_is_missing(root: Path, name: str) -> None:
    assert fails(ALL[name], root / "missing" / "x") == "ENOENT"


@pytest.mark.parametrize("name", TAKES | DIRECTORIES)
def test_a_name_that_is_missing(root: Path, name: str) -> None:
    assert fails(ALL[name], root / "missing") == "ENOENT"


@pytest.mark.parametrize("name", ALL)
def test_long_names(root: Path, name: str) -> None:
    call = ALL[name]
    assert fails(call, root / ("n" * 256)) == "ENAMETOOLONG"
    assert fails(call, root / ("n" * 1500)) == "ENAMETOOLONG"
    assert fails(call, root / ("n" * 256) / "x") == "ENAMETOOLONG"
    longest = root / ("n" * 255)
    if name in MAKES:
        assert fails(call, longest) == "OK"
    else:
        longest.mkdir() if name in DIRECTORIES else longest.touch()
        assert fails(call, longest) == "OK"


@pytest.mark.parametrize("name", ALL)
def test_long_paths(root: Path, name: str) -> None:
    """4095 bytes and the NUL are a path; one more is none."""
    base = os.fsencode(root)
    path = base
    while len(path) + 101 < 3900:
        path += b"/" + b"d" * 100
        os.mkdir(path)
    longest = path + b"/" * (4095 - len(path) - 1) + b"x"
    assert len(longest) == 4095
    if name in TAKES:
        os.close(os.open(longest, os.O_CREAT | os.O_WRONLY))
    elif name in DIRECTORIES:
        os.mkdir(longest)
    too_long = path + b"/" * (4096 - len(path) - 1) + b"x"
    assert fails(ALL[name], too_long) == "ENAMETOOLONG"
    assert fails(ALL[name], longest) == "OK"


@pytest.mark.parametrize("name", ALL)
def test_loops(root: Path, name: str) -> None:
    os.symlink("b", root / "a")
    os.symlink("a", root / "b")
    assert fails(ALL[name], root / "a" / "x") == "ELOOP"
    if name not in MAKES and name not in ("unlink", "link_from", "rename_from", "exchange", "rmdir"):
        assert fails(ALL[name], root / "a") == "ELOOP"


@pytest.mark.parametrize("name", ALL)
def test_a_prefix_that_may_not_be_searched(root: Path, name: str) -> None:
    (root / "closed").mkdir()
    os.chown(root / "closed", 65534, 65534)
    if name in DIRECTORIES:
        (root / "closed" / "x").mkdir()
    elif name in TAKES:
        (root / "closed" / "x").touch()
        os.chown(root / "closed" / "x", 65534, 65534)
    (root / "closed").chmod(0o644)
    assert USER.fails(ALL[name], root / "closed" / "x") == "EACCES"
    assert USER.fails(ALL[name], root / "closed" / "missing") == "EACCES"
    (root / "closed").chmod(0o755)
    assert USER.fails(ALL[name], root / "closed" / "x") == "OK"


@pytest.mark.parametrize("name", [*MAKES, "unlink", "rmdir", "rename_from"])
def test_a_directory_that_may_not_be_written(root: Path, name: str) -> None:
    (root / "d").mkdir(0o755)
    os.chown(root / "d", 65534, 65534)
    if name == "rmdir":
        (root / "d" / "x").mkdir()
    elif name not in MAKES:
        (root / "d" / "x").touch()
    (root / "d").chmod(0o555)
    assert USER.fails(ALL[name], root / "d" / "x") == "EACCES"
    (root / "d").chmod(0o755)
    assert USER.fails(ALL[name], root / "d" / "x") == "OK"


@pytest.mark.parametrize("name", MAKES)
@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "link", "dangling", "socket"])
def test_what_is_there_is_not_made_again(root: Path, name: str, kind: str) -> None:
    there = root / "there"
    make(there, kind)
    assert fails(MAKES[name], there) == "EEXIST"
    assert fails(MAKES[name], root) == "EEXIST"


def make(path: Path, kind: str) -> None:
    if kind == "file":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        os.symlink(path.parent, path)
    elif kind == "dangling":
        os.symlink("nowhere", path)
    else:
        bind(path)


def test_trailing_slashes(root: Path) -> None:
    (root / "d").mkdir()
    (root / "f").touch()
    os.symlink("d", root / "to-d")
    os.symlink("f", root / "to-f")
    f, d = f"{root}/f/", f"{root}/d/"
    assert fails(os.stat, f) == "ENOTDIR"
    assert fails(os.stat, f"{root}/to-f/") == "ENOTDIR"
    assert stat.S_ISDIR(os.lstat(f"{root}/to-d/").st_mode)
    assert fails(os.unlink, f) == "ENOTDIR"
    assert fails(os.unlink, f"{root}/to-d/") == "ENOTDIR"
    assert fails(os.rmdir, f"{root}/to-d/") == "ENOTDIR"
    assert fails(os.rename, f, root / "g") == "ENOTDIR"
    assert fails(os.rename, root / "f", f"{root}/g/") == "ENOTDIR"
    assert fails(os.link, root / "f", f"{root}/g/") == "ENOENT"
    assert fails(os.symlink, "x", f"{root}/g/") == "ENOENT"
    assert fails(os.mkfifo, f"{root}/g/") == "ENOENT"
    assert fails(opens(os.O_CREAT | os.O_WRONLY), f"{root}/g/") == "EISDIR"
    assert fails(os.mkdir, f"{root}/e/") == "OK"
    assert fails(os.rename, d, f"{root}/e/") == "OK"
    assert fails(os.rmdir, f"{root}/e/") == "OK"


def test_dots(root: Path) -> None:
    (root / "d" / "e").mkdir(parents=True)
    assert fails(os.rmdir, f"{root}/d/e/.") == "EINVAL"
    assert fails(os.rmdir, f"{root}/d/e/..") == "ENOTEMPTY"
    assert fails(os.mkdir, f"{root}/d/.") == "EEXIST"
    assert fails(os.mkdir, f"{root}/d/..") == "EEXIST"
    assert fails(os.unlink, f"{root}/d/.") in ("EISDIR", "EINVAL")
    assert fails(os.rename, f"{root}/d/.", root / "x") == "EBUSY"
    assert fails(os.rename, f"{root}/d/..", root / "x") == "EBUSY"
    assert fails(os.rename, f"{root}/d/e", f"{root}/d/.") == "EBUSY"
    assert fails(os.rename, f"{root}/d/e", f"{root}/d/..") == "EBUSY"


def test_kinds_that_do_not_go_together(root: Path) -> None:
    (root / "d").mkdir()
    (root / "f").touch()
    assert fails(os.unlink, root / "d") == "EISDIR"
    assert fails(os.rmdir, root / "f") == "ENOTDIR"
    assert fails(opens(os.O_WRONLY), root / "d") == "EISDIR"
    assert fails(opens(os.O_RDWR), root / "d") == "EISDIR"
    assert fails(opens(os.O_RDONLY | os.O_TRUNC), root / "d") == "EISDIR"
    assert fails(opens(os.O_RDONLY | os.O_CREAT), root / "d") == "EISDIR"
    assert fails(opens(os.O_DIRECTORY), root / "f") == "ENOTDIR"
    assert fails(os.truncate, root / "d", 0) == "EISDIR"
    assert fails(os.link, root / "d", root / "x") == "EPERM"
    assert USER.fails(os.link, root / "d", root / "x") == "EPERM"
    assert fails(os.readlink, root / "f") == "EINVAL"
    os.mkfifo(root / "p")
    assert fails(os.truncate, root / "p", 0) == "EINVAL"
    assert fails(opens(os.O_WRONLY | os.O_NONBLOCK), root / "p") == "ENXIO"
    bind(root / "s")
    assert fails(opens(os.O_RDONLY), root / "s") == "ENXIO"


def test_an_open_that_neither_reads_nor_writes(root: Path) -> None:
    (root / "file").write_bytes(b"bytes")
    neither = os.open(root / "file", os.O_ACCMODE)
    assert (fails(os.read, neither, 1), fails(os.write, neither, b"x")) == ("EBADF", "EBADF")
    os.close(neither)
    (root / "file").chmod(0o644)
    assert Actor(1001, 2001).fails(os.open, root / "file", os.O_ACCMODE) == "EACCES"
    assert (root / "file").read_bytes() == b"bytes"


def test_open_flags_about_links(root: Path) -> None:
    (root / "f").touch()
    (root / "d").mkdir()
    os.symlink("f", root / "to-f")
    os.symlink("d", root / "to-d")
    os.symlink("nowhere", root / "dangling")
    assert fails(opens(os.O_RDONLY | os.O_NOFOLLOW), root / "to-f") == "ELOOP"
    assert fails(opens(os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY), root / "to-d") == "ENOTDIR"
    assert fails(opens(os.O_RDONLY | os.O_NOFOLLOW), root / "f") == "OK"
    assert fails(opens(os.O_CREAT | os.O_EXCL | os.O_WRONLY), root / "dangling") == "EEXIST"
    assert fails(opens(os.O_CREAT | os.O_WRONLY), root / "dangling") == "OK"
    assert (root / "nowhere").exists()
    assert fails(opens(os.O_CREAT | os.O_EXCL | os.O_WRONLY), root / "to-f") == "EEXIST"


def test_links(root: Path) -> None:
    (root / "f").write_text("f")
    os.symlink("f", root / "soft")
    linkat(root / "soft", root / "a")
    assert os.readlink(root / "a") == "f"
    assert os.lstat(root / "soft").st_nlink == 2
    linkat(root / "soft", root / "b", AT_SYMLINK_FOLLOW)
    assert not (root / "b").is_symlink()
    assert (root / "f").stat().st_nlink == 2


def test_symbolic_links_hold_any_text_up_to_4095_bytes(root: Path) -> None:
    for length in (1, 255, 256, 1000, 4095):
        os.symlink("t" * length, root / f"l{length}")
        assert os.readlink(root / f"l{length}") == "t" * length
        found = os.lstat(root / f"l{length}")
        assert (found.st_size, stat.S_IMODE(found.st_mode)) == (length, 0o777)
    assert fails(os.symlink, "t" * 4096, root / "x") == "ENAMETOOLONG"
    assert fails(os.symlink, "", root / "x") == "ENOENT"


def test_40_symbolic_links_are_followed_and_no_more(root: Path) -> None:
    (root / "l0").touch()
    for number in range(1, 42):
        os.symlink(f"l{number - 1}", root / f"l{number}")
    assert fails(os.stat, root / "l40") == "OK"
    assert fails(os.stat, root / "l41") == "ELOOP"


def test_a_directory_that_is_not_empty(root: Path) -> None:
    (root / "d" / "e").mkdir(parents=True)
    (root / "x").mkdir()
    assert fails(os.rmdir, root / "d") == "ENOTEMPTY"
    assert fails(os.rename, root / "x", root / "d") in ("ENOTEMPTY", "EEXIST")
    (root / "d" / "e").rmdir()
    assert fails(os.rename, root / "x", root / "d") == "OK"


def test_other_file_systems(root: Path, tmp_path: Path) -> None:
    (root / "f").touch()
    assert fails(os.link, root / "f", tmp_path / "f") == "EXDEV"
    assert fails(os.rename, root / "f", tmp_path / "f") == "EXDEV"


def test_the_top_of_a_file_system_stays(root: Path) -> None:
    mounted = root
    while not mounted.is_mount():
        mounted = mounted.parent
    assert fails(os.rmdir, mounted) == "EBUSY"
