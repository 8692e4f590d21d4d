"""Locks of chunks that are handed over in the moment in which who waits gives up."""

from __future__ import annotations

import asyncio
import time

import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.storage.engine.interface import ChunkKey
from fireflyfs.storage.service.locks import KeyLocks

KEY = ChunkKey(7, 0)


async def waiter_of(locks: KeyLocks, timeout_s: float) -> asyncio.Task[None]:
    """Somebody who waits for the lock of KEY, which is held."""
    assert locks.take_now([KEY])
    task = asyncio.create_task(locks.take([KEY], timeout_s))
    await asyncio.sleep(0)
    return task


def test_whoever_is_cancelled_as_the_lock_comes_does_not_go_on_with_it() -> None:
    async def scenario() -> None:
        locks = KeyLocks()
        task = await waiter_of(locks, 20)
        locks.give([KEY])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not locks.held(KEY)

    asyncio.run(scenario())


def test_a_lock_that_comes_as_the_time_is_over_is_free_for_the_next() -> None:
    async def scenario() -> None:
        locks = KeyLocks()
        task = await waiter_of(locks, 0.01)
        time.sleep(0.05)
        await asyncio.sleep(0)  # what runs next is this, then the alarm, then who waits
        locks.give([KEY])
        with pytest.raises(FfsError) as caught:
            await task
        assert caught.value.code is Code.CHUNK_BUSY
        assert locks.take_now([KEY])

    asyncio.run(scenario())
