"""`AsyncKVCache`: the cache for programs on asyncio. Blocking calls in threads of its own: they are the fastest
shape of a batch in Python, and the loop goes on meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, Self, TypeVar

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.kvcache.api import Block, CacheStats, Namespace, Out
from fireflyfs.client.kvcache.cache import KVCache
from fireflyfs.client.kvcache.prefetch import PrefetchJob
from fireflyfs.common.to_its_end import opened_in_thread, to_its_end

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 4


class AsyncKVCache:
    """An `AsyncCache` (api.py)."""

    def __init__(self, cache: KVCache) -> None:
        """Takes `cache` over: `close` closes it."""
        self._cache = cache
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ffs-kvcache")

    @classmethod
    async def open(
        cls,
        filesystem_or_mgmtd_address: FileSystem | str | Sequence[str],
        name: str,
        *,
        block_size: int,
        **options: Any,
    ) -> Self:
        """As `KVCache.open`."""
        opened = partial(KVCache.open, filesystem_or_mgmtd_address, name, block_size=block_size, **options)
        return cls(await opened_in_thread(opened))

    @property
    def namespace(self) -> Namespace:
        return self._cache.namespace

    async def put_batch(self, keys: Sequence[bytes], blocks: Sequence[Block]) -> list[bool]:
        return await self._run(self._cache.put_batch, keys, blocks)

    async def get_batch(self, keys: Sequence[bytes], out: Sequence[Out]) -> list[int]:
        return await self._run(self._cache.get_batch, keys, out)

    async def exists_batch(self, keys: Sequence[bytes]) -> list[bool]:
        return await self._run(self._cache.exists_batch, keys)

    async def match_prefix(self, keys: Sequence[bytes]) -> int:
        return await self._run(self._cache.match_prefix, keys)

    async def delete(self, keys: Sequence[bytes]) -> int:
        return await self._run(self._cache.delete, keys)

    async def clear(self) -> None:
        await self._run(self._cache.clear)

    async def stats(self) -> CacheStats:
        return await self._run(self._cache.stats)

    def prefetch(self, keys: Sequence[bytes], out: Sequence[Out]) -> PrefetchJob:
        return self._cache.prefetch(keys, out)

    async def close(self) -> None:
        await asyncio.to_thread(self._pool.shutdown, wait=True)
        await asyncio.to_thread(self._cache.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A cancelled caller still waits: the thread works on its memory."""
        loop = asyncio.get_running_loop()
        return await to_its_end(loop.run_in_executor(self._pool, partial(function, *args, **kwargs)))
