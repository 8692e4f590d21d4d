"""A cluster manager's state with workers that can be made to speak."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from fireflyfs.common.clock import ManualClock
from fireflyfs.common.kv.memory import MemoryKv
from fireflyfs.mgmtd.core.chain import Local, problems_of, problems_of_step
from fireflyfs.mgmtd.core.cluster import Cluster
from fireflyfs.mgmtd.core.records import Changes
from fireflyfs.mgmtd.store.store import Store
from fireflyfs.proto import mgmtd_pb2
from fireflyfs.proto.common_pb2 import NODE_TYPE_STORAGE, Endpoint

FAILED_AFTER_S = 5.0


@dataclass
class Harness:
    """A cluster on a store, with time. Every change is checked against the rules and stored before it is applied."""

    clock: ManualClock = field(default_factory=ManualClock)
    engine: MemoryKv = field(default_factory=MemoryKv)

    def __post_init__(self) -> None:
        self.sequence = 0
        self.generations: dict[int, int] = {}
        self.load()

    def load(self) -> None:
        """Start mgmtd, or start it again on the same store."""
        self.store = Store(self.engine)
        stored = self.store.load("test")
        self.cluster = Cluster(stored, self.clock.monotonic_s(), failed_after_s=FAILED_AFTER_S)

    def do(self, changes: Changes) -> Changes:
        for chain in changes.chains.values():
            old = self.cluster.chains.get(chain.chain_id)
            assert not problems_of(chain.members)
            if old is not None:
                assert not problems_of_step(old.version, old.members, chain.version, chain.members)
        if changes:
            self.store.commit(self.store.writes_of(changes, self.cluster), self.cluster.version + 1)
            self.cluster.apply(changes)
        return changes

    def tick(self, seconds: float = 0.0) -> None:
        """Let time pass in steps that mgmtd keeps."""
        while seconds > 0.2:
            self.clock.advance(0.2)
            seconds -= 0.2
            self.do(self.cluster.tick(self.clock.monotonic_s()))
        self.clock.advance(seconds)
        self.do(self.cluster.tick(self.clock.monotonic_s()))

    def settle(self) -> None:
        for _ in range(10):
            self.tick()

    def register(self, node_id: int, targets: list[int]) -> None:
        self.do(self.cluster.register_node(node_id, NODE_TYPE_STORAGE, f"host{node_id}"))
        for target_id in targets:
            self.do(self.cluster.register_target(target_id, node_id, 0, ""))

    def beat(
        self,
        node_id: int,
        reports: dict[int, Local],
        *,
        generation: int = 1,
        stopping: bool = False,
        chain_version: int | None = None,
        sequence: int | None = None,
        disk_id: str = "",
        lost_power: bool = False,
    ) -> Changes:
        """A heartbeat of worker 0. `chain_version` None: the worker knows the newest."""
        self.sequence += 1
        request = mgmtd_pb2.HeartbeatRequest(
            cluster_id="test",
            node_id=node_id,
            type=NODE_TYPE_STORAGE,
            generation=generation,
            sequence=self.sequence if sequence is None else sequence,
            endpoint=Endpoint(tcp=f"127.0.0.1:{9000 + node_id}"),
            stopping=stopping,
        )
        for target_id, local in reports.items():
            chain_id = self.cluster.chain_of.get(target_id)
            version = self.cluster.chains[chain_id].version if chain_id else 0
            request.targets.add(
                target_id=target_id,
                local_state=int(local),
                chain_version=version if chain_version is None else chain_version,
                capacity_bytes=1000,
                free_bytes=900,
                disk_id=disk_id,
                lost_power=lost_power,
            )
        now_s, unix_ns = self.clock.monotonic_s(), self.clock.unix_ns()
        return self.do(self.cluster.heartbeat(request, now_s, unix_ns))

    def states(self, chain_id: int) -> list[tuple[int, str]]:
        return [(target_id, public.name) for target_id, public in self.cluster.chains[chain_id].members]


@pytest.fixture
def harness() -> Harness:
    return Harness()


@pytest.fixture
def harness_factory() -> Callable[[], Harness]:
    return Harness
