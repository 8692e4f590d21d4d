"""Gives up what was in the trash for long enough."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from fireflyfs.common.kv.interface import Transaction, run
from fireflyfs.meta.core.permission import Who
from fireflyfs.meta.ops import trash
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.service.runner import Runner
from fireflyfs.meta.store.tree import Tree

EXPIRE_EVERY_S = 30.0


class TrashCleaner:
    """Trash older than `keep_s` becomes garbage. With 0 nothing new is kept, and what was kept goes."""

    def __init__(self, runner: Runner, keep_s: float) -> None:
        self._runner = runner
        self._keep_ns = int(keep_s * 1e9)
        self._every_s = min(EXPIRE_EVERY_S, max(1.0, keep_s / 10)) if keep_s else EXPIRE_EVERY_S

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.expire()
            await asyncio.sleep(self._every_s)

    async def expire(self) -> int:
        """One pass; how many were given up."""
        until_ns = max(0, self._runner.clock.unix_ns() - self._keep_ns)
        given_up = 0
        after = (0, 0)
        while True:
            count, after, files = run(self._runner.engine, partial(self._step, after, until_ns))
            if not count:
                return given_up
            given_up += count
            self._runner.files += files
            self._runner.commits += 1
            self._runner.on_garbage()
            await asyncio.sleep(0)  # requests come in between

    def _step(self, after: tuple[int, int], until_ns: int, txn: Transaction) -> tuple[int, tuple[int, int], int]:
        op = Op(Tree(txn), Who(0, 0), self._runner.clock.unix_ns(), _nothing_new, _nothing_new)
        found = list(op.tree.all_trash(after, until_ns, trash.EMPTY_MAX))
        for removed_ns, inode_id, _ in found:
            if op.tree.trash(removed_ns, inode_id) is None:
                continue  # restored meanwhile
            inode = op.tree.find(inode_id)
            if inode is None:
                op.tree.delete_trash(removed_ns, inode_id)
            else:
                trash.give_up(op, removed_ns, inode)
        return len(found), found[-1][:2] if found else after, op.files_delta


def _nothing_new(*_: object) -> Any:
    raise AssertionError("cleaning up makes nothing")
