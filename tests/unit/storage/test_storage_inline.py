"""Little work runs on the event loop, as long as nothing makes it wait."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from fireflyfs.common.clock import ManualClock
from fireflyfs.storage.service import local_target


def test_work_that_takes_long_leaves_the_loop(make_cluster: Callable[[int], Any]) -> None:
    """After a call on the loop that waited for long, threads do the work for a while."""

    async def scenario() -> None:
        cluster = make_cluster(1)
        clock = ManualClock()
        waits = [0]
        local = local_target.LocalTarget(10, cluster.servers[10].engine, clock=clock, waits=lambda: waits[0])

        def work(takes_s: float, *, nowait: bool = False) -> bool:
            assert nowait is (threading.current_thread() is threading.main_thread())
            clock.advance(takes_s)
            waits[0] += takes_s > 0 and waiting
            return nowait

        async def on_loop(takes_s: float, size: int = 10, items: int = 1) -> bool:
            return await local.call_short(size, items, work, takes_s)

        waiting = True
        assert await on_loop(0)
        assert not await on_loop(0, size=local_target.INLINE_BYTES_MAX + 1)
        assert not await on_loop(0, items=local_target.INLINE_ITEMS_MAX + 1)
        waiting = False  # others had the processor meanwhile: in a thread it would have been the same
        assert await on_loop(local_target.INLINE_SLOW_S * 1.1)
        assert await on_loop(0)
        waiting = True
        assert await on_loop(local_target.INLINE_SLOW_S * 0.9)
        assert await on_loop(local_target.INLINE_SLOW_S * 1.1)
        assert not await on_loop(0)
        clock.advance(local_target.INLINE_REST_S)
        assert await on_loop(0)
        local.close()
        cluster.close()

    asyncio.run(scenario())


def test_what_counts_as_waiting() -> None:
    """Sleeping does, working does not: whatever else runs on the machine."""
    before = local_target._waits_of_this_thread()
    time.sleep(0.001)
    assert local_target._waits_of_this_thread() > before
    for _ in range(5):  # something may still make the interpreter wait once
        before = local_target._waits_of_this_thread()
        sum(range(1_000_000))
        if local_target._waits_of_this_thread() == before:
            return
    raise AssertionError("every piece of plain work seemed to wait")
