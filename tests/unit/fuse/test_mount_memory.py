"""A real kernel mount over a file system in memory."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from fireflyfs.common.errors import Code

pytestmark = pytest.mark.e2e


@pytest.fixture
def root(backend, mounts):
    return mounts(backend).mountpoint


def test_files_come_back_as_written(root):
    data = os.urandom(3 * (1 << 20) + 12345)
    (root / "f").write_bytes(data)
    assert (root / "f").read_bytes() == data
    assert (root / "f").stat().st_size == len(data)
    (root / "empty").touch()
    assert (root / "empty").read_bytes() == b""


def test_mounted_through_the_helper(backend, mounts):
    if not shutil.which("fusermount3"):
        pytest.skip("needs fusermount3")
    root = mounts(backend, use_helper=True).mountpoint
    (root / "f").write_bytes(b"x" * 300_000)
    assert (root / "f").read_bytes() == b"x" * 300_000


def test_names(root):
    (root / "d").mkdir()
    (root / "d" / "f").write_text("x")
    os.link(root / "d" / "f", root / "hard")
    assert (root / "hard").stat().st_nlink == 2
    os.symlink("d/f", root / "soft")
    assert (root / "soft").read_text() == "x"
    assert os.readlink(root / "soft") == "d/f"
    os.rename(root / "d" / "f", root / "d" / "g")
    assert os.listdir(root / "d") == ["g"]
    with pytest.raises(OSError, match=r".*") as info:
        (root / "d").rmdir()
    assert info.value.errno == errno.ENOTEMPTY
    (root / "d" / "g").unlink()
    (root / "d").rmdir()
    assert sorted(os.listdir(root)) == ["hard", "soft"]
    os.mkfifo(root / "fifo")
    assert (root / "fifo").is_fifo()


def test_attributes(root):
    path = root / "f"
    path.write_bytes(b"12345")
    os.chmod(path, 0o640)
    os.chown(path, 7, 8)
    os.utime(path, ns=(1_000_000_001, 2_000_000_002))
    found = path.stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o640, 7, 8)
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    os.truncate(path, 3)
    assert path.read_bytes() == b"123"
    os.truncate(path, 6)
    assert path.read_bytes() == b"123\0\0\0"


def test_times_set_after_writing_stay(root):
    """As cp -a does: write, set times through the descriptor, close."""
    fd = os.open(root / "f", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"x" * 100)
    os.utime(fd, ns=(5, 6))
    os.close(fd)
    assert (root / "f").stat().st_mtime_ns == 6


def test_large_listing(backend, mounts):
    root = mounts(backend, list_entries=100).mountpoint
    names = {f"file-{i:04}" for i in range(1234)}
    for name in names:
        (root / name).touch()
    assert set(os.listdir(root)) == names
    with os.scandir(root) as entries:
        assert {entry.name: entry.stat().st_size for entry in entries} == dict.fromkeys(names, 0)


def test_open_unlinked(root):
    with open(root / "f", "w+b") as file:
        file.write(b"still here")
        file.flush()
        os.unlink(root / "f")
        file.seek(0)
        assert file.read() == b"still here"
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write(b", and growing")
        file.seek(0)
        assert file.read() == b"still here, and growing"


def test_open_for_reading_and_unlinked(root):
    (root / "f").write_bytes(b"kept")
    with open(root / "f", "rb", buffering=0) as file:
        os.unlink(root / "f")
        assert file.read() == b"kept"


def test_replaced_by_rename_while_open(root):
    (root / "f").write_bytes(b"old")
    (root / "g").write_bytes(b"new")
    with open(root / "f", "rb", buffering=0) as file:
        os.rename(root / "g", root / "f")
        assert file.read() == b"old"
    assert (root / "f").read_bytes() == b"new"


def test_write_behind_merges(backend, mounts):
    root = mounts(backend).mountpoint
    with open(root / "f", "wb", buffering=0) as file:
        for i in range(100):
            file.write(bytes([i]) * 1000)
    assert len(backend.data.writes) <= 2
    assert (root / "f").read_bytes() == b"".join(bytes([i]) * 1000 for i in range(100))


def test_lost_writes_surface_at_fsync_and_close(backend, mounts):
    root = mounts(backend).mountpoint
    fd = os.open(root / "f", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"x")
    backend.fail_writes = [Code.NO_SPACE]
    with pytest.raises(OSError, match=r".*") as info:
        os.fsync(fd)
    assert info.value.errno == errno.ENOSPC
    os.fsync(fd)  # told once
    os.write(fd, b"y")
    backend.fail_writes = [Code.IO_ERROR]
    with pytest.raises(OSError, match=r".*") as info:
        os.close(fd)
    assert info.value.errno == errno.EIO


def test_each_descriptor_tells_lost_writes_once(backend, mounts):
    root = mounts(backend).mountpoint
    fds = [os.open(root / "f", os.O_CREAT | os.O_RDWR) for _ in range(3)]
    os.write(fds[0], b"x")
    backend.fail_writes = [Code.IO_ERROR]
    with pytest.raises(OSError, match=r"Input/output"):
        os.posix_fallocate(fds[1], 0, 10)  # it stores what was written, as unlocking does
    for fd in fds:
        with pytest.raises(OSError, match=r"Input/output") as info:
            os.fsync(fd)
        assert info.value.errno == errno.EIO
        os.fsync(fd)
    late = os.open(root / "f", os.O_RDWR)
    os.fsync(late)
    for fd in [*fds, late]:
        os.close(fd)


def test_fsync_reaches_storage_and_meta(backend, mounts):
    root = mounts(backend).mountpoint
    with open(root / "f", "wb") as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
        assert backend.data.syncs
        assert [request.durable for name, request in backend.meta.calls if name == "sync"] == [True]


def test_two_mounts_see_closed_files_at_once(backend, mounts):
    a, b = mounts(backend).mountpoint, mounts(backend).mountpoint
    for size in (10, 200_000, 5):
        data = os.urandom(size)
        (a / "f").write_bytes(data)
        assert (b / "f").read_bytes() == data
    with open(b / "f", "ab") as file:
        file.write(b"more")
    assert (a / "f").read_bytes() == data + b"more"
    with open(a / "f", "ab") as file:
        file.write(b"!")
    assert (b / "f").read_bytes() == data + b"more!"
    (a / "g").write_bytes(b"replaced")
    os.rename(a / "g", a / "f")
    assert (b / "f").read_bytes() == b"replaced"


def test_bytes_that_were_changed_elsewhere_under_the_old_times_are_seen(backend, mounts):
    """As `rsync --inplace --times` leaves a file whose times and size its source has kept."""
    first, second = mounts(backend).mountpoint, mounts(backend).mountpoint
    (first / "f").write_bytes(b"before")
    assert (second / "f").read_bytes() == b"before"
    times = os.stat(first / "f")
    with open(first / "f", "r+b") as file:
        file.write(b"after!")
    os.utime(first / "f", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (second / "f").read_bytes() == b"after!"


def test_pages_of_a_file_that_was_renamed_or_whose_mode_was_changed_here_are_kept(backend, mounts):
    mount = mounts(backend)
    root = mount.mountpoint
    (root / "f").write_bytes(b"bytes")
    os.rename(root / "f", root / "g")
    os.chmod(root / "g", 0o600)
    os.link(root / "g", root / "h")
    os.unlink(root / "h")
    assert (root / "g").read_bytes() == b"bytes"
    counts = mount.statistics()
    assert (counts.get("pages_kept", 0), counts.get("pages_dropped", 0)) == (1, 0)


def test_a_directory_changed_here_is_not_asked_for_again(backend, mounts):
    root, other = mounts(backend).mountpoint, mounts(backend).mountpoint
    os.mkdir(root / "d")
    os.chmod(root / "d", 0o700)
    number = os.stat(root / "d").st_ino
    backend.meta.calls.clear()
    for step, change in enumerate(
        (
            lambda: (root / "d/f").touch(),
            lambda: os.mkdir(root / "d/sub"),
            lambda: os.symlink("t", root / "d/l"),
            lambda: os.rename(root / "d/f", root / "d/g"),
            lambda: os.unlink(root / "d/g"),
            lambda: os.rename(root / "d/l", root / "d/sub/l"),
            lambda: os.unlink(root / "d/sub/l"),
            lambda: os.rmdir(root / "d/sub"),
        )
    ):
        change()
        known, seen = backend.meta.inodes[number], os.stat(root / "d")
        assert (seen.st_mtime_ns, seen.st_ctime_ns, seen.st_nlink) == (known.mtime_ns, known.ctime_ns, known.nlink), (
            step
        )
    assert not [request for name, request in backend.meta.calls if name == "stat" and request.at.dir == number]
    # What is changed in another way afterwards is seen, and what others change is seen when the kernel's time is up.
    (root / "d/f").touch()
    os.chmod(root / "d", 0o750)
    assert os.stat(root / "d").st_mode & 0o777 == 0o750
    (root / "d/h").touch()
    os.chmod(other / "d", 0o755)
    deadline = time.monotonic() + 5
    while os.stat(root / "d").st_mode & 0o777 != 0o755:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_old_bytes_are_flushed_without_close(backend, mounts):
    root = mounts(backend, dirty_age_s=0.05).mountpoint
    with open(root / "f", "wb", buffering=0) as file:
        file.write(b"x")
        end = time.monotonic() + 5
        while not backend.data.writes:
            assert time.monotonic() < end
            time.sleep(0.02)


MAP = """
import mmap, sys
with open(sys.argv[1], "w+b") as file:
    file.truncate(100_000)
    with mmap.mmap(file.fileno(), 100_000) as mapped:
        mapped[5:10] = b"hello"
        mapped.flush()
"""


def test_mapped_file(root):
    # In another process: a page fault here would hold the interpreter's lock, which the mount needs to answer it.
    subprocess.run([sys.executable, "-c", MAP, root / "f"], check=True, timeout=30)
    data = (root / "f").read_bytes()
    assert data[5:10] == b"hello"
    assert len(data) == 100_000


def test_sparse_and_far(root):
    with open(root / "f", "w+b", buffering=0) as file:
        file.seek(1 << 27)
        file.write(b"end")
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 0
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 1 << 27
        assert os.lseek(file.fileno(), 1 << 27, os.SEEK_HOLE) == (1 << 27) + 3
    assert (root / "f").stat().st_size == (1 << 27) + 3
    with open(root / "f", "rb") as file:
        assert file.read(10) == bytes(10)


def test_odds_and_ends(root):
    (root / "f").write_bytes(b"x")
    assert os.statvfs(root).f_blocks == (1 << 40) // 4096
    with open(root / "f", "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 5000)
        assert os.fstat(file.fileno()).st_size == 5000
    with pytest.raises(OSError, match=r".*") as info:
        os.stat(root / ("n" * 256))
    assert info.value.errno == errno.ENAMETOOLONG
    assert not os.path.exists(root / "missing")


def test_permissions_are_checked(backend, reachable, mounts):
    file = mounts(backend, folder=reachable).mountpoint / "secret"
    file.write_bytes(b"x")
    command = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "cat", str(file)]
    os.chmod(file, 0o600)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "denied" in done.stderr
    os.chmod(file, 0o604)
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "x"


def test_program_runs_from_the_mount(root):
    shutil.copy("/bin/true", root / "true")
    subprocess.run([root / "true"], check=True)


def test_stalled_servers_stall_the_mount_and_no_more(backend, mounts):
    mount = mounts(backend, threads=2)
    root = mount.mountpoint
    (root / "f").write_bytes(b"x" * 10)
    backend.stall.set()
    seen: list[bytes] = []
    threads = [threading.Thread(target=lambda: seen.append((root / "f").read_bytes())) for _ in range(6)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 10
    while mount.statistics()["threads"] <= 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    backend.stall.clear()
    for thread in threads:
        thread.join(10)
    assert seen == [b"x" * 10] * 6


def test_unmount_stores_everything(backend, mounts):
    mount = mounts(backend, dirty_age_s=60.0)
    file = open(mount.mountpoint / "f", "wb", buffering=0)  # noqa: SIM115
    file.write(b"in flight")
    mount.stop()
    with pytest.raises(OSError, match=r".*"):
        file.write(b"too late")
    inode = backend.meta.children[1][b"f"]
    assert bytes(backend.data.files[inode]) == b"in flight"
    assert backend.meta.inodes[inode].length == 9
    with pytest.raises(OSError, match=r".*"):
        file.close()
