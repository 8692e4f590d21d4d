"""How the pieces of a call travel on one blocking connection: as shared memory, through a staging buffer, or on the
socket."""

from __future__ import annotations

from collections.abc import Callable

from fireflyfs.common.errors import Code, error
from fireflyfs.common.net.api import Slice
from fireflyfs.common.net.frame import INLINE, Segment
from fireflyfs.common.net.memory import SharedMemory
from fireflyfs.common.net.pending import Pending, view_of
from fireflyfs.common.net.staging import STAGED_PIECE_BYTES_MIN, StagingPool

Know = Callable[[SharedMemory, Pending], bool]


def place(
    pending: Pending, shares: bool, staging: StagingPool | None, know: Know
) -> tuple[list[Segment], list[Segment], list[memoryview]]:
    """Decide for each piece of a call: its `out` segments, its `into` segments, and what follows the frame.

    `know`: have the server know memory that the request names; False where that cannot be now.
    """
    call = pending.call
    out: list[Segment] = []
    into: list[Segment] = []
    inline: list[memoryview] = []
    spread = call.spread
    if not call.out and not call.into and spread is None:
        return out, into, inline
    room = _stage(pending, staging, know) if staging is not None else 0
    position = 0
    for piece in call.out:
        segment = _shared(piece, pending, know) if shares and isinstance(piece, Slice) else None
        if segment is None:
            view = view_of(piece)
            length = len(view)
            if STAGED_PIECE_BYTES_MIN <= length <= room - position and pending.staging is not None:
                pending.staging.view[position : position + length] = view
                segment = (pending.staging.region, length, position)
                position += length
            else:
                segment = (INLINE, length, 0)
                if length:  # an empty buffer at the end of the queue would never count as sent
                    inline.append(view)
        out.append(segment)
        pending.payload += segment[1]
    for index, piece in enumerate(call.into):
        segment = _shared(piece, pending, know) if shares and isinstance(piece, Slice) else None
        landing: memoryview | None = None
        if segment is None:
            view = view_of(piece)
            length = len(view)
            if STAGED_PIECE_BYTES_MIN <= length <= room - position and pending.staging is not None:
                segment = (pending.staging.region, length, position)
                pending.staged.append((index, view, pending.staging.view[position : position + length]))
                position += length
            else:
                segment = (INLINE, length, 0)
                landing = view
                pending.landing_bytes += length
        into.append(segment)
        pending.into.append(landing)
        pending.rooms.append(segment[1])
        pending.payload += segment[1]
    if spread is not None:
        length = spread.length
        if STAGED_PIECE_BYTES_MIN <= length <= room - position and pending.staging is not None:
            segment = (pending.staging.region, length, position)
            pending.spread = pending.staging.view[position : position + length]
        else:
            segment = (INLINE, length, 0)
            pending.landing_bytes += length
        into.append(segment)
        pending.rooms.append(length)
        pending.payload += length
    return out, into, inline


def _stage(pending: Pending, staging: StagingPool, know: Know) -> int:
    """Take a staging buffer for the plain pieces of a call that are worth it; returns its size or 0."""
    need = 0
    for pieces in (pending.call.out, pending.call.into):
        for piece in pieces:
            if isinstance(piece, Slice) and isinstance(piece.memory, SharedMemory):
                continue
            length = piece.length if isinstance(piece, Slice) else len(piece)
            if length >= STAGED_PIECE_BYTES_MIN:
                need += length
    spread = pending.call.spread
    if spread is not None and spread.length >= STAGED_PIECE_BYTES_MIN:
        need += spread.length
    if not need:
        return 0
    memory = staging.take(need)
    if memory is None:
        return 0
    if not know(memory, pending):
        staging.give(memory)
        return 0
    pending.staging = memory
    return memory.length


def _shared(piece: Slice, pending: Pending, know: Know) -> Segment | None:
    memory = piece.memory
    if not isinstance(memory, SharedMemory):
        return None
    if memory.closed:
        raise error(Code.INVALID, "a piece lies in memory that is closed")
    if not know(memory, pending):
        return None
    pending.shared.append(memory)
    return (memory.region, piece.length, piece.offset)
