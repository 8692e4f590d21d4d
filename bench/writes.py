"""Replicated writes through the client library: how many, beside the disk, and what they cost in processor time.

    python bench/writes.py [--mib 256] [--seconds 3] [--rounds 5] [--workers 1] [--stripe 8] [--only TEXT]
                           [--folder DIR] [--json]

A local cluster of three storage nodes with three replicas, and a file with chunks of 1 MiB that is written over. Each
round measures every row and its limit once, one after the other; each figure is the median of the rounds, because other
work on the machine comes and goes. Everything is on the disk of `--folder`, the limits too: they write the same pattern
to a plain file, and every replica has to do that once.

Processor time is what all processes spent for one operation, the client among them: of all figures here it depends
least on what else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.deploy.local import ClusterSpec, LocalCluster
from fireflyfs.proto.common_pb2 import Layout

KIB, MIB = 1 << 10, 1 << 20
BLOCK = 4 * KIB
DEPTH = 32
SMALL_FLOOR = 5_000.0  # a second
LARGE_FLOOR = 0.5  # of the disk's own speed by the number of replicas
READ_PASSES = 8  # each reads from any replica: then nearly all of them have nearly all of it cached
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Row:
    """One figure, its limit, and its cost. `floor` is in the unit of the value."""

    name: str
    unit: str
    value: float
    limit_name: str
    limit: float
    floor: float
    client_us: float  # of processor time for one operation
    storage_us: float

    def line(self) -> str:
        met = "met" if self.value >= self.floor else "MISSED"
        return (
            f"{self.name:44s} {self.value:9,.0f} {self.unit:6s} at least {self.floor:7,.0f} {met:6s} "
            f"{self.value / self.limit:5.2f} x {self.limit_name} ({self.limit:,.0f})  "
            f"client {self.client_us:,.0f} us, storage {self.storage_us:,.0f} us"
        )


@dataclass
class Case:
    """How a row is measured: both give operations and the seconds they took."""

    name: str
    unit: str
    ours: Callable[[], tuple[float, float]]
    limit_name: str
    limit: Callable[[], tuple[float, float]]
    floor: Callable[[float], float]  # from the limit


def storage_processes(cluster: LocalCluster) -> list[int]:
    """The storage nodes and their workers."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = [status.pid for status in cluster.status() if status.name.startswith("storage")]
    for pid in found:  # grows while it is walked
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def cpu_s(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def cases(fs: FileSystem, folder: Path, replicas: int, size: int, seconds: float, stripe: int) -> list[Case]:
    memory = fs.allocate(16 * MIB)
    memory.view[:] = np.random.default_rng(1).bytes(16 * MIB)
    layout = Layout(chunk_size=MIB, stripe_size=stripe, chain_table=1)
    file = fs.open_file("/bench-writes", os.O_RDWR | os.O_CREAT, layout=layout)
    local = os.open(folder / "plain", os.O_RDWR | os.O_CREAT, 0o600)
    for offset in range(0, size, 8 * MIB):
        file.pwrite(memory.slice(0, 8 * MIB), offset)
        os.pwrite(local, memory.view[: 8 * MIB], offset)
    file.fsync()
    for _ in range(READ_PASSES):  # written so much at a time, it is not in the page cache
        for offset in range(0, size, 8 * MIB):
            file.readinto_at(memory.slice(8 * MIB, 8 * MIB), offset)
    rng = np.random.default_rng(2)
    block = memory.slice(0, BLOCK)

    def offsets(count: int) -> list[int]:
        return [int(number) * BLOCK for number in rng.integers(0, size // BLOCK, count)]

    def timed(work: Callable[[], float]) -> tuple[float, float]:
        began = time.perf_counter()
        done = 0.0
        while time.perf_counter() - began < seconds:
            done += work()
        return done, time.perf_counter() - began

    def batch() -> float:
        return file.pwrite_many([(block, offset) for offset in offsets(DEPTH)]) / BLOCK

    def plain() -> float:
        for offset in offsets(DEPTH):
            os.pwrite(local, memory.view[:BLOCK], offset)
        return DEPTH

    def callers() -> tuple[float, float]:
        began = time.perf_counter()
        done = [0] * DEPTH

        def caller(number: int) -> None:
            own = np.random.default_rng(number)
            while time.perf_counter() - began < seconds:
                file.pwrite(block, int(own.integers(0, size // BLOCK)) * BLOCK)
                done[number] += 1

        threads = [threading.Thread(target=caller, args=(number,)) for number in range(DEPTH)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(done), time.perf_counter() - began

    def sequential(step: int) -> Callable[[], tuple[float, float]]:
        def work() -> tuple[float, float]:
            began = time.perf_counter()
            for offset in range(0, size, step * MIB):
                file.pwrite(memory.slice(0, step * MIB), offset)
            file.fsync()
            return size / MIB, time.perf_counter() - began

        return work

    def disk() -> tuple[float, float]:
        began = time.perf_counter()
        for offset in range(0, size, MIB):
            os.pwrite(local, memory.view[:MIB], offset)
        os.fsync(local)
        return size / MIB, time.perf_counter() - began

    def per_replica(work: Callable[[], tuple[float, float]]) -> Callable[[], tuple[float, float]]:
        def shared() -> tuple[float, float]:
            done, took = work()
            return done / replicas, took

        return shared

    small = ("pwrite / replicas", per_replica(lambda: timed(plain)), lambda _: SMALL_FLOOR)
    large = ("disk / replicas", per_replica(disk), lambda limit: LARGE_FLOOR * limit)
    return [
        Case(f"4 KiB random overwrites, batches of {DEPTH}", "/s", lambda: timed(batch), *small),
        Case(f"4 KiB random overwrites, {DEPTH} callers", "/s", callers, *small),
        Case("1 MiB sequential writes, one at a time", "MiB/s", sequential(1), *large),
        Case("1 MiB sequential writes, 8 at a time", "MiB/s", sequential(8), *large),
    ]


def measure(wanted: list[Case], storage: list[int], rounds: int) -> list[Row]:
    speeds: dict[str, list[tuple[float, float, float, float]]] = {case.name: [] for case in wanted}
    for number in range(rounds + 1):
        for case in wanted:
            client, servers = time.process_time(), cpu_s(storage)
            done, took = case.ours()
            client, servers = time.process_time() - client, cpu_s(storage) - servers
            most, most_took = case.limit()
            if number:  # the first is to warm up
                speeds[case.name].append((done / took, most / most_took, client / done * 1e6, servers / done * 1e6))
    rows = []
    for case in wanted:
        value, limit, client_us, storage_us = (
            statistics.median(column) for column in zip(*speeds[case.name], strict=True)
        )
        floor = case.floor(limit)
        rows.append(Row(case.name, case.unit, value, case.limit_name, limit, floor, client_us, storage_us))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256, help="of the file; a multiple of 8")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one figure of one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="storage processes of each of the three nodes")
    parser.add_argument("--stripe", type=int, default=8, help="chains that the file is spread over")
    parser.add_argument("--only", default="", help="rows whose names hold this")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="ffs-bench-", dir=options.folder))
    cluster = LocalCluster(root / "cluster")
    try:
        cluster.create(ClusterSpec(replicas=3, workers_per_node=options.workers))
        cluster.up()
        with FileSystem.connect(",".join(cluster.mgmtd_addresses())) as fs:
            replicas = cluster.plan().spec.replicas
            wanted = cases(fs, root, replicas, options.mib // 8 * 8 * MIB, options.seconds, options.stripe)
            wanted = [case for case in wanted if options.only in case.name]
            rows = measure(wanted, storage_processes(cluster), options.rounds)
    finally:
        if cluster.exists():
            cluster.down()
        shutil.rmtree(root, ignore_errors=True)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print("\n".join(row.line() for row in rows))


if __name__ == "__main__":
    main()
