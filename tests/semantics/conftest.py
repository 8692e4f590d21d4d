"""Every test here runs on ext4 and on a mount of FireflyFS: what it asserts is what Linux does, or ext4 fails it too.

FFS_SEMANTICS_DIR names a directory of a mounted cluster to run on instead (tests/e2e/test_cluster_semantics.py).
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reachable import reachable_folder

HERE = os.environ.get("FFS_SEMANTICS_DIR", "")
SYSTEMS = ("fireflyfs",) if HERE else ("ext4", "fireflyfs")
IMAGE_BYTES = 2 << 30  # sparse; what all tests leave
INODES = 400_000
_numbers = itertools.count()
TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> str:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs root and /dev/fuse")
    return str(request.param)


@contextmanager
def mounted(system: str) -> Iterator[Path]:
    """The top of an empty file system of that kind."""
    if HERE and system == "fireflyfs":
        yield Path(HERE)
        return
    with reachable_folder(f"semantics-{system}") as base:
        point = base / "mnt"
        point.mkdir()
        if system == "ext4":
            image = base / "image"
            with image.open("wb") as file:
                file.truncate(IMAGE_BYTES)
            subprocess.run(["mkfs.ext4", "-q", "-N", str(INODES), str(image)], check=True)
            subprocess.run(["mount", "-o", "loop,acl,user_xattr,nosuid,nodev", str(image), str(point)], check=True)
            try:
                yield point
            finally:
                subprocess.run(["umount", "-l", str(point)], check=True)
        else:
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", str(TESTS))]),
            }
            command = [sys.executable, "-m", "semantics.memory_mount", str(point)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd="/")
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            try:
                yield point
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    subprocess.run(["umount", "-lf", str(point)], check=False)


@pytest.fixture(scope="session")
def top(system: str) -> Iterator[Path]:
    with mounted(system) as point:
        yield point


@pytest.fixture(scope="session")
def both() -> Iterator[tuple[Path, Path]]:
    """The tops of an ext4 file system and of a mount, to do the same on."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs root and /dev/fuse")
    with mounted("ext4") as reference, mounted("fireflyfs") as ours:
        yield reference, ours


@pytest.fixture
def root(top: Path) -> Iterator[Path]:
    """An empty folder of this test's own, open to all."""
    folder = top / f"t{next(_numbers)}-{os.getpid()}"  # short: the path of a socket has no more than 107 bytes
    folder.mkdir()
    folder.chmod(0o777)
    before = os.getcwd()
    umask = os.umask(0)
    try:
        yield folder
    finally:
        os.umask(umask)
        os.chdir(before)
        if HERE:  # else the whole file system goes, and a hundred thousand names need not be removed one by one
            shutil.rmtree(folder, ignore_errors=True)
