"""Small periodic jobs: commits become durable, outcomes of old mutations go."""

from __future__ import annotations

import asyncio
import logging

from fireflyfs.common.errors import FfsError
from fireflyfs.meta.service.runner import GroupSync, Runner
from fireflyfs.meta.store import outcomes

SYNC_EVERY_S = 1.0
EXPIRE_EVERY_S = 60.0
EXPIRE_PAUSE_S = 0.005  # between batches, so that requests come in between, and more expire than can be made
log = logging.getLogger(__name__)


async def sync_commits(runner: Runner, sync: GroupSync) -> None:
    """Bounds what a power cut takes of unsynced operations to about a second. Until it is cancelled."""
    synced = runner.commits
    while True:
        await asyncio.sleep(SYNC_EVERY_S)
        commits = runner.commits
        if commits != synced:
            try:
                await sync()
            except FfsError:
                continue  # logged where it happened; tried again in a second
            synced = commits


async def expire_outcomes(runner: Runner) -> None:
    """Until it is cancelled."""
    after = b""
    while True:
        removed = outcomes.expire(runner.engine, runner.clock.unix_ns(), after)
        after = removed[-1] + b"\0" if removed else b""
        await asyncio.sleep(EXPIRE_PAUSE_S if removed else EXPIRE_EVERY_S)
