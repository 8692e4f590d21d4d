"""What the chunk engine costs over plain files: `python bench/engine.py [--chunks N] [--path DIR]`.

Each row prints the engine's figure, the plain system call's in the same run, and the ratio.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path

from crc32c import crc32c

from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.engine.deltas import NO_DELTAS
from fireflyfs.storage.engine.interface import ChunkKey, Extent, Update, Writer
from fireflyfs.storage.engine.metadata import MetaStore, new_batch
from fireflyfs.storage.engine.record import COMMITTED, Record, chunk_key, pack
from fireflyfs.storage.engine.store import Engine, open_engine

MiB = 1 << 20
COSTS = {"metadata_bytes": "log", "delta_bytes_folded": "in place", "staged_block_bytes": "whole chunks copied"}
WRITER = Writer(b"b" * 16, 0, 1)


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def row(what: str, own: float, plain: float, unit: str) -> None:
    print(f"{what:<44} {own:>12,.0f} {plain:>12,.0f} {unit:<6} {own / plain:6.2f}", flush=True)


def put(engine: Engine, key: ChunkKey, version: int, offset: int, data: memoryview, crc: int) -> None:
    engine.apply([Update(key, UpdateKind.WRITE, version, 1, MiB, 0, [Extent(offset, data, crc)], WRITER)])
    engine.commit([(key, version)], 1)


def rss_mib() -> float:
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * resource.getpagesize() / MiB


def bulk(path: Path, count: int) -> None:
    data = memoryview(random.Random(1).randbytes(MiB))
    crc = crc32c(data)
    engine = open_engine(path / "bulk", checkpoint_interval_s=0)
    fd = os.open(path / "plain", os.O_RDWR | os.O_CREAT)
    into = memoryview(bytearray(MiB))

    def each(work: Callable[[int], object]) -> float:
        return count / timed(lambda: [work(n) for n in range(count)] and None)

    own = each(lambda n: put(engine, ChunkKey(1, n), 1, 0, data, crc))
    plain = each(lambda n: os.pwrite(fd, data, n * MiB))
    row("write new 1 MiB chunks", own, plain, "MiB/s")
    own = each(lambda n: put(engine, ChunkKey(1, n), 2, 0, data, crc))
    plain = each(lambda n: os.pwrite(fd, data, n * MiB))
    row("overwrite 1 MiB chunks", own, plain, "MiB/s")
    engine.sync()
    each(lambda n: engine.read(ChunkKey(1, n), 0, into))  # large writes do not stay in the page cache
    own = each(lambda n: engine.read(ChunkKey(1, n), 0, into))
    plain = each(lambda n: os.preadv(fd, [into], n * MiB))
    row("read 1 MiB chunks (cached)", own, plain, "MiB/s")
    roll = random.Random(2)
    spots = [(roll.randrange(count), 4096 * roll.randrange(256)) for _ in range(20_000)]
    small = memoryview(bytearray(4096))

    def own_small() -> None:
        for index, at in spots:
            engine.read(ChunkKey(1, index), at, small, nowait=True)

    def plain_small() -> None:
        for index, at in spots:
            os.preadv(fd, [small], index * MiB + at)

    row("read 4 KiB at random (cached, nowait)", len(spots) / timed(own_small), len(spots) / timed(plain_small), "/s")
    engine.sync()
    before = engine.stats()
    patch = memoryview(roll.randbytes(4096))
    patch_crc = crc32c(patch)
    versions = dict.fromkeys(range(count), 2)
    overwrites = spots[:8_000]

    def own_overwrite() -> None:
        for number, (index, at) in enumerate(overwrites):
            versions[index] += 1
            put(engine, ChunkKey(1, index), versions[index], at, patch, patch_crc)
            if number % 2000 == 1999:
                engine.checkpoint()

    def plain_overwrite() -> None:
        for number, (index, at) in enumerate(overwrites):
            os.pwrite(fd, patch, index * MiB + at)
            if number % 2000 == 1999:
                os.fdatasync(fd)

    own = len(overwrites) / timed(own_overwrite)
    plain = len(overwrites) / timed(plain_overwrite)
    row("overwrite 4 KiB at random, sync each 2000", own, plain, "/s")
    after = engine.stats()
    stored = 4096 * len(overwrites)
    parts = {name: (after[name] - before[name]) / stored for name in COSTS}
    print(
        "  bytes for each byte overwritten: " + ", ".join(f"{COSTS[name]} {part:.2f}" for name, part in parts.items())
    )
    engine.close()
    os.close(fd)


def many(path: Path, chunks: int) -> None:
    """Open time and memory with many chunks; their records are written straight into RocksDB."""
    target = path / "many"
    open_engine(target, checkpoint_interval_s=0).close()
    meta = MetaStore(target / "meta")
    crcs = array("I", (random.Random(n).getrandbits(32) for n in range(64)))
    for first in range(0, chunks, 10_000):
        batch = new_batch()
        for number in range(first, min(first + 10_000, chunks)):
            record = Record(0, 20, 14, MiB, MiB, 7, MiB, number, 1, 0, 1, 1, 0, b"b" * 16, crcs, NO_DELTAS)
            batch.put(chunk_key(COMMITTED, ChunkKey(number // 1000, number % 1000)), pack(record))
        meta.write(batch)
    meta.close()
    pid = os.fork()  # in a process of its own: what making the records left in memory does not count
    if pid == 0:
        base = rss_mib()
        start = time.perf_counter()
        engine = open_engine(target, checkpoint_interval_s=0)
        opened = time.perf_counter() - start
        at_open = rss_mib()
        roll = random.Random(4)
        for _ in range(100_000):
            number = roll.randrange(chunks)
            engine.stat(ChunkKey(number // 1000, number % 1000))
        print(
            f"open with {engine.space().chunks:,} chunks: {opened:.2f} s; memory {at_open:.0f} MiB, "
            f"{rss_mib():.0f} MiB after 100,000 random look-ups (interpreter before: {base:.0f} MiB)",
            flush=True,
        )
        files = [roll.randrange(chunks // 1000) for _ in range(200)]
        scan = timed(lambda: [engine.scan_inode(inode, 990, 0, 10) for inode in files] and None)
        last = timed(lambda: [engine.last_chunk(inode, 0, 0) for inode in files] and None)
        print(
            f"with them: ten chunks of a file {scan / 200 * 1e6:.0f} us, the last of 1,000 {last / 200 * 1e6:.0f} us",
            flush=True,
        )
        os._exit(0)
    os.waitpid(pid, 0)


def syncs(path: Path) -> None:
    engine = open_engine(path / "syncs", checkpoint_interval_s=0)
    data = memoryview(bytes(4096))
    crc = crc32c(data)
    put(engine, ChunkKey(1, 0), 1, 0, memoryview(bytes(MiB)), crc32c(bytes(MiB)))
    fd = os.open(path / "plain-sync", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, bytes(MiB), 0)
    count = 100

    def own() -> None:
        for number in range(count):
            put(engine, ChunkKey(1, 0), 2 + number, 4096 * (number * 7 % 256), data, crc)
            engine.sync()

    def plain() -> None:
        for number in range(count):
            os.pwrite(fd, data, 4096 * (number * 7 % 256))
            os.fdatasync(fd)

    row("overwrite 4 KiB and sync", count / timed(own), count / timed(plain), "/s")
    engine.close()
    os.close(fd)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", type=Path, default=None, help="a directory on the disk to measure")
    parser.add_argument("--count", type=int, default=512, help="1 MiB chunks of the bulk rows")
    parser.add_argument("--chunks", type=int, default=1_000_000, help="chunks for the open time")
    arguments = parser.parse_args()
    path = Path(tempfile.mkdtemp(dir=arguments.path))
    print(f"{'':<44} {'engine':>12} {'plain':>12} {'':<6} {'ratio':>6}")
    try:
        bulk(path, arguments.count)
        syncs(path)
        many(path, arguments.chunks)
    finally:
        shutil.rmtree(path)


if __name__ == "__main__":
    main()
