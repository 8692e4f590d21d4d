"""The chain state machine: an old chain and what its targets say give the new chain, with the reason of each decision.

After 3FS (`updateChain.cc`), with these differences. When all serving replicas are lost, each that surely has every
acknowledged write becomes LASTSRV: those lost in the same step, and those lost shortly before, when none of the others
was alive any more (`complete`). The first of them that returns leads; one whose machine lost power meanwhile (`lossy`:
what was acknowledged but not synced may be gone) leaves that to the others for a while. And a chain that never served
starts with the first target that comes up.

Order of a chain: SERVING, LASTSRV, SYNCING, WAITING, OFFLINE; inside a group the old order holds, and a target that has
just gone OFFLINE stands behind those that already were.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import IntEnum
from typing import NamedTuple

from fireflyfs.common.limits import REPLICAS_MAX
from fireflyfs.proto import mgmtd_pb2


class Public(IntEnum):
    """What mgmtd has decided; the numbers of the message."""

    UNKNOWN = mgmtd_pb2.PUBLIC_UNKNOWN
    SERVING = mgmtd_pb2.PUBLIC_SERVING
    LASTSRV = mgmtd_pb2.PUBLIC_LASTSRV
    SYNCING = mgmtd_pb2.PUBLIC_SYNCING
    WAITING = mgmtd_pb2.PUBLIC_WAITING
    OFFLINE = mgmtd_pb2.PUBLIC_OFFLINE


class Local(IntEnum):
    """What the worker says; the numbers of the message. UNKNOWN: not heard of since mgmtd started, not judged yet."""

    UNKNOWN = mgmtd_pb2.LOCAL_UNKNOWN
    OFFLINE = mgmtd_pb2.LOCAL_OFFLINE
    ONLINE = mgmtd_pb2.LOCAL_ONLINE
    UPTODATE = mgmtd_pb2.LOCAL_UPTODATE


class Member(NamedTuple):
    """One target of a chain, as the step finds it."""

    target_id: int
    public: Public
    local: Local
    lossy: bool = False  # its machine lost power since it served
    complete: bool = False  # it left the chain when those that still served were dead already


class Decision(NamedTuple):
    """One target of a chain, as the step leaves it."""

    target_id: int
    public: Public
    why: str


ORDER = (Public.SERVING, Public.LASTSRV, Public.SYNCING, Public.WAITING, Public.OFFLINE)
_ALIVE = (Local.ONLINE, Local.UPTODATE)


def next_chain(members: Sequence[Member], *, waited: bool = False) -> list[Decision]:
    """The chain after one step. Run again until nothing changes: each step is a version of its own.

    `waited`: the chain has waited long enough for a better leader than one whose machine lost power.
    """
    new: dict[int, Decision] = {}

    def decide(member: Member, public: Public, why: str) -> None:
        new[member.target_id] = Decision(member.target_id, public, why)

    def having(public: Public) -> list[Member]:
        return [member for member in members if member.public is public]

    lost: list[Member] = []
    for member in having(Public.SERVING):
        if member.local is Local.OFFLINE:
            lost.append(member)
        else:
            decide(member, Public.SERVING, "serves")
    for member in having(Public.SYNCING):
        if member.local is Local.UPTODATE:
            decide(member, Public.SERVING, "resync is done")
    serving = bool(new)
    leader = None if serving else _leader(having(Public.LASTSRV), waited)
    if leader is not None:
        decide(leader, Public.SERVING, "was among the last that served, and is back first")
        serving = True
    if not serving and not lost and not having(Public.LASTSRV):
        for member in having(Public.WAITING) + having(Public.OFFLINE):
            if member.local in _ALIVE:
                decide(member, Public.SERVING, "first of a chain that never served")
                serving = True
                break
    for member in lost + having(Public.LASTSRV):
        if member.target_id in new:
            continue
        if serving:
            decide(
                member,
                Public.OFFLINE,
                "was lost, and others serve" if member in lost else "another one that served last leads",
            )
        else:
            decide(member, Public.LASTSRV, "no replica serves, and this one has every acknowledged write")
    if lost and not serving:
        for member in members:
            if member.complete and member.public in (Public.OFFLINE, Public.WAITING, Public.SYNCING):
                decide(member, Public.LASTSRV, "left when those that still served were dead already")
    syncing = False
    for member in having(Public.SYNCING):
        if member.target_id in new:
            continue
        if member.local is Local.OFFLINE:
            decide(member, Public.OFFLINE, "went away while it was brought up to date")
        elif serving and not syncing:
            decide(member, Public.SYNCING, "is being brought up to date")
            syncing = True
        else:
            decide(member, Public.WAITING, "nobody to be brought up to date by")
    for member in having(Public.WAITING) + having(Public.OFFLINE) + having(Public.UNKNOWN):
        if member.target_id in new:
            continue
        if serving and not syncing and member.local is Local.ONLINE:
            decide(member, Public.SYNCING, "its turn to be brought up to date")
            syncing = True
        elif member.local in _ALIVE:
            decide(member, Public.WAITING, "waits for its turn to be brought up to date")
        elif member.local is Local.UNKNOWN and member.public is Public.WAITING:
            decide(member, Public.WAITING, "not heard of since mgmtd started")
        else:
            decide(member, Public.OFFLINE, "is away")
    return _ordered(members, new)


def _leader(last: Sequence[Member], waited: bool) -> Member | None:
    """Which of those that served last leads now; None: none yet."""
    alive = [member for member in last if member.local in _ALIVE]
    sound = [member for member in alive if not member.lossy]
    if sound:
        return sound[0]
    return alive[0] if alive and (waited or len(alive) == len(last)) else None


def _ordered(members: Sequence[Member], new: dict[int, Decision]) -> list[Decision]:
    newly_offline = {
        member.target_id
        for member in members
        if member.public is not Public.OFFLINE and new[member.target_id].public is Public.OFFLINE
    }
    old_place = {member.target_id: place for place, member in enumerate(members)}
    return sorted(
        new.values(),
        key=lambda decision: (
            ORDER.index(decision.public),
            decision.target_id in newly_offline,
            _group_place(members[old_place[decision.target_id]], decision),
            old_place[decision.target_id],
        ),
    )


def _group_place(member: Member, decision: Decision) -> bool:
    """A target that joins the serving ones does so behind them: the head and its forwarding path stay as they are."""
    return member.public is not decision.public


def rotate_to_preferred(
    members: Sequence[tuple[int, Public]], preferred: Sequence[int]
) -> list[tuple[int, Public]] | None:
    """One step towards the preferred order, or None when there is nothing to do now.

    Needs all targets serving, and at least two: the first one out of place goes OFFLINE to the end, and comes back
    behind the others through a resync.
    """
    if len(members) < 2 or any(public is not Public.SERVING for _, public in members):
        return None
    rank = {target_id: place for place, target_id in enumerate(preferred)}
    wanted = sorted((target_id for target_id, _ in members), key=lambda target_id: rank.get(target_id, len(rank)))
    for place, (target_id, _) in enumerate(members):
        if target_id != wanted[place]:
            rest = [member for member in members if member[0] != target_id]
            return [*rest, (target_id, Public.OFFLINE)]
    return None


def resync_one(members: Sequence[tuple[int, Public]], target_id: int) -> list[tuple[int, Public]] | None:
    """A serving target goes OFFLINE to the end, to come back through a resync; None unless another one serves."""
    serving = [member for member, public in members if public is Public.SERVING]
    if target_id not in serving or len(serving) < 2:
        return None
    return [*(member for member in members if member[0] != target_id), (target_id, Public.OFFLINE)]


def problems_of(members: Sequence[tuple[int, Public]]) -> list[str]:
    """Rules that a chain by itself must keep."""
    found: list[str] = []
    states = [public for _, public in members]
    if not 1 <= len(members) <= REPLICAS_MAX:
        found.append(f"rule: a chain has 1 to {REPLICAS_MAX} targets, not {len(members)}")
    if len({target_id for target_id, _ in members}) != len(members):
        found.append("rule: each target stands once in a chain")
    if Public.UNKNOWN in states:
        found.append("rule: each target of a chain has a public state")
    elif [ORDER.index(public) for public in states] != sorted(ORDER.index(public) for public in states):
        found.append("rule: order is SERVING, LASTSRV, SYNCING, WAITING, OFFLINE")
    if states.count(Public.SYNCING) > 1:
        found.append("rule: one target is brought up to date at a time")
    if Public.SYNCING in states and Public.SERVING not in states:
        found.append("rule: SYNCING needs a serving predecessor")
    if Public.SERVING in states and Public.LASTSRV in states:
        found.append("rule: LASTSRV only while nothing serves")
    return found


def problems_of_step(
    old_version: int,
    old: Sequence[tuple[int, Public]],
    new_version: int,
    new: Sequence[tuple[int, Public]],
    complete: Collection[int] = (),
) -> list[str]:
    """Rules that a change of a chain must keep, on top of `problems_of(new)`. `complete`: as the step was told."""
    found = problems_of(new)
    if list(old) == list(new):
        if new_version != old_version:
            found.append("rule: the version stays when nothing changed")
        return found
    if new_version != old_version + 1:
        found.append(f"rule: the version grows by one with each change, not from {old_version} to {new_version}")
    before, after = dict(old), dict(new)
    had = {target_id for target_id, public in old if public in (Public.SERVING, Public.LASTSRV)}
    has = {target_id for target_id, public in new if public in (Public.SERVING, Public.LASTSRV)}
    if had and not has:
        found.append("rule: a chain that served keeps a SERVING or a LASTSRV target")
    for target_id in has:
        came_from = before.get(target_id, Public.UNKNOWN)
        if had and target_id not in complete and came_from not in (Public.SERVING, Public.LASTSRV, Public.SYNCING):
            found.append(f"rule: target {target_id} may not serve without having been brought up to date")
    for target_id, public in after.items():
        served = before.get(target_id) in (Public.SERVING, Public.LASTSRV)
        if public is Public.LASTSRV and not served and target_id not in complete:
            found.append(f"rule: target {target_id} is LASTSRV but did not serve last")
    return found
