"""Callers' memory as the links take it: views of whatever is contiguous, never a copy."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from fireflyfs.client.file import as_piece
from fireflyfs.client.kvcache.api import PIECES_MAX
from fireflyfs.client.storage_codec import length_of
from fireflyfs.common.errors import Code, error
from fireflyfs.common.net.api import Piece, Slice


def plain_views(blocks: Sequence[Any]) -> list[memoryview] | None:
    """The memory of each where all are single buffers of bytes that can be written to, the usual case, by the shortest
    way; None where they are not, or not all."""
    try:
        views: list[memoryview] = list(map(memoryview, blocks))  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):
        return None
    for view in views:
        if view.format != "B" or view.ndim != 1 or view.readonly or not view.c_contiguous:
            return None
    return views


def pieces_of(block: Any, *, writable: bool) -> tuple[list[Piece], int]:
    """The buffers of a block, in order and without empty ones, and their bytes.

    Raises INVALID for what is not contiguous, not memory at all, not writable where it must be, or in too many parts.
    """
    if isinstance(block, Slice):
        return ([block] if block.length else []), block.length
    if not isinstance(block, (list, tuple)):
        try:
            view = memoryview(block)  # the usual case by the shortest way
        except (TypeError, ValueError, BufferError):
            pass
        else:
            if view.format == "B" and view.ndim == 1 and view.c_contiguous and not (writable and view.readonly):
                return ([view] if view.nbytes else []), view.nbytes
    parts = block if isinstance(block, (list, tuple)) else (block,)
    pieces = [piece for part in parts if length_of(piece := _piece_of(part, writable))]
    if len(pieces) > PIECES_MAX:
        raise error(Code.INVALID, f"a block in {len(pieces)} buffers, at most {PIECES_MAX}")
    return pieces, sum([length_of(piece) for piece in pieces])


def _piece_of(part: Any, writable: bool) -> Piece:
    if isinstance(part, Slice):
        return part
    try:
        piece = as_piece(part)
    except (TypeError, ValueError, BufferError):
        piece = _view_of(part)
    if writable and isinstance(piece, memoryview) and piece.readonly:
        raise error(Code.INVALID, f"{type(part).__name__} cannot be written to")
    return piece


def _view_of(part: Any) -> memoryview:
    """Of what has no buffer protocol, or elements that it has no letter for (bfloat16)."""
    if hasattr(part, "data_ptr") and hasattr(part, "is_contiguous"):
        device = getattr(part, "device", None)
        if getattr(device, "type", "cpu") != "cpu":
            raise error(Code.INVALID, f"a tensor on {device}: only memory of the host is taken")
        if not part.is_contiguous():
            raise error(Code.INVALID, "a tensor that is not contiguous")
        # The caller keeps the tensor while the call runs: it is in the sequence that was passed.
        nbytes = int(part.nbytes)
        return memoryview((ctypes.c_char * nbytes).from_address(part.data_ptr() if nbytes else 0)).cast("B")
    if not hasattr(part, "__array_interface__"):
        raise error(Code.INVALID, f"{type(part).__name__} is no contiguous memory")
    array = np.asarray(part)
    if not array.flags.c_contiguous:
        raise error(Code.INVALID, "an array that is not contiguous")
    return array.reshape(-1).view(np.uint8).data
