"""Rings of applications on a real cluster and mount: what programs for 3FS rely on, call by call."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.quotas import Quotas

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"),
]

MIB = 1 << 20


@pytest.fixture
def name() -> str:
    return f"f{time.time_ns()}"


@pytest.fixture
def point(cluster: Any, mount_of: Any) -> Path:
    return mount_of(cluster, "--subtype", "hf3fs").point


@pytest.fixture
def app(point: Path, ring_programs: Any) -> Any:
    return ring_programs(point)


@contextlib.contextmanager
def raises(number: int) -> Iterator[None]:
    with pytest.raises(OSError, match=r".*") as info:
        yield
    assert info.value.errno == number, info.value


def random_file(path: Path, size: int) -> bytes:
    data = os.urandom(size)
    path.write_bytes(data)
    return data


def test_what_a_program_finds(cluster: Any, app: Any, point: Path, name: str) -> None:
    (point / name).write_bytes(b"x")
    assert f" {point} fuse.hf3fs " in Path("/proc/mounts").read_text()
    assert app(f"io.extract_mount_point('{point}')") == str(point)
    assert app(f"io.extract_mount_point('{point}/a/b')") == str(point)
    assert app("io.extract_mount_point('/proc/self')") is None
    assert sorted(os.listdir(point / "3fs-virt")) == ["get-conf", "iovs", "rm-rf", "set-conf"]
    assert "3fs-virt" not in os.listdir(point)
    with FileSystem.connect(cluster.mgmtd_addresses()) as fs:
        assert os.stat(point / name).st_ino == fs.inode(f"/{name}").id


def test_reads(app: Any, point: Path, name: str) -> None:
    """Sizes and places of real programs: over the borders of chunks, unaligned, short at the end, many at once."""
    data = random_file(point / name, 9_000_000)
    for offset, length in ((0, 4_497_408), (4_497_408, 4_497_408), (123_457, 2_561_024), (28, 1), (8_999_999, 1)):
        got = min(length, len(data) - offset)
        assert app(f"move(True, '{name}', [(777, {length}, {offset})])") == [got]
        assert app(f"bytes(shm.buf[777:{777 + got}]) == open('{point}/{name}', 'rb').read()[{offset}:{offset + got}]")
    assert app(f"move(True, '{name}', [(0, 1000, 9_000_000), (0, 1000, 8_999_990), (5, 7, 1 << 40)])") == [0, 10, 0]
    ios = [(number * 4096, 4096, (number * 7919 * 4096) % 8_900_000) for number in range(128)]
    assert app(f"move(True, '{name}', {ios})") == [4096] * 128
    assert all(app(f"bytes(shm.buf[{at}:{at + 4096}])") == data[off : off + 4096] for at, _, off in ios[::31])
    # More than the ring has, around its end: results stay in order.
    for _ in range(5):
        assert app(f"move(True, '{name}', {ios[:100]})") == [4096] * 100


def test_writes_are_seen_by_everyone(cluster: Any, mount_of: Any, app: Any, point: Path, name: str) -> None:
    other = mount_of(cluster).point
    app("import random; shm.buf[:8_000_000] = random.Random(5).randbytes(8_000_000)")
    data = random.Random(5).randbytes(8_000_000)
    ios = [(0, 4_497_408, 28), (5_000_000, 2_561_024, 28 + 4_497_408), (100, 3, 20_000_000)]
    assert app(f"move(False, '{name}', {ios})") == [length for _, length, _ in ios]
    assert app(f"os.fstat(opened('{name}', os.O_RDWR | os.O_CREAT)).st_size") == 20_000_003
    assert app(f"io.force_fsync(opened('{name}', os.O_RDWR | os.O_CREAT))") == 0
    assert os.stat(other / name).st_size == 20_000_003
    want = bytearray(20_000_003)
    for at, length, offset in ios:
        want[offset : offset + length] = data[at : at + length]
    assert (other / name).read_bytes() == want
    assert (point / name).read_bytes() == want
    # Without anybody's asking it takes the mount half a second or so to tell.
    assert app(f"move(False, '{name}', [(0, 10, 30_000_000)])") == [10]
    end_s = time.monotonic() + 10
    while os.stat(other / name).st_size != 30_000_010:
        assert time.monotonic() < end_s
        time.sleep(0.05)
    # What the mount had cached is not shown any more.
    with open(point / name, "rb", buffering=0) as reader:
        assert reader.read(28) == bytes(28)
        assert app(f"shm.buf[:28] = b'n' * 28; move(False, '{name}', [(0, 28, 0)])") == [28]
        app(f"io.force_fsync(opened('{name}', os.O_RDWR | os.O_CREAT))")
        assert os.pread(reader.fileno(), 28, 0) == b"n" * 28
    app(f"closed('{name}')")
    assert os.stat(other / name).st_size == 30_000_010


def test_buffered_writes_come_before_registration(app: Any, point: Path, name: str) -> None:
    app(f"f = os.open('{point}/{name}', os.O_RDWR | os.O_CREAT); os.write(f, b'buffered'); io.register_fd(f)")
    app("def one(r, read, length, offset): r.prepare(region[0:length], read, f, offset); return done(r, 1)")
    app("def done(r, count): return [piece.result for piece in r.submit().wait(min_results=count)]")
    app("r, w = ring(True), ring(False)")
    assert app("one(r, True, 8, 0), bytes(shm.buf[:8])") == ([8], b"buffered")
    # Shortened through the mount: neither the old length nor the old bytes come back.
    assert app("shm.buf[:8] = b'12345678'; one(w, False, 8, 100)") == [8]
    app("os.ftruncate(f, 4)")
    assert app("os.fstat(f).st_size") == 4
    assert app("one(r, True, 8, 0), bytes(shm.buf[:4])") == ([4], b"buff")
    assert app("one(w, False, 1, 9)") == [1]
    assert app("io.force_fsync(f), os.fstat(f).st_size, os.pread(f, 100, 0)") == (0, 10, b"buff\0\0\0\0\0b")


def test_mistakes(app: Any, point: Path, name: str) -> None:
    """The error of each, and that nothing is queued by it."""
    random_file(point / name, 1000)
    app(f"f = os.open('{point}/{name}', os.O_RDONLY); g = os.open('{point}/{name}', os.O_WRONLY)")
    app("r, w = ring(True, 4), ring(False, 4)")
    with raises(errno.EBADF):
        app("r.prepare(region[0:10], True, f, 0)")
    app("io.register_fd(f); io.register_fd(g)")
    with raises(errno.EINVAL):
        app("io.register_fd(f)")
    with raises(errno.EBADF):
        app("io.register_fd(os.open('/proc/self/status', os.O_RDONLY))")
    with raises(errno.EACCES):
        app("r.prepare(region[0:10], True, g, 0)")
    with raises(errno.EACCES):
        app("w.prepare(region[0:10], False, f, 0)")
    for lines in ("w.prepare(region[0:10], True, f, 0)", "r.prepare(region[0:0], True, f, 0)", "io.make_ioring('', 4)"):
        with raises(errno.EINVAL):
            app(lines)
    app("for _ in range(4): r.prepare(region[0:10], True, f, 0)")
    with raises(errno.EAGAIN):
        app("r.prepare(region[0:10], True, f, 0)")
    assert app("[p.result for p in r.submit().wait(min_results=4)]") == [10] * 4
    assert app("len(r.wait()), len(r.wait(max_results=9)), len(r.wait(min_results=1, timeout=0.01))") == (0, 0, 0)
    assert app("import datetime; len(r.wait(min_results=1, timeout=datetime.timedelta(milliseconds=5)))") == 0
    app("io.deregister_fd(f); io.deregister_fd(f); io.deregister_fd(12345)")
    with raises(errno.EBADF):
        app("r.prepare(region[0:10], True, f, 0)")
    app("io.register_fd(f)")
    with raises(errno.ENOENT):
        app("io.make_ioring('/nowhere', 4)")
    for target, number in (("/etc/passwd", errno.EINVAL), ("/dev/shm/none", errno.ENOENT)):
        with raises(number):
            os.symlink(target, point / "3fs-virt/iovs" / str(uuid.uuid4()))
    with raises(errno.EINVAL):
        os.symlink("/dev/shm/none", point / "3fs-virt/iovs/no-uuid")


def test_depth_and_holes(app: Any, point: Path, name: str) -> None:
    """`io_depth` says how many are taken at once; the last ones are not left behind. Holes read as zeros, or fail."""
    random_file(point / name, 4 * MIB)
    os.truncate(point / name, 12 * MIB)
    ios = [(number * 4096, 4096, number * 4096) for number in range(10)]
    for depth, timeout in ((0, 0), (4, 0), (-4, 0), (-4, 20), (10, 5)):
        assert app(f"move(True, '{name}', {ios}, io_depth={depth}, timeout={timeout})") == [4096] * 10
    app("shm.buf[:100] = b'x' * 100")
    assert app(f"move(True, '{name}', [(0, 100, {5 * MIB})])") == [100]
    assert app("bytes(shm.buf[:100])") == bytes(100)
    wanted = [(0, 100, 0), (0, 100, 5 * MIB), (0, 100, 4 * MIB - 50), (0, 100, 20 * MIB)]
    assert app(f"move(True, '{name}', {wanted}, flags=2)") == [100, -errno.ENODATA, -errno.ENODATA, 0]
    app(f"io.punch_hole('{point}/{name}', [{MIB}], [{2 * MIB}])")
    assert app(f"move(True, '{name}', [(0, 100, {MIB}), (0, 100, {2 * MIB})], flags=2)") == [-errno.ENODATA, 100]
    app(f"io.hardlink('{point}/{name}', '{point}/{name}-2')")
    assert os.stat(point / name).st_nlink == 2
    app("def said(start, end):\n  try: io.punch_hole(path, start, end)\n  except RuntimeError as exc: return str(exc)")
    app(f"path = '{point}/{name}'")
    for bad in ("[1], [2, 3]", "[0] * 1001, [1] * 1001"):
        assert app(f"said({bad})") == "size not equal"


def test_a_large_region(point: Path, ring_programs: Any, name: str) -> None:
    """1 GiB, a ring of 1,024, and one I/O larger than all that an agent holds at once."""
    app = ring_programs(point, 1 << 30)
    app("data = os.urandom(1 << 20) * 40; shm.buf[-len(data):] = data")
    at = (1 << 30) - 40 * MIB
    assert app(f"move(False, '{name}', [({at}, {40 * MIB}, 5)], entries=8)") == [40 * MIB]
    assert app(f"move(True, '{name}', [(3, {40 * MIB}, 5)], entries=8)") == [40 * MIB]
    assert app("bytes(shm.buf[3:3 + len(data)]) == data")
    ios = [(number * 512, 512, 5 + number * 40_000) for number in range(1024)]
    assert app(f"move(True, '{name}', {ios}, entries=1024)") == [512] * 1024
    assert app(f"all(bytes(shm.buf[at:at + n]) == data[off - 5:off - 5 + n] for at, n, off in {ios[:1000]})")
    assert app("iov = region[5:50]; iov.base_off, len(memoryview(iov)), iov[1:3].base_off, memoryview(iov).format") == (
        5, 45, 6, "B",
    )  # fmt: skip
    assert app("region.iov.slice_by(shm.buf[64:128]).base_off") == 64


def test_other_users(point: Path, ring_programs: Any, name: str) -> None:
    """Rings of an ordinary user; nobody registers another's memory, or takes another's link back."""
    os.chmod(point, 0o777)
    app = ring_programs(point)
    app("os.chdir(point); point = '.'; os.setgroups([]); os.setgid(4321); os.setuid(4321)")
    app("mine = SharedMemory(create=True, size=8192); theirs = io.make_iovec(mine, point)")
    app("shm.buf[:5] = b'user!'")
    assert app(f"move(False, '{name}', [(0, 5, 0)])") == [5]
    app(f"closed('{name}')")
    assert os.stat(point / name).st_uid == 4321
    assert (point / name).read_bytes() == b"user!"
    secret = Path("/dev/shm") / f"test-{uuid.uuid4()}"
    secret.write_bytes(b"s" * 4096)
    secret.chmod(0o644)
    try:
        with raises(errno.EACCES):
            app(f"os.symlink('{secret}', '3fs-virt/iovs/{uuid.uuid4()}')")
        link = point / "3fs-virt/iovs" / str(uuid.uuid4())
        link.symlink_to(secret)
        with raises(errno.EPERM):
            app(f"os.unlink('3fs-virt/iovs/{link.name}')")
        link.unlink()
    finally:
        secret.unlink()
    with raises(errno.EPERM):
        app("os.symlink('9', '3fs-virt/set-conf/sys.attr_timeout')")


def test_the_virtual_folder(point: Path, name: str) -> None:
    for tree in ("a", "b"):
        (point / name / tree / "c").mkdir(parents=True)
        (point / name / tree / "c/file").write_bytes(b"x")
    virtual = point / "3fs-virt"
    os.symlink(point / name / "a", virtual / "rm-rf/anything")
    os.rename(point / name / "b", virtual / "rm-rf/b")
    assert os.listdir(point / name) == []
    assert os.listdir(virtual / "rm-rf") == []
    for target in ("relative", "/etc", str(point), f"{point}/../x"):
        with raises(errno.EINVAL):
            os.symlink(target, virtual / "rm-rf/no")
    (point / name / "real").write_bytes(b"")
    with raises(errno.EXDEV):
        os.rename(point / name / "real", virtual / "iovs/x")
    assert os.readlink(virtual / "get-conf/sys.attr_timeout") == "1"
    os.symlink("2.5", virtual / "set-conf/sys.attr_timeout")
    assert os.readlink(virtual / "get-conf/sys.attr_timeout") == "2.5"
    for key, value, number in (("sys.other", "1", errno.ENOENT), ("sys.attr_timeout", "-1", errno.EINVAL)):
        with raises(number):
            os.symlink(value, virtual / "set-conf" / key)
    for folder in ("", "iovs"):
        with raises(errno.EPERM):
            (virtual / folder / "new").mkdir()


def test_the_c_interface(point: Path, tmp_path: Path, name: str) -> None:
    """Every call, from a program that is compiled against the header and linked to the library by its name."""
    source = Path(__file__).with_name("usrbio_program.c")
    from fireflyfs.client import usrbio

    include = Path(usrbio.__file__).parent / "c"
    library = Path(__file__).resolve().parents[2] / "src/hf3fs_py_usrbio"
    program = tmp_path / "program"
    command = ["gcc", "-std=gnu11", "-Wall", "-Werror", f"-I{include}", str(source), "-o", str(program)]
    subprocess.run([*command, f"-L{library}", "-lhf3fs_api_shared"], check=True)
    environment = os.environ | {"LD_LIBRARY_PATH": str(library)}
    done = subprocess.run(
        [program, point, name], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert os.stat(point / name).st_nlink == 2
    assert os.listdir(point / "3fs-virt/iovs") == []


def test_write_and_rings_in_turns(app: Any, point: Path, name: str) -> None:
    """What write(2) has taken of a registered file is read by a ring, and never comes after what a ring writes next."""
    app(f"f = opened('{name}', os.O_RDWR | os.O_CREAT)")
    for turn in range(20):
        app(f"os.pwrite(f, b'w' * 5000, {turn} * 5000)")
        assert app(f"move(True, '{name}', [(0, 5000, {turn} * 5000)], os.O_RDWR | os.O_CREAT)") == [5000]
        assert app("bytes(shm.buf[:5000]) == b'w' * 5000")
        app("shm.buf[:100] = b'r' * 100")
        assert app(f"move(False, '{name}', [(0, 100, {turn} * 5000)])") == [100]
    app(f"os.fsync(f); closed('{name}')")
    assert (point / name).read_bytes() == (b"r" * 100 + b"w" * 4900) * 20


def test_quotas(cluster: Any, app: Any, point: Path, name: str) -> None:
    """A write that does not fit is EDQUOT, and what is there may be written over. Nothing else of its batch fails."""
    (point / name).mkdir()
    with FileSystem.connect(cluster.mgmtd_addresses()) as fs:
        Quotas(fs).set_directory(f"/{name}", bytes_max=4 * MIB, inodes_max=None)
    ios = [(0, MIB, number * MIB) for number in range(6)]
    assert app(f"move(False, '{name}/f', {ios})") == [MIB] * 4 + [-errno.EDQUOT] * 2
    assert app(f"move(False, '{name}/f', {[(0, 2 * MIB, 3 * MIB), (0, 100, 0), (0, 100, 4 * MIB - 100)]})") == [
        -errno.EDQUOT, 100, 100,
    ]  # fmt: skip
    app(f"closed('{name}/f')")
    assert (point / name / "f").stat().st_size == 4 * MIB


def test_a_forked_child(app: Any, point: Path, name: str) -> None:
    """It may name files that its parent registered, and what it lets go of its parent keeps."""
    random_file(point / name, 5000)
    app(f"f = opened('{name}')")
    app(
        "child = os.fork()\n"
        "if not child:\n"
        "    try:\n"
        "        mine = io.make_ioring(point, 1)\n"
        "        mine.prepare(region[0:5000], True, f, 0)\n"
        "        [done] = mine.submit().wait(min_results=1, timeout=30)\n"
        "        io.deregister_fd(f)\n"
        "        os._exit(0 if done.result == 5000 else 2)\n"
        "    finally:\n"
        "        os._exit(1)\n"
    )
    assert app("os.waitpid(child, 0)[1]") == 0
    assert app(f"move(True, '{name}', [(0, 5000, 0)])") == [5000]
