"""Routing as rows: what the list commands and `status` print. Pure functions of what mgmtd said."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fireflyfs.client.cli.output import age_text, bytes_text
from fireflyfs.client.routing import SERVING, SYNCING, Chain, Routing
from fireflyfs.common.limits import CHUNK_BYTES_DEFAULT
from fireflyfs.proto import common_pb2, mgmtd_pb2

NODE_TYPES: dict[str, common_pb2.NodeType] = {
    "mgmtd": common_pb2.NODE_TYPE_MGMTD,
    "meta": common_pb2.NODE_TYPE_META,
    "storage": common_pb2.NODE_TYPE_STORAGE,
    "client": common_pb2.NODE_TYPE_CLIENT,
    "fuse": common_pb2.NODE_TYPE_FUSE,
}
_TYPE_NAMES = {int(number): name for name, number in NODE_TYPES.items()}

NODE_COLUMNS = [
    ("node", "node"),
    ("type", "type"),
    ("state", "state"),
    ("workers", "workers"),
    ("host", "host"),
    ("heartbeat", "heartbeat"),
    ("grpc", "gRPC"),
    ("link", "data link"),
    ("doors", "doors"),
]
TARGET_COLUMNS = [
    ("target", "target"),
    ("node", "node"),
    ("worker", "worker"),
    ("chain", "chain"),
    ("state", "state"),
    ("says", "says"),
    ("used", "used"),
    ("free", "free"),
    ("damaged", "damaged"),
    ("repaired", "repaired"),
    ("scrub", "scrubbed"),
    ("path", "path"),
]
RESYNC_COLUMNS = [
    ("chain", "chain"),
    ("source", "from"),
    ("target", "to"),
    ("progress", "chunks"),
]
DAMAGE_COLUMNS = [
    ("target", "target"),
    ("chain", "chain"),
    ("damaged", "damaged chunks"),
    ("repaired", "repaired"),
    ("scrub", "scrubbed"),
]
REFUSED_COLUMNS = [
    ("target", "target"),
    ("node", "node"),
    ("chain", "chain"),
    ("note", "why"),
]
FULL_COLUMNS = [
    ("target", "target"),
    ("node", "node"),
    ("chain", "chain"),
    ("used", "used"),
    ("free", "free"),
    ("path", "path"),
]
CHAIN_COLUMNS = [
    ("chain", "chain"),
    ("version", "version"),
    ("state", "state"),
    ("members", "members, head first"),
]
TABLE_COLUMNS = [
    ("table", "table"),
    ("version", "version"),
    ("replicas", "replicas"),
    ("chain_count", "chains"),
    ("description", "description"),
]


def type_name(number: int) -> str:
    return _TYPE_NAMES.get(number, "unknown")


def links_text(links: Mapping[str, int]) -> str:
    """`rdma 3, tcp 1`: connections by link."""
    return ", ".join(f"{link} {count}" for link, count in sorted(links.items())) or "-"


def client_facts(sessions: Iterable[mgmtd_pb2.ClientSession]) -> dict[str, Any]:
    """How many clients of each type there are, and their connections to servers by link."""
    types: Counter[str] = Counter()
    connections: Counter[str] = Counter()
    for session in sessions:
        types[type_name(session.type)] += 1
        connections.update(session.links)
    return {"types": dict(sorted(types.items())), "connections": dict(sorted(connections.items()))}


def clients_text(sessions: Iterable[mgmtd_pb2.ClientSession]) -> str:
    facts = client_facts(sessions)
    counted = ", ".join(f"{count} {name}" for name, count in facts["types"].items())
    return f"clients: {counted}; their connections to servers: {links_text(facts['connections'])}"


def public_state(number: int) -> str:
    """`serving`, `lastsrv`, `syncing`, `waiting`, `offline`, or `unknown` for a number of a later release."""
    try:
        return mgmtd_pb2.PublicState.Name(mgmtd_pb2.PublicState.ValueType(number)).removeprefix("PUBLIC_").lower()
    except ValueError:
        return "unknown"


def local_state(number: int) -> str:
    try:
        return mgmtd_pb2.LocalState.Name(mgmtd_pb2.LocalState.ValueType(number)).removeprefix("LOCAL_").lower()
    except ValueError:
        return "unknown"


def node_rows(routing: Routing, now_unix_ns: int) -> list[dict[str, Any]]:
    rows = []
    for node_id, node in sorted(routing.nodes.items()):
        age_s = (now_unix_ns - node.last_heartbeat_unix_ns) / 1e9 if node.last_heartbeat_unix_ns else None
        alive = sum(1 for worker in node.workers if worker.alive)
        rows.append(
            {
                "node": node_id,
                "type": type_name(node.type),
                "state": "disabled" if node.disabled else "up" if node.alive else "down",
                "alive": node.alive,
                "workers": f"{alive}/{len(node.workers)}",
                "host": node.hostname,
                "release": node.release,
                "heartbeat": age_text(age_s) + " ago" if age_s is not None else "never",
                "heartbeat_age_s": age_s,
                "grpc": [worker.endpoint.grpc for worker in node.workers],
                "link": [worker.endpoint.tcp for worker in node.workers],
                "unix": [worker.endpoint.unix for worker in node.workers],
                "rdma": [worker.endpoint.rdma for worker in node.workers],
                "doors": [doors_text(worker.endpoint) for worker in node.workers],
            }
        )
    return rows


def doors_text(endpoint: common_pb2.Endpoint) -> str:
    """The data link's open doors: "tcp unix rdma:mlx5_0"."""
    doors = [name for name, where in (("tcp", endpoint.tcp), ("unix", endpoint.unix)) if where]
    return " ".join(doors + ([f"rdma:{endpoint.rdma}"] if endpoint.rdma else []))


def target_rows(routing: Routing, now_unix_ns: int = 0) -> list[dict[str, Any]]:
    """`now_unix_ns` 0: as of now."""
    now_unix_ns = now_unix_ns or time.time_ns()
    return [
        {
            "target": target_id,
            "node": target.node_id,
            "worker": target.worker,
            "chain": target.chain_id or None,
            "state": public_state(_state_in_chain(routing, target)),
            "says": local_state(target.local_state),
            "capacity_bytes": target.capacity_bytes,
            "used_bytes": target.used_bytes,
            "free_bytes": target.free_bytes,
            "used": bytes_text(target.used_bytes),
            "free": bytes_text(target.free_bytes),
            "path": target.path,
            "disk": target.disk_id,
            "note": target.note,
            "damaged": target.scrub.damaged_chunks,
            "repaired": target.scrub.repaired_chunks,
            "scrub": scrub_text(target.scrub, now_unix_ns),
            "scrub_running": target.scrub.running,
            "scrub_done_chunks": target.scrub.done_chunks,
            "scrub_total_chunks": target.scrub.total_chunks,
            "scrub_passes": target.scrub.passes,
            "scrub_ended_unix_ns": target.scrub.ended_unix_ns,
        }
        for target_id, target in sorted(routing.targets.items())
    ]


def scrub_text(report: common_pb2.ScrubReport, now_unix_ns: int) -> str:
    """`41 %` of the pass that runs, how long ago the last one ended, or `never`."""
    if report.running:
        return f"{share(report.done_chunks, report.total_chunks)} done"
    if not report.ended_unix_ns:
        return "never"
    return age_text((now_unix_ns - report.ended_unix_ns) / 1e9) + " ago"


def share(done: int, total: int) -> str:
    """100 % only when nothing is left."""
    return f"{100 * min(done, total) // total if total else 100} %"


def resync_rows(routing: Routing) -> list[dict[str, Any]]:
    """One row for each replica that is being brought up to date: how many of its source's chunks it has."""
    rows = []
    for chain_id, chain in sorted(routing.chains.items()):
        source_id = chain.serving[-1] if chain.serving else 0  # what is being synced comes behind all that serve
        source = routing.targets.get(source_id)
        for target_id, state in chain.targets:
            if state != SYNCING or source is None:
                continue
            done, total = source.resync_done_chunks, source.resync_total_chunks
            text = f"{done} of {total}, {share(done, total)}" if total else "begins"
            rows.append(
                {
                    "chain": chain_id,
                    "source": source_id,
                    "target": target_id,
                    "done_chunks": done,
                    "total_chunks": total,
                    "progress": text,
                }
            )
    return rows


def _state_in_chain(routing: Routing, target: mgmtd_pb2.TargetInfo) -> int:
    # The chain is what readers and writers go by; the target's own copy may come a delta later.
    chain = routing.chains.get(target.chain_id)
    members = dict(chain.targets) if chain else {}
    return members.get(target.target_id, int(target.public_state))


def chain_state(chain: Chain) -> str:
    """`serving` with all replicas, `degraded` with some, `offline` with none."""
    serving = len(chain.serving)
    return "serving" if serving == len(chain.targets) else "degraded" if serving else "offline"


def chain_rows(routing: Routing) -> list[dict[str, Any]]:
    return [
        {
            "chain": chain_id,
            "version": chain.version,
            "state": chain_state(chain),
            "serving": len(chain.serving),
            "targets": [{"target": target, "state": public_state(state)} for target, state in chain.targets],
            "members": " → ".join(f"{target} {public_state(state)}" for target, state in chain.targets),
        }
        for chain_id, chain in sorted(routing.chains.items())
    ]


def table_rows(routing: Routing) -> list[dict[str, Any]]:
    return [
        {
            "table": table_id,
            "version": table.version,
            "replicas": table.replicas,
            "chain_count": len(table.chains),
            "chains": list(table.chains),
            "description": table.description,
        }
        for table_id, table in sorted(routing.chain_tables.items())
    ]


def health(routing: Routing) -> dict[str, Any]:
    """The cluster in a few figures. `healthy`: every server lives and every replica serves, be it without room."""
    replicas = [state for chain in routing.chains.values() for _, state in chain.targets]
    down = [node_id for node_id, node in routing.nodes.items() if not node.alive and not node.disabled]
    serving = sum(1 for state in replicas if state == SERVING)
    offline = [chain_id for chain_id, chain in routing.chains.items() if not chain.serving]
    return {
        "healthy": bool(replicas) and not down and serving == len(replicas),
        "routing_version": routing.version,
        "nodes": len(routing.nodes),
        "nodes_down": sorted(down),
        "chains": len(routing.chains),
        "chains_offline": sorted(offline),
        "replicas": len(replicas),
        "replicas_serving": serving,
        "damaged_chunks": sum(target.scrub.damaged_chunks for target in routing.targets.values()),
        "targets_full": [target_id for target_id, target in sorted(routing.targets.items()) if is_full(target)],
    }


def is_full(target: mgmtd_pb2.TargetInfo) -> bool:
    """Whether a target of a chain has no room for a chunk of the usual size: writes to its chain fail."""
    return bool(target.chain_id and target.capacity_bytes) and target.free_bytes < CHUNK_BYTES_DEFAULT


def space_rows(routing: Routing) -> list[dict[str, Any]]:
    """One row for each chain table: what its chains can still take, counted once for all replicas of a chunk."""
    rows = []
    for table_id, table in sorted(routing.chain_tables.items()):
        chains = [routing.chains[chain_id] for chain_id in table.chains if chain_id in routing.chains]
        free = capacity = 0
        for chain in chains:
            members = [routing.targets[target] for target, _ in chain.targets if target in routing.targets]
            free += min((member.free_bytes for member in members), default=0)
            capacity += min((member.capacity_bytes for member in members), default=0)
        rows.append(
            {
                "table": table_id,
                "replicas": table.replicas,
                "chains": len(chains),
                "capacity_bytes": capacity,
                "free_bytes": free,
                "used_bytes": capacity - free,
                "capacity": bytes_text(capacity),
                "used": bytes_text(capacity - free),
                "free": bytes_text(free),
                "use": f"{100 * (capacity - free) / capacity:.0f} %" if capacity else "-",
            }
        )
    return rows
