"""The replication tests on a cluster that takes nothing but rdma: one replica after the other killed, and all at once.

Their servers fork off one process that has imported everything: see `rdma.forked`. Started as usual, a node imports
twice, in its supervisor and its worker, and takes longer in the guest than these tests wait for a cluster.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from e2e.test_replication import (
    Cluster,
    running,
    test_all_killed_at_once_come_back_whole,
    test_killing_any_replica_loses_nothing,
)
from rdma.forked import Forked, Forks

__all__ = ["test_all_killed_at_once_come_back_whole", "test_killing_any_replica_loses_nothing"]


class ForkedReplicas(Cluster):
    """The cluster of the replication tests; a storage node is its one worker."""

    def __init__(self, forks: Forks, root: Path) -> None:
        super().__init__(root)
        self._forks = forks

    def launch(self, arguments: Sequence[str], log_name: str) -> Forked:
        worker = ["--worker", "0"] if "storage" in arguments else []
        return self._forks.start([*arguments, *worker], os.environ, self.root / log_name)

    def links(self) -> set[str]:
        """Which ones moved what its clients read and wrote."""
        rows = [row for pool in self.pools for row in pool.traffic()]
        return {row.link for row in rows if row.bytes_in or row.bytes_out}


@pytest.fixture
def cluster(forks: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("FFS_LINK", "rdma")
    monkeypatch.setenv("FFS_BUSY_POLL_US", "0")  # processors are what the guest has least of
    with running(ForkedReplicas(forks, tmp_path)) as made:
        yield made
        assert made.links() == {"rdma"}
