"""Copies of trees, from the local file system to itself: the same code as for put and get."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest

from fireflyfs.client.cli.trees import PIECE_BYTES, SKIP_ZEROS_BYTES, Copier, LocalTree, Progress, data_ranges


def copy(source: Path, target: Path) -> Progress:
    progress = Progress()
    Copier(LocalTree(), LocalTree(), progress, threads=3).copy(str(source), str(target))
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
