"""Garbage collection: removed files give their chunks back, removed trees are taken apart piece by piece.

State lives in the garbage records alone: whichever process runs this, after whatever crash, goes on from them.
"""

from __future__ import annotations

import asyncio
import logging

from fireflyfs.common.errors import FfsError
from fireflyfs.common.kv.interface import Transaction, read, run
from fireflyfs.meta.core import keys
from fireflyfs.meta.core.permission import Who
from fireflyfs.meta.core.records import Flags, Garbage, GarbageKind, Inode
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.ops.remove import drop_link
from fireflyfs.meta.ops.reply import layout_of
from fireflyfs.meta.service.runner import Runner
from fireflyfs.meta.store.tree import Tree

PAGE = 256  # records looked at in one pass
TREE_STEP = 30  # entries taken out of a removed directory in one transaction: at most three writes each
REMOVE_STEP = 1024
LOOK_AGAIN_S = 5.0  # for files that were held open
log = logging.getLogger(__name__)


class GarbageCollector:
    """Collects `at_once` files side by side, never more than `files_per_s`."""

    def __init__(self, runner: Runner, *, at_once: int = 16, files_per_s: float = 2000.0) -> None:
        self._runner = runner
        self._at_once = at_once
        self._pause_s = at_once / files_per_s
        self._kick = asyncio.Event()
        runner.on_garbage = self._kick.set

    async def run(self) -> None:
        """Collects until it is cancelled."""
        while True:
            self._kick.clear()
            collected = await self.collect_all()
            if not collected:
                try:
                    await asyncio.wait_for(self._kick.wait(), LOOK_AGAIN_S)
                except TimeoutError:
                    pass

    async def collect_all(self) -> int:
        """One pass over all records; how many were finished."""
        finished = 0
        begin = b"G"
        while page := self._page(begin):
            begin = keys.garbage(page[-1][0]) + b"\0"
            for start in range(0, len(page), self._at_once):
                batch = page[start : start + self._at_once]
                results = await asyncio.gather(*(self._collect(*item) for item in batch))
                finished += sum(results)
                await asyncio.sleep(self._pause_s if any(results) else 0)
        return finished

    def _page(self, begin: bytes) -> list[tuple[int, Garbage]]:
        end = keys.table(b"G")[1]

        def body(txn: Transaction) -> list[tuple[int, Garbage]]:
            return [(keys.id_of(key), Garbage.unpack(value)) for key, value in txn.scan(begin, end, limit=PAGE)]

        return read(self._runner.engine, body)

    async def _collect(self, inode_id: int, garbage: Garbage) -> bool:
        try:
            if garbage.kind is GarbageKind.TREE:
                return await self._collect_tree(inode_id)
            return await self._collect_file(inode_id)
        except FfsError as exc:
            log.warning("garbage of inode %d waits: %s", inode_id, exc)
            return False

    async def _collect_file(self, inode_id: int) -> bool:
        inode = run(self._runner.engine, lambda txn: _claim(Tree(txn), inode_id))
        if inode is None:
            return False
        if inode.flags & Flags.WRITTEN:
            layout = layout_of(inode)
            while (await self._runner.storage.remove_chunks(inode_id, layout, 0, REMOVE_STEP)).more:
                pass
        run(self._runner.engine, lambda txn: _forget(Tree(txn), inode_id))
        self._runner.commits += 1
        return True

    async def _collect_tree(self, inode_id: int) -> bool:
        while True:
            if run(self._runner.engine, lambda txn: self._take_apart(txn, inode_id)):
                return True
            await asyncio.sleep(0)  # requests come in between

    def _take_apart(self, txn: Transaction, inode_id: int) -> bool:
        """Take some entries out of a removed directory; whether it is gone now."""
        op = Op(Tree(txn), Who(0, 0), self._runner.clock.unix_ns(), _no_id, _no_chains)
        tree = op.tree
        for name, child_id, _ in list(tree.children(inode_id, limit=TREE_STEP)):
            child = tree.find(child_id)
            tree.unlink(inode_id, name)
            if child is None:
                continue
            if child.is_dir:
                child.nlink = 0
                tree.put(child)
                tree.put_garbage(child_id, Garbage(GarbageKind.TREE, op.now_ns))
            else:
                drop_link(op, child)
        empty = tree.is_empty(inode_id)
        if empty:
            _forget(tree, inode_id)
            op.files_delta -= 1
        # Counted before the commit: a conflict, which only another server could cause, makes the count a guess.
        self._runner.files += op.files_delta
        self._runner.commits += 1
        return empty


def _claim(tree: Tree, inode_id: int) -> Inode | None:
    """The file if it may be collected now; from then on nobody can open it."""
    inode = tree.find(inode_id)
    if inode is None or inode.nlink:
        tree.delete_garbage(inode_id)
        return None
    if tree.has_sessions(inode_id):
        return None
    if not inode.flags & Flags.COLLECTING:
        inode.flags |= Flags.COLLECTING
        tree.put(inode)
    return inode


def _forget(tree: Tree, inode_id: int) -> None:
    tree.delete(inode_id)
    tree.delete_garbage(inode_id)
    tree.delete_trim(inode_id)


def _no_id() -> int:
    raise AssertionError("garbage collection makes no inodes")


def _no_chains(table: int, stripe: int, inode_id: int) -> tuple[int, ...]:
    raise AssertionError("garbage collection makes no files")
