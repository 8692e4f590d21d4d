"""The KV cache as its users see it: the types, and the contract that `KVCache` keeps and a double can keep too.

A key is 8 to 64 bytes, a block 4 KiB to 16 MiB, at most the namespace's `block_size`. A miss is a result, never an
error: what is absent, damaged, expired, or on a node that does not answer in time is a miss, and `CacheStats` counts
them apart. Errors (FfsError) are for what can never work: another fingerprint or block size than the namespace was
made with, a key or a block out of bounds, a block larger than the memory it should land in, a closed cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self

from fireflyfs.common.limits import (
    CACHE_BLOCK_BYTES_MAX,
    CACHE_BLOCK_BYTES_MIN,
    CACHE_KEY_BYTES_MAX,
    CACHE_KEY_BYTES_MIN,
)

KEY_BYTES_MIN = CACHE_KEY_BYTES_MIN
KEY_BYTES_MAX = CACHE_KEY_BYTES_MAX
BLOCK_BYTES_MIN = CACHE_BLOCK_BYTES_MIN
BLOCK_BYTES_MAX = CACHE_BLOCK_BYTES_MAX
PIECES_MAX = 256  # buffers of one block
MISS = -1  # in what `get_batch` answers

# Anything contiguous with the buffer protocol (bytes, bytearray, memoryview, mmap, numpy arrays), with
# `__array_interface__`, or a CPU tensor (`data_ptr`, `is_contiguous`); never copied on the way in. A slice of memory
# from `FileSystem.allocate` is reached by storage servers of this host directly.
Buffer = Any
Block = Buffer | Sequence[Buffer]  # one readable buffer, or several that are stored one after the other
Out = Buffer | Sequence[Buffer]  # one writable buffer, or several that are filled one after the other


class Namespace(NamedTuple):
    """What a namespace was made with; it does not change. Sizes in bytes."""

    name: str
    inode: int
    block_size: int
    replication: int
    capacity_bytes: int  # of blocks, each counted once however many replicas it has; 0: what the targets have
    ttl_s: float  # after a block was put; 0: for ever
    fingerprint: bytes


@dataclass(slots=True)
class CacheStats:
    """Counters of one client since it opened the cache, and of all servers since they started. Blocks and bytes."""

    hits: int = 0  # of get_batch
    misses: int = 0
    hit_bytes: int = 0
    puts: int = 0  # stored
    put_bytes: int = 0
    puts_refused: int = 0  # not stored, for whatever reason
    no_room: int = 0  # of those: the targets are full, and nothing could be evicted in time
    away: int = 0  # blocks whose node did not answer in time, asked for or put
    damaged: int = 0  # blocks that did not match their checksum, there or on the way
    too_large: int = 0  # blocks that did not fit the memory they should land in
    looked_up: int = 0  # keys of exists_batch and match_prefix
    found: int = 0  # of them
    servers: dict[str, int] = field(default_factory=dict)  # blocks, bytes, hits, misses, evictions, expired, ...


class Prefetch(Protocol):
    """A `get_batch` in the background. The memory belongs to it until it is done, or was cancelled and is done."""

    def done(self) -> bool:
        """Whether all of it is over."""

    def poll(self) -> list[int | None]:
        """What is known of each key by now: as `get_batch` answers, None for what is still under way."""

    def wait(self, timeout_s: float | None = None) -> list[int]:
        """As `get_batch` answers. Raises TimeoutError; the prefetch goes on then."""

    def cancel(self) -> bool:
        """Ask for no more: what was not asked for yet is a miss. False when all of it is over."""


class Cache(Protocol):
    """What `KVCache` is. Safe to use from several threads."""

    namespace: Namespace

    def put_batch(self, keys: Sequence[bytes], blocks: Sequence[Block]) -> list[bool]:
        """Whether each block is stored, on all its replicas. Of a key that stands twice, the last block counts."""

    def get_batch(self, keys: Sequence[bytes], out: Sequence[Out]) -> list[int]:
        """How many bytes of each `out` were filled from its start; -1: a miss, and its memory is unspecified."""

    def exists_batch(self, keys: Sequence[bytes]) -> list[bool]:
        """Which blocks are there now. They count as used, so that they are not the next to be evicted."""

    def match_prefix(self, keys: Sequence[bytes]) -> int:
        """How many of the first keys are there without a gap. One round trip to each node."""

    def delete(self, keys: Sequence[bytes]) -> int:
        """How many blocks went."""

    def clear(self) -> None:
        """Remove every block. Raises FfsError when some chain cannot be reached."""

    def stats(self) -> CacheStats: ...

    def prefetch(self, keys: Sequence[bytes], out: Sequence[Out]) -> Prefetch: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class AsyncCache(Protocol):
    """What `AsyncKVCache` is: the same, awaited."""

    namespace: Namespace

    async def put_batch(self, keys: Sequence[bytes], blocks: Sequence[Block]) -> list[bool]: ...

    async def get_batch(self, keys: Sequence[bytes], out: Sequence[Out]) -> list[int]: ...

    async def exists_batch(self, keys: Sequence[bytes]) -> list[bool]: ...

    async def match_prefix(self, keys: Sequence[bytes]) -> int: ...

    async def delete(self, keys: Sequence[bytes]) -> int: ...

    async def clear(self) -> None: ...

    async def stats(self) -> CacheStats: ...

    def prefetch(self, keys: Sequence[bytes], out: Sequence[Out]) -> Prefetch: ...

    async def close(self) -> None: ...
