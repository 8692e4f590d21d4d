"""Rings beside the mount, which they are to be faster than, and beside the client library, on which they stand.

    python bench/usrbio.py [--seconds 2] [--rounds 5] [--only TEXT] [--json]

A local cluster of three storage nodes, a mount and a file of 256 MiB that is cached. Each round measures a row and its
peers once, one after the other, and each figure is the median of the rounds: other work on the machine comes and goes.
The application is this process; processor time is what it and the agents spent for one I/O.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from library import BATCH, FILE_BYTES, KIB, MIB, WARM_PASSES, own_cluster

from fireflyfs.client.filesystem import FileSystem
from hf3fs_fuse.io import deregister_fd, make_ioring, make_iovec, register_fd

TICKS = os.sysconf("SC_CLK_TCK")
REAP = 64  # completions taken at once where 128 are under way


@dataclass
class Row:
    """Medians of all rounds; `floor` is of `value` by `peer`, or of `value` itself where `peer` is 0."""

    name: str
    unit: str
    value: float
    peer_name: str
    peer: float
    floor: float
    application_us: float
    agent_us: float

    def line(self) -> str:
        figure = self.value / self.peer if self.peer else self.value
        beside = f"{figure:6.2f} x {self.peer_name} ({self.peer:,.0f})" if self.peer else ""
        met = "met" if figure >= self.floor else "MISSED"
        return (
            f"{self.name:34s} {self.value:9,.0f} {self.unit:6s} {beside:44s} at least {self.floor:9,.1f} {met:6s} "
            f"{self.application_us:6.1f} us application {self.agent_us:6.1f} us agent"
        )


class Rings:
    """The application: a region, and one ring for each row."""

    def __init__(self, point: Path, path: Path) -> None:
        self.point = str(point)
        self.shm = SharedMemory(create=True, size=64 * MIB)
        self.region = make_iovec(self.shm, self.point)
        self.shm.unlink()
        self.region[:] = bytes(64 * MIB)
        self.fd = os.open(path, os.O_RDWR)
        register_fd(self.fd)

    def run(self, seconds: float, *, read: bool, size: int, depth: int, reap: int, sequential: bool) -> float:
        """I/Os a second with `depth` under way, whose pieces are used again as they come back."""
        ring = make_ioring(self.point, depth, read)
        pieces = [self.region[place * size : (place + 1) * size] for place in range(depth)]
        free, rng, count, position = list(range(depth)), random.Random(2), 0, 0
        began = time.perf_counter()
        while (spent := time.perf_counter() - began) < seconds:
            for place in free:
                offset = position if sequential else rng.randrange(FILE_BYTES // size) * size
                position = (position + size) % FILE_BYTES
                ring.prepare(pieces[place], read, self.fd, offset, place)
            done = ring.submit().wait(min_results=reap, max_results=depth)
            if any(piece.result != size for piece in done):
                raise SystemExit(f"an I/O moved {[piece.result for piece in done]} bytes")
            free = [piece.userdata for piece in done]
            count += len(done)
        while len(free) < depth:
            free += ring.wait(min_results=1, max_results=depth)
        ring.ior.destroy()
        return count / spent

    def close(self) -> None:
        deregister_fd(self.fd)
        os.close(self.fd)
        del self.region
        self.shm.close()


def mount_reads(path: Path, seconds: float) -> float:
    """4 KiB random reads a second through the mount: fio with as many under way, around the kernel's pages."""
    command = ["fio", "--name=x", f"--filename={path}", "--rw=randread", "--bs=4k", "--direct=1", "--ioengine=libaio"]
    command += [f"--iodepth={BATCH}", "--time_based", f"--runtime={seconds}", "--output-format=json"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(json.loads(said[said.index("{") :])["jobs"][0]["read"]["iops"])


def agents_ticks() -> int:
    """Processor time of all agents so far."""
    ticks = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if b"usrbio.agent" in (folder / "cmdline").read_bytes():
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                    ticks += int(fields[11]) + int(fields[12])
            except OSError:
                continue
    return ticks


def measure(
    name: str,
    unit: str,
    peer_name: str,
    floor: float,
    ours: Callable[[], float],
    peer: Callable[[], float] | None,
    rounds: int,
) -> Row:
    values, peers, application_us, agent_us = [], [], [], []
    for _ in range(rounds):
        spent, ticks, began = time.process_time(), agents_ticks(), time.perf_counter()
        values.append(ours())
        count = values[-1] * (time.perf_counter() - began)
        application_us.append((time.process_time() - spent) / count * 1e6)
        agent_us.append((agents_ticks() - ticks) / TICKS / count * 1e6)
        peers.append(peer() if peer is not None else 0.0)
    median = statistics.median
    return Row(name, unit, median(values), peer_name, median(peers), floor, median(application_us), median(agent_us))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each figure")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seconds, rounds = options.seconds, options.rounds
    rows: list[Row] = []
    with ExitStack() as stack:
        mgmtd = stack.enter_context(own_cluster())
        point = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ffs-bench-mount-")))
        ffs = [sys.executable, "-P", "-m", "fireflyfs.client.cli.main", "--mgmtd", mgmtd]
        subprocess.run([*ffs, "mount", "--subtype", "hf3fs", str(point)], check=True, stdout=subprocess.DEVNULL)
        stack.callback(subprocess.run, [*ffs, "umount", str(point)], check=True, stdout=subprocess.DEVNULL)
        fs = stack.enter_context(FileSystem.connect(mgmtd))
        block = random.Random(1).randbytes(MIB)
        with fs.open("/file", "wb") as out:
            for _ in range(FILE_BYTES // MIB):
                out.write(block)
        memory = fs.allocate(8 * MIB)
        file = fs.open_file("/file", os.O_RDWR)
        for _ in range(WARM_PASSES):
            for offset in range(0, FILE_BYTES, MIB):
                file.readinto_at(memory.slice(0, MIB), offset)
        rings = Rings(point, point / "file")
        stack.callback(rings.close)
        rng = np.random.default_rng(1)

        def during(work: Callable[[], int]) -> Callable[[], float]:
            def run() -> float:
                began, count = time.perf_counter(), 0
                while (spent := time.perf_counter() - began) < seconds:
                    count += work()
                return count / spent

            return run

        def library_small() -> int:
            fs.read_blocks(file, rng.integers(0, FILE_BYTES // 4096, BATCH) * 4096, 4096, memory.slice(0, BATCH * 4096))
            return BATCH

        places = [[(start + n) % 256 for n in range(8)] for start in range(0, 256, 8)]
        turn = iter(range(1 << 62))

        def library_large(write: bool) -> Callable[[], int]:
            def work() -> int:
                group = places[next(turn) % len(places)]
                requests = [(file, place * MIB, memory.slice(n * MIB, MIB)) for n, place in enumerate(group)]
                (fs.write_batch if write else fs.read_batch)(requests)
                return 8

            return work

        def ring(**shape: object) -> Callable[[], float]:
            return lambda: rings.run(seconds, **shape)  # type: ignore[arg-type]

        small = ring(read=True, size=4 * KIB, depth=BATCH, reap=REAP, sequential=False)
        reads = ring(read=True, size=MIB, depth=8, reap=1, sequential=True)
        writes = ring(read=False, size=MIB, depth=8, reap=1, sequential=True)
        table: list[tuple[str, str, str, float, Callable[[], float], Callable[[], float] | None]] = [
            ("4 KiB random reads, depth 128", "/s", "", 60_000, small, None),
            (
                "4 KiB random reads, the mount",
                "/s",
                "the mount",
                5,
                small,
                lambda: mount_reads(point / "file", seconds),
            ),
            ("4 KiB random reads, the library", "/s", "library, batch 128", 0.5, small, during(library_small)),
            (
                "1 MiB reads in sequence, depth 8",
                "MiB/s",
                "library, shm, 8 at once",
                0.8,
                reads,
                during(library_large(False)),
            ),
            (
                "1 MiB writes in sequence, depth 8",
                "MiB/s",
                "library, shm, 8 at once",
                0.8,
                writes,
                during(library_large(True)),
            ),
        ]
        for name, unit, peer_name, floor, ours, peer in table:
            if options.only in name:
                rows.append(measure(name, unit, peer_name, floor, ours, peer, rounds))
                if not options.json:
                    print(rows[-1].line(), flush=True)
        file.close()
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
