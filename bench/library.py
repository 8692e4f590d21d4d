"""The library against a local cluster: 4 KiB batches, 1 MiB reads and writes, metadata calls; each beside its peer.

    python bench/library.py [--mgmtd HOST:PORT,...] [--seconds 3] [--json]

Without --mgmtd it starts a cluster of its own in a temporary folder. The peers run in the same process on one disk:
`preadv` of the same blocks from a cached local file, in the same pattern, and `pwrite` to a local file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.proto.common_pb2 import Layout

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
FILE_BYTES = 256 * MIB
WARM_PASSES = 8  # each reads from any replica: after so many nearly all of them have nearly all of it cached
BATCH = 128


@dataclass(frozen=True)
class Row:
    """One figure and its peer's."""

    name: str
    value: float
    unit: str
    peer: float = 0.0
    peer_name: str = ""
    floor: str = ""

    def line(self) -> str:
        ratio = f"{self.value / self.peer:6.2f} x {self.peer_name} ({self.peer:,.2f})" if self.peer else ""
        floor = f"  at least {self.floor}" if self.floor else ""
        return f"{self.name:44s} {self.value:12,.2f} {self.unit:6s} {ratio}{floor}"


def rate(work: Callable[[], float], seconds: float) -> float:
    """Units a second; the median of five parts, after one round to warm up."""
    work()
    parts = []
    for _ in range(5):
        began = time.perf_counter()
        done = 0.0
        while time.perf_counter() - began < seconds / 5:
            done += work()
        parts.append(done / (time.perf_counter() - began))
    return statistics.median(parts)


@contextlib.contextmanager
def own_cluster() -> Iterator[str]:
    from fireflyfs.deploy.local import LocalCluster

    root = Path(tempfile.mkdtemp(prefix="ffs-bench-"))
    cluster = LocalCluster(root)
    cluster.create()
    cluster.up()
    try:
        yield ",".join(cluster.mgmtd_addresses())
    finally:
        cluster.down()
        shutil.rmtree(root, ignore_errors=True)


def bulk_rows(fs: FileSystem, link: str, local: Path, seconds: float) -> list[Row]:
    """Reads and writes of one file over one link."""
    rows = []
    rng = np.random.default_rng(1)
    block = np.random.default_rng(2).bytes(8 * MIB)
    path = f"/bench-{link}"
    local_fd = os.open(local, os.O_RDWR | os.O_CREAT, 0o600)
    for offset in range(0, FILE_BYTES, len(block)):
        os.pwrite(local_fd, block, offset)
    memory = fs.allocate(16 * MIB)
    memory.view[: 8 * MIB] = block
    private = memoryview(bytearray(16 * MIB))
    with fs.open_file(
        path, os.O_RDWR | os.O_CREAT, layout=Layout(chunk_size=MIB, stripe_size=8, chain_table=1)
    ) as file:
        for offset in range(0, FILE_BYTES, len(block)):
            file.pwrite(memory.slice(0, len(block)), offset)

        def blocks() -> float:
            offsets = rng.integers(0, FILE_BYTES // 4096, BATCH) * 4096
            fs.read_blocks(file, offsets, 4096, memory.slice(0, BATCH * 4096))
            return BATCH

        def blocks_local() -> float:
            for at, offset in enumerate((rng.integers(0, FILE_BYTES // 4096, BATCH) * 4096).tolist()):
                os.preadv(local_fd, [private[at * 4096 : at * 4096 + 4096]], offset)
            return BATCH

        def one() -> float:
            file.readinto_at(memory.slice(0, 4096), int(rng.integers(0, FILE_BYTES // 4096)) * 4096)
            return 1

        # Written a MiB at a time it is on the disk and not in the page cache.
        file.fsync()
        rows.append(Row(f"{link}: 4 KiB random reads, batch {BATCH}, from disk at first", rate(blocks, seconds), "/s"))
        for _ in range(WARM_PASSES):
            for offset in range(0, FILE_BYTES, len(block)):
                file.readinto_at(memory.slice(0, len(block)), offset)
        peer = rate(blocks_local, seconds)
        value = rate(blocks, seconds)
        rows.append(Row(f"{link}: 4 KiB random reads, batch {BATCH}", value, "/s", peer, "preadv", "60,000 /s"))
        rows.append(Row(f"{link}: 4 KiB random reads, one by one", rate(one, seconds), "/s"))

        def reader(size: int) -> Callable[[], float]:
            def work() -> float:
                offset = int(rng.integers(0, (FILE_BYTES - size) // MIB + 1)) * MIB
                return file.readinto_at(memory.slice(0, size), offset) / GIB

            return work

        def reader_local(size: int) -> Callable[[], float]:
            def work() -> float:
                offset = int(rng.integers(0, (FILE_BYTES - size) // MIB + 1)) * MIB
                return os.preadv(local_fd, [private[:size]], offset) / GIB

            return work

        for size in (MIB, 8 * MIB):
            value, peer = rate(reader(size), seconds), rate(reader_local(size), seconds)
            rows.append(Row(f"{link}: {size // MIB} MiB random reads", value, "GiB/s", peer, "preadv"))

        def writer(size: int) -> Callable[[], float]:
            def work() -> float:
                offset = int(rng.integers(0, (FILE_BYTES - size) // MIB + 1)) * MIB
                return file.pwrite(memory.slice(0, size), offset) / GIB

            return work

        def writer_local(size: int) -> Callable[[], float]:
            def work() -> float:
                offset = int(rng.integers(0, (FILE_BYTES - size) // MIB + 1)) * MIB
                return os.pwrite(local_fd, private[:size], offset) / GIB

            return work

        for size in (MIB, 8 * MIB):
            value, peer = rate(writer(size), seconds), rate(writer_local(size), seconds)
            rows.append(Row(f"{link}: {size // MIB} MiB writes, all replicas", value, "GiB/s", peer, "pwrite to cache"))

        def small_writes() -> float:
            offsets = rng.integers(0, FILE_BYTES // 4096, BATCH) * 4096
            return file.pwrite_many([(memory.slice(0, 4096), offset) for offset in offsets.tolist()]) / 4096

        rows.append(Row(f"{link}: 4 KiB random writes, batch {BATCH}", rate(small_writes, seconds), "/s"))
    os.close(local_fd)
    fs.unlink(path)
    memory.close()
    return rows


def name_rows(fs: FileSystem, seconds: float) -> list[Row]:
    """Metadata calls, one after the other and batched."""
    fs.makedirs("/bench-names", exist_ok=True)
    numbers = iter(range(1 << 40))

    def create() -> float:
        fs.open_file(f"/bench-names/{next(numbers)}", os.O_WRONLY | os.O_CREAT | os.O_EXCL).close()
        return 1

    def stat() -> float:
        fs.stat("/bench-names/0")
        return 1

    paths = [f"/bench-names/{n}" for n in range(BATCH)]

    def stat_batch() -> float:
        return len(fs.stat_batch(paths))

    rows = [
        Row("create and close, one client", rate(create, seconds), "/s", floor="5,000 /s"),
        Row("stat, one client", rate(stat, seconds), "/s", floor="20,000 /s"),
        Row(f"stat, batch {BATCH}", rate(stat_batch, seconds), "/s"),
    ]
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            fs.write_bytes(path, b"x" * 4096)
    rows.append(Row(f"whole 4 KiB files, batch {BATCH}", rate(lambda: len(fs.read_files(paths)), seconds), "/s"))
    fs.rmtree("/bench-names")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mgmtd", default="")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each figure")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        mgmtd = options.mgmtd or stack.enter_context(own_cluster())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ffs-bench-local-")))
        for link, shared in (("shm", True), ("tcp", False)):
            with FileSystem.connect(mgmtd, shared_memory=shared) as fs:
                rows += bulk_rows(fs, link, folder / "file", options.seconds)
        with FileSystem.connect(mgmtd) as fs:
            rows += name_rows(fs, options.seconds)
    if options.json:
        print(json.dumps([row.__dict__ for row in rows], indent=1))
    else:
        print("\n".join(row.line() for row in rows))


if __name__ == "__main__":
    main()
