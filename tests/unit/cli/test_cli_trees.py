"""Copies of trees, from the local file system to itself: the same code as for put and get."""

from __future__ import annotations

import errno
import os
import random
import stat
import struct
from pathlib import Path

import pytest

from fireflyfs.client.cli.trees import PIECE_BYTES, SKIP_ZEROS_BYTES, Copier, LocalTree, Progress, data_ranges


def copy(source: Path, target: Path, *, into: LocalTree | None = None, xattrs: bool = False) -> Progress:
    progress = Progress()
    Copier(LocalTree(), into or LocalTree(), progress, threads=3, xattrs=xattrs).copy(str(source), str(target))
    return progress


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    rng = random.Random(5)
    top = tmp_path / "source"
    (top / "a" / "b").mkdir(parents=True)
    for number in range(40):
        path = top / ("a" if number % 2 else "a/b") / f"f{number}"
        path.write_bytes(rng.randbytes(rng.randrange(20_000)))
        path.chmod(rng.choice([0o600, 0o644, 0o755, 0o4711]))
        os.utime(path, ns=(rng.randrange(1 << 60), rng.randrange(1 << 60)))
    (top / "large").write_bytes(rng.randbytes(PIECE_BYTES + 12345))
    (top / "empty").touch()
    (top / "link").symlink_to("a/b/f0")
    (top / "dangling").symlink_to("nowhere")
    (top / "twin").hardlink_to(top / "large")
    (top / "name \n\x01é").write_text("odd")
    (top / "a" / "b").chmod(0o500)
    os.utime(top / "a", ns=(10**9, 2 * 10**9))
    return top


def described(top: Path) -> dict[str, tuple[object, ...]]:
    seen = {}
    for place, _, _ in os.walk(top):
        for name in ["", *os.listdir(place)]:
            path = os.path.join(place, name)
            info = os.lstat(path)
            content = os.readlink(path) if stat.S_ISLNK(info.st_mode) else None
            if stat.S_ISREG(info.st_mode):
                content = Path(path).read_bytes().hex()
            seen[os.path.relpath(path, top)] = (info.st_mode, info.st_mtime_ns, info.st_nlink, content)
    return seen


def test_a_copy_is_the_same(tree: Path, tmp_path: Path) -> None:
    before = described(tree)
    progress = copy(tree, tmp_path / "target")
    assert not progress.problems
    assert described(tmp_path / "target") == before
    assert os.stat(tmp_path / "target/twin").st_ino == os.stat(tmp_path / "target/large").st_ino


def test_a_copy_over_a_copy(tree: Path, tmp_path: Path) -> None:
    copy(tree, tmp_path / "target")
    (tmp_path / "target" / "large").write_bytes(b"old")
    assert not copy(tree, tmp_path / "target").problems
    assert described(tmp_path / "target") == described(tree)


def test_holes_stay_holes(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 30)
        file.seek(100 << 20)
        file.write(b"middle")
    copy(tmp_path / "sparse", tmp_path / "copy")
    info = os.stat(tmp_path / "copy")
    assert info.st_size == 1 << 30
    assert info.st_blocks * 512 < 1 << 20
    with open(tmp_path / "copy", "rb") as file:
        file.seek(100 << 20)
        assert file.read(7) == b"middle\0"


def test_what_cannot_be_copied_is_named_and_the_rest_goes_on(tree: Path, tmp_path: Path) -> None:
    os.mkfifo(tree / "fifo")
    (tmp_path / "target" / "empty").mkdir(parents=True)  # a directory where a file should go
    progress = copy(tree, tmp_path / "target")
    assert {os.path.basename(path) for path, _ in progress.problems} == {"fifo", "empty"}
    assert (tmp_path / "target" / "large").stat().st_size == PIECE_BYTES + 12345


def test_a_missing_source_is_a_problem(tmp_path: Path) -> None:
    progress = copy(tmp_path / "none", tmp_path / "target")
    assert isinstance(progress.problems[0][1], FileNotFoundError)


def test_data_ranges() -> None:
    unit = SKIP_ZEROS_BYTES
    buffer = bytearray(4 * unit)
    buffer[unit] = 1
    buffer[3 * unit + 9] = 1
    view = memoryview(buffer)
    assert list(data_ranges(view, 4 * unit)) == [(unit, 2 * unit), (3 * unit, 4 * unit)]
    assert list(data_ranges(view, 3 * unit + 10)) == [(unit, 2 * unit), (3 * unit, 3 * unit + 10)]
    assert list(data_ranges(view, unit)) == []


def acl(*entries: tuple[int, int, int]) -> bytes:
    """As acl(5) has it in an extended attribute: (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
ACL = acl((1, 6, NOBODY), (2, 5, 7), (4, 0, NOBODY), (16, 5, NOBODY), (32, 4, NOBODY))


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    top = tmp_path / "labelled"
    top.mkdir()
    (top / "file").write_bytes(b"x")
    try:
        os.setxattr(top / "file", "user.one", b"1" * 1000)
        os.setxattr(top / "file", "system.posix_acl_access", ACL)
        os.setxattr(top, "user.two", b"")
        os.setxattr(top, "system.posix_acl_default", ACL)
    except OSError as exc:
        pytest.skip(f"the file system here has no extended attributes or ACLs: {exc}")
    (top / "file").chmod(0o440)
    os.utime(top / "file", ns=(10**9, 2 * 10**9))
    return top


def labels(top: Path) -> dict[str, dict[str, bytes]]:
    return {
        str(path.relative_to(top)): {name: os.getxattr(path, name) for name in os.listxattr(path)}
        for path in (top, top / "file")
    }


def test_extended_attributes_and_acls_are_copied_when_asked_for(labelled: Path, tmp_path: Path) -> None:
    assert not copy(labelled, tmp_path / "bare").problems
    assert labels(tmp_path / "bare") == {".": {}, "file": {}}
    assert not copy(labelled, tmp_path / "whole", xattrs=True).problems
    assert labels(tmp_path / "whole") == labels(labelled)
    assert described(tmp_path / "whole") == described(labelled)


def test_an_attribute_that_cannot_be_copied_is_named_and_the_rest_is_kept(labelled: Path, tmp_path: Path) -> None:
    class Refusing(LocalTree):
        def setxattr(  # type: ignore[override]
            self, path: str, attribute: str, value: bytes, flags: int = 0, *, follow_symlinks: bool = True
        ) -> None:
            if attribute == "user.one":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.setxattr(path, attribute, value, flags, follow_symlinks=follow_symlinks)

    progress = copy(labelled, tmp_path / "most", into=Refusing(), xattrs=True)
    (problem,) = progress.problems
    assert "user.one" in str(problem[1])
    wanted = labels(labelled)
    del wanted["file"]["user.one"]
    assert labels(tmp_path / "most") == wanted
    assert described(tmp_path / "most") == described(labelled)
