"""Usage: folds changes into the records, and comes across what an older release made and nobody has counted."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from fireflyfs.common.kv.interface import Transaction, read, run
from fireflyfs.meta.core import keys
from fireflyfs.meta.core.records import unpack_dentry
from fireflyfs.meta.service.runner import Runner
from fireflyfs.meta.store import accounts, names
from fireflyfs.meta.store.tree import Tree

FOLD_EVERY_S = 0.25
LATE_NS = 5 * 1_000_000_000  # changes of other servers are looked for so far back; their clocks differ a little
LOOK_BACK_EVERY = 20  # passes in the background: a store passes over what was deleted, which takes a while
FROM_THE_BEGINNING_EVERY_S = 60.0
COUNT_AT_ONCE = 32  # entries looked at in one transaction: at most two writes each
COUNT_EVERY_S = 10.0
log = logging.getLogger(__name__)


class UsageFolder:
    """Folds what this server and others have changed. Several servers may do it at the same time."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._folded_ns = 0  # time of the last change that was folded here
        self._from_the_beginning_s = float("-inf")
        self._folding = asyncio.Lock()

    async def run(self) -> None:
        """Until it is cancelled."""
        passes = 0
        while True:
            await self.catch_up(look_back=passes % LOOK_BACK_EVERY == 0)
            passes += 1
            await asyncio.sleep(FOLD_EVERY_S)

    async def catch_up(self, *, look_back: bool = True) -> int:
        """Fold every change that was recorded before the call; how many transactions it took.

        Without `look_back` all of this server; of others those whose time is later than the last that was folded here.
        """
        steps = 0
        async with self._folding:
            begin = self._begin(look_back)
            while True:
                self._runner.quotas.folding()
                folded = run(self._runner.engine, partial(self._fold, begin))
                if not folded:
                    break  # and with it everything is folded that was let through until now
                begin = folded[-1] + b"\0"
                self._folded_ns = max(self._folded_ns, keys.change_time(folded[-1]))
                self._runner.change_keys.follow(self._folded_ns)
                self._runner.commits += 1
                steps += 1
                await asyncio.sleep(0)  # requests come in between
            self._runner.quotas.folded()
        return steps

    def _begin(self, look_back: bool) -> bytes:
        now_s = self._runner.clock.monotonic_s()
        if now_s - self._from_the_beginning_s >= FROM_THE_BEGINNING_EVERY_S:
            self._from_the_beginning_s = now_s
            return keys.changes_from(0)
        return keys.changes_from(max(0, self._folded_ns - (LATE_NS if look_back else 0)))

    def _fold(self, begin: bytes, txn: Transaction) -> list[bytes]:
        return accounts.fold(txn, begin, self._runner.change_keys.next(self._runner.clock.unix_ns()))


class Counter:
    """Goes through all entries once after an older release: resumable, the place is in the store."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            if self.is_wanted():
                log.info("counting what an older release has made")
                counted = await self.count_all()
                log.info("counted %d files and directories that were in no usage", counted)
            await asyncio.sleep(COUNT_EVERY_S)

    def is_wanted(self) -> bool:
        """Whether there may be inodes that are in no usage yet."""
        return read(self._runner.engine, lambda txn: txn.get(keys.UNCOUNTED)) is not None

    async def count_all(self) -> int:
        """How many were found."""
        total = 0
        while True:
            more, counted = run(self._runner.engine, self._step)
            total += counted
            if not more:
                return total
            self._runner.commits += 1
            await asyncio.sleep(0)  # requests come in between

    def _step(self, txn: Transaction) -> tuple[bool, int]:
        after = txn.get(keys.UNCOUNTED)
        if after is None:
            return False, 0
        tree = Tree(txn)
        counted = 0
        _, end = keys.table(b"D")
        # An entry that is made meanwhile leads to an inode that is counted, so only those found need be watched.
        entries = list(txn.scan(after + b"\0", end, limit=COUNT_AT_ONCE, snapshot=True))
        for key, _ in entries:
            value = txn.get(key)
            inode = tree.find(unpack_dentry(value)[0]) if value is not None else None
            if inode is not None and not inode.counted:
                names.found(tree, inode, keys.id_of(key))
                tree.put(inode)
                counted += 1
        if entries:
            txn.put(keys.UNCOUNTED, entries[-1][0])
        else:
            txn.delete(keys.UNCOUNTED)
        accounts.settle(tree, self._runner.change_keys, self._runner.clock.unix_ns())
        return bool(entries), counted
