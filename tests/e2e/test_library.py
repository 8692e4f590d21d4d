"""The library against a real local cluster: processes, sockets, disks; and what dies among them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import re
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fireflyfs.client.aio import AsyncFileSystem
from fireflyfs.client.file import File
from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.mgmtd_client import MgmtdClient
from fireflyfs.deploy.local import LocalCluster
from fireflyfs.proto import mgmtd_pb2

pytestmark = pytest.mark.e2e

MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    local = LocalCluster(tmp_path_factory.mktemp("cluster"))
    local.create()
    local.up()
    yield local
    local.down()


@pytest.fixture(scope="module")
def mgmtd(cluster: LocalCluster) -> str:
    return ",".join(cluster.mgmtd_addresses())


@pytest.fixture
def fs(mgmtd: str) -> Iterator[FileSystem]:
    with FileSystem.connect(mgmtd) as connected:
        yield connected


@pytest.fixture
def other(mgmtd: str) -> Iterator[FileSystem]:
    with FileSystem.connect(mgmtd) as connected:
        yield connected


@pytest.fixture
def folder(fs: FileSystem, request: pytest.FixtureRequest) -> str:
    path = "/" + re.sub(r"\W", "_", request.node.name)
    fs.makedirs(path, exist_ok=True)
    return path


def test_the_documented_examples(fs: FileSystem, mgmtd: str) -> None:
    text = (ROOT / "docs" / "library.md").read_text()
    names: dict[str, Any] = {"mgmtd": mgmtd}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "docs/library.md", "exec"), names)
        names["fs"] = fs  # the first example closes its own


def test_names_and_attributes(fs: FileSystem, folder: str) -> None:
    fs.makedirs(f"{folder}/a/b/c")
    fs.write_bytes(f"{folder}/a/file", b"hello")
    fs.symlink("file", f"{folder}/a/link")
    fs.link(f"{folder}/a/file", f"{folder}/a/hard")
    assert sorted(fs.listdir(f"{folder}/a")) == ["b", "file", "hard", "link"]
    for hold in (True, False):
        with pytest.raises(IsADirectoryError):
            fs.open_file(f"{folder}/a", hold=hold)
    assert fs.readlink(f"{folder}/a/link") == "file"
    assert fs.read_bytes(f"{folder}/a/link") == b"hello"
    found = fs.stat(f"{folder}/a/hard")
    assert (found.st_size, found.st_nlink, stat.S_ISREG(found.st_mode)) == (5, 2, True)
    assert fs.islink(f"{folder}/a/link")
    fs.chmod(f"{folder}/a/file", 0o640)
    fs.utime(f"{folder}/a/file", ns=(5, 7))
    found = fs.stat(f"{folder}/a/file")
    assert (found.st_mode & 0o7777, found.st_atime_ns, found.st_mtime_ns) == (0o640, 5, 7)
    fs.rename(f"{folder}/a/file", f"{folder}/a/moved")
    assert fs.realpath(f"{folder}/a/b/../moved") == f"{folder}/a/moved"
    entries = {entry.name: entry for entry in fs.scandir(f"{folder}/a")}
    assert entries["b"].is_dir()
    assert entries["moved"].stat().st_size == 5
    assert [top for top, _, _ in fs.walk(folder)] == [folder, f"{folder}/a", f"{folder}/a/b", f"{folder}/a/b/c"]
    with pytest.raises(OSError, match="not empty") as caught:
        fs.rmdir(f"{folder}/a")
    assert caught.value.errno == errno.ENOTEMPTY
    with pytest.raises(FileNotFoundError) as missing:
        fs.open(f"{folder}/nothing")
    assert missing.value.filename == f"{folder}/nothing"
    fs.rmtree(f"{folder}/a")
    assert fs.listdir(folder) == []
    assert fs.statvfs("/").f_blocks > 0


def test_a_large_file_and_random_access(fs: FileSystem, folder: str) -> None:
    rng = random.Random(11)
    model = bytearray(rng.randbytes(9 * MIB + 12345))
    with fs.open(f"{folder}/f", "wb+", buffering=0) as file:
        file.write(model)
        for _ in range(150):
            offset = rng.randrange(0, 10 * MIB)
            if rng.random() < 0.5:
                data = rng.randbytes(rng.choice([1, 100, 4096, 70_000, 1_500_000]))
                model.extend(bytes(max(0, offset + len(data) - len(model))))
                model[offset : offset + len(data)] = data
                file.pwrite(data, offset)
            else:
                size = rng.choice([1, 4096, 300_000, 2_000_000])
                assert file.pread(size, offset) == model[offset : offset + size]
    assert fs.read_bytes(f"{folder}/f") == model


def test_truncation_both_ways(fs: FileSystem, other: FileSystem, folder: str) -> None:
    path = f"{folder}/f"
    with fs.open(path, "wb+", buffering=0) as file:
        file.write(b"x" * (3 * MIB))
        file.truncate(MIB + 100)
        assert other.getsize(path) == MIB + 100
        file.truncate(2 * MIB)
        assert file.pread(MIB, MIB) == b"x" * 100 + bytes(MIB - 100)
        file.truncate(0)
        file.pwrite(b"end", 10)
    assert other.read_bytes(path) == bytes(10) + b"end"
    other.truncate(path, 11)
    assert fs.read_bytes(path) == bytes(10) + b"e"


def test_a_sparse_file_at_two_to_the_forty(fs: FileSystem, folder: str) -> None:
    with fs.open(f"{folder}/sparse", "wb+", buffering=0) as file:
        file.pwrite(b"far", 1 << 40)
        assert file.pread(10, 1 << 40) == b"far"
        assert file.pread(100, 1 << 39) == bytes(100)
        assert file.pread(8, (1 << 40) - 5) == bytes(5) + b"far"
    assert fs.getsize(f"{folder}/sparse") == (1 << 40) + 3
    fs.truncate(f"{folder}/sparse", 5)
    assert fs.read_bytes(f"{folder}/sparse") == bytes(5)


def test_batches(fs: FileSystem, folder: str) -> None:
    rng = random.Random(2)
    datas = [rng.randbytes(rng.randrange(0, 30_000)) for _ in range(60)]
    files = [fs.open_file(f"{folder}/{n}", os.O_RDWR | os.O_CREAT) for n in range(60)]
    fs.write_batch([(file, 0, data) for file, data in zip(files, datas, strict=True)])
    memory = fs.allocate(60 * 32768)
    counts = fs.read_batch([(file, 0, memory.slice(n * 32768, 32768)) for n, file in enumerate(files)])
    assert counts == [len(data) for data in datas]
    for n, data in enumerate(datas):
        assert memory.view[n * 32768 : n * 32768 + len(data)] == data
    for file in files:
        file.close()
    assert fs.read_files([f"{folder}/{n}" for n in range(60)]) == datas
    stats = fs.stat_batch([f"{folder}/{n}" for n in range(60)] + [f"{folder}/no"])
    assert [s.st_size for s in stats[:60] if isinstance(s, os.stat_result)] == [len(data) for data in datas]
    assert isinstance(stats[60], FileNotFoundError)


def test_blocks(fs: FileSystem, folder: str) -> None:
    data = random.Random(3).randbytes(16 * MIB)
    fs.write_bytes(f"{folder}/f", data)
    offsets = np.random.default_rng(4).integers(0, 16 * MIB // 4096, 1000) * 4096
    memory = fs.allocate(1000 * 4096)
    with fs.open_file(f"{folder}/f") as file:
        assert fs.read_blocks(file, offsets, 4096, memory.slice(0, 1000 * 4096)).sum() == 1000 * 4096
    assert memory.view == b"".join(data[o : o + 4096] for o in offsets.tolist())


def test_tcp_gives_the_same(mgmtd: str, fs: FileSystem, folder: str) -> None:
    data = random.Random(5).randbytes(5 * MIB + 1)
    with FileSystem.connect(mgmtd, shared_memory=False) as remote:
        remote.write_bytes(f"{folder}/f", data)
        assert fs.read_bytes(f"{folder}/f") == data
        assert remote.read_bytes(f"{folder}/f") == data


def test_close_to_open(fs: FileSystem, other: FileSystem, folder: str) -> None:
    path = f"{folder}/f"
    for turn in range(20):
        writer, reader = (fs, other) if turn % 2 else (other, fs)
        with writer.open(path, "ab") as file:
            file.write(b"turn %02d\n" % turn)
        assert reader.read_bytes(path) == b"".join(b"turn %02d\n" % n for n in range(turn + 1))


def test_a_removed_file_lives_while_it_is_open(fs: FileSystem, other: FileSystem, folder: str) -> None:
    fs.write_bytes(f"{folder}/f", b"x" * MIB)
    with fs.open_file(f"{folder}/f") as file:
        other.unlink(f"{folder}/f")
        time.sleep(0.5)
        assert file.pread(2 * MIB, 0) == b"x" * MIB


def test_many_threads(fs: FileSystem, folder: str) -> None:
    def work(number: int) -> None:
        rng = random.Random(number)
        path = f"{folder}/{number}"
        data = rng.randbytes(2 * MIB)
        with fs.open_file(path, os.O_RDWR | os.O_CREAT) as file:
            for offset in range(0, len(data), 131072):
                file.pwrite(data[offset : offset + 131072], offset)
            for _ in range(50):
                offset = rng.randrange(len(data))
                assert file.pread(5000, offset) == data[offset : offset + 5000]
        assert fs.read_bytes(path) == data
        fs.unlink(path)

    in_threads(16, work)
    assert fs.listdir(folder) == []


def test_threads_on_one_file(fs: FileSystem, folder: str) -> None:
    with fs.open_file(f"{folder}/f", os.O_RDWR | os.O_CREAT) as file:

        def work(number: int) -> None:
            for turn in range(20):
                file.pwrite(bytes([number]) * 1000, (turn * 8 + number) * 1000)

        in_threads(8, work)
        assert file.pread(160_000, 0) == b"".join(bytes([n]) * 1000 for _ in range(20) for n in range(8))


def test_asyncio(mgmtd: str, folder: str) -> None:
    async def main() -> None:
        async with await AsyncFileSystem.connect(mgmtd) as afs:
            await asyncio.gather(*(afs.write_bytes(f"{folder}/{n}", b"%d" % n) for n in range(50)))
            assert await afs.read_files([f"{folder}/{n}" for n in range(50)]) == [b"%d" % n for n in range(50)]
            async with await afs.open(f"{folder}/f", os.O_RDWR | os.O_CREAT) as file:
                await asyncio.gather(*(file.pwrite(b"%04d" % n, n * 4) for n in range(200)))
                assert await file.pread(800, 0) == b"".join(b"%04d" % n for n in range(200))
            assert (await afs.stat(f"{folder}/f")).st_size == 800
            assert len([entry async for entry in afs.scandir(folder)]) == 51

    asyncio.run(main())


def test_a_fork_must_connect_again(fs: FileSystem, mgmtd: str) -> None:
    child = os.fork()
    if child == 0:
        try:
            fs.stat("/")
        except OSError as exc:
            os._exit(0 if "connect again" in str(exc) else 2)
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert fs.exists("/")


class Load:
    """Threads that write and read back until they are stopped; every byte is known."""

    def __init__(self, fs: FileSystem, folder: str, threads: int = 3) -> None:
        self.fs = fs
        self.folder = folder
        self.turns = [0] * threads
        self.problems: list[BaseException] = []
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(n,)) for n in range(threads)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()
        if self.problems:
            raise self.problems[0]

    def run(self, number: int) -> None:
        rng = random.Random(number)
        try:
            with self.fs.open_file(f"{self.folder}/load{number}", os.O_RDWR | os.O_CREAT) as file:
                model = bytearray(4 * MIB)
                file.write(model)
                while not self.stop.is_set():
                    self.turn(rng, file, model)
                    self.turns[number] += 1
            assert self.fs.read_bytes(f"{self.folder}/load{number}") == model
        except BaseException as exc:
            self.problems.append(exc)

    def turn(self, rng: random.Random, file: File, model: bytearray) -> None:
        offset = rng.randrange(len(model) - 100_000)
        data = rng.randbytes(rng.choice([100, 4096, 100_000]))
        model[offset : offset + len(data)] = data
        file.pwrite(data, offset)
        offset = rng.randrange(len(model) - 100_000)
        assert file.pread(65536, offset) == model[offset : offset + 65536]

    def wait_turns(self, more: int, timeout_s: float = 60) -> None:
        """Until every thread has made that many more turns."""
        wanted = [turn + more for turn in self.turns]
        deadline = time.monotonic() + timeout_s
        while any(turn < want for turn, want in zip(self.turns, wanted, strict=True)):
            assert not self.problems, self.problems
            assert time.monotonic() < deadline, f"no progress: {self.turns}, wanted {wanted}"
            time.sleep(0.05)


@pytest.mark.parametrize("name", ["storage-1", "storage-2", "storage-3"])
def test_a_storage_node_dies_under_load(cluster: LocalCluster, fs: FileSystem, folder: str, name: str) -> None:
    with Load(fs, folder) as load:
        load.wait_turns(5)
        cluster.kill(name, signal.SIGKILL)
        load.wait_turns(20)
        cluster.restart(name)
        load.wait_turns(20)
        wait_all_serving(fs)
        load.wait_turns(5)


@pytest.mark.parametrize("name", ["mgmtd", "meta"])
def test_a_manager_dies_under_load(cluster: LocalCluster, fs: FileSystem, folder: str, name: str) -> None:
    with Load(fs, folder) as load:
        load.wait_turns(5)
        cluster.kill(name, signal.SIGKILL)
        worker = threading.Thread(target=fs.write_bytes, args=(f"{folder}/meanwhile", b"x" * 100_000))
        worker.start()
        time.sleep(1.0)
        cluster.restart(name)
        worker.join(60)
        assert fs.read_bytes(f"{folder}/meanwhile") == b"x" * 100_000
        load.wait_turns(10)


def test_a_storage_node_hangs_under_load(cluster: LocalCluster, fs: FileSystem, folder: str) -> None:
    stopped = processes_of(cluster, "storage-2")
    with Load(fs, folder) as load:
        load.wait_turns(5)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            load.wait_turns(20)
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        load.wait_turns(20)
        wait_all_serving(fs)


def test_the_lease_is_held_and_given_back(mgmtd: str) -> None:
    with contextlib.closing(MgmtdClient(mgmtd.split(","))) as manager:

        def held() -> set[bytes]:
            return {s.client_id for s in manager.list_sessions(mgmtd_pb2.ListSessionsRequest()).sessions}

        with FileSystem.connect(mgmtd) as fs:
            client_id = bytes(fs.context.client_id)
            assert client_id in held()
        assert client_id not in held()


def processes_of(cluster: LocalCluster, name: str) -> list[int]:
    """The supervisor of a storage node and its workers."""
    found = [status.pid for status in cluster.status() if status.name == name and status.pid]
    for pid in list(found):
        found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    assert len(found) >= 2
    return found


def wait_all_serving(fs: FileSystem, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        chains = fs.context.routing.current().chains.values()
        if all(len(chain.serving) == len(chain.targets) for chain in chains):
            return
        assert time.monotonic() < deadline, [chain.targets for chain in chains]
        time.sleep(0.1)


def in_threads(count: int, work: Callable[[int], None]) -> None:
    problems: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as exc:
            problems.append(exc)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
