"""Real clusters for end-to-end tests, each with a cluster id and a folder of its own."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.fsspec import FireflyFileSystem
from fireflyfs.common.limits import GiB
from fireflyfs.deploy.local import ClusterSpec, LocalCluster
from fireflyfs.fuse import device

CAPACITY_BYTES = 4 * GiB  # of each target; tests share a disk

ClusterFactory = Callable[..., LocalCluster]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """One cluster for all tests that leave it as they found it: everything serving."""
    local = LocalCluster(tmp_path_factory.mktemp("cluster"))
    local.create(ClusterSpec(capacity_bytes=CAPACITY_BYTES))
    try:
        local.up()
        yield local
    finally:
        local.down()


@pytest.fixture
def cluster_factory(tmp_path: Path) -> Iterator[ClusterFactory]:
    """Makes clusters for one test: `cluster_factory(storage_nodes=1, replicas=1)`. They are up, and go at its end."""
    made: list[LocalCluster] = []

    def make(**choices: object) -> LocalCluster:
        local = LocalCluster(tmp_path / f"cluster-{len(made) + 1}")
        spec = {"capacity_bytes": CAPACITY_BYTES} | choices
        local.create(ClusterSpec(**spec))  # type: ignore[arg-type]
        made.append(local)
        local.up()
        return local

    try:
        yield make
    finally:
        for local in made:
            local.down()


@pytest.fixture
def own_cluster(cluster_factory: ClusterFactory) -> LocalCluster:
    """A cluster for one test, which may do to it what it likes."""
    return cluster_factory()


def _ffs_json(cluster: LocalCluster, *arguments: object, code: int = 0) -> Any:
    command = [sys.executable, "-P", "-m", "fireflyfs.client.cli.main", "--root", str(cluster.root), "--json"]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"
    return json.loads(done.stdout) if done.stdout else done.stderr


@pytest.fixture
def ffs_json() -> Callable[..., Any]:
    """ffs_json(cluster, *arguments, code=0): what `ffs --json` answers, or its error line where it answers nothing."""
    return _ffs_json


class Mounted:
    """A mount of `cluster` at `point`, in its own process."""

    def __init__(self, cluster: LocalCluster, point: Path, *options: str) -> None:
        self.point = point
        self.log = point.with_suffix(".log")
        read_end, write_end = os.pipe()
        command = [sys.executable, "-m", "fireflyfs.client.cli.main", "--mgmtd", ",".join(cluster.mgmtd_addresses())]
        command += ["mount", str(point), f"--ready-fd={write_end}", f"--log-file={self.log}", *options]
        self.process = subprocess.Popen(command, pass_fds=[write_end], cwd="/")
        os.close(write_end)
        with open(read_end, "rb") as ready:
            assert ready.readline() == b"ready\n", self.log.read_text() if self.log.exists() else "no log"

    def resident_bytes(self) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssShmem:")):
                name, kib, _ = line.split()
                if name == "RssAnon:":
                    anonymous = int(kib)
                else:
                    return (anonymous + int(kib)) * 1024
        raise AssertionError("no memory figures")

    def kill(self) -> None:
        """As a machine that dies: nothing is stored, told or given back."""
        self.process.kill()
        self.process.wait()
        device.unmount(self.point, force=True)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                number = device.device_number(self.point)
                if number is not None:
                    device.abort_connection(number)
                self.process.kill()
                self.process.wait()
        if device.is_mounted(self.point):
            with contextlib.suppress(OSError):
                device.unmount(self.point, force=True)


@pytest.fixture
def mount_of(tmp_path: Path) -> Iterator[Callable[..., Mounted]]:
    """mount_of(cluster, *options): a mount of a cluster for one test; in `folder`, where pytest's own will not do."""
    made: list[Mounted] = []

    def make(cluster: LocalCluster, *options: str, folder: Path | None = None) -> Mounted:
        point = (folder or tmp_path) / f"point{len(made)}"
        point.mkdir()
        made.append(Mounted(cluster, point, *options))
        return made[-1]

    yield make
    for mounted in made:
        mounted.end()
    assert not [mounted.point for mounted in made if device.is_mounted(mounted.point)]


class Program:
    """A Python process of its own that runs lines and answers with their last expression's value, or its errno.

    So that a test holds locks, descriptors and mappings in several processes at a time.
    """

    SCRIPT = (
        "import ast, ctypes, errno, fcntl, mmap, os, signal, struct, sys, threading, time\n"
        "names = globals()\n"
        "for line in sys.stdin:\n"
        "    try:\n"
        "        tree = ast.parse(eval(line))\n"
        "        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None\n"
        "        exec(compile(tree, 'test', 'exec'), names)\n"
        "        value = eval(compile(ast.Expression(last.value), 'test', 'eval'), names) if last else None\n"
        "        print(repr(('ok', value)), flush=True)\n"
        "    except OSError as exc:\n"
        "        print(repr(('errno', exc.errno)), flush=True)\n"
        "    except BaseException as exc:\n"
        "        print(repr(('failed', repr(exc))), flush=True)\n"
    )

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", self.SCRIPT],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd="/",
        )  # fmt: skip
        self.pid = self.process.pid

    def send(self, lines: str) -> None:
        """Begin, without waiting for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(repr(lines) + "\n")
        self.process.stdin.flush()

    def answered(self, within_s: float = 0.0) -> bool:
        """Whether the answer is there, or comes in time."""
        return bool(select.select([self.process.stdout], [], [], within_s)[0])

    def answer(self, within_s: float = 60.0) -> Any:
        """The value; an OSError is raised here with its errno."""
        assert self.answered(within_s), "no answer"
        assert self.process.stdout is not None
        kind, value = ast.literal_eval(self.process.stdout.readline())
        if kind == "errno":
            raise OSError(value, os.strerror(value))
        assert kind == "ok", value
        return value

    def __call__(self, lines: str, within_s: float = 60.0) -> Any:
        self.send(lines)
        return self.answer(within_s)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def programs() -> Iterator[Callable[..., Program]]:
    """programs(): a new process that does what it is told; `**names` are set in it first."""
    made: list[Program] = []

    def make(**names: object) -> Program:
        made.append(Program())
        for name, value in names.items():
            made[-1](f"{name} = {value!r}")
        return made[-1]

    yield make
    for program in made:
        program.end()


RING_PROGRAM = """
from multiprocessing.shared_memory import SharedMemory
import hf3fs_fuse.io as io
shm = SharedMemory(create=True, size=region_bytes)
region = io.make_iovec(shm, point)
shm.unlink()
rings = {}
files = {}
def ring(read, entries=128, **options):
    key = (read, entries, *options.items())
    if key not in rings:
        rings[key] = io.make_ioring(point, entries, read, **options)
    return rings[key]
def opened(name, flags=os.O_RDONLY):
    if (name, flags) not in files:
        files[name, flags] = os.open(f"{point}/{name}", flags, 0o644)
        io.register_fd(files[name, flags])
    return files[name, flags]
def move(read, name, ios, how=None, **options):
    # (region offset, length, file offset) each; the results in order
    how = how if how is not None else os.O_RDONLY if read else os.O_RDWR | os.O_CREAT
    fd, r = opened(name, how), ring(read, **options)
    for at, length, offset in ios:
        r.prepare(region[at:at + length], read, fd, offset, userdata=(at, length, offset))
    done = r.submit().wait(min_results=len(ios))
    assert [piece.userdata for piece in done] == list(ios)
    return [piece.result for piece in done]
def closed(name):
    for key in [key for key in files if key[0] == name]:
        fd = files.pop(key)
        io.deregister_fd(fd)
        os.close(fd)
"""


@pytest.fixture
def ring_programs(programs: Callable[..., Program]) -> Callable[..., Program]:
    """ring_programs(point, region_bytes=...): a process with a region and what it takes to move bytes through it."""

    def make(point: Path, region_bytes: int = 16 << 20, **names: object) -> Program:
        program = programs(point=str(point), region_bytes=region_bytes, **names)
        program(f"sys.path[:0] = {[entry for entry in sys.path if entry]!r}")
        program(RING_PROGRAM)
        return program

    return make


@pytest.fixture(scope="module")
def mgmtd(cluster: LocalCluster) -> Iterator[str]:
    """The managers of `cluster`, as a URL for fsspec names them; the connection to it goes with the module's tests."""
    managers = ",".join(cluster.mgmtd_addresses())
    yield managers
    FireflyFileSystem(mgmtd=managers).disconnect()


@pytest.fixture
def fs(mgmtd: str) -> FireflyFileSystem:
    """`cluster` through fsspec."""
    return FireflyFileSystem(mgmtd=mgmtd)


@pytest.fixture
def folder(fs: FireflyFileSystem, request: pytest.FixtureRequest) -> Iterator[str]:
    """A directory of `cluster` for one test."""
    path = "/" + re.sub(r"\W", "_", request.node.name)
    fs.makedirs(path)
    yield path
    fs.rm(path, recursive=True)


@pytest.fixture
def other(mgmtd: str) -> Iterator[FileSystem]:
    """Another client, with a connection of its own."""
    with FileSystem.connect(mgmtd) as connected:
        yield connected


@pytest.fixture
def loop_mounts(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Mounts an image file by loop; unmounts all at the end."""
    mounted: list[Path] = []

    def mount(image: Path) -> Path:
        point = tmp_path / f"mount-{image.name}"
        point.mkdir()
        subprocess.run(["mount", "-o", "loop", image, point], check=True)
        mounted.append(point)
        return point

    yield mount
    for point in mounted:
        subprocess.run(["umount", point], check=False)


@pytest.fixture
def make_image() -> Callable[[Path, int], Path]:
    """make_image(path, bytes): a file that holds an empty file system."""

    def make(path: Path, nbytes: int) -> Path:
        with path.open("wb") as file:
            file.truncate(nbytes)
        subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True)
        return path

    return make
