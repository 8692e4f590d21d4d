"""Waiting for work that a cancelled caller may not leave behind, because it uses memory that the caller gives back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Closable(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=Closable)


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


async def opened_in_thread(opening: Callable[[], C]) -> C:
    """What `opening` opens, in a thread. A caller that is cancelled meanwhile leaves nothing open behind."""
    work = asyncio.ensure_future(asyncio.to_thread(opening))
    try:
        return await to_its_end(work)
    except asyncio.CancelledError:
        if not work.cancelled() and work.exception() is None:
            await to_its_end(asyncio.ensure_future(asyncio.to_thread(work.result().close)))
        raise
