"""Holes, reserved space, copies inside the cluster, and the ends of what a file can be, on a real mount."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.proto.common_pb2 import Layout

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"),
]

MiB = 1 << 20
KEEP, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 0x01, 0x02, 0x08, 0x10, 0x20, 0x40
END = (1 << 63) - 1
_libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@pytest.fixture
def root(cluster: Any, mount_of: Any) -> Path:
    folder = mount_of(cluster).point / f"ranges{time.time_ns()}"
    folder.mkdir()
    return folder


def number_of(call: Callable[[], object]) -> int:
    """The errno that it fails with; 0: it does not."""
    try:
        call()
    except OSError as exc:
        return exc.errno or -1
    return 0


def stored(cluster: Any, path: Path, mount: Path) -> list[tuple[int, int]]:
    """(start, end) of what storage has of a file."""
    with FileSystem.connect(cluster.mgmtd_addresses()) as fs, fs.open(str(path.relative_to(mount)), "rb") as file:
        return [tuple(found) for found in fs.context.storage.ranges.data(file.handle.file, 0, END)]


def test_punched_chunks_are_given_back(cluster: Any, root: Path) -> None:
    path = root / "f"
    path.write_bytes(b"x" * (20 * MiB))
    before = path.stat()
    with path.open("r+b", buffering=0) as file:
        fallocate(file.fileno(), PUNCH | KEEP, MiB // 2, 18 * MiB)
    assert stored(cluster, path, root.parent) == [(0, MiB), (18 * MiB, 20 * MiB)]
    data = path.read_bytes()
    assert data == b"x" * (MiB // 2) + bytes(18 * MiB) + b"x" * (3 * MiB // 2)
    assert path.stat().st_size == before.st_size
    assert path.stat().st_mtime_ns > before.st_mtime_ns
    with path.open("r+b", buffering=0) as file:
        fallocate(file.fileno(), PUNCH | KEEP, 0, 1 << 40)
    assert stored(cluster, path, root.parent) == [(18 * MiB, 18 * MiB)] * 0
    assert path.read_bytes() == bytes(20 * MiB)


def test_modes_of_fallocate(root: Path) -> None:
    with (root / "f").open("w+b", buffering=0) as file:
        fd = file.fileno()
        file.write(b"y" * 1000)
        fallocate(fd, 0, 500, 1500)
        assert os.pread(fd, 5000, 0) == b"y" * 1000 + bytes(1000)
        fallocate(fd, KEEP, 0, 3 * MiB)
        assert os.fstat(fd).st_size == 2000
        fallocate(fd, ZERO | KEEP, 900, 5000)
        assert os.pread(fd, 5000, 0) == b"y" * 900 + bytes(1100)
        fallocate(fd, ZERO, 100, 2900)
        assert os.pread(fd, 5000, 0) == b"y" * 100 + bytes(2900)
        for mode in (COLLAPSE, INSERT, UNSHARE, KEEP | COLLAPSE, PUNCH, 0x8000):
            assert number_of(lambda mode=mode: fallocate(fd, mode, 0, 4096)) == errno.EOPNOTSUPP
        assert number_of(lambda: fallocate(fd, 0, 0, 0)) == errno.EINVAL
        assert number_of(lambda: fallocate(fd, 0, -1, 5)) == errno.EINVAL
        assert number_of(lambda: fallocate(fd, 0, END - 5, 100)) == errno.EFBIG
        assert number_of(lambda: fallocate(fd, 0, 0, 1 << 50)) == errno.ENOSPC
        assert number_of(lambda: fallocate(fd, KEEP, 0, 1 << 50)) == errno.ENOSPC
        assert os.fstat(fd).st_size == 3000
        with (root / "f").open("rb") as reader:
            assert number_of(lambda: fallocate(reader.fileno(), 0, 0, 1)) == errno.EBADF


def test_what_waits_in_the_mount_is_punched_too(root: Path) -> None:
    fd = os.open(root / "f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"z" * (3 * MiB))
    fallocate(fd, PUNCH | KEEP, 100, 2 * MiB)
    os.pwrite(fd, b"new", 200)
    want = b"z" * 100 + bytes(100) + b"new" + bytes(2 * MiB - 103) + b"z" * (MiB - 100)
    assert os.pread(fd, 4 * MiB, 0) == want[: MiB * 4]
    os.close(fd)
    assert (root / "f").read_bytes() == want


def test_holes_are_told_from_data(root: Path) -> None:
    fd = os.open(root / "f", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"d" * 100, 5 * MiB)
    os.pwrite(fd, b"d" * (2 * MiB), 8 * MiB)
    os.ftruncate(fd, 1 << 45)
    assert os.lseek(fd, 0, os.SEEK_DATA) == 5 * MiB
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
    assert os.lseek(fd, 5 * MiB + 7, os.SEEK_DATA) == 5 * MiB + 7
    assert os.lseek(fd, 5 * MiB, os.SEEK_HOLE) == 5 * MiB + 100
    assert os.lseek(fd, 5 * MiB + 100, os.SEEK_DATA) == 8 * MiB
    assert os.lseek(fd, 8 * MiB + 5, os.SEEK_HOLE) == 10 * MiB
    assert number_of(lambda: os.lseek(fd, 10 * MiB, os.SEEK_DATA)) == errno.ENXIO
    assert os.lseek(fd, 10 * MiB, os.SEEK_HOLE) == 10 * MiB
    assert number_of(lambda: os.lseek(fd, 1 << 45, os.SEEK_HOLE)) == errno.ENXIO
    assert number_of(lambda: os.lseek(fd, -1, os.SEEK_DATA)) == errno.ENXIO
    fallocate(fd, PUNCH | KEEP, 8 * MiB, MiB)
    assert os.lseek(fd, 6 * MiB, os.SEEK_DATA) == 9 * MiB
    os.ftruncate(fd, 0)
    assert number_of(lambda: os.lseek(fd, 0, os.SEEK_DATA)) == errno.ENXIO
    os.close(fd)


def copied_by_storage(cluster: Any) -> float:
    with FileSystem.connect(cluster.mgmtd_addresses()) as fs:
        from fireflyfs.common.net.api import Call
        from fireflyfs.common.net.methods import Method
        from fireflyfs.proto import storage_pb2

        addresses = set(fs.context.routing.current().addresses.values())
        bodies = [fs.context.link.call(address, Call(Method.STORAGE_STATS, b"")).body for address in addresses]
        return sum(storage_pb2.StatsReply.FromString(bytes(body)).values.get("bytes_copied", 0) for body in bodies)


def test_copies_stay_in_the_cluster(cluster: Any, root: Path, programs: Any) -> None:
    """Whole files and odd ranges, the same layout and others, holes included."""
    layouts = {
        "same": None,
        "small": Layout(chunk_size=64 << 10, stripe_size=3),
        "large": Layout(chunk_size=4 * MiB, stripe_size=1),
    }
    with FileSystem.connect(cluster.mgmtd_addresses()) as fs:
        for name, layout in layouts.items():
            fs.mkdir(f"{root.name}/{name}", layout=layout)
    data = bytearray(os.urandom(9 * MiB + 4321))
    data[2 * MiB : 6 * MiB] = bytes(4 * MiB)
    with (root / "source").open("wb", buffering=0) as file:
        file.write(data[: 2 * MiB])
        file.seek(6 * MiB)
        file.write(data[6 * MiB :])
    before = copied_by_storage(cluster)
    total = 0
    for name in layouts:
        target = root / name / "copy"
        source = os.open(root / "source", os.O_RDONLY)
        into = os.open(target, os.O_RDWR | os.O_CREAT)
        done = 0
        while done < len(data):
            count = os.copy_file_range(source, into, len(data) - done, done, done)
            assert count
            done += count
        assert os.copy_file_range(source, into, 100, len(data), 0) == 0
        os.close(source)
        os.close(into)
        assert target.read_bytes() == data
        total += 5 * MiB + 4321
        holes = stored(cluster, target, root.parent)
        assert all(end <= 2 * MiB or start >= 6 * MiB for start, end in holes) or name == "large"
        into = os.open(target, os.O_RDWR)
        assert os.copy_file_range(into, into, 3 * MiB + 77, 6 * MiB - 1000, 123_457) == 3 * MiB + 77
        want = bytearray(data)
        want[123_457 : 123_457 + 3 * MiB + 77] = data[6 * MiB - 1000 : 9 * MiB - 1000 + 77]
        os.close(into)
        assert target.read_bytes() == want
        total += 3 * MiB + 77 - (0 if name == "large" else 1000)  # its chunk of 4 MiB has zeros where others have none
    assert copied_by_storage(cluster) - before == total


def test_a_copy_takes_what_waits_and_keeps_what_is_around_it(root: Path) -> None:
    source = os.open(root / "a", os.O_RDWR | os.O_CREAT)
    into = os.open(root / "b", os.O_RDWR | os.O_CREAT)
    os.write(source, b"s" * 5000)
    os.write(into, b"i" * 8000)
    assert os.copy_file_range(source, into, 3000, 1000, 2000) == 3000
    os.pwrite(into, b"!", 2500)
    assert os.pread(into, 9000, 0) == b"i" * 2000 + b"s" * 500 + b"!" + b"s" * 2499 + b"i" * 3000
    append = os.open(root / "b", os.O_WRONLY | os.O_APPEND)
    assert number_of(lambda: os.copy_file_range(source, append, 10, 0, 0)) == errno.EBADF
    assert number_of(lambda: os.copy_file_range(into, into, 100, 0, 50)) == errno.EINVAL
    for fd in (source, into, append):
        os.close(fd)


def test_a_copy_goes_on_while_a_storage_node_dies(cluster_factory: Any, mount_of: Any, programs: Any) -> None:
    cluster = cluster_factory()
    point = mount_of(cluster).point
    data = os.urandom(64 * MiB)
    (point / "source").write_bytes(data)
    program = programs(source=str(point / "source"), into=str(point / "into"), size=len(data))
    program.send(
        "a, b = os.open(source, os.O_RDONLY), os.open(into, os.O_RDWR | os.O_CREAT)\n"
        "for _ in range(4):\n"
        "    done = 0\n"
        "    while done < size:\n"
        "        done += os.copy_file_range(a, b, 8 << 20, done, done)\n"
        "os.close(b)\n"
    )
    time.sleep(0.3)
    cluster.kill("storage-1")
    program.answer(120)
    assert (point / "into").read_bytes() == data


def test_the_ends_of_a_file(root: Path) -> None:
    fd = os.open(root / "f", os.O_RDWR | os.O_CREAT)
    assert os.write(fd, b"") == 0
    assert os.pread(fd, 10, 0) == b""
    assert os.pread(fd, 10, 1 << 62) == b""
    assert number_of(lambda: os.pwrite(fd, b"xx", END)) in (errno.EFBIG, errno.EINVAL)
    last = END - 10
    assert os.pwrite(fd, b"end", last) == 3
    assert os.fstat(fd).st_size == last + 3
    assert os.pread(fd, 15, last - 5) == bytes(5) + b"end"
    os.ftruncate(fd, END)
    assert os.fstat(fd).st_size == END
    os.fsync(fd)
    os.close(fd)
    fd = os.open(root / "f", os.O_RDWR)
    assert os.lseek(fd, 0, os.SEEK_DATA) == last - last % MiB
    assert os.pread(fd, 3, END - 3) == bytes(3)
    assert number_of(lambda: os.ftruncate(fd, -1)) == errno.EINVAL
    os.ftruncate(fd, 5)
    assert os.pread(fd, 100, 0) == bytes(5)
    assert number_of(lambda: os.lseek(fd, 0, os.SEEK_DATA)) == errno.ENXIO
    os.close(fd)


def test_a_limit_on_file_size(root: Path, programs: Any) -> None:
    program = programs(path=str(root / "f"), limit=100_000)
    program(
        "import resource\n"
        "_ = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "fd = os.open(path, os.O_RDWR | os.O_CREAT)"
    )
    assert program("os.write(fd, bytes(150_000))") == 100_000
    for call in ("os.write(fd, b'x')", "os.pwrite(fd, b'x', limit)", "os.ftruncate(fd, limit + 1)",
                 "os.posix_fallocate(fd, limit, 1)"):  # fmt: skip
        with pytest.raises(OSError) as caught:  # noqa: PT011
            program(call)
        assert caught.value.errno == errno.EFBIG, call
    assert (root / "f").stat().st_size == 100_000
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize("flag", ["O_SYNC", "O_DSYNC", "O_DIRECT"])
def test_synchronous_and_direct(cluster: Any, mount_of: Any, root: Path, flag: str) -> None:
    other = mount_of(cluster).point / root.name / "f"
    fd = os.open(root / "f", os.O_RDWR | os.O_CREAT | getattr(os, flag))
    for number in range(8):
        os.write(fd, bytes([number]) * 4096)
        if flag != "O_DIRECT":  # recorded and on every disk before write(2) returns
            assert other.read_bytes() == b"".join(bytes([n]) * 4096 for n in range(number + 1))
    assert os.pread(fd, 4096, 4096) == bytes([1]) * 4096
    os.fsync(fd)
    os.close(fd)
    assert len(other.read_bytes()) == 8 * 4096


def test_directories_are_synced(root: Path) -> None:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    (root / "f").write_bytes(b"x")
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)
