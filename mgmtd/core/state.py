"""The cluster as mgmtd sees it: records, how changes are taken in, and what changed since any version."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import NamedTuple

from fireflyfs.common.errors import Code, error
from fireflyfs.mgmtd.core.chain import Local, Public
from fireflyfs.mgmtd.core.records import ChainRecord, Changes, NodeRecord, Stored, TargetRecord
from fireflyfs.proto import mgmtd_pb2

REMOVALS_KEPT_MAX = 1024  # removed records that deltas can still name; who is older gets everything
WORKERS_MAX = 256
NODE_TARGETS_MAX = 4096
LEADER_WAIT_S = 30.0  # for a replica of a chain that did not lose power, when all are down
SPACE_STEP = 0.01  # a change of free space by this share of the capacity is worth a routing version


@dataclass(slots=True)
class Seen:
    """The last heartbeat of a worker."""

    sequence: int
    at_s: float
    unix_ns: int


class Left(NamedTuple):
    """How a target left the SERVING ones of its chain."""

    at_s: float  # when that was published
    heard_s: float  # when its worker was last heard before
    others: tuple[int, ...]  # who still served


class ClusterState:
    """`apply` takes changes in once the store has them; `delta` tells others. Belongs to one thread."""

    def __init__(self, stored: Stored, now_s: float) -> None:
        self.cluster_id = stored.cluster_id
        self.version = stored.version_reserved + 1  # higher than anything that was published before
        self.nodes = {node.node_id: node for node in stored.nodes}
        self.targets = {target.target_id: target for target in stored.targets}
        self.chains = {chain.chain_id: chain for chain in stored.chains}
        self.tables = {table.table_id: table for table in stored.tables}
        self.chain_of = {target_id: chain.chain_id for chain in stored.chains for target_id, _ in chain.members}
        self._of_worker: dict[tuple[int, int], set[int]] = {}
        for target in stored.targets:
            self._of_worker.setdefault((target.node_id, target.worker), set()).add(target.target_id)
        self.seen: dict[tuple[int, int], Seen] = {}
        self.now_s = now_s  # of the newest event
        self.fenced_after_s = float("inf")  # a worker that was silent for so long serves nobody
        self.left: dict[int, Left] = {}
        self.leaderless_s: dict[int, float] = {}  # since when a chain waits for a better leader
        self.unsettled: set[int] = set(self.chains)  # chains that a further step may change
        # (kind, id) to the version that brought its present value; the newest change stands last.
        self._changed: dict[tuple[str, int], int] = {}
        self._removed: deque[tuple[int, str, int]] = deque()  # (version, kind, id)
        self._floor = self.version  # a delta from before this version is not possible
        for node in stored.nodes:
            for worker in node.workers:
                if worker.alive:  # the grace period: nobody could have been heard while mgmtd was away
                    self.seen[node.node_id, worker.worker] = Seen(0, now_s, 0)
        for target_id, target in self.targets.items():
            if not self.worker_alive(target.node_id, target.worker):
                self.targets[target_id] = replace(target, local=Local.OFFLINE)

    def node(self, node_id: int) -> NodeRecord:
        """Raises UNKNOWN_NODE."""
        try:
            return self.nodes[node_id]
        except KeyError:
            raise error(Code.UNKNOWN_NODE, f"node {node_id} is not registered") from None

    def targets_of(self, node_id: int, worker: int) -> list[TargetRecord]:
        return [self.targets[target_id] for target_id in sorted(self._of_worker.get((node_id, worker), ()))]

    def seen_unix_ns(self, node_id: int) -> int:
        """When a node was last heard; 0: not since the start."""
        node = self.nodes[node_id]
        return max(
            (seen.unix_ns for w in node.workers if (seen := self.seen.get((node_id, w.worker))) is not None), default=0
        )

    def worker_alive(self, node_id: int, worker: int) -> bool:
        node = self.nodes.get(node_id)
        record = node.worker(worker) if node else None
        return record is not None and record.alive and node is not None and not node.disabled

    # Taking changes in, and telling them

    def apply(self, changes: Changes) -> None:
        """The store has `changes`: they are the truth now, under a routing version of their own."""
        if not changes:
            return
        self.version += 1
        self.nodes.update(changes.nodes)
        for target_id, target in changes.targets.items():
            self._index(target_id, target)
        self.targets.update(changes.targets)
        self.tables.update(changes.tables)
        marks: list[tuple[str, Iterable[int]]] = [
            ("node", changes.nodes),
            ("target", changes.targets),
            ("chain", changes.chains),
            ("table", changes.tables),
        ]
        for chain_id, chain in changes.chains.items():
            inside = {target_id for target_id, _ in chain.members}
            old = self.chains.get(chain_id)
            left = {target_id for target_id, _ in old.members} - inside if old else set()
            self.chains[chain_id] = chain
            self._note_leaving(old, chain)
            for target_id in left:
                del self.chain_of[target_id]
            marks.append(("target", left))
            for target_id in inside:
                self.chain_of[target_id] = chain_id
            marks.append(("target", inside))  # a target's public state is told with it
            self.unsettled.add(chain_id)
        for kind, ids in marks:
            for number in ids:
                self._changed.pop((kind, number), None)
                self._changed[kind, number] = self.version
        for node_id in changes.removed_nodes:
            self._forget("node", node_id)
            del self.nodes[node_id]
            for key in [key for key in self.seen if key[0] == node_id]:
                del self.seen[key]
        for target_id in changes.removed_targets:
            self._forget("target", target_id)
            self._index(target_id, None)
            del self.targets[target_id]
        while len(self._removed) > REMOVALS_KEPT_MAX:
            self._floor = max(self._floor, self._removed.popleft()[0])

    def _note_leaving(self, old: ChainRecord | None, new: ChainRecord) -> None:
        serving = tuple(target_id for target_id, public in new.members if public is Public.SERVING)
        if serving:
            self.leaderless_s.pop(new.chain_id, None)
        for target_id, public in new.members:
            before = old.state_of(target_id) if old is not None else Public.UNKNOWN
            if public in (Public.SERVING, Public.LASTSRV) or before is Public.LASTSRV:
                self.left.pop(target_id, None)
            elif before is Public.SERVING and serving:
                self.left[target_id] = Left(self.now_s, self.heard_s(target_id), serving)

    def heard_s(self, target_id: int) -> float:
        """When the worker of a target was last heard; now, when that is not known."""
        target = self.targets.get(target_id)
        seen = self.seen.get((target.node_id, target.worker)) if target is not None else None
        return seen.at_s if seen is not None else self.now_s

    def has_waited(self, chain_id: int) -> bool:
        """Whether a chain that nobody serves has waited long enough for a better leader."""
        since_s = self.leaderless_s.get(chain_id)
        return since_s is not None and self.now_s - since_s >= LEADER_WAIT_S

    def note_leaderless(self, chain_id: int) -> None:
        """Nobody serves the chain now."""
        self.leaderless_s.setdefault(chain_id, self.now_s)

    def is_complete(self, target_id: int) -> bool:
        """Whether a target that left the SERVING ones has every write that was acknowledged since.

        It has when each of those that still served had been silent for so long that it had fenced itself.
        """
        left = self.left.get(target_id)
        if left is None:
            return False
        for other in left.others:
            gone = self.left.get(other)
            heard_s = gone.heard_s if gone is not None else self.heard_s(other)
            if heard_s + self.fenced_after_s > left.at_s:
                return False
        return True

    def _index(self, target_id: int, new: TargetRecord | None) -> None:
        old = self.targets.get(target_id)
        if old is not None:
            self._of_worker[old.node_id, old.worker].discard(target_id)
        if new is not None:
            self._of_worker.setdefault((new.node_id, new.worker), set()).add(target_id)

    def _forget(self, kind: str, number: int) -> None:
        self._changed.pop((kind, number), None)
        self._removed.append((self.version, kind, number))

    def delta(self, since: int) -> mgmtd_pb2.RoutingDelta:
        """What changed after version `since`; everything when that cannot be told, or `since` is 0."""
        full = since < self._floor or since > self.version
        reply = mgmtd_pb2.RoutingDelta(version=self.version, since_version=0 if full else since, full=full)
        if not full and since == self.version:
            return reply
        if full:
            keys = [("node", n) for n in self.nodes] + [("target", n) for n in self.targets]
            keys += [("chain", n) for n in self.chains] + [("table", n) for n in self.tables]
        else:
            newest_first = reversed(self._changed.items())
            keys = [key for key, _ in takewhile(lambda item: item[1] > since, newest_first)]
            for version, kind, number in self._removed:
                if version > since and kind == "node" and number not in self.nodes:
                    reply.removed_nodes.append(number)
                elif version > since and kind == "target" and number not in self.targets:
                    reply.removed_targets.append(number)
        for kind, number in keys:
            if kind == "node":
                reply.nodes.append(self.node_info(number))
            elif kind == "target":
                reply.targets.append(self.target_info(number))
            elif kind == "chain":
                reply.chains.append(self.chains[number].durable())
            else:
                reply.chain_tables.append(self.tables[number])
        return reply

    def node_info(self, node_id: int) -> mgmtd_pb2.NodeInfo:
        node = self.nodes[node_id]
        info = node.durable()
        info.config_version = node.config_version
        info.last_heartbeat_unix_ns = self.seen_unix_ns(node_id)
        return info

    def target_info(self, target_id: int) -> mgmtd_pb2.TargetInfo:
        target = self.targets[target_id]
        info = target.durable()
        chain_id = self.chain_of.get(target_id, 0)
        info.chain_id = chain_id
        info.note = target.note
        info.local_state = int(target.local)  # type: ignore[assignment]
        if chain_id:
            info.public_state = int(self.chains[chain_id].state_of(target_id))  # type: ignore[assignment]
        info.capacity_bytes = target.capacity_bytes
        info.free_bytes = target.free_bytes
        info.used_bytes = target.used_bytes
        info.resync_done_chunks = target.resync_done_chunks
        info.resync_total_chunks = target.resync_total_chunks
        info.scrub.CopyFrom(target.scrub)
        return info
