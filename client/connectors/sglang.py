"""SGLang's hierarchical cache on FireflyFS: a storage backend that is loaded by name, nothing of SGLang is changed.

    --enable-hierarchical-cache --hicache-storage-backend dynamic --hicache-storage-backend-extra-config
    '{"backend_name": "fireflyfs", "module_path": "fireflyfs.client.connectors.sglang", "class_name": "FireflyHiCache",
      "interface_v1": 1, "fireflyfs": {"mgmtd": "host:7700"}}'

Pages move between SGLang's host pool and the storage servers without a copy between ("interface_v1": 1). A page of the
host pool is one block; a block's key is the page's hash, the shard that holds it, and the pool it belongs to. Where a
model's cache is the same on all ranks (MLA), they share it.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

from sglang.srt.mem_cache.hicache_storage import HiCacheStorage

from fireflyfs.client.connectors.settings import SECTION, CacheSettings, digest_of, tag_of
from fireflyfs.client.kvcache.api import BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, Cache
from fireflyfs.client.kvcache.layouts.memory import bytes_of, lend
from fireflyfs.common.errors import Code, error

KV = "kv"
SHARDED_EVEN_WITH_MLA = ("mamba",)  # pools
POOL_FACTS = ("dtype", "layout", "page_size", "layer_num", "head_num", "head_dim", "kv_cache_dim", "storage_format_tag")


class FireflyHiCache(HiCacheStorage):  # type: ignore[misc]  # sglang is not installed where types are checked
    """Used by SGLang's storage threads. Errors other than misses are raised: SGLang logs them and goes on without."""

    def __init__(self, storage_config: Any, kwargs: dict[str, Any] | None = None) -> None:
        """Reads the configuration; the cache is opened when the pools are known."""
        self._config = storage_config
        self._settings = CacheSettings.of((storage_config.extra_config or {}).get(SECTION))
        self._pools: dict[str, Any] = {}
        self._cache: Cache | None = None
        self._opening = threading.Lock()
        self._closed = False
        self._tags: dict[str, bytes] = {}

    # Pools

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        self.mem_pool_host = mem_pool_host
        self._register(KV, mem_pool_host)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        self._register(_word(host_pool_name), host_pool)

    def on_host_pools_registered(self) -> None:
        self._opened()

    def _register(self, name: str, pool: Any) -> None:
        nbytes = _page_bytes(pool)
        if not nbytes:
            return
        if not BLOCK_BYTES_MIN <= nbytes <= BLOCK_BYTES_MAX:
            raise error(
                Code.NOT_SUPPORTED,
                f"pages of {name} have {nbytes} bytes, not {BLOCK_BYTES_MIN} to {BLOCK_BYTES_MAX}: change --page-size",
            )
        if self._cache is not None and nbytes > self._cache.namespace.block_size:
            raise error(
                Code.TOO_LARGE,
                f"pages of {name} have {nbytes} bytes; the cache was opened for {self._cache.namespace.block_size}",
            )
        self._pools[name] = pool

    def _opened(self) -> Cache:
        with self._opening:
            if self._closed:
                raise error(Code.BAD_HANDLE, "the storage backend is closed")
            if self._cache is None:
                if not self._pools:
                    raise error(Code.CONFIG, "SGLang has registered no host pool yet")
                block_size = max(map(_page_bytes, self._pools.values()))
                self._cache = self._settings.open("sglang", block_size, self._fingerprint())
            return self._cache

    def _fingerprint(self) -> str:
        """Of model, shards and the pools' pages."""
        config = self._config
        described = {
            "host": "sglang",
            "model": config.model_name,
            "mla": config.is_mla_model,
            "sizes": {name: getattr(config, name, 1) for name in ("tp_size", "pp_size", "attn_cp_size", "dcp_size")},
            "pools": {
                name: {"bytes": _page_bytes(pool)} | {fact: str(getattr(pool, fact, None)) for fact in POOL_FACTS}
                for name, pool in sorted(self._pools.items())
            },
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    # Keys

    def _keys(self, names: Sequence[str], pool: str = KV) -> list[bytes]:
        tag = self._tags.get(pool)
        if tag is None:
            config = self._config
            replicated = config.is_mla_model and pool not in SHARDED_EVEN_WITH_MLA
            tp = ("all",) if replicated else (config.tp_rank, config.tp_size)
            others = [getattr(config, name, 0) for name in ("pp_rank", "attn_cp_rank", "dcp_rank")]
            tag = self._tags[pool] = tag_of(*tp, *others) + (b"" if pool == KV else tag_of(pool))
        return [digest_of(name) + tag for name in names]

    def _blocks(self, pool: Any, count: int, indices: Any) -> list[list[memoryview]]:
        """The host memory of each of `count` pages."""
        addresses, sizes = pool.get_page_buffer_meta(indices)
        if not count or len(addresses) != len(sizes) or len(addresses) % count:
            raise ValueError(f"{len(addresses)} pieces of memory for {count} pages")
        each = len(addresses) // count
        views = [lend(pool, address, size) for address, size in zip(addresses, sizes, strict=True)]
        return [views[at : at + each] for at in range(0, len(views), each)]

    # Pages of the host pool, without a copy

    def batch_get_v1(self, keys: list[str], host_indices: Any, extra_info: Any = None) -> list[bool]:
        return self._get(KV, self._pools[KV], keys, host_indices)

    def batch_set_v1(self, keys: list[str], host_indices: Any, extra_info: Any = None) -> list[bool]:
        return self._set(KV, self._pools[KV], keys, host_indices)

    def batch_get_v2(self, transfers: list[Any], extra_info: Any = None) -> dict[Any, list[bool]]:
        return self._each(transfers, self._get)

    def batch_set_v2(self, transfers: list[Any], extra_info: Any = None) -> dict[Any, list[bool]]:
        return self._each(transfers, self._set)

    def batch_exists(self, keys: list[str], extra_info: Any = None) -> int:
        """How many pages from the first on are there. One round trip to each storage node."""
        return self._opened().match_prefix(self._keys(keys)) if keys else 0

    def batch_exists_v2(self, keys: list[str], pool_transfers: list[Any] | None = None, extra_info: Any = None) -> Any:
        """The longest prefix that can be restored: its KV pages, and of each other pool what its policy asks for."""
        from sglang.srt.mem_cache.hicache_storage import PoolTransferResult

        pages = self.batch_exists(keys)
        hits = {KV: pages} if pages else {}
        lengths = list(range(1, pages + 1))  # of prefixes that can be restored
        for transfer in pool_transfers or []:
            if not lengths:
                break
            name = _word(transfer.name)
            there = self._opened().exists_batch(self._keys(keys[:pages], name))
            allowed = _restorable(there, _word(transfer.hit_policy), transfer.keys)
            if allowed:
                hits[name] = max(allowed)
            lengths = [length for length in lengths if length in allowed]
        result = PoolTransferResult(lengths[-1] if lengths else 0, hits)
        if hasattr(result, "restorable_prefix_pages"):
            result.restorable_prefix_pages = lengths
        return result

    def _each(
        self, transfers: list[Any], move: Callable[[str, Any, list[str], Any], list[bool]]
    ) -> dict[Any, list[bool]]:
        results: dict[Any, list[bool]] = {}
        for transfer in transfers:
            name = _word(transfer.name)
            pool = self._pools.get(name)
            if pool is None:
                raise error(Code.CONFIG, f"pool {name} was not registered")
            results[transfer.name] = move(name, pool, transfer.keys or [], transfer.host_indices)
        return results

    def _get(self, name: str, pool: Any, keys: list[str], indices: Any) -> list[bool]:
        if not keys:
            return []
        blocks = self._blocks(pool, len(keys), indices)
        placed = self._opened().get_batch(self._keys(keys, name), blocks)
        nbytes = sum(map(len, blocks[0]))
        return [count == nbytes for count in placed]

    def _set(self, name: str, pool: Any, keys: list[str], indices: Any) -> list[bool]:
        """What is there already is not sent again: other engines store the same prefixes."""
        if not keys:
            return []
        blocks = self._blocks(pool, len(keys), indices)
        return self._put_missing(self._keys(keys, name), blocks)

    def _put_missing(self, keys: list[bytes], blocks: Sequence[Any]) -> list[bool]:
        cache = self._opened()
        stored = cache.exists_batch(keys)
        missing = [number for number, there in enumerate(stored) if not there]
        if missing:
            put = cache.put_batch([keys[number] for number in missing], [blocks[number] for number in missing])
            for number, done in zip(missing, put, strict=True):
                stored[number] = done
        return stored

    # Tensors of one page, for SGLang's older interface

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> Any:
        """`target_location`, filled, or None for a miss."""
        return self.batch_get([key], [target_location])[0]

    def batch_get(self, keys: list[str], target_locations: Any = None, target_sizes: Any = None) -> list[Any]:
        if not keys:
            return []
        views = [_tensor_bytes(target) for target in target_locations]
        placed = self._opened().get_batch(self._keys(keys), views)
        return [
            target if count == len(view) else None
            for target, view, count in zip(target_locations, views, placed, strict=True)
        ]

    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        return self.batch_set([key], [value])

    def batch_set(
        self, keys: list[str], values: Any = None, target_locations: Any = None, target_sizes: Any = None
    ) -> bool:
        if not keys:
            return True
        tensors = [value.contiguous() for value in values]
        return all(self._put_missing(self._keys(keys), [_tensor_bytes(tensor) for tensor in tensors]))

    def exists(self, key: str) -> bool:
        return self._opened().exists_batch(self._keys([key]))[0]

    def clear(self) -> None:
        self._opened().clear()

    def close(self) -> None:
        with self._opening:
            self._closed = True
            if self._cache is not None:
                self._cache.close()


def _page_bytes(pool: Any) -> int:
    """Bytes of one page of a host pool; 0 for one that only hands out numbers of another's."""
    import torch

    indices = int(getattr(pool, "logical_page_size", None) or pool.page_size)
    meta = pool.get_page_buffer_meta(torch.zeros(indices, dtype=torch.int64))
    return int(sum(meta[1])) if meta else 0


def _word(name: Any) -> str:
    """A pool's or policy's name: a str, or a member of SGLang's enums."""
    return str(getattr(name, "value", name))


def _tensor_bytes(tensor: Any) -> memoryview:
    if tensor is None or not tensor.is_contiguous():
        raise TypeError("a contiguous tensor in host memory is wanted")
    return bytes_of(tensor)


def _restorable(there: list[bool], policy: str, wanted: Sequence[str] | None) -> set[int]:
    """Lengths of prefixes for which a pool has what its policy asks for."""
    if policy == "all_pages":
        return set(range(1, (there.index(False) if False in there else len(there)) + 1))
    if policy == "trailing_pages":
        tail = max(1, len(wanted or ()))
        return {length for length in range(1, len(there) + 1) if all(there[max(0, length - tail) : length])}
    raise ValueError(f"hit policy {policy} is not supported")
