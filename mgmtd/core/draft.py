"""Changes under construction: an event writes them here, and reads the cluster through them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from fireflyfs.common.errors import Code, error
from fireflyfs.mgmtd.core.chain import Local, Member, Public, next_chain, problems_of_step
from fireflyfs.mgmtd.core.records import ChainRecord, Changes, NodeRecord, TargetRecord
from fireflyfs.mgmtd.core.state import ClusterState

SPACE_STEP = 0.01  # a change of free space by this share of the capacity is worth a routing version


class Draft:
    """One event's changes."""

    def __init__(self, cluster: ClusterState) -> None:
        self._cluster = cluster
        self.changes = Changes()
        self.touched: set[int] = set()  # chains to be stepped

    def get_target(self, target_id: int) -> TargetRecord | None:
        return self.changes.targets.get(target_id) or self._cluster.targets.get(target_id)

    def node(self, node: NodeRecord) -> None:
        if self._cluster.nodes.get(node.node_id) != node:
            self.changes.nodes[node.node_id] = node

    def target(self, target: TargetRecord) -> None:
        old = self._cluster.targets.get(target.target_id)
        if old is target or old == target:
            self.changes.targets.pop(target.target_id, None)
        elif old is not None and target.target_id not in self.changes.targets and _only_figures(old, target):
            # Not worth a version: kept here, told with the next change or in a full answer.
            self._cluster.targets[target.target_id] = target
        else:
            self.changes.targets[target.target_id] = target

    def touch(self, target_id: int) -> None:
        chain_id = self._cluster.chain_of.get(target_id)
        if chain_id is not None:
            self.touched.add(chain_id)

    def worker_dead(self, node_id: int, worker: int) -> None:
        node = self.changes.nodes.get(node_id) or self._cluster.nodes[node_id]
        workers = tuple(replace(w, alive=False) if w.worker == worker else w for w in node.workers)
        self.node(replace(node, workers=workers))

    def lose_worker(self, node_id: int, worker: int, why: str) -> None:
        for target in self._cluster.targets_of(node_id, worker):
            self.lose_target(target.target_id, why)

    def lose_target(self, target_id: int, why: str) -> None:
        target = self.get_target(target_id)
        if target is not None and target.local is not Local.OFFLINE:
            self.changes.targets[target_id] = replace(target, local=Local.OFFLINE)
            self.changes.reasons.append(f"target {target_id} is offline: {why}")
        self.touch(target_id)

    def step(self, chain_ids: Iterable[int]) -> None:
        """One step of each chain, by what its targets say now."""
        for chain_id in sorted(chain_ids):
            chain = self._cluster.chains[chain_id]
            members = [self._member(target_id, public) for target_id, public in chain.members]
            decisions = next_chain(members, waited=self._cluster.has_waited(chain_id))
            if not any(decision.public is Public.SERVING for decision in decisions):
                self._cluster.note_leaderless(chain_id)
            new = tuple((decision.target_id, decision.public) for decision in decisions)
            if new == chain.members:
                continue
            for decision in decisions:
                old = chain.state_of(decision.target_id)
                if old is not decision.public:
                    self.changes.reasons.append(
                        f"chain {chain_id}: target {decision.target_id} "
                        f"{old.name} -> {decision.public.name}: {decision.why}"
                    )
            complete = {member.target_id for member in members if member.complete}
            self.chain(replace(chain, version=chain.version + 1, members=new), complete)

    def _member(self, target_id: int, public: Public) -> Member:
        target = self.get_target(target_id)
        complete = self._cluster.is_complete(target_id)
        if target is None:
            return Member(target_id, public, Local.OFFLINE, complete=complete)
        return Member(target_id, public, target.local, target.lost_power, complete)

    def chain(self, chain: ChainRecord, complete: Collection[int] = ()) -> None:
        """Raises INTERNAL rather than let a chain break a rule."""
        old = self._cluster.chains.get(chain.chain_id)
        if old is not None:
            problems = problems_of_step(old.version, old.members, chain.version, chain.members, complete)
            if problems:
                raise error(Code.INTERNAL, f"chain {chain.chain_id}: {'; '.join(problems)}")
        self.changes.chains[chain.chain_id] = chain


def _only_figures(old: TargetRecord, new: TargetRecord) -> bool:
    """Whether nothing differs but progress and a little space: what people look at, and nobody acts on."""
    same = replace(
        new,
        capacity_bytes=old.capacity_bytes,
        free_bytes=old.free_bytes,
        used_bytes=old.used_bytes,
        resync_done_chunks=old.resync_done_chunks,
        resync_total_chunks=old.resync_total_chunks,
        scrub=old.scrub,
    )
    step = max(1, int(SPACE_STEP * old.capacity_bytes))
    return same == old and old.capacity_bytes == new.capacity_bytes and abs(new.free_bytes - old.free_bytes) < step
