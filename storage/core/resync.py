"""What a SYNCING successor lacks: two pages of chunk states compared.

Both sides are walked in key order. A page ends somewhere; only keys up to the lower end of the two pages can be
compared (`horizon`), and the next pages start there. Each step is carried out under the chunk's lock after looking at
the chunk again, so a comparison that has become old costs a transfer, never a wrong chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from fireflyfs.storage.engine.interface import ChunkKey, ChunkState


class Held(NamedTuple):
    """What the successor says of one chunk."""

    key: ChunkKey
    version: int  # committed; 0: none
    pending: bool
    length: int
    crc32c: int
    chunk_size: int
    damaged: bool = False


class Step(Enum):
    """What the successor needs."""

    WRITE = "send the whole chunk, or that its bytes are lost"
    REMOVE = "remove it there"
    SKIP = "equal, or a write under way brings it"


class Work(NamedTuple):
    key: ChunkKey
    step: Step
    why: str


def horizon(ours: Sequence[ChunkState], ours_more: bool, theirs: Sequence[Held], theirs_more: bool) -> ChunkKey | None:
    """The last key that both pages cover; None when both are complete."""
    ends = [page[-1].key for page, more in ((ours, ours_more), (theirs, theirs_more)) if more]
    return min(ends) if ends else None


def compare(ours: Sequence[ChunkState], theirs: Sequence[Held], end: ChunkKey | None) -> list[Work]:
    """Steps for every key of both pages that is not past `end`, in key order."""
    left = {state.key: state for state in ours if end is None or state.key <= end}
    right = {held.key: held for held in theirs if end is None or held.key <= end}
    return [decide(key, left.get(key), right.get(key)) for key in sorted(left.keys() | right.keys())]


def decide(key: ChunkKey, ours: ChunkState | None, theirs: Held | None) -> Work:
    """One chunk: what we hold and what the successor holds."""
    committed = ours.committed if ours is not None else None
    if committed is None:
        if theirs is None:
            return Work(key, Step.SKIP, "not committed here yet: its own update brings it")
        return Work(key, Step.REMOVE, "not committed here")
    if theirs is None or theirs.version == 0:
        return Work(key, Step.WRITE, "missing there")
    if theirs.pending:
        return Work(key, Step.WRITE, "unfinished there")
    if ours is not None and ours.chunk_size != theirs.chunk_size:
        return Work(key, Step.WRITE, "another chunk size there")
    if (committed.version, committed.length, committed.crc32c) != (theirs.version, theirs.length, theirs.crc32c):
        return Work(key, Step.WRITE, f"version {theirs.version} there, {committed.version} here")
    if committed.damaged != theirs.damaged:
        return Work(key, Step.WRITE, "damaged there" if theirs.damaged else "damaged here: the bytes there may be good")
    return Work(key, Step.SKIP, "equal")


GIVE_WAY_S_MAX = 0.1


def give_way_s(took_s: float, asked: bool) -> float:
    """How long to pause after a chunk that took `took_s`: as long again while clients ask for something here.

    So bringing a replica up to date takes half of what the machine has to give when it has no more, and all of it when
    nobody else wants any.
    """
    return min(took_s, GIVE_WAY_S_MAX) if asked else 0.0
