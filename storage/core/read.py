"""May this replica answer a read, and with which version."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

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


class Truth(NamedTuple):
    """What the tail has committed. The checksum too: a version that was given up at the head, and reached the tail all
    the same, has the number of the one that took its place."""

    version: int  # 0: no such chunk
    crc32c: int

    def is_(self, version: Version | None) -> bool:
        return version is not None and (version.version, version.crc32c) == self


NO_CHUNK = Truth(0, 0)


def truth(state: ChunkState | None) -> Truth | None:
    """What a tail says is committed; None while it cannot say.

    A tail commits at once. What is pending there is from when it had a successor: that one may have committed it, and
    shown it to readers. Until the head has it finished, neither version may be shown.
    """
    if state is None:
        return NO_CHUNK
    if state.pending is not None:
        return None
    return Truth(state.committed.version, state.committed.crc32c) if state.committed is not None else NO_CHUNK


class Choice(Enum):
    """Which version answers."""

    COMMITTED = "the committed one"
    PENDING = "the pending one: the tail has committed it"
    MISSING = "none: the tail has no such chunk"
    AGAIN = "look again: this replica's picture has changed"


def choose(committed: Version | None, pending: Version | None, told: Truth) -> Choice:
    """Which version to answer once the tail has said what it has committed."""
    if committed is None and not told.version:
        return Choice.MISSING
    if told.is_(committed):
        return Choice.COMMITTED
    if pending is not None and pending.removed:
        return Choice.AGAIN if told.version else Choice.MISSING
    return Choice.PENDING if told.is_(pending) else Choice.AGAIN
