"""Clusters that faults are done to, and how long that goes on: `make soak` lengthens what `make test` does briefly."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from fault.cluster import SPEC, FaultCluster

SEED_ENV = "FFS_FAULT_SEED"  # the faults and the load follow from it; what processes make of them does not
ROUNDS_ENV = "FFS_FAULT_ROUNDS"  # how many times as many faults as in the short run


@pytest.fixture(autouse=True)
def one_at_a_time(request: pytest.FixtureRequest) -> None:
    """See `alone` in tests/conftest.py; tests of the checker alone need no cluster."""
    if request.node.get_closest_marker("e2e") is not None:
        request.getfixturevalue("alone")


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
def cluster(tmp_path: Path) -> Iterator[FaultCluster]:
    """Three storage nodes, three replicas, on one host."""
    local = FaultCluster(tmp_path / "cluster")
    local.create(SPEC)
    try:
        local.up()
        yield local
    finally:
        local.down()
