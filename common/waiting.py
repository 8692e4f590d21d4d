"""Waiting for an event for so long, in which a cancellation is never lost.

asyncio.wait_for of Python 3.11 loses one that comes while what it waits for has just ended: it returns, its task goes
on, and whoever has cancelled that task and waits for its end waits for ever.
"""

from __future__ import annotations

import asyncio


async def set_within(event: asyncio.Event, timeout_s: float) -> bool:
    """Whether `event` is set within `timeout_s`. False may be said of one that is set in that very moment."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
