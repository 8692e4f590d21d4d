"""What becomes of one update of one chunk, given what this replica holds of the chunk.

The head numbers a client's updates (committed + 1); every other replica takes the number it is given. A chunk that was
removed goes on from there (`floor`), so that a forwarded update that comes late, when its sender has given up long ago,
never looks like the next one: within one version of the chain, a chunk's versions only grow. A pending version
is an update whose outcome is not known yet: it may be committed further down the chain. So the head never starts a new
version over a pending one of another writer; that one is finished first (FINISH_FIRST), or, when a successor has
answered that it cannot be stored (`may_replace_pending`), replaced under the next number: the one that was given up may
still be on its way to somebody.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from fireflyfs.common.errors import Code
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.engine.interface import ChunkState, Version, Writer


class Action(Enum):
    """What to do with an update."""

    APPLY = "store it as pending version `version`, forward it, commit it"
    FORWARD = "it is stored here as pending version `version`: forward it again, commit it"
    ANSWER = "it is committed here and further down: answer what the chunk is now"
    NOTHING = "it changes nothing: answer what the chunk is now"
    FINISH_FIRST = "forward and commit pending version `version` of another writer, then decide again"
    REFUSE = "answer `code`"


class Decision(NamedTuple):
    """One decision, with its reason."""

    action: Action
    version: int
    code: Code
    why: str


def decide_head(
    state: ChunkState | None,
    kind: UpdateKind,
    length: int,
    writer: Writer,
    *,
    replace_pending: bool = False,
    floor: int = 0,
    seen: tuple[int, Writer] | None = None,
) -> Decision:
    """A client's update at the head.

    `replace_pending`: the pending version is known to be committed nowhere. `floor`: the version that removed the
    chunk, under the present version of the chain. `seen`: the update is of a chunk as somebody saw it; over another
    committed version, or another writer's under the same number, it is refused.
    """
    committed = state.committed if state is not None else None
    pending = state.pending if state is not None else None
    if pending is not None:
        if pending.writer == writer:
            return Decision(Action.FORWARD, pending.version, Code.OK, "an earlier attempt of the same request")
        if not replace_pending:
            return Decision(Action.FINISH_FIRST, pending.version, Code.OK, "another writer's version is pending")
    if committed is not None and committed.writer[:2] == writer[:2]:
        if committed.writer.sequence == writer.sequence:
            return Decision(Action.ANSWER, committed.version, Code.OK, "committed by an earlier attempt")
        if committed.writer.sequence > writer.sequence:
            return Decision(Action.REFUSE, 0, Code.STALE_UPDATE, "the channel has gone on")
    if seen is not None and committed is not None and (committed.version, committed.writer) != seen:
        return Decision(Action.REFUSE, committed.version, Code.STALE_UPDATE, "written since somebody looked at it")
    base = committed.version if committed is not None else floor
    # A pending version that is replaced hides nothing: what it would have changed never happened.
    if pending is None or replace_pending:
        if kind is UpdateKind.REMOVE and committed is None and pending is None:
            return Decision(Action.NOTHING, 0, Code.OK, "no such chunk")
        if kind is UpdateKind.TRUNCATE and pending is None and (committed is None or committed.length <= length):
            return Decision(Action.NOTHING, base, Code.OK, "already that short")
    if pending is not None:
        base = max(base, pending.version)
    return Decision(Action.APPLY, base + 1, Code.OK, "next version")


def decide_replica(
    state: ChunkState | None,
    kind: UpdateKind,
    version: int,
    crc32c: int,
    writer: Writer,
    *,
    syncing: bool,
    chain_version: int = 0,
    floor: int = 0,
    creates: bool = False,
    built_on: int = 0,
) -> Decision:
    """An update that a predecessor forwards as `version`, under `chain_version`.

    `crc32c` 0: the predecessor does not know it yet. `floor`: the version that removed the chunk under `chain_version`.
    `creates`: the head had no such chunk; what it remembers of removed ones may be more than this replica does.
    `built_on`: the committed version that a REPLACE takes the place of (0: none). It leaves out what was given up in
    between, so it must not follow a copy of that which came late, found room here, and was shown.
    """
    committed = state.committed if state is not None else None
    pending = state.pending if state is not None else None
    if version < 1:
        return Decision(Action.REFUSE, 0, Code.PROTOCOL, "a forwarded update has a version")
    if syncing:
        if kind not in (UpdateKind.REPLACE, UpdateKind.REMOVE, UpdateKind.DAMAGED):
            return Decision(Action.REFUSE, 0, Code.PROTOCOL, "a syncing replica takes whole chunks only")
        if kind is UpdateKind.REMOVE and state is None:
            return Decision(Action.NOTHING, version, Code.OK, "no such chunk")
        # What was stored before this version of the chain says nothing: it may be ahead of the truth.
        newest = max(
            (
                found.version
                for found in (committed, pending)
                if found is not None and found.chain_version == chain_version
            ),
            default=floor if state is None else 0,
        )
        if version < newest or (kind is UpdateKind.REMOVE and version == newest and committed is not None):
            return Decision(Action.REFUSE, newest, Code.STALE_UPDATE, f"version {newest} has come in between")
        damaged = kind is UpdateKind.DAMAGED
        if pending is None and _same(committed, version, crc32c, writer, damaged=damaged):
            return Decision(Action.ANSWER, version, Code.OK, "already so")
        return Decision(Action.APPLY, version, Code.OK, "versions are set while syncing")
    if kind is UpdateKind.DAMAGED:
        return Decision(Action.REFUSE, 0, Code.PROTOCOL, "only a syncing replica is told of lost bytes")
    base = committed.version if committed is not None else floor
    if pending is not None and version < pending.version and pending.chain_version == chain_version:
        return Decision(Action.REFUSE, pending.version, Code.STALE_UPDATE, f"version {pending.version} has come since")
    if kind is UpdateKind.REMOVE and committed is None and pending is None:
        return Decision(Action.NOTHING, version, Code.OK, "already removed")
    if version == base and committed is not None:
        if committed.writer == writer and crc32c in (0, committed.crc32c):
            return Decision(Action.ANSWER, version, Code.OK, "committed by an earlier attempt")
        return Decision(Action.REFUSE, base, Code.STALE_UPDATE, "another update is committed under this version")
    if version < base:
        return Decision(Action.REFUSE, base, Code.STALE_UPDATE, f"version {base} is committed here")
    if pending is not None and pending.version == version and pending.writer == writer:
        return Decision(Action.FORWARD, version, Code.OK, "stored by an earlier attempt")
    if committed is None and version == base:
        return Decision(Action.REFUSE, base, Code.STALE_UPDATE, f"version {base} removed the chunk")
    here = committed.version if committed is not None else 0
    if kind is UpdateKind.REPLACE and built_on != here:
        code = Code.STALE_UPDATE if here > built_on else Code.MISSING_UPDATE
        return Decision(Action.REFUSE, here, code, f"it was made of version {built_on}, version {here} is committed")
    # What builds on nothing that is here may leave numbers out: those were given up.
    if version == base + 1 or kind in (UpdateKind.REPLACE, UpdateKind.REMOVE) or (creates and committed is None):
        return Decision(Action.APPLY, version, Code.OK, "next version")
    return Decision(Action.REFUSE, base, Code.MISSING_UPDATE, f"only version {base} is committed here")


def has_fallen_behind(code: Code) -> bool:
    """Whether a SERVING successor's answer proves that its truth is another one than ours.

    It has committed what we have not heard of: an update that was given up here, because it could not be stored, and
    reached the successor once more. Our replica can only leave the chain and come back by a resync.
    """
    return code is Code.STALE_UPDATE


def may_replace_pending(code: Code, pending: Version, kind: UpdateKind, chain_version: int) -> bool:
    """Whether an update of kind `kind` may take the place of a pending version that a successor answered `code` to.

    A tail that has no room has not committed, and replicas above it commit only on its answer. Without this, a full
    disk would keep a removal waiting for a pending write that can never be stored. One that was stored under an older
    version of the chain may have been committed by a tail that is gone, and shown to readers: only a removal, which
    leaves nothing of it, may follow then.
    """
    if code not in (Code.NO_SPACE, Code.QUOTA_EXCEEDED, Code.INVALID):
        return False
    return pending.chain_version == chain_version or kind is UpdateKind.REMOVE


def _same(version: Version | None, number: int, crc32c: int, writer: Writer, *, damaged: bool) -> bool:
    return version is not None and (version.version, version.crc32c, version.writer, version.damaged) == (
        number,
        crc32c,
        writer,
        damaged,
    )
