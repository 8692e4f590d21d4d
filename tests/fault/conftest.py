"""Clusters that faults are done to, and how long that goes on: `make soak` lengthens what `make test` does briefly."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fault.cluster import SPEC, FaultCluster
from fault.run import Run

SEED_ENV = "FFS_FAULT_SEED"  # the faults and the load follow from it; what processes make of them does not
ROUNDS_ENV = "FFS_FAULT_ROUNDS"  # how many times as many faults as in the short run


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> str:
    """Printed with a test that fails."""
    chosen = os.environ.get(SEED_ENV, "1")
    print(f"{SEED_ENV}={chosen}")
    return f"{chosen}/{request.node.name}"


@pytest.fixture
def chance(seed: str) -> random.Random:
    return random.Random(seed)


@pytest.fixture
def rounds() -> int:
    return int(os.environ.get(ROUNDS_ENV, "1"))


@pytest.fixture
def new_run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Makes runs: `new_run(cluster, first_file=1)`. Clients that a failed test leaves are killed."""
    made: list[Run] = []

    def make(cluster: FaultCluster, *, first_file: int = 1, **choices: int) -> Run:
        addresses = ",".join(cluster.mgmtd_addresses())
        made.append(Run(tmp_path / f"run-{len(made) + 1}", addresses, first_file=first_file, **choices))
        return made[-1]

    yield make
    for run in made:
        run.kill_clients()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FaultCluster]:
    """Three storage nodes, three replicas, on one host."""
    local = FaultCluster(tmp_path / "cluster")
    local.create(SPEC)
    try:
        local.up()
        yield local
    finally:
        local.down()
