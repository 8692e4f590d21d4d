"""`ffs bench`: a first look at a cluster's speed, through the library. `bench/` in the sources compares with others."""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from fireflyfs.client.cli import connect, output
from fireflyfs.client.cli.settings import Amount, Settings, pass_settings
from fireflyfs.common.limits import KiB, MiB

BATCH = 128
BLOCK_BYTES = 4 * KiB
SEED = 1


@click.command()
@click.option(
    "--size", "size_mib", type=click.IntRange(1), default=256, show_default=True, help="MiB of the test file."
)
@click.option("--files", type=click.IntRange(1), default=1000, show_default=True, help="For the metadata rows.")
@click.option("--seconds", type=Amount(0.1), default=3.0, show_default=True, help="For each timed row.")
@click.option("--only", type=click.Choice(["write", "read", "meta"]), multiple=True, help="Only these rows.")
@pass_settings
def bench(settings: Settings, size_mib: int, files: int, seconds: float, only: tuple[str, ...]) -> None:
    """Measure reads, writes and metadata calls of one client. What it writes is removed afterwards."""
    wanted = set(only) or {"write", "read", "meta"}
    rows: list[dict[str, Any]] = []
    with connect.filesystem(settings) as fs, _scratch(fs) as folder:
        path = f"{folder}/data"
        # The read rows need the file too, so it is always written; the row is shown when it was asked for.
        written = _write(fs, path, size_mib)
        if "write" in wanted:
            rows += written
        if "read" in wanted:
            rows += _read(fs, path, size_mib, seconds)
        if "meta" in wanted:
            rows += _meta(fs, folder, files)
    columns = [("row", "row"), ("rate", "rate"), ("unit", "unit"), ("seconds", "seconds")]
    output.show_rows(settings, rows, columns)


@contextmanager
def _scratch(fs: Any) -> Iterator[str]:
    folder = f"/.bench-{secrets.token_hex(4)}"
    fs.mkdir(folder)
    try:
        yield folder
    finally:
        fs.rmtree(folder)


def _result(row: str, count: float, unit: str, seconds: float) -> dict[str, Any]:
    rate = count / max(seconds, 1e-9)
    return {"row": row, "rate": round(rate, 1 if rate < 100 else None), "unit": unit, "seconds": round(seconds, 3)}


def _write(fs: Any, path: str, size_mib: int) -> list[dict[str, Any]]:
    data = memoryview(random.Random(SEED).randbytes(4 * MiB))
    file = fs.open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        started = time.perf_counter()
        for offset in range(0, size_mib * MiB, 4 * MiB):
            file.pwrite(data[: min(4 * MiB, size_mib * MiB - offset)], offset)
        file.fsync()
        return [_result("write, 4 MiB calls, then fsync", size_mib, "MiB/s", time.perf_counter() - started)]
    finally:
        file.close()


def _read(fs: Any, path: str, size_mib: int, seconds: float) -> list[dict[str, Any]]:
    rows = []
    rng = random.Random(SEED)
    file = fs.open_file(path)
    memory = fs.allocate(4 * MiB)
    try:
        for size, name in ((4 * MiB, "4 MiB"), (128 * KiB, "128 KiB")):
            count, taken = _timed(_reader(file, memory.slice(0, size), size_mib * MiB), seconds)
            rows.append(_result(f"read in order, {name} calls", count * size / MiB, "MiB/s", taken))
        blocks = size_mib * MiB // BLOCK_BYTES
        one = memory.slice(0, BLOCK_BYTES)
        count, taken = _timed(lambda _: file.readinto_at(one, rng.randrange(blocks) * BLOCK_BYTES), seconds)
        rows.append(_result("read 4 KiB at random", count, "/s", taken))
        into = memory.slice(0, BATCH * BLOCK_BYTES)

        def batch(_: int) -> None:
            fs.read_blocks(file, [rng.randrange(blocks) * BLOCK_BYTES for _ in range(BATCH)], BLOCK_BYTES, into)

        count, taken = _timed(batch, seconds)
        rows.append(_result(f"the same in batches of {BATCH}", count * BATCH, "/s", taken))
    finally:
        file.close()
        memory.close()
    return rows


def _reader(file: Any, into: Any, file_bytes: int) -> Callable[[int], object]:
    places = max(file_bytes // into.length, 1)
    return lambda number: file.readinto_at(into, number % places * into.length)


def _meta(fs: Any, folder: str, files: int) -> list[dict[str, Any]]:
    def timed(name: str, function: Callable[[int], object]) -> dict[str, Any]:
        started = time.perf_counter()
        for number in range(files):
            function(number)
        return _result(name, files, "/s", time.perf_counter() - started)

    rows = [
        timed("create", lambda n: fs.open_file(f"{folder}/f{n}", os.O_WRONLY | os.O_CREAT | os.O_EXCL).close()),
        timed("stat", lambda n: fs.stat(f"{folder}/f{n}")),
    ]
    started = time.perf_counter()
    listed = sum(1 for entry in fs.scandir(folder) if entry.stat())
    rows.append(_result("list with attributes", listed, "/s", time.perf_counter() - started))
    rows.append(timed("rename", lambda n: fs.rename(f"{folder}/f{n}", f"{folder}/g{n}")))
    rows.append(timed("remove", lambda n: fs.unlink(f"{folder}/g{n}")))
    return rows


def _timed(function: Callable[[int], object], seconds: float) -> tuple[int, float]:
    """Call for about `seconds`; (calls, seconds taken)."""
    function(0)  # connections are made outside of the measured time
    started = time.perf_counter()
    count = 0
    while (now := time.perf_counter()) < started + seconds:
        function(count)
        count += 1
    return count, now - started
