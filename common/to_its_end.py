"""Waiting for work that a cancelled caller may not leave behind, because it uses memory that the caller gives back."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TypeVar

T = TypeVar("T")


async def to_its_end(work: asyncio.Future[T]) -> T:
    """Await `work`. A caller that is cancelled, however often, still waits for its end, and is cancelled then."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # nobody is left to be told
        raise
