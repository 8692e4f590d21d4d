"""Bytes flip on a disk, a disk fills, a disk answers EIO: under load, on one of three storage nodes."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fault import load
from fault.cluster import CHUNK_BYTES, SPEC, FaultCluster
from fault.disks import Disks, make_image, shut_down
from fault.run import Run, probing
from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.routing import SERVING, Routing
from fireflyfs.common.limits import MiB
from fireflyfs.common.net.control import ControlClient
from fireflyfs.proto import storage_pb2

NewRun = Callable[..., Run]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
VICTIM = "storage-2"
STORAGE = storage_pb2.DESCRIPTOR.services_by_name["Storage"]
SMALL_DISK_BYTES = 160 * MiB
HEAL_S = 60.0


@pytest.fixture
def with_small_disk(tmp_path: Path) -> Iterator[tuple[FaultCluster, Disks, Path]]:
    """A cluster of which one storage node has a small disk of its own; what it is stored on."""
    cluster = FaultCluster(tmp_path / "cluster")
    cluster.create(SPEC)
    disks = Disks()
    below = tmp_path / "below"
    try:
        disks.mount(make_image(tmp_path / "below.img", 2 * SMALL_DISK_BYTES), below)
        disks.mount(make_image(below / "small.img", SMALL_DISK_BYTES), cluster.root / "data" / VICTIM)
        cluster.make_targets()
        cluster.up()
        yield cluster, disks, below
    finally:
        cluster.down()
        disks.close()


def connect(cluster: FaultCluster) -> FileSystem:
    return FileSystem.connect(cluster.mgmtd_addresses())


def flip_bits(path: Path, chance: random.Random) -> bool:
    """Flip one bit of what a file holds; False when it holds nothing."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        try:
            offset = os.lseek(file.fileno(), chance.randrange(size), os.SEEK_DATA) if size else size
        except OSError as exc:
            if exc.errno != errno.ENXIO:  # no data after that place
                raise
            return False
        offset += chance.randrange(4096)
        byte = os.pread(file.fileno(), 1, offset)
        return bool(byte) and os.pwrite(file.fileno(), bytes([byte[0] ^ 1 << chance.randrange(8)]), offset) == 1


def test_no_reader_sees_bytes_that_flipped(cluster: FaultCluster, new_run: NewRun, seed: str, rounds: int) -> None:
    chance = random.Random(seed)
    run = new_run(cluster, files=3, cells_each=2047)
    blocks = [path / "blocks" for name, path in cluster.target_paths().values() if name == VICTIM]
    flipped = 0
    with connect(cluster) as fs:
        run.prepare(fs)
        with probing(run, fs, every_s=0.01):
            run.start_client("--writes", "0.2", seed=seed)
            run.start_client("--writes", "0.2", "--tcp", seed=seed)
            run.wait_operations(50)
            until_s = time.monotonic() + 6 * rounds
            while time.monotonic() < until_s:
                flipped += flip_bits(chance.choice([path for folder in blocks for path in folder.iterdir()]), chance)
                time.sleep(0.02)
            run.wait_operations(50)
            run.stop_clients()
            # Whoever answers.
            for again in range(3):
                run.read_all(fs, f"last-{again}")
        assert flipped > 50
        assert checksum_errors(cluster, VICTIM), "no flipped byte was ever read: this shows nothing"
        # What nobody has read since is found by the scrubber; then nothing is left to find.
        scrubbed(cluster, VICTIM)
        assert scrubbed(cluster, VICTIM) == 0
    run.judge()
    assert cluster.compare_replicas()


def test_a_disk_that_fills_refuses_writes_and_keeps_what_it_has(
    with_small_disk: tuple[FaultCluster, Disks, Path], new_run: NewRun, seed: str
) -> None:
    cluster, _, _ = with_small_disk
    run = new_run(cluster, files=2, cells_each=2047)
    with connect(cluster) as fs:
        run.prepare(fs)
        run.start_client("--pause", "0.01", seed=seed)
        run.wait_operations(50)
        kept: dict[str, bytes] = {}
        fs.mkdir("/fill")
        refused = 0
        data = random.Random(seed).randbytes(4 * MiB)
        for number in range(200):
            path = f"/fill/{number}"
            try:
                fs.write_bytes(path, data)
                kept[path] = data
            except OSError as exc:
                if exc.errno != errno.ENOSPC:
                    raise
                refused += 1
                if refused == 3:
                    break
        assert refused == 3, "the disk did not fill"
        assert len(kept) > 5
        # The load writes on, and is refused where it needs new space; what is there stays right.
        run.wait_operations(100)
        for path, content in kept.items():
            assert fs.read_bytes(path) == content, path
        chains = cluster.routing().chains.values()
        assert all(len(chain.serving) >= 2 for chain in chains), "a full disk is no reason to leave"
        fs.rmtree("/fill")
        wait_for(lambda: writes(fs, "/after", data), "space does not come back", 60)
        assert fs.read_bytes("/after") == data
        run.wait_operations(100)
        run.stop_clients()
        cluster.wait_healed(HEAL_S)
        run.read_all(fs, "last")
    history = run.judge(errors_allowed=True)
    others = [told for told in history.errors if f"[Errno {errno.ENOSPC}]" not in told]
    assert not others, others[:10]
    assert cluster.compare_replicas() > 16


def test_a_disk_that_answers_eio_goes_offline_alone(
    with_small_disk: tuple[FaultCluster, Disks, Path], new_run: NewRun, seed: str
) -> None:
    cluster, _, below = with_small_disk
    run = new_run(cluster, files=2, cells_each=2047)
    with connect(cluster) as fs:
        run.prepare(fs)
        run.start_client(seed=seed)
        run.start_client("--tcp", seed=seed)
        run.wait_operations(100)
        supervisor, workers = cluster.pid(VICTIM), cluster.workers(VICTIM)
        shut_down(below)
        cluster.wait_routing(lambda routing: not _serves(routing, VICTIM), 30)
        run.wait_operations(200)  # and clients go on
        assert (cluster.pid(VICTIM), cluster.workers(VICTIM)) == (supervisor, workers), "the process must live"
        others = [name for name in cluster.plan().storage_names if name != VICTIM]
        assert all(_serves(cluster.routing(), name) for name in others)
        run.stop_clients()
        run.read_all(fs, "last")
        fs.write_bytes("/after", b"x" * CHUNK_BYTES)
        assert fs.read_bytes("/after") == b"x" * CHUNK_BYTES
        assert fs.exists(load.path_of(1))
    run.judge()


def checksum_errors(cluster: FaultCluster, name: str) -> float:
    """How often the engines of a storage node have found bytes that do not match, since its worker started."""
    node = int(name.rpartition("-")[2])
    door = next(door.grpc for target, door in cluster.routing().endpoints.items() if target // 1000 == node)
    with contextlib.closing(ControlClient(STORAGE, door)) as worker:
        values = worker.call("Stats", storage_pb2.StatsRequest()).values
    return sum(float(value) for key, value in values.items() if key.endswith(".checksum_errors"))


def scrubbed(cluster: FaultCluster, name: str) -> int:
    """How many chunks of a storage node a pass from now on found that do not match; none is lost."""
    node = int(name.rpartition("-")[2])
    door = next(door.grpc for target, door in cluster.routing().endpoints.items() if target // 1000 == node)
    with contextlib.closing(ControlClient(STORAGE, door)) as worker:
        before = worker.call("Scrub", storage_pb2.ScrubRequest(start=True)).targets
        passes = {row.target_id: row.report.passes for row in before}
        found = 0

        def ended() -> bool:
            nonlocal found
            reports = [(row.target_id, row.report) for row in worker.call("Scrub", storage_pb2.ScrubRequest()).targets]
            found = sum(report.found_chunks for _, report in reports)
            assert not sum(report.lost_chunks + report.damaged_chunks for _, report in reports)
            return all(not report.running and report.passes > passes[target_id] for target_id, report in reports)

        wait_for(ended, "the scrubber does not end its pass", 60)
    return found


def _serves(routing: Routing, name: str) -> bool:
    """Whether any target of a storage node serves."""
    node = int(name.rpartition("-")[2])
    return any(t // 1000 == node and s == SERVING for chain in routing.chains.values() for t, s in chain.targets)


def writes(fs: FileSystem, path: str, data: bytes) -> bool:
    try:
        fs.write_bytes(path, data)
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        return False
    return True


def wait_for(ready: Callable[[], bool], what: str, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.2)
