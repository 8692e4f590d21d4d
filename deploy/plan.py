"""What a local cluster consists of: the operator's few choices, and all that follows from them.

`cluster.toml` in the cluster's folder keeps the plan: identity, ports and sizes are chosen once, so that a cluster that
is started again is the same cluster. The configurations of the processes are written from it at each start.
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import shutil
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fireflyfs.common import config as configuration
from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import CHUNK_BYTES_DEFAULT, REPLICAS_MAX, MiB

if TYPE_CHECKING:  # where a configuration is made, its server's code is loaded: most commands only look up an address
    from fireflyfs.meta.server import MetaConfig
    from fireflyfs.mgmtd.server import MgmtdConfig
    from fireflyfs.storage.server import StorageConfig

PLAN_FILE = "cluster.toml"
META_NODE_ID = 1001
STORAGE_NODES_MAX = 32
UNIX_PATH_BYTES_MAX = 100  # the kernel takes 107
PORT_MIN = 15_000
PORT_END = 32_768  # where the kernel's ports for outgoing connections begin, unless it says otherwise
PORT_TRIES_MAX = 4096
SPACE_SHARE = 0.9  # of what is free in the folder's file system, over all targets


@dataclass(frozen=True)
class ClusterSpec:
    """What an operator may choose when a local cluster is made."""

    storage_nodes: int = 3
    workers_per_node: int = 1
    targets_per_worker: int = 2
    replicas: int = 2
    capacity_bytes: int = 0  # of each target; 0: an equal share of what is free
    host: str = "127.0.0.1"
    cluster_id: str = ""  # empty: a new one
    chunk_size: int = CHUNK_BYTES_DEFAULT
    failed_after_s: float = 5.0
    session_lease_s: float = 60.0
    trash_keep_s: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.storage_nodes <= STORAGE_NODES_MAX:
            raise ValueError(f"storage_nodes must be 1 to {STORAGE_NODES_MAX}, not {self.storage_nodes}")
        if not 1 <= self.workers_per_node <= 9 or not 1 <= self.targets_per_worker <= 99:
            raise ValueError("workers_per_node must be 1 to 9 and targets_per_worker 1 to 99")
        if not 1 <= self.replicas <= min(REPLICAS_MAX, self.storage_nodes):
            raise ValueError(f"replicas must be 1 to storage_nodes ({self.storage_nodes}), not {self.replicas}")
        if self.capacity_bytes < 0:
            raise ValueError("capacity_bytes must not be negative")


@dataclass(frozen=True)
class Plan:
    """A local cluster as `cluster.toml` keeps it."""

    spec: ClusterSpec
    ports: dict[str, int] = field(default_factory=dict)  # "mgmtd_grpc", "meta_tcp", "storage-1_0_tcp"

    @property
    def mgmtd_address(self) -> str:
        return f"{self.spec.host}:{self.ports['mgmtd_grpc']}"

    @property
    def storage_names(self) -> list[str]:
        return [f"storage-{node}" for node in range(1, self.spec.storage_nodes + 1)]

    def targets(self, node: int) -> list[tuple[int, int]]:
        """(worker, target id) of a storage node."""
        return [
            (worker, node * 1000 + worker * 100 + place)
            for worker in range(self.spec.workers_per_node)
            for place in range(1, self.spec.targets_per_worker + 1)
        ]


def new_plan(spec: ClusterSpec, root: Path) -> Plan:
    """Choose what `spec` leaves open. `root` exists."""
    count = spec.storage_nodes * spec.workers_per_node * spec.targets_per_worker
    capacity = spec.capacity_bytes
    if not capacity:
        capacity = int(shutil.disk_usage(root).free * SPACE_SHARE) // count // MiB * MiB
        if capacity < 64 * MiB:
            raise error(Code.NO_SPACE, f"{root} has too little free space for {count} targets")
    cluster_id = spec.cluster_id or f"local-{secrets.token_hex(4)}"
    doors = ["mgmtd_grpc", "meta_grpc", "meta_tcp"]
    for node in range(1, spec.storage_nodes + 1):
        for worker in range(spec.workers_per_node):
            doors += [f"storage-{node}_{worker}_grpc", f"storage-{node}_{worker}_tcp"]
    ports = dict(zip(doors, free_ports(spec.host, len(doors)), strict=True))
    return Plan(replace(spec, capacity_bytes=capacity, cluster_id=cluster_id), ports)


def free_ports(host: str, count: int, rng: random.Random | None = None) -> list[int]:
    """Ports that nobody listens on now, below those that the kernel gives to outgoing connections: one of these would
    be taken, sooner or later, by a connection that is made while its server is down."""
    chosen: list[int] = []
    rng = rng or random.SystemRandom()
    for _ in range(PORT_TRIES_MAX):
        if len(chosen) == count:
            return chosen
        port = rng.randrange(PORT_MIN, _outgoing_from())
        if port not in chosen and port_is_free(host, port):
            chosen.append(port)
    raise error(Code.CONFIG, f"cannot find {count} free ports on {host}")


def _outgoing_from() -> int:
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        first = PORT_END
    return first if first > PORT_MIN + PORT_TRIES_MAX else PORT_END


def port_is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def load_plan(root: Path) -> Plan:
    """Raises CONFIG when there is none, or it makes no sense."""
    return configuration.load(Plan, root / PLAN_FILE)


def save(path: Path, config: Any) -> None:
    """Write a configuration so that a crash leaves the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    with new.open("w", encoding="utf-8") as file:
        file.write(configuration.dump(config))
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)


def socket_path(root: Path, cluster_id: str, name: str) -> str:
    """Where a Unix socket goes: in the cluster's folder, unless that is too deep for the kernel."""
    path = root / "run" / f"{name}.sock"
    if len(os.fsencode(path)) <= UNIX_PATH_BYTES_MAX:
        return str(path)
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    folder = Path(f"/tmp/ffs-{os.getuid()}-{digest}")
    folder.mkdir(mode=0o755, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise error(Code.CONFIG, f"{folder} belongs to someone else: cluster {cluster_id} needs a shorter folder name")
    return str(folder / f"{name}.sock")


def mgmtd_config(plan: Plan, root: Path) -> MgmtdConfig:
    from fireflyfs.mgmtd.server import MgmtdConfig

    spec = plan.spec
    return MgmtdConfig(
        cluster_id=spec.cluster_id,
        kv_path=str(root / "data" / "mgmtd"),
        listen_host=spec.host,
        grpc_port=plan.ports["mgmtd_grpc"],
        failed_after_s=spec.failed_after_s,
        session_lease_s=spec.session_lease_s,
    )


def meta_config(plan: Plan, root: Path) -> MetaConfig:
    from fireflyfs.meta.server import MetaConfig

    spec = plan.spec
    return MetaConfig(
        cluster_id=spec.cluster_id,
        node_id=META_NODE_ID,
        mgmtd=[plan.mgmtd_address],
        kv_path=str(root / "data" / "meta"),
        listen_host=spec.host,
        grpc_port=plan.ports["meta_grpc"],
        tcp_port=plan.ports["meta_tcp"],
        unix_path=socket_path(root, spec.cluster_id, "meta"),
        default_chunk_size=spec.chunk_size,
        trash_keep_s=spec.trash_keep_s,
    )


def storage_config(plan: Plan, root: Path, node: int) -> StorageConfig:
    from fireflyfs.storage.server import StorageConfig, TargetConfig, WorkerConfig

    spec = plan.spec
    workers = [
        WorkerConfig(
            targets=[
                TargetConfig(target_id, str(root / "data" / f"storage-{node}" / str(target_id)), spec.capacity_bytes)
                for of_worker, target_id in plan.targets(node)
                if of_worker == worker
            ],
            grpc_port=plan.ports[f"storage-{node}_{worker}_grpc"],
            tcp_port=plan.ports[f"storage-{node}_{worker}_tcp"],
            unix_path=socket_path(root, spec.cluster_id, f"storage-{node}.{worker}"),
        )
        for worker in range(spec.workers_per_node)
    ]
    return StorageConfig(
        cluster_id=spec.cluster_id,
        node_id=node,
        mgmtd=[plan.mgmtd_address],
        workers=workers,
        listen_host=spec.host,
        create_targets=False,  # an empty directory where data was must be noticed, not made a target
    )
