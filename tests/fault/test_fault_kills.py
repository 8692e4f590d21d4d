"""Processes are killed and stopped at random under load; all heals by itself, and every replica ends up the same."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fault.cluster import FaultCluster
from fault.run import Run, mounted, probing
from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.routing import SERVING
from fireflyfs.storage.server import RESTART_FIRST_S

NewRun = Callable[..., Run]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
HEAL_S = 60.0


def connect(cluster: FaultCluster, **options: bool) -> FileSystem:
    return FileSystem.connect(cluster.mgmtd_addresses(), **options)


def kill_something(cluster: FaultCluster, chance: random.Random) -> str:
    """SIGKILL of a worker, of a whole storage node, of a manager, of several or of all together; what it was."""
    storage = chance.choice(cluster.plan().storage_names)
    what = chance.choice(["worker", "worker", "node", "meta", "mgmtd", "two", "all"])
    if what == "worker":
        cluster.signal(storage, signal.SIGKILL, worker=True)
        return f"worker of {storage}"
    names = {
        "node": [storage],
        "meta": ["meta"],
        "mgmtd": ["mgmtd"],
        "two": chance.sample(cluster.names(), 2),
        "all": cluster.names(),
    }[what]
    for name in names:
        cluster.signal(name, signal.SIGKILL)
    return ", ".join(names)


def test_killed_processes_lose_nothing(cluster: FaultCluster, new_run: NewRun, seed: str, rounds: int) -> None:
    chance = random.Random(seed)
    run = new_run(cluster)
    told = []
    with connect(cluster) as fs:
        run.prepare(fs)
        with cluster.kept_running(chance), probing(run, fs):
            run.start_client(seed=seed)
            run.start_client("--tcp", seed=seed)
            run.wait_operations(100)
            for _ in range(6 * rounds):
                told.append(f"{time.monotonic():.3f} {kill_something(cluster, chance)}")
                time.sleep(chance.uniform(0.2, 3.0))
            cluster.wait_healed(HEAL_S)
            run.wait_operations(50)
            run.stop_clients()
            cluster.wait_healed(HEAL_S)
        run.read_all(fs, "last")
    history = run.judge()
    assert len(history.writes) > 200, told
    assert cluster.compare_replicas() > 100


def test_a_dead_worker_leaves_its_chains_before_it_is_missed(cluster: FaultCluster) -> None:
    """Its supervisor says so: neither the failure interval nor the next start is waited for."""
    cluster.signal("storage-2", signal.SIGKILL, worker=True)
    took_s = cluster.wait_routing(
        lambda routing: all(
            state != SERVING for c in routing.chains.values() for t, state in c.targets if t // 1000 == 2
        ),
        20,
    )
    assert took_s < RESTART_FIRST_S
    cluster.wait_healed(HEAL_S)


def test_stopped_processes_never_answer_with_what_is_old(
    cluster: FaultCluster, new_run: NewRun, seed: str, rounds: int
) -> None:
    """SIGSTOP for 1 to 15 s: shorter than the fence, between fence and failure, longer; then SIGCONT."""
    chance = random.Random(seed)
    run = new_run(cluster, files=2)
    with connect(cluster) as fs, connect(cluster, shared_memory=False) as probe:
        run.prepare(fs)
        with probing(run, probe, every_s=0.005):
            run.start_client("--writes", "0.6", seed=seed)
            run.start_client("--writes", "0.6", "--tcp", seed=seed)
            run.wait_operations(100)
            for stop_s in [7.5, *(chance.choice([1.0, 3.5, 4.6, 6.0, 8.0, 15.0]) for _ in range(2 * rounds - 1))]:
                name = chance.choice(cluster.plan().storage_names)
                cluster.signal(name, signal.SIGSTOP, worker=True)
                time.sleep(stop_s)
                cluster.signal(name, signal.SIGCONT, worker=True)
                time.sleep(chance.uniform(0.0, 2.0))
            cluster.wait_healed(HEAL_S)
            run.wait_operations(50)
            run.stop_clients()
        run.read_all(fs, "last")
    run.judge()
    assert cluster.compare_replicas() > 50


def test_a_mount_goes_on_while_processes_are_killed(
    cluster: FaultCluster, tmp_path: Path, new_run: NewRun, seed: str, rounds: int
) -> None:
    """One program after the other works on the mount: what it was told is all that it may see."""
    chance = random.Random(seed)
    run = new_run(cluster, files=2)
    with connect(cluster) as fs:
        run.prepare(fs)
    with mounted(run.mgmtd, tmp_path / "mnt", tmp_path / "mount.log") as point, cluster.kept_running(chance):
        run.start_client("--mount", str(point), "--threads", "1", seed=seed)
        run.wait_operations(50)
        for _ in range(3 * rounds):
            kill_something(cluster, chance)
            time.sleep(chance.uniform(0.5, 3.0))
        cluster.wait_healed(HEAL_S)
        run.wait_operations(20)
        run.stop_clients()
        cluster.wait_healed(HEAL_S)
    with connect(cluster) as fs:  # what was written through the mount, read without it
        run.read_all(fs, "last")
    run.judge()
    assert cluster.compare_replicas() > 30
