"""May this replica answer a read, and with which version."""

from __future__ import annotations

from enum import Enum

from fireflyfs.common.errors import Code
from fireflyfs.storage.core.target import Public, TargetState, may_serve
from fireflyfs.storage.engine.interface import ChunkState, Version


def admit(target: TargetState, public: Public, our_version: int, asked_version: int) -> Code:
    """Whether a read that names chain version `asked_version` is answered at all.

    A client that is behind is served: this replica is SERVING in the newer chain. A client that is ahead is not: the
    newer chain may be without this replica.
    """
    if asked_version > our_version:
        return Code.CHAIN_VERSION
    return Code.OK if may_serve(target, public) else Code.TARGET_OFFLINE


def truth(state: ChunkState | None) -> int | None:
    """The version that a tail says is committed: 0 for no chunk, None while it cannot say.

    A tail commits at once. What is pending there is from when it had a successor: that one may have committed it, and
    shown it to readers. Until the head has it finished, neither version may be shown.
    """
    if state is None:
        return 0
    if state.pending is not None:
        return None
    return state.committed.version if state.committed is not None else 0


class Choice(Enum):
    """Which version answers."""

    COMMITTED = "the committed one"
    PENDING = "the pending one: the tail has committed it"
    MISSING = "none: the tail has no such chunk"
    AGAIN = "look again: this replica's picture has changed"


def choose(committed: Version | None, pending: Version | None, tail_version: int) -> Choice:
    """Which version to answer once the tail has said what it has committed (0: no such chunk)."""
    ours = committed.version if committed is not None else 0
    if tail_version == ours:
        return Choice.COMMITTED if ours else Choice.MISSING
    if pending is not None:
        if pending.removed:
            return Choice.MISSING if tail_version == 0 else Choice.AGAIN
        if pending.version == tail_version:
            return Choice.PENDING
    return Choice.AGAIN
