"""Applications whose shared memory is not what its path says: nothing else is opened, and nobody waits for them."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fireflyfs.common.clock import ManualClock
from fireflyfs.fuse.mount import RingHost
from fireflyfs.fuse.options import MountOptions

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for namespaces")

# Each ends with a line when it has done it, and stays until its input is closed.
HANGING = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
fuse = os.open("/dev/fuse", os.O_RDWR)
data = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
assert not libc.mount(b"hang", b"/dev/shm", b"fuse", 0, data), os.strerror(ctypes.get_errno())
"""
LINKED = """
import subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "none", "/dev"], check=True)
os.symlink(sys.argv[1], "/dev/shm")
"""
BOUND = """
import subprocess, sys
open("/dev/shm/" + sys.argv[2], "w").close()
subprocess.run(["mount", "--bind", sys.argv[1], "/dev/shm/" + sys.argv[2]], check=True)
"""
LEASED = """
import fcntl, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
fd = os.open("/dev/shm/" + sys.argv[2], os.O_CREAT | os.O_RDWR)
os.ftruncate(fd, 4096)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
"""

Application = Callable[..., int]


@pytest.fixture
def application() -> Iterator[Application]:
    """application(script, *arguments): a process in a mount namespace of its own; its pid."""
    made: list[subprocess.Popen[bytes]] = []

    def start(script: str, *arguments: object) -> int:
        body = "import os\n" + script + "\nprint('ready', flush=True)\nos.read(0, 1)\n"
        command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", body]
        process = subprocess.Popen([*command, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        made.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process.pid

    yield start
    for process in made:
        process.kill()
        process.communicate()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[RingHost]:
    monkeypatch.setattr("fireflyfs.fuse.usrbio.memory.OPEN_S", 0.5, raising=False)
    volume: Any = SimpleNamespace(clock=ManualClock(), options=MountOptions())
    host = RingHost(volume, [], None)
    yield host
    host.stop()


@pytest.fixture
def name() -> Iterator[str]:
    """Of a file in /dev/shm."""
    name = f"test-{uuid.uuid4()}"
    yield name
    Path("/dev/shm", name).unlink(missing_ok=True)


def code(host: RingHost, name: str, pid: int, uid: int = 0) -> int:
    try:
        host.make(str(uuid.uuid4()).encode(), f"/dev/shm/{name}".encode(), pid, uid, [uid])
    except OSError as exc:
        return exc.errno or -1
    return 0


def test_memory_is_opened_where_its_application_is(host: RingHost, application: Application, name: str) -> None:
    pid = application("open('/dev/shm/" + name + "', 'w').write('m')")
    assert code(host, name, pid) == 0
    assert code(host, "none", pid) == errno.ENOENT


def test_a_file_system_that_does_not_answer_keeps_nobody_else(
    host: RingHost, application: Application, name: str
) -> None:
    Path("/dev/shm", name).write_bytes(b"m")
    hanging = application(HANGING)
    codes: list[int] = []
    asks = [threading.Thread(target=lambda: codes.append(code(host, "m", hanging, 7)), daemon=True) for _ in range(8)]
    for thread in asks:
        thread.start()
    time.sleep(0.2)  # they are at it
    came: list[int] = []
    other = threading.Thread(target=lambda: came.append(code(host, name, os.getpid())), daemon=True)
    other.start()
    other.join(5)
    assert came == [0]
    for thread in asks:
        thread.join(5)
    assert sorted(codes) == [errno.EAGAIN] * 4 + [errno.ETIMEDOUT] * 4
    began_s = time.monotonic()
    assert code(host, "m", hanging, 7) == errno.EAGAIN, "at once: its threads still hang"
    assert time.monotonic() - began_s < 0.09


def test_links_on_the_way_are_not_followed(host: RingHost, application: Application, name: str, tmp_path: Path) -> None:
    """They would be followed from the mount's root, into folders that the user may not enter."""
    shared = Path("/dev/shm", f"secret-{name}")
    shared.mkdir(mode=0o700)
    try:
        (shared / "file").write_bytes(b"m")
        (shared / "file").chmod(0o666)
        assert code(host, "file", application(LINKED, shared), 7) == errno.ENOTDIR
    finally:
        (shared / "file").unlink()
        shared.rmdir()


def test_a_file_of_another_file_system_is_no_memory(
    host: RingHost, application: Application, name: str, tmp_path: Path
) -> None:
    if subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, check=True).stdout == b"tmpfs\n":
        pytest.skip("temporary files are in a tmpfs")
    (tmp_path / "file").write_bytes(b"m")
    pid = application(BOUND, tmp_path / "file", name)
    assert code(host, name, pid) == errno.EINVAL


def test_a_lease_is_not_waited_for(host: RingHost, application: Application, name: str) -> None:
    pid = application(LEASED, "", name)
    came: list[int] = []
    asks = threading.Thread(target=lambda: came.append(code(host, name, pid)), daemon=True)
    asks.start()
    asks.join(5)
    assert came == [errno.EAGAIN]


def test_what_comes_after_the_mount_ends_leaves_no_descriptor(host: RingHost, name: str) -> None:
    region = Path("/dev/shm", name)
    region.write_bytes(b"m")
    found = region.stat()
    host._ending.set()
    assert code(host, name, os.getpid()) == errno.ENODEV
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them, and what others in this process close
            assert not os.path.samestat(fd.stat(), found)
