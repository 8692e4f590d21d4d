"""Removes blocks of the KV cache from one target: lost and expired ones, those beyond a namespace's capacity, and those
that keep the disk too full. As any update, through the head of the chain, each on the condition that it is what was
seen; readers wait for nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.waiting import set_within
from fireflyfs.storage.engine.interface import ChunkEngine, ChunkKey, Writer
from fireflyfs.storage.service.blocks import removal
from fireflyfs.storage.service.local_target import LocalTarget
from fireflyfs.storage.service.replica import Replicas
from fireflyfs.storage.service.update import Updater
from fireflyfs.storage.service.wire import Item, UpdateRequest

log = logging.getLogger(__name__)
P = ParamSpec("P")

BATCH = 256  # blocks in one removal
ROUND_BATCHES_MAX = 64  # removals in one pass: what is left waits for the next
SLACK = 64  # one part in so many of a capacity is evicted beyond what is over it
ROOM_STEP_BYTES_MIN = 8 << 20
ROOM_PART = 0.05  # of a disk that blocks leave free
ROOM_BYTES_MAX = 32 << 30
REMOVE_DEADLINE_S = 10.0
OVERSHOOT = 8  # a namespace may be one part in so many over its capacity before a put waits for room
OVERSHOOT_BYTES = 32 << 20  # or this


class _StoppedError(Exception):
    """The chain takes no removals now: to try the next ones would only take time."""


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
        self._removed = 0  # blocks, since the process began
        self._device: int | None = None
        self._asked = asyncio.Event()

    async def wait(self, timeout_s: float) -> None:
        """Until there may be something to do, or the time is over."""
        await set_within(self._asked, timeout_s)
        self._asked.clear()

    async def once(self) -> int:
        """A pass over all reasons; how many blocks went. Raises FfsError."""
        return await self._alone(self._pass)

    async def _alone(self, work: Callable[P, Coroutine[Any, Any, None]], *args: P.args, **kwargs: P.kwargs) -> int:
        """Evict, with nobody else doing so here; how many blocks went. Ends early where none can be removed now."""
        if not self._replicas.leads(self._local):
            return 0
        async with self._one_at_a_time:
            before = self._removed
            try:
                await work(*args, **kwargs)
            except _StoppedError as exc:
                log.info("target %d: evicts no more for now: %s", self._local.target_id, exc)
            return self._removed - before

    async def _pass(self) -> None:
        cache = self._local.cache
        await self._remove(cache.damaged_blocks(BATCH))
        now_unix_s = self._replicas.clock.unix_ns() // 1_000_000_000
        for _ in range(ROUND_BATCHES_MAX):
            victims = cache.evict_expired(now_unix_s, BATCH)
            if not await self._remove(victims) or len(victims) < BATCH:
                break
        for inode in cache.over_capacity():
            await self._shrink(inode)
        await self._keep_room()

    async def _shrink(self, inode: int) -> None:
        for _ in range(ROUND_BATCHES_MAX):
            victims = self._local.cache.evict_over(inode, SLACK, BATCH)
            if not await self._remove(victims):
                break

    async def _keep_room(self) -> None:
        """Evict while the disk has less room than it should, a part of what is missing at a time: several targets may
        be doing this for one disk, and space comes back with the next sync only."""
        local = self._local
        while local.cache.bytes:
            space = await local.call(local.engine.space)
            room = min(int(space.capacity_bytes * self._room_part), self._room_bytes_max)
            missing = room - space.free_bytes
            if missing <= 0:
                break
            before = self._removed
            await self._remove_bytes(max(missing // 4, ROOM_STEP_BYTES_MIN))
            if self._removed == before:
                break
            await local.call(local.engine.sync)

    async def admit(self, inode: int, capacity_bytes: int) -> None:
        """Before a put into a namespace: learn its bound, and wait where it is far over it."""
        over = self._local.cache.set_capacity(inode, capacity_bytes)
        if over:
            self._asked.set()
        if over > max(capacity_bytes // OVERSHOOT, OVERSHOOT_BYTES):
            await self._alone(self._shrink, inode)

    async def make_room(self, want_bytes: int) -> int:
        """Somebody met a full disk: evict so many bytes. How many blocks went; they are given back at the next sync."""
        return await self._alone(self._remove_bytes, want_bytes)

    async def _remove_bytes(self, want_bytes: int) -> None:
        for _ in range(ROUND_BATCHES_MAX):
            before = self._local.cache.bytes
            victims = self._local.cache.evict_fullest(want_bytes, BATCH)
            want_bytes -= before - self._local.cache.bytes
            if not await self._remove(victims) or want_bytes <= 0:
                break

    async def _remove(self, victims: Sequence[ChunkKey]) -> int:
        """Remove them through the chain; those that cannot be removed now stay, whatever happens. How many are gone.

        To its end even when the caller is cancelled: a victim that neither went nor was kept would never be evicted.
        Raises _StoppedError, and FfsError of the disk.
        """
        return await self._local.finish_anyway(self._remove_or_keep(victims)) if victims else 0

    async def _remove_or_keep(self, victims: Sequence[ChunkKey]) -> int:
        staying = set(victims)
        try:
            await self._through_chain(victims, staying)
        finally:
            for key in staying:
                self._local.cache.keep(key)
        return len(victims) - len(staying)

    async def _through_chain(self, victims: Sequence[ChunkKey], staying: set[ChunkKey]) -> None:
        """Takes out of `staying` what is gone."""
        local = self._local
        chain = local.chain
        if chain is None:
            raise _StoppedError("the target is in no chain")
        quiet = [key for key in victims if not local.locks.held(key)]
        items: list[Item] = []
        for key, item in zip(quiet, await local.call(_removals, local.engine, quiet), strict=True):
            if item is None:
                local.cache.gone(key)  # the index was behind
                staying.discard(key)
            else:
                items.append(item)
        if not items:
            return
        self._sequence += 1
        writer = Writer(self._client_id, 1, self._sequence)
        request = UpdateRequest(chain.chain_id, chain.version, writer, 0, items)
        deadline_s = self._replicas.clock.monotonic_s() + REMOVE_DEADLINE_S
        try:
            results = await self._updater.run(request, deadline_s, from_client=True)
        except FfsError as exc:
            raise _StoppedError(exc.message) from exc
        removed = [item.key for item, result in zip(items, results, strict=True) if result.code is Code.OK]
        staying.difference_update(removed)
        self._removed += len(removed)
        self._replicas.count("blocks_evicted", len(removed))

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
