"""How full the file system is: asked of storage, remembered for a moment."""

from __future__ import annotations

import asyncio

from fireflyfs.common.kv.interface import Transaction, read
from fireflyfs.meta.core import keys
from fireflyfs.meta.core.layout import chains_space
from fireflyfs.meta.service.runner import Runner
from fireflyfs.meta.service.storage import RoutingNow
from fireflyfs.proto import meta_pb2

REMEMBER_S = 2.0
BLOCK_BYTES = 4096
COUNT_PAGE = 2000


class Space:
    """Capacity as writers see it: what one replica of each chain can hold."""

    def __init__(self, runner: Runner, routing: RoutingNow) -> None:
        self._runner = runner
        self._routing = routing
        self._counted = 0  # inodes found by the first count
        self._capacity = self._free = self._garbage = 0
        self._at_s = float("-inf")
        self._lock = asyncio.Lock()

    async def reply(self) -> meta_pb2.StatFsReply:
        async with self._lock:
            now = self._runner.clock.monotonic_s()
            if now - self._at_s >= REMEMBER_S:
                await self._ask()
                self._at_s = now
        return meta_pb2.StatFsReply(
            capacity_bytes=self._capacity,
            free_bytes=self._free,
            files=max(0, self._counted + self._runner.files),
            garbage_files=self._garbage,
            block_bytes=BLOCK_BYTES,
        )

    async def _ask(self) -> None:
        targets = {space.target_id: space for space in await self._runner.storage.space()}
        sizes = {target: (space.capacity_bytes, space.free_bytes) for target, space in targets.items()}
        routing = self._routing.current()
        for target_id, info in routing.targets.items():
            if target_id not in sizes and info.capacity_bytes:
                sizes[target_id] = (info.capacity_bytes, info.free_bytes)
        members = [[target for target, _ in chain.targets] for chain in routing.chains.values()]
        self._capacity, self._free = chains_space(members, sizes)
        self._garbage = await self._count(b"G")

    async def count_files(self) -> None:
        """Count all inodes once, in the background. What changes meanwhile is counted by the runner."""
        before = self._runner.files
        found = await self._count(b"I")
        self._counted = found - (self._runner.files - before)

    async def _count(self, letter: bytes) -> int:
        begin, end = keys.table(letter)
        total = 0
        while True:

            def page(txn: Transaction, start: bytes = begin) -> list[bytes]:
                return [key for key, _ in txn.scan(start, end, limit=COUNT_PAGE)]

            found = read(self._runner.engine, page)
            total += len(found)
            if len(found) < COUNT_PAGE:
                return total
            begin = found[-1] + b"\0"
            await asyncio.sleep(0)
