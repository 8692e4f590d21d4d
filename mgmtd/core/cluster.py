"""The cluster's events. Each returns `Changes` and changes nothing durable by itself: see `ClusterState.apply`.

The one thing that events note at once is who was heard when (`seen`): it is neither durable nor published.
"""

from __future__ import annotations

from dataclasses import replace

from fireflyfs.common.errors import Code, error
from fireflyfs.mgmtd.core.chain import Local, Public
from fireflyfs.mgmtd.core.draft import Draft
from fireflyfs.mgmtd.core.records import Changes, NodeRecord, Stored, TargetRecord, WorkerRecord
from fireflyfs.mgmtd.core.state import ClusterState, Seen
from fireflyfs.proto import mgmtd_pb2
from fireflyfs.proto.common_pb2 import NODE_TYPE_STORAGE, NodeType

WORKERS_MAX = 256
# Of the time after which a silent worker is given up: by then it has fenced itself, whatever its clock does.
FENCED_SHARE = 0.7
NODE_TARGETS_MAX = 4096
ANOTHER_DISK = (
    "another disk stands where the last replica of its chain was: "
    "bring back the old one, or give it up with `ffs targets accept-disk`"
)
_LOCAL = {int(local): local for local in Local if local is not Local.UNKNOWN}


class Cluster(ClusterState):
    """State and its events. Belongs to one thread; times are monotonic seconds that the caller passes in."""

    def __init__(self, stored: Stored, now_s: float, *, failed_after_s: float) -> None:
        super().__init__(stored, now_s)
        self.failed_after_s = failed_after_s
        self.fenced_after_s = FENCED_SHARE * failed_after_s
        self._last_tick_s = now_s
        self.now_s = max(self.now_s, now_s)

    def heartbeat(self, request: mgmtd_pb2.HeartbeatRequest, now_s: float, unix_ns: int) -> Changes:
        """A worker is alive and says how its targets are.

        Raises UNKNOWN_NODE, NODE_DISABLED, INVALID, and STALE_HEARTBEAT for an older generation or sequence.
        """
        node = self.node(request.node_id)
        if node.disabled:
            raise error(Code.NODE_DISABLED, f"node {node.node_id} is disabled")
        if node.type != request.type:
            raise error(Code.INVALID, f"node {node.node_id} is registered as a {_kind(node.type)} node")
        if request.worker >= WORKERS_MAX:
            raise error(Code.INVALID, f"a worker number is below {WORKERS_MAX}, not {request.worker}")
        old = node.worker(request.worker)
        key = (node.node_id, request.worker)
        seen = self.seen.get(key)
        if old is not None and request.generation < old.generation and not self._is_long_gone(old, seen, now_s):
            raise error(
                Code.STALE_HEARTBEAT, f"generation {request.generation} is older than {old.generation}: a newer runs"
            )
        restarted = old is None or request.generation != old.generation
        if not restarted and seen is not None and request.sequence <= seen.sequence:
            raise error(Code.STALE_HEARTBEAT, f"sequence {request.sequence} is not newer than {seen.sequence}")
        self.seen[key] = Seen(request.sequence, now_s, unix_ns)
        self.now_s = max(self.now_s, now_s)

        draft = Draft(self)
        # Who reports another process's death does not know its doors, and nobody needs them now.
        endpoint = request.endpoint if request.HasField("endpoint") or old is None else old.endpoint
        worker = WorkerRecord(request.worker, request.generation, not request.stopping, endpoint)
        others = tuple(other for other in node.workers if other.worker != request.worker)
        draft.node(
            replace(
                node,
                hostname=request.hostname or node.hostname,
                release=request.release,
                config_version=request.config_version,
                workers=tuple(sorted((*others, worker), key=lambda record: record.worker)),
            )
        )
        if request.stopping:
            draft.lose_worker(node.node_id, request.worker, "its worker is stopping")
        elif restarted:
            # Whatever it says: what it missed while it was away is unknown, so it leaves its chains first.
            draft.lose_worker(node.node_id, request.worker, "its worker has started anew")
        if not request.stopping:
            self._reports(draft, node, request, restarted)
        draft.step(draft.touched)
        return draft.changes

    def _is_long_gone(self, worker: WorkerRecord, seen: Seen | None, now_s: float) -> bool:
        """Whether nothing of this life of a worker can be on its way any more. Then an older generation is no older
        life: generations are dates, and the host's was set back."""
        return not worker.alive and (seen is None or now_s - seen.at_s >= self.failed_after_s)

    def _reports(self, draft: Draft, node: NodeRecord, request: mgmtd_pb2.HeartbeatRequest, restarted: bool) -> None:
        if node.type != NODE_TYPE_STORAGE:
            return
        reported: set[int] = set()
        for report in request.targets:
            reported.add(report.target_id)
            target = draft.get_target(report.target_id)
            if target is None:
                if report.target_id == 0 or len(reported) > NODE_TARGETS_MAX:
                    continue
                target = TargetRecord(report.target_id, node.node_id, request.worker)
            elif target.node_id != node.node_id:
                draft.changes.reasons.append(
                    f"target {target.target_id} belongs to node {target.node_id}, but node {node.node_id} reports it"
                )
                continue
            local = target.local
            moved = target.worker != request.worker
            if moved:
                if self.worker_alive(target.node_id, target.worker):
                    continue  # two workers claim it: the one that holds it stays
                local = Local.OFFLINE
            chain_id = self.chain_of.get(target.target_id)
            chain = self.chains[chain_id] if chain_id is not None else None
            public = chain.state_of(target.target_id) if chain is not None else Public.UNKNOWN
            swapped = bool(target.disk_id) and target.disk_id != report.disk_id
            refused = swapped and public in (Public.SERVING, Public.LASTSRV)
            if refused:
                # While others serve, it leaves first, and is brought up to date then like an empty one.
                local = Local.OFFLINE
            elif chain is None or (not restarted and not moved and report.chain_version >= chain.version):
                local = _LOCAL.get(report.local_state, Local.OFFLINE)
            note = ANOTHER_DISK if refused else ""
            if note and note != target.note:
                draft.changes.reasons.append(f"target {target.target_id} is refused: {note}")
            target = replace(target, note=note, disk_id=target.disk_id if refused else report.disk_id)
            if local is not target.local or moved or report.lost_power is not target.lost_power:
                draft.touch(target.target_id)
            draft.target(_reported(target, request.worker, local, report))
        for target in self.targets_of(node.node_id, request.worker):
            if target.target_id not in reported:  # it is not served any more
                draft.lose_target(target.target_id, "its worker does not report it")

    def tick(self, now_s: float) -> Changes:
        """Time has passed: workers that were silent for too long are lost, chains go their next step.

        If the ticks themselves came late, mgmtd stood still and could hear nobody: that time counts against no one.
        """
        late_s = now_s - self._last_tick_s
        self._last_tick_s = now_s
        if late_s > self.failed_after_s / 2:
            for seen in self.seen.values():
                seen.at_s = min(seen.at_s + late_s, now_s)
        draft = Draft(self)
        for node in list(self.nodes.values()):
            for worker in node.workers:
                if not worker.alive:
                    continue
                seen_or_none = self.seen.get((node.node_id, worker.worker))
                if seen_or_none is None or now_s - seen_or_none.at_s >= self.failed_after_s:
                    draft.worker_dead(node.node_id, worker.worker)
                    draft.lose_worker(
                        node.node_id, worker.worker, f"its worker was silent for {self.failed_after_s:g} s"
                    )
        draft.step(draft.touched | self.unsettled | self.leaderless_s.keys())
        self.unsettled = set(draft.changes.chains)
        return draft.changes

    def register_node(self, node_id: int, node_type: int, hostname: str) -> Changes:
        """Make a node known. The same again changes nothing; another type is EXISTS."""
        old = self.nodes.get(node_id)
        draft = Draft(self)
        if old is None:
            draft.node(NodeRecord(node_id, node_type, hostname))
        elif old.type != node_type:
            raise error(Code.EXISTS, f"node {node_id} is registered already, as a {_kind(old.type)} node")
        elif hostname and hostname != old.hostname:
            draft.node(replace(old, hostname=hostname))
        return draft.changes

    def unregister_node(self, node_id: int) -> Changes:
        """Forget a node and its targets. Raises BUSY while it runs, or while a target of it is in a chain."""
        node = self.node(node_id)
        if node.alive and not node.disabled:
            raise error(Code.BUSY, f"node {node_id} is alive: stop or disable it first")
        targets = [target.target_id for target in self.targets.values() if target.node_id == node_id]
        used = [target_id for target_id in targets if target_id in self.chain_of]
        if used:
            raise error(Code.BUSY, f"target {used[0]} of node {node_id} is in chain {self.chain_of[used[0]]}")
        draft = Draft(self)
        draft.changes.removed_nodes.add(node_id)
        draft.changes.removed_targets.update(targets)
        return draft.changes

    def set_disabled(self, node_id: int, disabled: bool) -> Changes:
        """Take a node out of service at once, or let it come back with its next heartbeat."""
        node = self.node(node_id)
        draft = Draft(self)
        if node.disabled != disabled:
            draft.node(replace(node, disabled=disabled))
            if disabled:
                for worker in node.workers:
                    draft.worker_dead(node_id, worker.worker)
                    draft.lose_worker(node_id, worker.worker, "its node was disabled")
        draft.step(draft.touched)
        return draft.changes

    def register_target(
        self, target_id: int, node_id: int, worker: int, path: str, *, accept_new_disk: bool = False
    ) -> Changes:
        """Make a target known, or say that it lives elsewhere now. Raises BUSY while its present worker serves it.

        `accept_new_disk`: the disk that it is reported with next is its own, whatever it held before.
        """
        self.node(node_id)
        if target_id == 0 or worker >= WORKERS_MAX:
            raise error(Code.INVALID, f"target {target_id} of worker {worker}: ids start at 1, workers end at 255")
        old = self.targets.get(target_id)
        draft = Draft(self)
        if old is None:
            draft.target(TargetRecord(target_id, node_id, worker, path, local=Local.OFFLINE))
        elif (old.node_id, old.worker) != (node_id, worker):
            if old.local not in (Local.OFFLINE, Local.UNKNOWN):
                raise error(Code.BUSY, f"target {target_id} is served by node {old.node_id} now")
            draft.target(replace(old, node_id=node_id, worker=worker, path=path, local=Local.OFFLINE))
            draft.touch(target_id)
        elif path and path != old.path:
            draft.target(replace(old, path=path))
        if accept_new_disk and old is not None:
            known = draft.get_target(target_id) or old
            draft.target(replace(known, disk_id="", note=""))
        draft.step(draft.touched)
        return draft.changes


def _reported(target: TargetRecord, worker: int, local: Local, report: mgmtd_pb2.TargetReport) -> TargetRecord:
    """`target` with what its worker says; itself when that is no news, which is so nearly always."""
    path = report.path or target.path
    if (
        target.worker == worker
        and target.local is local
        and target.free_bytes == report.free_bytes
        and target.used_bytes == report.used_bytes
        and target.capacity_bytes == report.capacity_bytes
        and target.resync_done_chunks == report.resync_done_chunks
        and target.resync_total_chunks == report.resync_total_chunks
        and target.scrub == report.scrub
        and target.path == path
        and target.lost_power is report.lost_power
    ):
        return target
    return replace(
        target,
        worker=worker,
        path=path,
        local=local,
        lost_power=report.lost_power,
        capacity_bytes=report.capacity_bytes,
        free_bytes=report.free_bytes,
        used_bytes=report.used_bytes,
        resync_done_chunks=report.resync_done_chunks,
        resync_total_chunks=report.resync_total_chunks,
        scrub=report.scrub,
    )


def _kind(node_type: int) -> str:
    return NodeType.Name(NodeType.ValueType(node_type)).removeprefix("NODE_TYPE_").lower()
