"""The suite of POSIX semantics on the mount of a real cluster, and ACLs and attributes seen by the library and by other
mounts."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fireflyfs.client.aio import AsyncFileSystem
from fireflyfs.client.filesystem import FileSystem
from fireflyfs.deploy.local import LocalCluster
from fireflyfs.fuse import device
from reachable import reachable_folder

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"),
]
TESTS = Path(__file__).resolve().parents[1]
SUITE_S = 280


class Mounted:
    def __init__(self, cluster: LocalCluster, point: Path) -> None:
        self.point = point
        point.mkdir(parents=True)
        read_end, write_end = os.pipe()
        command = [sys.executable, "-m", "fireflyfs.client.cli.main", "--mgmtd", ",".join(cluster.mgmtd_addresses())]
        command += ["mount", str(point), f"--ready-fd={write_end}", f"--log-file={point}.log"]
        self.process = subprocess.Popen(command, pass_fds=[write_end], cwd="/")
        os.close(write_end)
        with open(read_end, "rb") as ready:
            assert ready.readline() == b"ready\n"

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            if device.is_mounted(self.point):
                device.unmount(self.point, force=True)


@pytest.fixture(scope="module")
def mounts(cluster: LocalCluster) -> Iterator[tuple[Mounted, Mounted]]:
    made: list[Mounted] = []
    with reachable_folder("semantics-cluster") as base:
        try:
            for name in ("one", "two"):
                made.append(Mounted(cluster, base / name))
            yield made[0], made[1]
        finally:
            for mounted in made:
                mounted.end()


@pytest.fixture
def fs(cluster: LocalCluster) -> Iterator[FileSystem]:
    with FileSystem.connect(cluster.mgmtd_addresses()) as connected:
        yield connected


@pytest.mark.slow
@pytest.mark.timeout(SUITE_S + 20)
def test_the_suite_of_semantics(mounts: tuple[Mounted, Mounted]) -> None:
    folder = mounts[0].point / "suite"
    folder.mkdir(mode=0o777)
    environment = {**os.environ, "FFS_SEMANTICS_DIR": str(folder), "PYTHONSAFEPATH": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    done = subprocess.run(
        [*command, str(TESTS / "semantics")],
        env=environment, cwd=TESTS.parent, capture_output=True, text=True, timeout=SUITE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_the_library_and_two_mounts_see_the_same_attributes(mounts: tuple[Mounted, Mounted], fs: FileSystem) -> None:
    one, two = mounts[0].point, mounts[1].point
    (one / "shared").write_bytes(b"x")
    os.setxattr(one / "shared", "user.a", b"from one")
    assert fs.getxattr("/shared", "user.a") == b"from one"
    assert os.getxattr(two / "shared", "user.a") == b"from one"
    fs.setxattr("/shared", "user.b", b"from the library", os.XATTR_CREATE)
    with pytest.raises(FileExistsError):
        fs.setxattr("/shared", "user.b", b"", os.XATTR_CREATE)
    time.sleep(1.1)  # as long as attributes may be believed: one knew that there was no such attribute
    assert os.getxattr(one / "shared", "user.b") == b"from the library"
    assert sorted(fs.listxattr("/shared")) == ["user.a", "user.b"]
    fs.removexattr("/shared", "user.a")
    with pytest.raises(OSError, match="shared") as caught:
        fs.removexattr("/shared", "user.a")
    assert caught.value.errno == errno.ENODATA
    fs.symlink("shared", "/soft")
    fs.setxattr("/soft", "trusted.a", b"1", follow_symlinks=False)
    assert fs.listxattr("/soft", follow_symlinks=False) == ["trusted.a"]
    assert fs.listxattr("/soft") == ["user.b"]


def test_asyncio(cluster: LocalCluster, mounts: tuple[Mounted, Mounted]) -> None:
    async def body() -> None:
        async with await AsyncFileSystem.connect(cluster.mgmtd_addresses()) as afs:
            await afs.write_bytes("/async", b"x")
            await afs.setxattr("/async", "user.a", b"1")
            assert await afs.getxattr("/async", "user.a") == b"1"
            assert await afs.listxattr("/async") == ["user.a"]
            await afs.removexattr("/async", "user.a")
            assert await afs.listxattr("/async") == []

    asyncio.run(body())


def test_acls_count_for_the_library_too(mounts: tuple[Mounted, Mounted], cluster: LocalCluster, fs: FileSystem) -> None:
    folder = mounts[0].point / "closed"
    folder.mkdir(mode=0o700)
    (folder / "f").write_bytes(b"x")
    (folder / "f").chmod(0o600)
    subprocess.run(["setfacl", "-R", "-m", "u:1002:rwX", str(folder)], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1002:rwx", str(folder)], check=True)
    read = """
import sys
from fireflyfs.client.filesystem import FileSystem
with FileSystem.connect(sys.argv[1]) as fs:
    print(fs.read_bytes("/closed/f"))
    fs.write_bytes("/closed/g", b"")
"""
    command = [sys.executable, "-c", read, ",".join(cluster.mgmtd_addresses())]
    for uid, allowed in ((1002, True), (1003, False)):
        done = subprocess.run(
            ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *command],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode == 0) == allowed, done.stderr
        assert allowed or "PermissionError" in done.stderr
    assert fs.stat("/closed/g").st_mode & 0o777 == 0o660  # the default ACL takes the umask's place
    assert "system.posix_acl_access" in fs.listxattr("/closed/g")
