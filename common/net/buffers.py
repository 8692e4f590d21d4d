"""Reusable private buffers of a server: payload lands in them and leaves from them."""

from __future__ import annotations

from typing import Final

from fireflyfs.common.limits import KiB, MiB

POOL_CACHED_BYTES_MAX: Final = 256 * MiB
_POOLED_MIN: Final = 32 * KiB  # smaller ones are as fast to allocate as to keep


class BufferPool:
    """Hands out buffers in powers of two and keeps returned ones, up to a bound. One thread (the loop's)."""

    __slots__ = ("_cached_bytes", "_cached_bytes_max", "_free")

    def __init__(self, cached_bytes_max: int = POOL_CACHED_BYTES_MAX) -> None:
        self._free: dict[int, list[bytearray]] = {}
        self._cached_bytes = 0
        self._cached_bytes_max = cached_bytes_max

    def take(self, length: int) -> bytearray:
        """A buffer of at least `length` bytes with old bytes in it: fill it before anyone sees it."""
        if length < _POOLED_MIN:
            return bytearray(length)
        size = 1 << (length - 1).bit_length()
        free = self._free.get(size)
        if free:
            self._cached_bytes -= size
            return free.pop()
        return bytearray(size)

    def give(self, buffer: bytearray) -> None:
        """Take back what `take` gave; nobody may use views of it any more."""
        size = len(buffer)
        if size < _POOLED_MIN or self._cached_bytes + size > self._cached_bytes_max:
            return
        self._cached_bytes += size
        self._free.setdefault(size, []).append(buffer)
