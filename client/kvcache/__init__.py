"""A cache of blocks by key on the storage nodes, for attention keys and values of language models: docs/kv_cache.md."""

from __future__ import annotations

from fireflyfs.client.kvcache.aio import AsyncKVCache
from fireflyfs.client.kvcache.api import (
    BLOCK_BYTES_MAX,
    BLOCK_BYTES_MIN,
    KEY_BYTES_MAX,
    KEY_BYTES_MIN,
    MISS,
    AsyncCache,
    Block,
    Buffer,
    Cache,
    CacheStats,
    Namespace,
    Out,
    Prefetch,
)
from fireflyfs.client.kvcache.cache import KVCache
from fireflyfs.client.kvcache.namespaces import Namespaces

__all__ = [
    "BLOCK_BYTES_MAX",
    "BLOCK_BYTES_MIN",
    "KEY_BYTES_MAX",
    "KEY_BYTES_MIN",
    "MISS",
    "AsyncCache",
    "AsyncKVCache",
    "Block",
    "Buffer",
    "Cache",
    "CacheStats",
    "KVCache",
    "Namespace",
    "Namespaces",
    "Out",
    "Prefetch",
]
