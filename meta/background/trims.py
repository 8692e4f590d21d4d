"""Finishing truncations: chunks beyond the new end go, then the trim record."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.kv.interface import Transaction, read, run
from fireflyfs.meta.core import keys
from fireflyfs.meta.core.length import trimmed
from fireflyfs.meta.core.records import Inode, Trim
from fireflyfs.meta.core.usage import Subject, Usage
from fireflyfs.meta.ops.reply import layout_of
from fireflyfs.meta.service.runner import Runner
from fireflyfs.meta.store.accounts import settle
from fireflyfs.meta.store.tree import Tree

PAGE = 256
STEP = 1024  # chunks of each chain that are dropped at once
OVERTAKEN_MAX = 100  # rounds in which somebody wrote to what was just seen, before the request must come again
AGAIN_AFTER_S = 5.0
LOOK_AGAIN_S = 10.0  # for trims that another server left, or that their own request gave up
log = logging.getLogger(__name__)


class Trimmer:
    """One trim of an inode runs at a time; whoever needs it finished waits for it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._running: dict[int, asyncio.Task[None]] = {}

    async def finish(self, inode_id: int) -> None:
        """Returns when no trim of `inode_id` that was recorded before the call is left. Raises storage's error."""
        while True:
            task = self._running.get(inode_id)
            joined = task is not None and not task.done()
            if task is None or task.done():  # one that is done is forgotten in a moment, and nobody may wait for that
                task = asyncio.create_task(self._trim(inode_id))
                self._running[inode_id] = task
                task.add_done_callback(lambda done: self._forget(inode_id, done))
            # A caller who goes away must not take the others' work along.
            await asyncio.shield(task)
            if not joined:
                return
            # The task that was joined may have looked before the newest trim was recorded: look again.

    def _forget(self, inode_id: int, task: asyncio.Task[None]) -> None:
        if self._running.get(inode_id) is task:
            del self._running[inode_id]
        if not task.cancelled():
            task.exception()

    async def _trim(self, inode_id: int) -> None:
        """Another server may do the same at the same time, and be done and forgotten when this one goes on.

        So a chunk is dropped only as it was seen before the trim's record was seen: what was written since, by someone
        who knows the new length, stays.
        """
        engine, storage = self._runner.engine, self._runner.storage

        def look(txn: Transaction) -> tuple[Inode | None, Trim | None]:
            tree = Tree(txn)
            return tree.find(inode_id), tree.trim(inode_id)

        overtaken = 0
        while overtaken < OVERTAKEN_MAX:
            inode, trim = read(engine, look)
            if trim is None:
                return
            if inode is not None:
                seen = await storage.see_beyond(inode_id, layout_of(inode), trim.length, STEP)
                if read(engine, look)[1] != trim:
                    continue
                if not await storage.drop_seen(seen):
                    overtaken += 1
                    continue
                if seen.more:
                    continue
            self._runner.quotas.let_through(run(engine, partial(self._done, inode_id, trim)))
            self._runner.commits += 1
            return
        raise error(Code.OVERLOADED, "the file is written faster than it can be truncated")

    def _done(self, inode_id: int, trim: Trim, txn: Transaction) -> dict[Subject, Usage]:
        """What it uses more, where there are quotas."""
        tree = Tree(txn)
        if tree.trim(inode_id) != trim:
            return {}
        tree.delete_trim(inode_id)
        inode = tree.find(inode_id)
        if inode is not None:
            tree.put(trimmed(inode, trim))
        changes = settle(tree, self._runner.change_keys, self._runner.clock.unix_ns())
        return self._runner.quotas.limited(tree, changes)

    def recorded(self) -> list[int]:
        """Inodes with a trim record."""

        def page(txn: Transaction) -> list[int]:
            return [keys.id_of(key) for key, _ in txn.scan(*keys.table(b"T"), limit=PAGE)]

        return read(self._runner.engine, page)

    async def run(self) -> None:
        """Finish what nobody finished, until cancelled: its server died, or storage was away for too long."""
        while True:
            await self.finish_recorded()
            await asyncio.sleep(LOOK_AGAIN_S)

    async def finish_recorded(self) -> None:
        """Finish every recorded trim; tries again until all of it is done."""
        while found := self.recorded():
            results = await asyncio.gather(*map(self.finish, found), return_exceptions=True)
            failed = [result for result in results if isinstance(result, FfsError)]
            for result in results:
                if isinstance(result, BaseException) and not isinstance(result, FfsError):
                    raise result
            if failed:
                log.warning("%d trims wait for storage: %s", len(failed), failed[0])
                await asyncio.sleep(AGAIN_AFTER_S)
