"""Reads through fsspec beside the same with local files, and small files in and out: `python bench/fsspec_reads.py`.

Both are cached by the machine: what is measured is the way to the bytes, not the disk. The cluster has three storage
nodes and three replicas on this machine, and shares its cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fireflyfs.client.fsspec import FireflyFileSystem
from fireflyfs.common.limits import GiB, KiB, MiB
from fireflyfs.deploy.local import ClusterSpec, LocalCluster

TURNS = 3  # the best counts: others use the machine too
SMALL_FILES = 1000
SMALL_BYTES = 16 * KiB
COLUMNS = 16
COLUMN_ROWS = 2_000_000


def best(do: Callable[[], object]) -> float:
    """Seconds of the fastest of a few turns."""
    seconds = []
    for _ in range(TURNS):
        started = time.perf_counter()
        do()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def sequential(fs: Any, path: str, step: int, into: memoryview) -> None:
    """All of a file, by `readinto` of `step` bytes."""
    with fs.open(path, "rb") as file:
        while file.readinto(into[:step]):
            pass


def prepare(fs: Any, folder: str, nbytes: int) -> None:
    """The same files for both."""
    fs.makedirs(f"{folder}/small", exist_ok=True)
    block = np.random.default_rng(1).bytes(16 * MiB)
    with fs.open(f"{folder}/big", "wb") as file:
        for _ in range(nbytes // len(block)):
            file.write(block)
    fs.pipe({f"{folder}/small/{number:04}": block[:SMALL_BYTES] for number in range(SMALL_FILES)})
    rng = np.random.default_rng(2)
    table = pa.table({f"c{number}": rng.random(COLUMN_ROWS, dtype=np.float32) for number in range(COLUMNS)})
    pq.write_table(table, f"{folder}/table.parquet", filesystem=fs, row_group_size=250_000, compression="none")


def rows(fs: Any, folder: str, nbytes: int, scratch: str) -> dict[str, tuple[float, str]]:
    """Each row's figure and unit."""
    into = memoryview(bytearray(16 * MiB))
    big = f"{folder}/big"
    rng = np.random.default_rng(3)
    starts = [int(start) for start in rng.integers(0, nbytes - 64 * KiB, 512)]
    ends = [start + 64 * KiB for start in starts]
    names = [f"{folder}/small/{number:04}" for number in range(SMALL_FILES)]
    mib = nbytes / MiB
    return {
        "readinto of 16 MiB, in order": (mib / best(lambda: sequential(fs, big, 16 * MiB, into)), "MiB/s"),
        "readinto of 64 KiB, in order": (mib / best(lambda: sequential(fs, big, 64 * KiB, into)), "MiB/s"),
        "cat_file of 64 MiB": (64 / best(lambda: fs.cat_file(big, 0, 64 * MiB)), "MiB/s"),
        "cat_ranges, 512 of 64 KiB": (32 / best(lambda: fs.cat_ranges([big] * 512, starts, ends)), "MiB/s"),
        "cat of 1,000 files of 16 KiB": (SMALL_FILES / best(lambda: fs.cat(names)), "files/s"),
        "cat_file of 16 KiB, one by one": (200 / best(lambda: [fs.cat_file(name) for name in names[:200]]), "files/s"),
        "parquet, 2 columns of 16": (
            COLUMN_ROWS * 8 / MiB
            / best(lambda: pq.read_table(f"{folder}/table.parquet", columns=["c3", "c9"], filesystem=fs)),
            "MiB/s",
        ),
        "parquet, all columns": (
            COLUMN_ROWS * 4 * COLUMNS / MiB / best(lambda: pq.read_table(f"{folder}/table.parquet", filesystem=fs)),
            "MiB/s",
        ),
        "get of 1,000 files of 16 KiB": (
            SMALL_FILES / best(lambda: fs.get(f"{folder}/small", f"{scratch}/got", recursive=True)), "files/s",
        ),
        "put of 1,000 files of 16 KiB": (
            SMALL_FILES / best(lambda: fs.put(f"{scratch}/got", f"{folder}/put/", recursive=True)), "files/s",
        ),
        "copy of 1,000 files of 16 KiB": (
            SMALL_FILES / best(lambda: fs.copy(f"{folder}/small", f"{folder}/copy/", recursive=True)), "files/s",
        ),
        "ls of 1,000 files": (SMALL_FILES / best(lambda: fs.ls(f"{folder}/small", detail=True)), "files/s"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0, help="length of the large file")
    parser.add_argument("--json", action="store_true", help="figures for scripts")
    choices = parser.parse_args()
    nbytes = max(64 * MiB, int(choices.gib * GiB) // (16 * MiB) * 16 * MiB)
    with tempfile.TemporaryDirectory(prefix="ffs-fsspec-") as place:
        cluster = LocalCluster(Path(place) / "cluster")
        cluster.create(ClusterSpec(replicas=3, capacity_bytes=4 * nbytes + 4 * GiB))
        try:
            cluster.up()
            ours = FireflyFileSystem(mgmtd=cluster.mgmtd_addresses())
            local = fsspec.filesystem("file")
            os.mkdir(f"{place}/local")
            prepare(ours, "/bench", nbytes)
            prepare(local, f"{place}/local", nbytes)
            found = rows(ours, "/bench", nbytes, f"{place}/ours")
            beside = rows(local, f"{place}/local", nbytes, f"{place}/theirs")
            ours.disconnect()
        finally:
            cluster.down()
    if choices.json:
        json.dump({name: {"ffs": found[name][0], "local": beside[name][0]} for name in found}, sys.stdout)
        return
    for name, (figure, unit) in found.items():
        print(f"{name:34} {figure:10,.0f} {unit:8} local {beside[name][0]:10,.0f}  x{figure / beside[name][0]:.2f}")


if __name__ == "__main__":
    main()
