"""Routing: where everything is, as of a version. Built from mgmtd's deltas; never changed in place.

`apply_delta` is pure: an old `Routing` and a `RoutingDelta` give a new one, sharing what did not change, so a reader
holds one consistent picture for as long as it likes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fireflyfs.common.errors import Code, RefreshRouting, error
from fireflyfs.common.net.api import Address
from fireflyfs.proto import mgmtd_pb2
from fireflyfs.proto.common_pb2 import NODE_TYPE_META, Endpoint

SERVING = mgmtd_pb2.PUBLIC_SERVING
SYNCING = mgmtd_pb2.PUBLIC_SYNCING


class ChainNotInRouting(RefreshRouting):
    """NO_CHAIN by this process's own routing: newer routing may have the chain, but nothing else will help."""


@dataclass(frozen=True, slots=True)
class Chain:
    """One chain at one version: (target id, public state), head first."""

    chain_id: int
    version: int
    targets: tuple[tuple[int, int], ...]
    # Worked out once: each request asks for them.
    serving: tuple[int, ...] = field(init=False, repr=False, compare=False)  # may answer reads; the first is the head
    _live: tuple[tuple[int, int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        live = tuple(member for member in self.targets if member[1] in (SERVING, SYNCING))
        object.__setattr__(self, "serving", tuple(target for target, state in live if state == SERVING))
        object.__setattr__(self, "_live", live)

    def successor(self, target_id: int) -> tuple[int, int] | None:
        """The next SERVING or SYNCING target after `target_id`: (target id, state), or None for the tail."""
        live = self._live
        for place, (target, _) in enumerate(live, 1):
            if target == target_id:
                return live[place] if place < len(live) else None
        return None


@dataclass(frozen=True, slots=True)
class Routing:
    """What mgmtd said, as of `version` (0: nothing yet)."""

    version: int = 0
    nodes: dict[int, mgmtd_pb2.NodeInfo] = field(default_factory=dict)
    targets: dict[int, mgmtd_pb2.TargetInfo] = field(default_factory=dict)
    chains: dict[int, Chain] = field(default_factory=dict)
    chain_tables: dict[int, mgmtd_pb2.ChainTableInfo] = field(default_factory=dict)
    addresses: dict[int, Address] = field(default_factory=dict)  # target id to its worker's data link
    endpoints: dict[int, Endpoint] = field(default_factory=dict)  # target id to all doors of its worker

    def chain(self, chain_id: int) -> Chain:
        """Raises ChainNotInRouting (NO_CHAIN), and UNAVAILABLE while there is no routing at all."""
        try:
            return self.chains[chain_id]
        except KeyError:
            if not self.version:
                raise error(Code.UNAVAILABLE, "no routing is known yet") from None
            text = f"chain {chain_id} is not in routing version {self.version}"
            raise ChainNotInRouting(Code.NO_CHAIN, text) from None

    def address(self, target_id: int) -> Address:
        """Raises TARGET_OFFLINE when the target's worker never said where it listens."""
        try:
            return self.addresses[target_id]
        except KeyError:
            raise error(Code.TARGET_OFFLINE, f"target {target_id} has no known address") from None

    def meta_servers(self) -> list[Endpoint]:
        """Endpoints of live metadata servers, by node id."""
        return [
            worker.endpoint
            for _, node in sorted(self.nodes.items())
            if node.type == NODE_TYPE_META and node.alive and not node.disabled
            for worker in node.workers
            if worker.alive
        ]


def link_address(endpoint: Endpoint) -> Address:
    return Address(tcp=endpoint.tcp, unix=endpoint.unix, host_id=endpoint.host_id)


def apply_delta(old: Routing, delta: mgmtd_pb2.RoutingDelta) -> Routing:
    """The routing after `delta`. A delta that is not newer returns `old` itself.

    Raises PROTOCOL when `delta` starts from another version than `old` has: ask for a full one then.
    """
    if delta.version <= old.version and not (delta.full and delta.version == old.version):
        return old
    if not delta.full and delta.since_version != old.version:
        raise error(
            Code.PROTOCOL, f"routing delta starts at version {delta.since_version}, this process has {old.version}"
        )
    base = Routing() if delta.full else old
    nodes = dict(base.nodes)
    targets = dict(base.targets)
    chains = dict(base.chains)
    tables = dict(base.chain_tables)
    for node_id in delta.removed_nodes:
        nodes.pop(node_id, None)
    for target_id in delta.removed_targets:
        targets.pop(target_id, None)
    for chain_id in delta.removed_chains:
        chains.pop(chain_id, None)
    for table_id in delta.removed_chain_tables:
        tables.pop(table_id, None)
    nodes.update((node.node_id, node) for node in delta.nodes)
    targets.update((target.target_id, target) for target in delta.targets)
    tables.update((table.table_id, table) for table in delta.chain_tables)
    for info in delta.chains:
        members = tuple((target.target_id, int(target.state)) for target in info.targets)
        chains[info.chain_id] = Chain(info.chain_id, info.chain_version, members)
    endpoints = {
        target_id: worker.endpoint
        for target_id, target in targets.items()
        if target.node_id in nodes
        for worker in nodes[target.node_id].workers
        if worker.worker == target.worker and worker.HasField("endpoint")
    }
    addresses = {target_id: link_address(endpoint) for target_id, endpoint in endpoints.items()}
    return Routing(delta.version, nodes, targets, chains, tables, addresses, endpoints)
