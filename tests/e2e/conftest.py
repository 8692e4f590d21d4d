"""Real clusters for end-to-end tests, each with a cluster id and a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fireflyfs.common.limits import GiB
from fireflyfs.deploy.local import ClusterSpec, LocalCluster

CAPACITY_BYTES = 4 * GiB  # of each target; tests share a disk

ClusterFactory = Callable[..., LocalCluster]


@pytest.fixture(scope="session", autouse=True)
def one_at_a_time(alone: None) -> None:
    """See `alone` in tests/conftest.py."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """One cluster for all tests that leave it as they found it: everything serving."""
    local = LocalCluster(tmp_path_factory.mktemp("cluster"))
    local.create(ClusterSpec(capacity_bytes=CAPACITY_BYTES))
    try:
        local.up()
        yield local
    finally:
        local.down()


@pytest.fixture
def cluster_factory(tmp_path: Path) -> Iterator[ClusterFactory]:
    """Makes clusters for one test: `cluster_factory(storage_nodes=1, replicas=1)`. They are up, and go at its end."""
    made: list[LocalCluster] = []

    def make(**choices: object) -> LocalCluster:
        local = LocalCluster(tmp_path / f"cluster-{len(made) + 1}")
        spec = {"capacity_bytes": CAPACITY_BYTES} | choices
        local.create(ClusterSpec(**spec))  # type: ignore[arg-type]
        made.append(local)
        local.up()
        return local

    try:
        yield make
    finally:
        for local in made:
            local.down()


@pytest.fixture
def own_cluster(cluster_factory: ClusterFactory) -> LocalCluster:
    """A cluster for one test, which may do to it what it likes."""
    return cluster_factory()
