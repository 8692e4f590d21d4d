"""The KV cache's contract in a dict, for tests of what is built on it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from fireflyfs.client.kvcache.api import (
    BLOCK_BYTES_MAX,
    KEY_BYTES_MAX,
    KEY_BYTES_MIN,
    MISS,
    PIECES_MAX,
    Cache,
    CacheStats,
    Namespace,
    Prefetch,
)
from fireflyfs.client.kvcache.layouts.memory import bytes_of
from fireflyfs.common.errors import Code, FfsError, error


def pieces(buffer: Any) -> list[memoryview]:
    """One buffer or several, as flat memoryviews."""
    if hasattr(buffer, "data_ptr") or isinstance(buffer, np.ndarray):
        return [bytes_of(buffer)]
    if isinstance(buffer, list | tuple):
        assert len(buffer) <= PIECES_MAX
        return [view for part in buffer for view in pieces(part)]
    return [memoryview(buffer).cast("B")]


class MemoryCache(Cache):
    """`shared` stands for the servers: caches opened under one name on the same `shared` see each other's blocks."""

    def __init__(self, shared: dict[bytes, bytes] | None = None, block_size: int = BLOCK_BYTES_MAX) -> None:
        self.blocks = {} if shared is None else shared
        self.namespace = Namespace("double", 1, block_size, 1, 0, 0.0, b"")
        self.calls: list[tuple[str, int]] = []
        self.refuse: set[bytes] = set()  # keys that are not stored
        self.fail: BaseException | None = None  # raised by the next call
        self.closed = False
        self._lock = threading.Lock()

    def _begin(self, name: str, keys: Sequence[bytes]) -> None:
        with self._lock:
            self.calls.append((name, len(keys)))
            if self.closed:
                raise error(Code.BAD_HANDLE, "the cache is closed")
            if self.fail is not None:
                fail, self.fail = self.fail, None
                raise fail
            for key in keys:
                if not isinstance(key, bytes) or not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
                    raise error(Code.INVALID, f"a key of {len(key)} bytes")

    def put_batch(self, keys: Sequence[bytes], blocks: Sequence[Any]) -> list[bool]:
        self._begin("put", keys)
        stored = []
        for key, block in zip(keys, blocks, strict=True):
            data = b"".join(pieces(block))
            if len(data) > self.namespace.block_size:
                raise error(Code.TOO_LARGE, f"a block of {len(data)} bytes")
            if key not in self.refuse:
                self.blocks[key] = data
            stored.append(key not in self.refuse)
        return stored

    def get_batch(self, keys: Sequence[bytes], out: Sequence[Any]) -> list[int]:
        self._begin("get", keys)
        counts = []
        for key, target in zip(keys, out, strict=True):
            data = self.blocks.get(key)
            room = pieces(target)
            if data is None or len(data) > sum(map(len, room)):
                counts.append(MISS)
                continue
            at = 0
            for view in room:
                part = data[at : at + len(view)]
                view[: len(part)] = part
                at += len(part)
            counts.append(len(data))
        return counts

    def exists_batch(self, keys: Sequence[bytes]) -> list[bool]:
        self._begin("exists", keys)
        return [key in self.blocks for key in keys]

    def match_prefix(self, keys: Sequence[bytes]) -> int:
        self._begin("match", keys)
        return next((number for number, key in enumerate(keys) if key not in self.blocks), len(keys))

    def delete(self, keys: Sequence[bytes]) -> int:
        self._begin("delete", keys)
        return sum(self.blocks.pop(key, None) is not None for key in keys)

    def clear(self) -> None:
        self._begin("clear", [])
        self.blocks.clear()

    def stats(self) -> CacheStats:
        return CacheStats()

    def prefetch(self, keys: Sequence[bytes], out: Sequence[Any]) -> Prefetch:
        raise FfsError(Code.NOT_SUPPORTED)

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
