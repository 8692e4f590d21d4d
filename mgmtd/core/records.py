"""What mgmtd knows, as values that never change in place. Durable fields first; the rest is learnt from heartbeats."""

from __future__ import annotations

from dataclasses import dataclass, field

from fireflyfs.mgmtd.core.chain import Local, Public
from fireflyfs.proto import mgmtd_pb2
from fireflyfs.proto.common_pb2 import Endpoint, ScrubReport


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """One process of a node. All fields are durable."""

    worker: int
    generation: int  # of the newest start that was seen
    alive: bool
    endpoint: Endpoint = field(default_factory=Endpoint)


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A registered node. All fields are durable but `config_version`."""

    node_id: int
    type: int
    hostname: str = ""
    disabled: bool = False
    release: str = ""
    workers: tuple[WorkerRecord, ...] = ()
    config_version: int = 0

    @property
    def alive(self) -> bool:
        return any(worker.alive for worker in self.workers)

    def worker(self, number: int) -> WorkerRecord | None:
        return next((worker for worker in self.workers if worker.worker == number), None)

    def durable(self) -> mgmtd_pb2.NodeInfo:
        """The record as it is stored."""
        workers = [
            mgmtd_pb2.WorkerInfo(
                worker=worker.worker, endpoint=worker.endpoint, generation=worker.generation, alive=worker.alive
            )
            for worker in self.workers
        ]
        return mgmtd_pb2.NodeInfo(
            node_id=self.node_id,
            type=self.type,  # type: ignore[arg-type]  # enum numbers travel as int
            hostname=self.hostname,
            alive=self.alive,
            disabled=self.disabled,
            release=self.release,
            workers=workers,
        )

    @staticmethod
    def restored(info: mgmtd_pb2.NodeInfo) -> NodeRecord:
        workers = tuple(
            WorkerRecord(worker.worker, worker.generation, worker.alive, worker.endpoint) for worker in info.workers
        )
        return NodeRecord(info.node_id, info.type, info.hostname, info.disabled, info.release, workers)


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """A registered target."""

    target_id: int
    node_id: int
    worker: int
    path: str = ""
    disk_id: str = ""  # what it was made as; "": not heard of yet
    local: Local = Local.UNKNOWN  # from here on: not durable
    lost_power: bool = False
    note: str = ""  # why it is refused, for people
    capacity_bytes: int = 0
    free_bytes: int = 0
    used_bytes: int = 0
    resync_done_chunks: int = 0  # of its successor
    resync_total_chunks: int = 0
    scrub: ScrubReport = field(default_factory=ScrubReport)

    def durable(self) -> mgmtd_pb2.TargetInfo:
        """The record as it is stored."""
        return mgmtd_pb2.TargetInfo(
            target_id=self.target_id,
            node_id=self.node_id,
            worker=self.worker,
            path=self.path,
            disk_id=self.disk_id,
        )

    @staticmethod
    def restored(info: mgmtd_pb2.TargetInfo) -> TargetRecord:
        return TargetRecord(info.target_id, info.node_id, info.worker, info.path, info.disk_id)


@dataclass(frozen=True, slots=True)
class ChainRecord:
    """One chain at one version. All fields are durable."""

    chain_id: int
    version: int
    members: tuple[tuple[int, Public], ...]  # head first
    preferred: tuple[int, ...]

    def state_of(self, target_id: int) -> Public:
        return dict(self.members).get(target_id, Public.UNKNOWN)

    def durable(self) -> mgmtd_pb2.ChainInfo:
        """The record as it is stored and published."""
        return mgmtd_pb2.ChainInfo(
            chain_id=self.chain_id,
            chain_version=self.version,
            targets=[
                mgmtd_pb2.ChainTarget(target_id=target_id, state=int(public))  # type: ignore[arg-type]
                for target_id, public in self.members
            ],
            preferred_order=self.preferred,
        )

    @staticmethod
    def restored(info: mgmtd_pb2.ChainInfo) -> ChainRecord:
        members = tuple((target.target_id, Public(target.state)) for target in info.targets)
        return ChainRecord(info.chain_id, info.chain_version, members, tuple(info.preferred_order))


@dataclass(slots=True)
class Stored:
    """Everything durable, as it is read at the start."""

    cluster_id: str
    version_reserved: int  # no routing version above it was ever published
    nodes: list[NodeRecord] = field(default_factory=list)
    targets: list[TargetRecord] = field(default_factory=list)
    chains: list[ChainRecord] = field(default_factory=list)
    tables: list[mgmtd_pb2.ChainTableInfo] = field(default_factory=list)
    configs: list[mgmtd_pb2.ConfigInfo] = field(default_factory=list)


@dataclass(slots=True)
class Changes:
    """What one event changes: new values of whole records. Nothing is changed until they are applied."""

    nodes: dict[int, NodeRecord] = field(default_factory=dict)
    targets: dict[int, TargetRecord] = field(default_factory=dict)
    chains: dict[int, ChainRecord] = field(default_factory=dict)
    tables: dict[int, mgmtd_pb2.ChainTableInfo] = field(default_factory=dict)
    removed_nodes: set[int] = field(default_factory=set)
    removed_targets: set[int] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)  # for the log, one for each decision

    def __bool__(self) -> bool:
        return bool(
            self.nodes or self.targets or self.chains or self.tables or self.removed_nodes or self.removed_targets
        )
