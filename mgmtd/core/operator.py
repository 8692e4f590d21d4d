"""What an operator does to chains and chain tables. Everything is checked before anything changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import REPLICAS_MAX
from fireflyfs.mgmtd.core.chain import Local, Public, resync_one, rotate_to_preferred
from fireflyfs.mgmtd.core.cluster import Cluster
from fireflyfs.mgmtd.core.draft import Draft
from fireflyfs.mgmtd.core.records import ChainRecord, Changes
from fireflyfs.mgmtd.core.specs import chain_problems, refuse, table_problems
from fireflyfs.proto import mgmtd_pb2


def set_chains(
    cluster: Cluster,
    specs: Sequence[mgmtd_pb2.ChainSpec],
    *,
    set_preferred_order: bool = False,
    same_node_allowed: bool = False,
) -> Changes:
    """Make chains. One that stands with the same targets stays as it is, so a request may be repeated.

    `set_preferred_order`: the order given becomes the preferred one of chains that exist. Raises INVALID with all
    problems, EXISTS when a chain stands with other targets.
    """
    wanted = [(spec.chain_id, tuple(spec.targets)) for spec in specs]
    nodes = {target.target_id: target.node_id for target in cluster.targets.values()}
    refuse(chain_problems(wanted, nodes, cluster.chain_of, same_node_allowed))
    draft = Draft(cluster)
    for chain_id, targets in wanted:
        old = cluster.chains.get(chain_id)
        if old is None:
            draft.chain(ChainRecord(chain_id, 1, _first_states(cluster, targets), targets))
            continue
        if {target_id for target_id, _ in old.members} != set(targets):
            raise error(Code.EXISTS, f"chain {chain_id} stands with other targets: change them one at a time")
        if set_preferred_order and old.preferred != targets:
            draft.chain(replace(old, preferred=targets))
    return draft.changes


def _first_states(cluster: Cluster, targets: Sequence[int]) -> tuple[tuple[int, Public], ...]:
    """Targets that are up serve at once: nothing was ever written. The others come in through a resync."""
    up = [t for t in targets if cluster.targets[t].local in (Local.ONLINE, Local.UPTODATE)]
    down = [t for t in targets if t not in up]
    return tuple([(t, Public.SERVING) for t in up] + [(t, Public.OFFLINE) for t in down])


def set_chain_table(cluster: Cluster, table_id: int, chains: Sequence[int], description: str) -> tuple[Changes, int]:
    """A new version of a chain table: (changes, version). The same content again is no new version."""
    refuse(table_problems(table_id, chains, {c.chain_id: len(c.members) for c in cluster.chains.values()}))
    old = cluster.tables.get(table_id)
    draft = Draft(cluster)
    if old is not None and list(old.chains) == list(chains) and old.description == description:
        return draft.changes, old.version
    version = old.version + 1 if old else 1
    draft.changes.tables[table_id] = mgmtd_pb2.ChainTableInfo(
        table_id=table_id,
        version=version,
        chains=chains,
        description=description,
        replicas=len(cluster.chains[chains[0]].members),
    )
    return draft.changes, version


def update_chain(
    cluster: Cluster,
    chain_id: int,
    target_id: int,
    kind: int,
    *,
    expected_version: int = 0,
    same_node_allowed: bool = False,
) -> Changes:
    """Add a target (it comes in through a resync), take one out or through a resync, or step to the preferred order.

    Raises NO_CHAIN, INVALID, EXISTS, and BUSY when taking the target out would lose acknowledged writes, or when the
    chain is at another version than `expected_version` (0: any).
    """
    chain = cluster.chains.get(chain_id)
    if chain is None:
        raise error(Code.NO_CHAIN, f"chain {chain_id} does not exist")
    if expected_version and expected_version != chain.version:
        raise error(
            Code.BUSY,
            f"chain {chain_id} is at version {chain.version}, not {expected_version}: it changed meanwhile, perhaps "
            "by an earlier try of this very change",
        )
    if kind == mgmtd_pb2.UPDATE_CHAIN_ADD:
        new = _with(cluster, chain, target_id, same_node_allowed)
    elif kind == mgmtd_pb2.UPDATE_CHAIN_REMOVE:
        new = _without(chain, target_id)
    elif kind == mgmtd_pb2.UPDATE_CHAIN_ROTATE:
        rotated = rotate_to_preferred(chain.members, chain.preferred)
        if rotated is None:
            if any(public is not Public.SERVING for _, public in chain.members):
                raise error(Code.BUSY, f"chain {chain_id}: not all of its targets serve")
            return Changes()
        new = replace(chain, members=tuple(rotated))
    elif kind == mgmtd_pb2.UPDATE_CHAIN_RESYNC:
        new = _resynced(chain, target_id)
    else:
        raise error(Code.INVALID, f"unknown kind of chain update {kind}")
    draft = Draft(cluster)
    draft.changes.reasons.append(f"chain {chain_id}: changed by an operator")
    draft.chain(replace(new, version=chain.version + 1))
    return draft.changes


def _with(cluster: Cluster, chain: ChainRecord, target_id: int, same_node_allowed: bool) -> ChainRecord:
    target = cluster.targets.get(target_id)
    if target is None:
        raise error(Code.INVALID, f"target {target_id} is not registered")
    if target_id in cluster.chain_of:
        raise error(Code.EXISTS, f"target {target_id} is already in chain {cluster.chain_of[target_id]}")
    if len(chain.members) >= REPLICAS_MAX:
        raise error(Code.INVALID, f"a chain has {REPLICAS_MAX} targets at most")
    for other, _ in chain.members:
        if cluster.targets[other].node_id == target.node_id and not same_node_allowed:
            raise error(Code.INVALID, f"target {other} of the chain is on node {target.node_id} too")
    members = (*chain.members, (target_id, Public.OFFLINE))
    return replace(chain, members=members, preferred=(*chain.preferred, target_id))


def _resynced(chain: ChainRecord, target_id: int) -> ChainRecord:
    if chain.state_of(target_id) is Public.UNKNOWN:
        raise error(Code.INVALID, f"target {target_id} is not in chain {chain.chain_id}")
    members = resync_one(chain.members, target_id)
    if members is None:
        raise error(Code.BUSY, f"chain {chain.chain_id}: target {target_id} does not serve, or no other one does")
    return replace(chain, members=tuple(members))


def _without(chain: ChainRecord, target_id: int) -> ChainRecord:
    public = chain.state_of(target_id)
    if public is Public.UNKNOWN:
        raise error(Code.INVALID, f"target {target_id} is not in chain {chain.chain_id}")
    if len(chain.members) == 1:
        raise error(Code.BUSY, f"target {target_id} is the only one of chain {chain.chain_id}")
    members = tuple(member for member in chain.members if member[0] != target_id)
    if public in (Public.SERVING, Public.LASTSRV) and public not in [state for _, state in members]:
        raise error(Code.BUSY, f"target {target_id} is the only complete one of chain {chain.chain_id}")
    return replace(chain, members=members, preferred=tuple(t for t in chain.preferred if t != target_id))
