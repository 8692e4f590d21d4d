"""Removes blocks of the KV cache from one target: lost and expired ones, those beyond a namespace's capacity, and those
that keep the disk too full. As any update, through the head of the chain, each on the condition that it is what was
seen; readers wait for nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Sequence

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.storage.engine.interface import ChunkEngine, ChunkKey, Writer
from fireflyfs.storage.service.blocks import removal
from fireflyfs.storage.service.local_target import LocalTarget
from fireflyfs.storage.service.replica import Replicas
from fireflyfs.storage.service.update import Updater
from fireflyfs.storage.service.wire import Item, UpdateRequest

log = logging.getLogger(__name__)

BATCH = 256  # blocks in one removal
ROUND_BATCHES_MAX = 64  # removals in one pass: what is left waits for the next
SLACK = 64  # one part in so many of a capacity is evicted beyond what is over it
ROOM_STEP_BYTES_MIN = 8 << 20
ROOM_PART = 0.05  # of a disk that blocks leave free
ROOM_BYTES_MAX = 32 << 30
REMOVE_DEADLINE_S = 10.0
OVERSHOOT = 8  # a namespace may be one part in so many over its capacity before a put waits for room
OVERSHOOT_BYTES = 32 << 20  # or this


class Evictor:
    """The removals of one target; only while it leads its chain."""

    def __init__(
        self, replicas: Replicas, updater: Updater, local: LocalTarget, *, room_part: float, room_bytes_max: int
    ) -> None:
        self._replicas = replicas
        self._updater = updater
        self._local = local
        self._room_part = room_part
        self._room_bytes_max = room_bytes_max
        self._one_at_a_time = asyncio.Lock()
        # Its removals are requests of one channel, one after the other.
        self._client_id = secrets.token_bytes(16)
        self._sequence = 0
        self._device: int | None = None
        self._asked = asyncio.Event()

    async def wait(self, timeout_s: float) -> None:
        """Until there may be something to do, or the time is over."""
        try:
            await asyncio.wait_for(self._asked.wait(), timeout_s)
        except TimeoutError:
            pass
        self._asked.clear()

    async def once(self) -> int:
        """A pass over all reasons; how many blocks went. Raises FfsError."""
        cache = self._local.cache
        if not self._replicas.leads(self._local):
            return 0
        async with self._one_at_a_time:
            removed = await self._remove(cache.take_damaged(BATCH))
            now_unix_s = self._replicas.clock.unix_ns() // 1_000_000_000
            for _ in range(ROUND_BATCHES_MAX):
                victims = cache.evict_expired(now_unix_s, BATCH)
                removed += await self._remove(victims)
                if len(victims) < BATCH:
                    break
            for inode in cache.over_capacity():
                removed += await self._shrink(inode)
            return removed + await self._keep_room()

    async def _shrink(self, inode: int) -> int:
        removed = 0
        for _ in range(ROUND_BATCHES_MAX):
            victims = self._local.cache.evict_over(inode, SLACK, BATCH)
            if not victims:
                break
            removed += await self._remove(victims)
        return removed

    async def _keep_room(self) -> int:
        """Evict while the disk has less room than it should, a part of what is missing at a time: several targets may
        be doing this for one disk, and space comes back with the next sync only."""
        local = self._local
        removed = 0
        while local.cache.bytes:
            space = await local.call(local.engine.space)
            room = min(int(space.capacity_bytes * self._room_part), self._room_bytes_max)
            missing = room - space.free_bytes
            if missing <= 0:
                break
            step = await self._remove_bytes(max(missing // 4, ROOM_STEP_BYTES_MIN))
            if not step:
                break
            removed += step
            await local.call(local.engine.sync)
        return removed

    async def admit(self, inode: int, capacity_bytes: int) -> None:
        """Before a put into a namespace: learn its bound, and wait where it is far over it."""
        over = self._local.cache.set_capacity(inode, capacity_bytes)
        if over:
            self._asked.set()
        if over > max(capacity_bytes // OVERSHOOT, OVERSHOOT_BYTES) and self._replicas.leads(self._local):
            async with self._one_at_a_time:
                await self._shrink(inode)

    async def make_room(self, want_bytes: int) -> int:
        """Somebody met a full disk: evict so many bytes. How many blocks went; they are given back at the next sync."""
        if not self._local.cache.bytes or not self._replicas.leads(self._local):
            return 0
        async with self._one_at_a_time:
            return await self._remove_bytes(want_bytes)

    async def _remove_bytes(self, want_bytes: int) -> int:
        removed = 0
        for _ in range(ROUND_BATCHES_MAX):
            before = self._local.cache.bytes
            victims = self._local.cache.evict_fullest(want_bytes, BATCH)
            if not victims:
                break
            want_bytes -= before - self._local.cache.bytes
            removed += await self._remove(victims)
            if want_bytes <= 0:
                break
        return removed

    async def _remove(self, victims: Sequence[ChunkKey]) -> int:
        """Through the chain; those that cannot be removed now stay. How many went."""
        local = self._local
        chain = local.chain
        if not victims or chain is None:
            self._stay(victims)
            return 0
        quiet = [key for key in victims if not local.locks.held(key)]
        self._stay([key for key in victims if local.locks.held(key)])
        items: list[Item] = []
        for key, item in zip(quiet, await local.call(_removals, local.engine, quiet), strict=True):
            if item is None:
                local.cache.gone(key)  # the index was behind
            else:
                items.append(item)
        if not items:
            return 0
        self._sequence += 1
        writer = Writer(self._client_id, 1, self._sequence)
        request = UpdateRequest(chain.chain_id, chain.version, writer, 0, items)
        deadline_s = self._replicas.clock.monotonic_s() + REMOVE_DEADLINE_S
        try:
            results = await local.finish_anyway(self._updater.run(request, deadline_s, from_client=True))
        except FfsError as exc:
            log.info("target %d: %d blocks are not evicted: %s", local.target_id, len(items), exc.message)
            self._stay([item.key for item in items])
            return 0
        removed = [item.key for item, result in zip(items, results, strict=True) if result.code is Code.OK]
        self._stay({item.key for item in items}.difference(removed))
        self._replicas.count("blocks_evicted", len(removed))
        return len(removed)

    def _stay(self, keys: Sequence[ChunkKey] | set[ChunkKey]) -> None:
        for key in keys:
            self._local.cache.keep(key)

    async def settle(self) -> None:
        """What was removed is given back to the disk: another target's engine cannot do that for ours."""
        await self._local.call(self._local.engine.sync)
        await self._local.call(self._local.engine.reclaim)

    @property
    def device(self) -> int:
        """The disk that its target is on; 0 where that cannot be told."""
        if self._device is None:
            path = self._local.path
            try:
                self._device = os.stat(path).st_dev if path is not None else 0
            except OSError:
                self._device = 0
        return self._device


def _removals(engine: ChunkEngine, keys: Sequence[ChunkKey]) -> list[Item | None]:
    return [removal(engine, key) for key in keys]


class Evictors:
    """The evictors of a worker's targets."""

    def __init__(self, replicas: Replicas, updater: Updater, *, room_part: float, room_bytes_max: int) -> None:
        self._by_target = {
            target_id: Evictor(replicas, updater, local, room_part=room_part, room_bytes_max=room_bytes_max)
            for target_id, local in replicas.targets.items()
        }

    def of(self, local: LocalTarget) -> Evictor:
        return self._by_target[local.target_id]

    async def make_room(self, local: LocalTarget, want_bytes: int) -> int:
        """On the target, and when it has no blocks on others of its disk; how many blocks went."""
        mine = self.of(local)
        removed = await mine.make_room(want_bytes)
        for other in self._by_target.values():
            if removed:
                break
            if other is not mine and mine.device and other.device == mine.device:
                removed = await other.make_room(want_bytes)
                await other.settle()
        return removed
