"""LMCache's remote storage on FireflyFS: a plugin that is loaded by name.

    chunk_size: 256
    remote_storage_plugins: ["fireflyfs"]
    extra_config:
      remote_storage_plugin.fireflyfs.module_path: fireflyfs.client.connectors.lmcache
      remote_storage_plugin.fireflyfs.class_name: FireflyAdapter
      remote_storage_plugin.fireflyfs.mgmtd: host:7700

or, as older configurations do, `remote_url: "fireflyfs://host:7700/namespace"` with the same two names.

A chunk is one block, moved between LMCache's memory and the storage servers without a copy; what shape it has follows
from the namespace, which other shapes are refused. A block's key is the hash of LMCache's whole key: model, ranks, type
and tags are in it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from lmcache.v1.storage_backend.connector import ConnectorAdapter
from lmcache.v1.storage_backend.connector.base_connector import RemoteConnector

from fireflyfs.client.connectors.settings import SECTION, CacheSettings
from fireflyfs.client.kvcache.api import BLOCK_BYTES_MAX, BLOCK_BYTES_MIN
from fireflyfs.common.errors import Code, error
from fireflyfs.common.to_its_end import to_its_end

THREADS = 4  # calls of the cache at a time
PLUGIN = "plugin://"
T = TypeVar("T")


class FireflyAdapter(ConnectorAdapter):  # type: ignore[misc]  # lmcache is not installed where types are checked
    """Makes the connector when LMCache meets our plugin's name, or our URL."""

    def __init__(self) -> None:
        super().__init__(f"{SECTION}://")
        self._schema = f"{SECTION}://"

    def can_parse(self, url: str) -> bool:
        return url.startswith(self._schema) or url.removeprefix(PLUGIN).split(".", 1)[0] == SECTION

    def create_connector(self, context: Any) -> FireflyRemote:
        """Raises FfsError for settings that are wrong."""
        if context.url.startswith(self._schema):
            settings = CacheSettings.of_url(context.url)
        else:
            settings = _plugin_settings(context.plugin_name or SECTION, context.config.extra_config or {})
        return FireflyRemote(context.loop, context.local_cpu_backend, context.config, context.metadata, settings)


def _plugin_settings(plugin: str, extra_config: dict[str, Any]) -> CacheSettings:
    prefix = f"remote_storage_plugin.{plugin}."
    given = {name.removeprefix(prefix): value for name, value in extra_config.items() if name.startswith(prefix)}
    for of_the_host in ("module_path", "class_name"):
        given.pop(of_the_host, None)
    return CacheSettings.of(given)


class FireflyRemote(RemoteConnector):  # type: ignore[misc]
    """Chunks of LMCache. Called in LMCache's event loop; what waits for servers runs in threads."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        local_cpu_backend: Any,
        config: Any,
        metadata: Any,
        settings: CacheSettings,
    ) -> None:
        super().__init__(config, metadata)
        if config.use_layerwise:
            raise error(
                Code.NOT_SUPPORTED, "use_layerwise: a chunk of one layer has another shape than the cache's blocks"
            )
        chunk_bytes: int = self.full_chunk_size_bytes
        if chunk_bytes > BLOCK_BYTES_MAX:
            raise error(
                Code.TOO_LARGE,
                f"a chunk of {metadata.chunk_size} tokens has {chunk_bytes} bytes, a block up to {BLOCK_BYTES_MAX}: "
                f"set chunk_size to {metadata.chunk_size * BLOCK_BYTES_MAX // chunk_bytes} or less",
            )
        self.loop = loop
        self.local_cpu_backend = local_cpu_backend
        self._threads = ThreadPoolExecutor(THREADS, "ffs-lmcache")
        self._cache = settings.open("lmcache", chunk_bytes, self._fingerprint(metadata))

    def _fingerprint(self, metadata: Any) -> str:
        described = {
            "host": "lmcache",
            "shapes": [list(shape) for shape in self.meta_shapes],
            "dtypes": [str(dtype) for dtype in self.meta_dtypes],
            "format": str(self.meta_fmt),
            "chunk": metadata.chunk_size,
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    async def exists(self, key: Any) -> bool:
        return await self._in_thread(self.exists_sync, key)

    def exists_sync(self, key: Any) -> bool:
        return self._cache.exists_batch([_key(key)])[0]

    def support_batched_contains(self) -> bool:
        return True

    def batched_contains(self, keys: Sequence[Any]) -> int:
        """How many chunks from the first on are there."""
        return self._cache.match_prefix([_key(key) for key in keys])

    def support_batched_async_contains(self) -> bool:
        return True

    async def batched_async_contains(self, lookup_id: str, keys: list[Any], pin: bool = False) -> int:
        return await self._in_thread(self.batched_contains, keys)

    async def get(self, key: Any) -> Any:
        return (await self.batched_get([key]))[0]

    def support_batched_get(self) -> bool:
        return True

    async def batched_get(self, keys: list[Any]) -> list[Any]:
        """Memory objects, each the caller's to release; None for a miss, and where there is no memory."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, self._get, keys)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:  # LMCache waits for a bounded time only
            future.add_done_callback(_release)
            raise

    def support_batched_get_non_blocking(self) -> bool:
        return True

    async def batched_get_non_blocking(self, lookup_id: str, keys: list[Any]) -> list[Any]:
        """Those from the first on that are there."""
        found = await self.batched_get(keys)
        count = next((number for number, memory in enumerate(found) if memory is None), len(found))
        for memory in found[count:]:
            if memory is not None:
                memory.ref_count_down()
        return found[:count]

    async def put(self, key: Any, memory_obj: Any) -> None:
        await self.batched_put([key], [memory_obj])

    def support_batched_put(self) -> bool:
        return True

    async def batched_put(self, keys: list[Any], memory_objs: list[Any]) -> None:
        """Their references are LMCache's to drop. What finds no room is counted by the cache, not raised."""
        pairs = [(_key(key), memory.byte_array) for key, memory in zip(keys, memory_objs, strict=True)]
        pairs = [
            pair for pair in pairs if len(pair[1]) >= BLOCK_BYTES_MIN
        ]  # a few tokens of a small model: not worth it
        await self._in_thread(self._cache.put_batch, [key for key, _ in pairs], [block for _, block in pairs])

    def remove_sync(self, key: Any) -> bool:
        return self._cache.delete([_key(key)]) == 1

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)  # what is under way ends first
        self._cache.close()

    def _get(self, keys: Sequence[Any]) -> list[Any]:
        memories: list[Any] = []
        kept: list[Any] = [None] * len(keys)  # what the caller will release
        try:
            for _ in keys:
                memories.append(self.local_cpu_backend.allocate(self.meta_shapes, self.meta_dtypes, self.meta_fmt))
            asked = [number for number, memory in enumerate(memories) if memory is not None]
            placed = self._cache.get_batch(
                [_key(keys[number]) for number in asked], [memories[number].byte_array for number in asked]
            )
            results: list[Any] = [None] * len(keys)
            for number, count in zip(asked, placed, strict=True):
                results[number] = self._shaped(memories[number], count)
            kept = results
            return results
        finally:
            for memory, result in zip(memories, kept, strict=False):
                if memory is not None and result is None:
                    memory.ref_count_down()

    def _shaped(self, memory: Any, count: int) -> Any:
        """A chunk with as many tokens as were stored; None for what is no chunk of this shape."""
        if count == self.full_chunk_size_bytes:
            return memory
        if count <= 0 or count % self.single_token_size or len(self.meta_shapes) != 1:
            return None
        return self.reshape_partial_chunk(memory, count)

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        """When the waiting is cancelled, it still waits: until then the thread uses what it was given."""
        return await to_its_end(asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments))

    async def list(self) -> Any:
        raise error(Code.NOT_SUPPORTED, "blocks are found by their hash: the names of chunks are not kept")


def _release(future: asyncio.Future[list[Any]]) -> None:
    """Give back memory objects that nobody waits for any more."""
    if not future.cancelled() and future.exception() is None:
        for memory in future.result():
            if memory is not None:
                memory.ref_count_down()


def _key(key: Any) -> bytes:
    return hashlib.sha256(key.to_string().encode()).digest()
