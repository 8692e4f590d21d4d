"""Garbage collection: removed files give their chunks back, removed trees are taken apart piece by piece.

State lives in the garbage records alone: whichever process runs this, after whatever crash, goes on from them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from functools import partial

from fireflyfs.common.errors import FfsError
from fireflyfs.common.kv.interface import Transaction, read, run
from fireflyfs.common.waiting import set_within
from fireflyfs.meta.core import keys
from fireflyfs.meta.core.permission import Who
from fireflyfs.meta.core.records import Flags, Garbage, GarbageKind, Inode
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.ops.remove import drop_link
from fireflyfs.meta.ops.reply import layout_of
from fireflyfs.meta.service.runner import Runner
from fireflyfs.meta.store.accounts import settle
from fireflyfs.meta.store.tree import Tree

PAGE = 1024  # records looked at in one pass
TXN_FILES = 23  # files claimed, or forgotten, in one transaction: at most five writes each, and one for usage
TREE_STEP = 24  # entries taken out of a removed directory in one transaction: at most four writes each, and a few
REMOVE_STEP = 1024  # chunks of one chain removed in one request
LOOK_AGAIN_S = 5.0  # for files that were held open
PAUSE_S = 0.5  # without a removal, until what was removed is collected
PAUSES_S = 5.0  # at most, while removals come
log = logging.getLogger(__name__)


class GarbageCollector:
    """Collects files in batches of `at_once`, never more than `files_per_s`."""

    def __init__(self, runner: Runner, *, at_once: int = 256, files_per_s: float = 10_000.0) -> None:
        self._runner = runner
        self._at_once = at_once
        self._files_per_s = files_per_s
        self._kick = asyncio.Event()
        runner.on_garbage = self._kick.set

    async def run(self) -> None:
        """Collects until it is cancelled."""
        while True:
            self._kick.clear()
            collected = await self.collect_all()
            if collected or await set_within(self._kick, LOOK_AGAIN_S):
                await self._let_removals_go_first()

    async def _let_removals_go_first(self) -> None:
        """Who removes many files waits for each: collecting them meanwhile would take nearly as long once more."""
        end_s = asyncio.get_running_loop().time() + PAUSES_S
        while self._kick.is_set() and asyncio.get_running_loop().time() < end_s:
            self._kick.clear()
            await set_within(self._kick, PAUSE_S)

    async def collect_all(self) -> int:
        """One pass over all records; how many were finished."""
        finished = 0
        begin = b"G"
        while page := self._page(begin):
            begin = keys.garbage(page[-1][0]) + b"\0"
            files = [inode_id for inode_id, garbage in page if garbage.kind is not GarbageKind.TREE]
            for inode_id, garbage in page:
                if garbage.kind is GarbageKind.TREE:
                    finished += await self._collect_tree(inode_id)
            for batch in _parts(files, self._at_once):
                collected = await self._collect_files(batch)
                finished += collected
                await asyncio.sleep(collected / self._files_per_s)
        return finished

    def _page(self, begin: bytes) -> list[tuple[int, Garbage]]:
        end = keys.table(b"G")[1]

        def body(txn: Transaction) -> list[tuple[int, Garbage]]:
            return [(keys.id_of(key), Garbage.unpack(value)) for key, value in txn.scan(begin, end, limit=PAGE)]

        return read(self._runner.engine, body)

    async def _collect_files(self, inode_ids: Sequence[int]) -> int:
        """Collect those that nobody holds open; how many. What a chain cannot remove now waits for the next pass."""
        engine = self._runner.engine
        claimed: list[Inode] = []
        for part in _parts(inode_ids, TXN_FILES):
            claimed += run(engine, partial(_claim_all, part))
            await asyncio.sleep(0)  # requests come in between
        on_chain: dict[int, list[int]] = {}
        for inode in claimed:
            if inode.flags & Flags.WRITTEN:
                for chain_id in set(layout_of(inode).chains):
                    on_chain.setdefault(chain_id, []).append(inode.id)
        kept = set[int]().union(*await asyncio.gather(*(self._remove(*item) for item in on_chain.items())))
        done = [inode.id for inode in claimed if inode.id not in kept]
        for part in _parts(done, TXN_FILES):
            run(engine, partial(self._forget_all, part))
            self._runner.commits += 1
            await asyncio.sleep(0)
        return len(done)

    def _forget_all(self, inode_ids: Sequence[int], txn: Transaction) -> None:
        tree = Tree(txn)
        for inode_id in inode_ids:
            _forget(tree, inode_id)
        settle(tree, self._runner.change_keys, self._runner.clock.unix_ns())

    async def _remove(self, chain_id: int, inode_ids: list[int]) -> list[int]:
        """Remove these files' chunks on one chain; the files that still have some, because the chain is away."""
        left = inode_ids
        try:
            while left:
                left = await self._runner.storage.remove_files(chain_id, left, REMOVE_STEP)
        except FfsError as exc:
            log.warning("garbage of %d files on chain %d waits: %s", len(left), chain_id, exc)
        return left

    async def _collect_tree(self, inode_id: int) -> bool:
        gone, after = False, b""
        try:
            while not gone:
                gone, after = run(self._runner.engine, partial(self._take_apart, inode_id, after))
                await asyncio.sleep(0)  # requests come in between
        except FfsError as exc:
            log.warning("garbage of directory %d waits: %s", inode_id, exc)
        return gone

    def _take_apart(self, inode_id: int, after: bytes, txn: Transaction) -> tuple[bool, bytes]:
        """Take some entries after the name `after` out of a removed directory; whether it is gone now, and the last.

        What was taken out before is not looked at again: a store keeps deleted keys for a while, and passing over
        all of them in each step would take longer the larger the directory is.
        """
        op = Op(Tree(txn), Who(0, 0), self._runner.clock.unix_ns(), _no_id, _no_chains)
        tree = op.tree
        entries = list(tree.children(inode_id, after=after, limit=TREE_STEP))
        for name, child_id, _ in entries:
            child = tree.find(child_id)
            tree.unlink(inode_id, name)
            if child is None:
                continue
            if child.is_dir:
                child.nlink = 0
                tree.put(child)
                tree.put_garbage(child_id, Garbage(GarbageKind.TREE, op.now_ns))
            else:
                drop_link(op, inode_id, child)
        gone = len(entries) < TREE_STEP and tree.is_empty(inode_id)
        if gone:
            _forget(tree, inode_id)
            op.files_delta -= 1
        settle(tree, self._runner.change_keys, op.now_ns)
        # Counted before the commit: a conflict, which only another server could cause, makes the count a guess.
        self._runner.files += op.files_delta
        self._runner.commits += 1
        return gone, entries[-1][0] if entries else b""


def _parts(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))


def _claim_all(inode_ids: Sequence[int], txn: Transaction) -> list[Inode]:
    tree = Tree(txn)
    return [inode for inode_id in inode_ids if (inode := _claim(tree, inode_id)) is not None]


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
    inode = tree.find(inode_id)
    if inode is not None:
        tree.delete(inode)
    tree.delete_garbage(inode_id)
    tree.delete_trim(inode_id)


def _no_id() -> int:
    raise AssertionError("garbage collection makes no inodes")


def _no_chains(table: int, stripe: int, inode_id: int) -> tuple[int, ...]:
    raise AssertionError("garbage collection makes no files")
