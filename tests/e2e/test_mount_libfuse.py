"""The mount that is served through libfuse: what a program does with it, as with our own."""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fireflyfs.deploy.local import ClusterSpec, LocalCluster
from reachable import reachable_folder

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def mount() -> Iterator[Path]:
    with reachable_folder("libfuse") as folder:
        yield from _mounted(folder)


def _mounted(folder: Path) -> Iterator[Path]:
    cluster = LocalCluster(folder / "cluster")
    cluster.create(ClusterSpec(storage_nodes=1, replicas=1))
    point = folder / "mnt"
    point.mkdir()
    read_end, write_end = os.pipe()
    process = None
    try:
        cluster.up()
        command = [sys.executable, "-m", "fireflyfs.client.cli.main", "--mgmtd", ",".join(cluster.mgmtd_addresses())]
        command += ["mount", str(point), "--libfuse", f"--ready-fd={write_end}", f"--log-file={folder / 'log'}"]
        process = subprocess.Popen(command, pass_fds=[write_end], cwd="/")
        os.close(write_end)
        with open(read_end, "rb") as ready:
            assert ready.readline() == b"ready\n"
        yield point
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert not os.path.ismount(point)
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        if os.path.ismount(point):
            subprocess.run(["umount", "-lf", str(point)], check=True)
        cluster.down()


@pytest.fixture
def point(mount: Path, request: pytest.FixtureRequest) -> Path:
    """A folder of this test's own."""
    folder = mount / request.node.name
    folder.mkdir()
    return folder


def fails(code: int, call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(OSError, match=re.escape(os.strerror(code))):
        call(*arguments)


def test_files_and_names(point: Path) -> None:
    data = os.urandom(3_000_000)
    (point / "dir").mkdir(mode=0o750)
    file = point / "dir/file"
    file.write_bytes(data)
    assert file.read_bytes() == data
    with file.open("r+b") as opened:
        opened.seek(1_000_000)
        opened.write(b"changed")
        opened.truncate(2_000_000)
        os.fsync(opened.fileno())
        assert os.fstat(opened.fileno()).st_size == 2_000_000
    expected = bytearray(data[:2_000_000])
    expected[1_000_000:1_000_007] = b"changed"
    assert file.read_bytes() == expected
    with file.open("ab") as opened:
        opened.write(b"end")
    assert file.stat().st_size == 2_000_003
    os.link(file, point / "dir/link")
    os.symlink("file", point / "dir/symlink")
    assert (point / "dir/symlink").read_bytes() == file.read_bytes()
    assert file.stat().st_nlink == 2
    assert sorted(os.listdir(point / "dir")) == ["file", "link", "symlink"]
    os.rename(file, point / "moved")
    fails(errno.ENOTEMPTY, os.rmdir, point / "dir")
    fails(errno.ENOENT, os.stat, file)
    fails(errno.EISDIR, os.unlink, point / "dir")
    assert os.statvfs(point).f_blocks > 0


def test_attributes(point: Path) -> None:
    file = point / "file"
    file.write_bytes(b"x")
    os.chmod(file, 0o4711)
    os.chown(file, 5, 6)
    os.utime(file, ns=(1_000_000_001, 2_000_000_002))
    info = file.stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (0o711, 5, 6), "chown clears the setuid bit"
    assert (info.st_atime_ns, info.st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    before = time.time()
    os.utime(file)
    assert file.stat().st_mtime >= before - 2
    os.mkfifo(point / "fifo", 0o640)
    assert stat.S_ISFIFO((point / "fifo").stat().st_mode)


def test_whose_it_is(point: Path) -> None:
    """Calls run on behalf of their caller, with its groups."""
    (point / "open").mkdir()
    (point / "open").chmod(0o777)
    (point / "closed").write_bytes(b"secret")
    (point / "closed").chmod(0o600)
    script = (
        "import os; os.setgroups([77]); os.setgid(1001); os.setuid(1001)\n"
        f"open({str(point / 'open/mine')!r}, 'w').write('x')\n"
        f"try: open({str(point / 'closed')!r})\n"
        "except PermissionError: print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout == "refused\n"
    info = (point / "open/mine").stat()
    assert (info.st_uid, info.st_gid) == (1001, 1001)


def test_a_removed_file_that_is_open(point: Path) -> None:
    with (point / "file").open("w+b") as opened:
        opened.write(b"kept")
        opened.flush()
        os.unlink(point / "file")
        assert "file" not in os.listdir(point)
        assert os.fstat(opened.fileno()).st_size == 4
        opened.seek(0)
        assert opened.read() == b"kept"
    # libfuse hid the file under another name; that goes when the kernel says RELEASE, which close() does not wait for.
    give_up = time.monotonic() + 10
    while os.listdir(point) and time.monotonic() < give_up:
        time.sleep(0.01)
    assert os.listdir(point) == []


def test_a_rename_that_must_not_replace(point: Path) -> None:
    (point / "a").write_text("a")
    (point / "b").write_text("b")
    done = subprocess.run(["mv", "-n", str(point / "a"), str(point / "b")], capture_output=True, check=False)
    assert done.returncode in (0, 1)
    assert (point / "b").read_text() == "b"
