"""One file on two mounts: appends, strict mounts, writers of different ranges, truncation by another mount."""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fireflyfs.client.filesystem import FileSystem

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"),
]


@pytest.fixture
def name() -> str:
    return f"f{time.time_ns()}"


@pytest.fixture
def two(cluster: Any, mount_of: Any) -> tuple[Path, Path]:
    return mount_of(cluster).point, mount_of(cluster).point


@pytest.fixture
def strict(cluster: Any, mount_of: Any) -> tuple[Path, Path]:
    return mount_of(cluster, "--strict").point, mount_of(cluster, "--strict").point


APPEND = """
fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def append(who, times):
    for n in range(times):
        size = 40 + (n * 7919 + who) % 3000
        record = b"%d.%d." % (who, n)
        assert os.write(fd, record.ljust(size - 1, b"x") + b"\\n") == size
        if n % 25 == 24:
            time.sleep(0.01)
"""


@pytest.mark.parametrize("how", ["two", "strict"])
def test_appends_of_several_mounts_all_land_whole(
    how: str, request: pytest.FixtureRequest, cluster: Any, programs: Callable[..., Any], name: str
) -> None:
    points = request.getfixturevalue(how)
    writers = [programs(path=str(points[number % 2] / name)) for number in range(4)]
    for number, writer in enumerate(writers):
        writer(APPEND)
        writer.send(f"append({number}, 150)")
    with (
        FileSystem.connect(cluster.mgmtd_addresses()) as library,
        library.open(name, "ab", buffering=0) as file,
    ):
        for number in range(100):
            file.write(b"9.%d." % number + b"y" * 200 + b"\n")
    for writer in writers:
        writer.answer(60)
        writer("os.close(fd)")
    data = (points[0] / name).read_bytes()
    assert data == (points[1] / name).read_bytes()
    lines = data.split(b"\n")
    assert lines.pop() == b""
    assert all(set(line) <= set(b"0123456789.xy") for line in lines), "bytes that nobody wrote"
    counted = Counter(tuple(map(int, line.split(b".")[:2])) for line in lines)
    wanted = {(who, n) for who in range(4) for n in range(150)} | {(9, n) for n in range(100)}
    assert counted == Counter(dict.fromkeys(wanted, 1))
    for who in (*range(4), 9):
        mine = [int(line.split(b".")[1]) for line in lines if line.startswith(b"%d." % who)]
        assert mine == sorted(mine), "one writer's records out of order"


def test_a_reader_of_the_same_mount_follows_an_appender(
    two: tuple[Path, Path], programs: Callable[..., Any], name: str
) -> None:
    """As tail -f does, through cached pages: never a byte that was not appended."""
    path = two[0] / name
    path.touch()
    appender, reader = programs(path=str(path)), programs(path=str(path))
    reader(
        "fd = os.open(path, os.O_RDONLY)\n"
        "def follow(total):\n"
        "    seen = b''\n"
        "    while len(seen) < total:\n"
        "        seen += os.read(fd, 5000)\n"
        "    return seen.count(b'a') == len(seen) == total\n"
    )
    reader.send("follow(1500 * 137)")
    appender(
        "fd = os.open(path, os.O_WRONLY | os.O_APPEND)\n"
        "for _ in range(1500):\n"
        "    os.write(fd, b'a' * 137)\n"
        "os.close(fd)"
    )
    assert reader.answer(60) is True


def test_an_appender_that_died_leaves_no_room_of_its_own_for_ever(two: tuple[Path, Path], name: str) -> None:
    """What was handed out and written counts; the file ends where bytes end once both have closed."""
    one, other = (os.open(point / name, os.O_RDWR | os.O_CREAT | os.O_APPEND) for point in two)
    os.write(one, b"a" * 10)
    os.write(other, b"b" * 10)
    os.fsync(other)
    os.ftruncate(one, 5)
    os.write(other, b"c" * 10)
    os.close(one)
    os.close(other)
    assert (two[0] / name).read_bytes() == b"a" * 5 + b"c" * 10


def test_a_truncation_between_two_appends_tears_neither(two: tuple[Path, Path], name: str) -> None:
    """The first one waited on its mount when another mount truncated the file: it comes after that."""
    one, other = (os.open(point / name, os.O_RDWR | os.O_CREAT | os.O_APPEND) for point in two)
    os.write(one, b"a" * 10)
    os.write(other, b"b" * 10)
    os.ftruncate(one, 5)
    os.write(other, b"c" * 10)
    os.close(one)
    os.close(other)
    found = (two[0] / name).read_bytes()
    assert found in (b"a" * 5 + bytes(5) + b"b" * 10 + b"c" * 10, b"a" * 5 + b"c" * 10)


def test_writers_of_different_ranges_both_win(two: tuple[Path, Path], name: str) -> None:
    """Neighbouring bytes of the same pages and chunks, through caches and write-behind."""
    size = 3_000_000
    (two[0] / name).write_bytes(bytes(size))
    fds = [os.open(point / name, os.O_RDWR) for point in two]
    for fd in fds:
        os.pread(fd, size, 0)
    for start in range(0, size - 1000, 1000):
        os.pwrite(fds[start // 1000 % 2], b"%d" % (start // 1000 % 2) * 1000, start)
    for fd in fds:
        os.close(fd)
    want = b"".join(b"%d" % (start // 1000 % 2) * 1000 for start in range(0, size - 1000, 1000)) + bytes(1000)
    for point in two:
        assert (point / name).read_bytes() == want


@pytest.mark.parametrize("how", ["two", "strict"])
def test_writers_of_different_ranges_at_the_same_time(
    how: str, request: pytest.FixtureRequest, programs: Callable[..., Any], name: str
) -> None:
    """Four processes on two mounts, each every fourth block of one file, which grows meanwhile."""
    points = request.getfixturevalue(how)
    (points[0] / name).touch()
    block, rounds = 1777, 150
    writers = [programs(path=str(points[number % 2] / name), me=number, size=block) for number in range(4)]
    for writer in writers:
        writer(
            "fd = os.open(path, os.O_WRONLY)\n"
            "def go(rounds):\n"
            "    for n in range(rounds):\n"
            "        assert os.pwrite(fd, b'%d' % me * size, (4 * n + me) * size) == size\n"
            "    os.close(fd)\n"
        )
    for writer in writers:
        writer.send(f"go({rounds})")
    for writer in writers:
        writer.answer(100)
    want = b"".join(b"%d" % (place % 4) * block for place in range(4 * rounds))
    for point in points:
        assert (point / name).read_bytes() == want


def test_strict_mounts_see_each_write_at_once(strict: tuple[Path, Path], name: str) -> None:
    one = os.open(strict[0] / name, os.O_RDWR | os.O_CREAT)
    other = os.open(strict[1] / name, os.O_RDWR)
    end = 0
    for number in range(60):
        writer, reader = (one, other) if number % 2 else (other, one)
        path = strict[number % 2] / name
        offset = number * 1237 % 40_000
        data = bytes([number + 1]) * (100 + number * 41)
        os.pwrite(writer, data, offset)
        end = max(end, offset + len(data))
        assert os.pread(reader, len(data), offset) == data
        assert os.fstat(reader).st_size == path.stat().st_size == end
        assert os.fstat(reader).st_mtime_ns == os.fstat(writer).st_mtime_ns
    os.ftruncate(one, 700)
    assert os.pread(other, 100_000, 0) == os.pread(one, 100_000, 0)
    assert len(os.pread(other, 100_000, 0)) == 700
    os.ftruncate(other, 10_000)
    assert os.pread(one, 100_000, 600)[100:] == bytes(9300)
    os.chmod(strict[0] / name, 0o640)
    assert os.fstat(other).st_mode & 0o777 == 0o640
    os.rename(strict[1] / name, strict[1] / (name + "-new"))
    assert not (strict[0] / name).exists()
    assert (strict[0] / (name + "-new")).exists()
    os.close(one)
    os.close(other)


def test_strict_mounts_map_files(strict: tuple[Path, Path], name: str, programs: Callable[..., Any]) -> None:
    (strict[0] / name).write_bytes(b"-" * 10_000)
    one = programs(path=str(strict[0] / name))
    one("fd = os.open(path, os.O_RDWR); m = mmap.mmap(fd, 10000)")
    one("m[4000:4100] = b'm' * 100; m.flush()")
    assert (strict[1] / name).read_bytes() == b"-" * 4000 + b"m" * 100 + b"-" * 5900
    one("m[0:1] = b'z'; m.close(); os.close(fd)")
    assert (strict[1] / name).read_bytes()[:2] == b"z-"


@pytest.mark.skipif(not shutil.which("fio"), reason="needs fio")
@pytest.mark.parametrize(("how", "engine"), [("two", "mmap"), ("strict", "psync")])
def test_fio_verifies(how: str, engine: str, request: pytest.FixtureRequest, tmp_path: Path, name: str) -> None:
    points = request.getfixturevalue(how)
    (points[0] / name).mkdir()
    command = [
        "fio", "--name=x", f"--directory={points[0] / name}", "--rw=randrw", "--bsrange=4k-256k", "--size=16M",
        "--verify=crc32c", f"--ioengine={engine}", "--verify_fatal=1", "--do_verify=1", "--randrepeat=0",
        f"--randseed={int.from_bytes(os.urandom(4), 'little')}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_truncated_on_open_by_another_mount(two: tuple[Path, Path], name: str) -> None:
    one = os.open(two[0] / name, os.O_RDWR | os.O_CREAT)
    os.write(one, b"a" * 3_000_000)
    os.fsync(one)
    other = os.open(two[1] / name, os.O_RDWR | os.O_TRUNC)
    assert os.fstat(other).st_size == 0
    os.pwrite(one, b"b" * 10, 100)
    os.fsync(one)
    os.close(one)
    os.close(other)
    assert (two[1] / name).read_bytes() == bytes(100) + b"b" * 10
    assert (two[0] / name).read_bytes() == bytes(100) + b"b" * 10


def test_programs_of_one_mount_share_a_mapping(two: tuple[Path, Path], name: str, programs: Callable[..., Any]) -> None:
    path = two[0] / name
    path.write_bytes(bytes(3 * mmap.PAGESIZE))
    one, other = programs(path=str(path)), programs(path=str(path))
    for program in (one, other):
        program("fd = os.open(path, os.O_RDWR); m = mmap.mmap(fd, 0)")
    one("m[100:105] = b'hello'")
    assert other("m[100:105]") == b"hello"  # the same pages
    assert other("os.pread(fd, 5, 100)") == b"hello"
    other("os.pwrite(fd, b'there', 200)")
    assert one("m[200:205]") == b"there"
    one("m[8192:8197] = b'later'; m.flush()")
    assert (two[1] / name).read_bytes()[8192:8197] == b"later"
    one("m[300:305] = b'close'; m.close(); os.close(fd)")
    other("m.close(); os.close(fd)")
    assert (two[1] / name).read_bytes()[300:305] == b"close"


def test_a_read_across_the_end_that_another_mount_has_set_gives_no_zeros_behind_it(
    two: tuple[Path, Path], name: str
) -> None:
    """The kernel reads ahead by what it believes, in several requests at once, and takes the end from short answers."""
    one, other = (os.open(point / name, os.O_RDWR | os.O_CREAT) for point in two)
    try:
        for turn in range(10):
            fcntl.flock(one, fcntl.LOCK_EX)
            assert os.pwrite(one, b"x" * 3_000_000, 0) == 3_000_000
            fcntl.flock(one, fcntl.LOCK_UN)
            end = 2_202_135 - 4096 * turn
            fcntl.flock(other, fcntl.LOCK_EX)
            os.ftruncate(other, end)
            fcntl.flock(other, fcntl.LOCK_UN)
            fcntl.flock(one, fcntl.LOCK_EX)
            assert len(os.pread(one, 1_065_058, 1_770_506)) == end - 1_770_506
            fcntl.flock(one, fcntl.LOCK_UN)
    finally:
        os.close(one)
        os.close(other)
