"""The network comes apart between machines, in both directions or in one, and heals."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fault.cluster import SPEC
from fault.network import Network, NetworkCluster
from fault.run import Run, probing
from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.routing import SERVING
from fireflyfs.common.net.host import BOOT_ID_ENV

NewRun = Callable[..., Run]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
HEAL_S = 60.0
LOST_S = 8.0  # for a cut that mgmtd must notice: its failure interval, and then some


@pytest.fixture
def networked(tmp_path: Path) -> Iterator[NetworkCluster]:
    cluster = NetworkCluster(tmp_path / "cluster")
    cluster.create(SPEC)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.network.heal()
        cluster.down()
        cluster.network.close()


def serves(cluster: NetworkCluster, name: str) -> bool:
    node = int(name.rpartition("-")[2])
    chains = cluster.routing().chains.values()
    return all((t, SERVING) in chain.targets for chain in chains for t, _ in chain.targets if t // 1000 == node)


CUTS: dict[str, tuple[Callable[[Network, str, str], None], float, bool]] = {
    # name: (what is cut between storage nodes `one` and `two` and the rest; for how long, s; whether `one` drops out)
    "a storage node, from everybody": (lambda net, one, two: net.cut(one), LOST_S, True),
    "a storage node, from mgmtd alone": (lambda net, one, two: net.cut(one, "mgmtd"), LOST_S, True),
    "mgmtd's answers to a storage node": (lambda net, one, two: net.cut("mgmtd", one, both_ways=False), LOST_S, True),
    "a storage node's words to mgmtd": (lambda net, one, two: net.cut(one, "mgmtd", both_ways=False), LOST_S, True),
    "two storage nodes, from each other": (lambda net, one, two: net.cut(one, two), 4.0, False),
    "one storage node's words to another": (lambda net, one, two: net.cut(one, two, both_ways=False), 4.0, False),
    "a client, from a storage node": (lambda net, one, two: net.cut("client", one), 4.0, False),
    "a client's words to a storage node": (lambda net, one, two: net.cut("client", one, both_ways=False), 4.0, False),
    "a storage node's words to a client": (lambda net, one, two: net.cut(one, "client", both_ways=False), 4.0, False),
    "clients, from mgmtd and meta": (lambda net, one, two: net.cut("client", "mgmtd", "meta"), 4.0, False),
    "mgmtd, from everybody": (lambda net, one, two: net.cut("mgmtd"), LOST_S, True),
}
SHORT = [
    "a storage node, from mgmtd alone",
    "mgmtd's answers to a storage node",
    "two storage nodes, from each other",
    "a storage node's words to a client",
]


def test_partitions_show_nobody_what_is_old(networked: NetworkCluster, new_run: NewRun, seed: str, rounds: int) -> None:
    chance = random.Random(seed)
    network = networked.network
    run = new_run(networked, files=2)
    names = (
        SHORT if rounds == 1 else [name for _ in range(rounds // 2) for name in chance.sample(list(CUTS), len(CUTS))]
    )
    with FileSystem.connect(networked.mgmtd_addresses()) as fs:
        run.prepare(fs)
        # The test itself reaches every replica all the time, as clients do that sit in the isolated part.
        with probing(run, fs, every_s=0.01):
            for _ in range(2):
                run.start_client(
                    "--writes",
                    "0.6",
                    seed=seed,
                    launcher=network.launcher("client"),
                    environment={BOOT_ID_ENV: "client"},
                )
            run.wait_operations(100)
            for name in names:
                cut, for_s, drops_out = CUTS[name]
                one, two = chance.sample(networked.plan().storage_names, 2)
                cut(network, one, two)
                time.sleep(for_s)
                assert serves(networked, one) is not drops_out, name
                network.heal()
                networked.wait_healed(HEAL_S)
                run.wait_operations(20)
            run.stop_clients()
        run.read_all(fs, "last")
    run.judge()
    assert networked.compare_replicas() > 30
