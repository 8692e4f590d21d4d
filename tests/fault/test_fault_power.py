"""All machines lose power at once: what was fsynced is there afterwards, and nothing is torn."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fault import cells, load
from fault.checker import check, check_durable
from fault.cluster import CHUNK_BYTES, SPEC, FaultCluster
from fault.disks import PoweredDisks
from fault.history import Read
from fault.history import load as load_history
from fault.run import Run
from fireflyfs.client.filesystem import FileSystem
from fireflyfs.common.limits import MiB

NewRun = Callable[..., Run]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
DISK_BYTES = 384 * MiB
MADE_CELLS = 40


@pytest.fixture
def powered(tmp_path: Path) -> Iterator[tuple[FaultCluster, PoweredDisks]]:
    """A cluster of which each process has a disk of its own."""
    cluster = FaultCluster(tmp_path / "cluster")
    cluster.create(SPEC)
    disks = PoweredDisks(tmp_path, [cluster.root / "data" / name for name in cluster.names()], DISK_BYTES)
    try:
        cluster.make_targets()
        cluster.up()
        yield cluster, disks
    finally:
        cluster.down()
        disks.close()


def cut_power(cluster: FaultCluster, disks: PoweredDisks, run: Run, boot: str) -> float:
    """Everything goes off, and on again on what the disks hold. When it was."""
    cut_s = disks.hold_still()
    copies = disks.copy()
    run.kill_clients()
    for name in cluster.names():
        cluster.signal(name, signal.SIGKILL)
    disks.go_on()
    cluster.kill_all()
    disks.replace(copies)
    cluster.reboot(dict.fromkeys(cluster.names(), boot))
    cluster.up()
    return cut_s


def read_made(run: Run, fs: FileSystem, numbers: list[int]) -> list[Read]:
    """The small files that clients had made and fsynced; one that is not there reads as empty."""
    found = []
    for number in numbers:
        began_s = time.monotonic()
        try:
            data = fs.read_bytes(load.path_of(number))[cells.shift_of(number) :]
        except FileNotFoundError:
            data = b""
        data = data.ljust(MADE_CELLS * cells.CELL_BYTES, b"\0")
        runs = tuple(cells.decode(number, 0, data[: MADE_CELLS * cells.CELL_BYTES]))
        found.append(Read(number, 0, runs, began_s, time.monotonic(), "made"))
    return found


def test_what_was_fsynced_survives_a_power_cut(
    powered: tuple[FaultCluster, PoweredDisks], new_run: NewRun, seed: str, rounds: int
) -> None:
    cluster, disks = powered
    chance = random.Random(seed)
    for turn in range(2 * rounds):
        run = new_run(cluster, first_file=1000 * (turn + 1), cells_each=2047)
        with FileSystem.connect(cluster.mgmtd_addresses()) as fs:
            run.prepare(fs)
        for _ in range(2):
            run.start_client("--syncs", "0.2", "--no-names", seed=f"{seed}/{turn}")
        run.wait_operations(300)
        time.sleep(chance.uniform(0, 2.0))
        cut_s = cut_power(cluster, disks, run, f"after cut {turn}")
        with FileSystem.connect(cluster.mgmtd_addresses()) as fs:
            run.read_all(fs, "after")
            after = load_history(run.folder / "after.jsonl").reads
            (run.folder / "after.jsonl").rename(run.folder / "after.reads")
            history = run.history()
            synced = {sync.file for sync in history.syncs if sync.ended_s <= cut_s}
            made = sorted(synced - set(run.numbers))
            after += read_made(run, fs, made)
            assert len(made) > 3
            assert len(history.syncs) > 20
            problems = check(history, CHUNK_BYTES) + check_durable(history, cut_s, after, CHUNK_BYTES)
            assert not problems, f"histories are in {run.folder}:\n" + "\n".join(problems)
            # Whoever answers: what was read once after the cut stays.
            for again in range(3):
                run.read_all(fs, f"again-{again}")
                reads = load_history(run.folder / f"again-{again}.jsonl").reads
                assert [read.runs for read in reads] == [read.runs for read in after[: len(reads)]]
                (run.folder / f"again-{again}.jsonl").unlink()
            # No new file shows what belonged to one that was lost.
            for number in range(40):
                with fs.open_file(f"/load/new-{turn}-{number}", os.O_RDWR | os.O_CREAT) as file:
                    file.truncate(MADE_CELLS * cells.CELL_BYTES)
                    assert not any(file.readall()), number
    assert cluster.compare_replicas() > 50
