"""Shared memory of clients, as a server maps it. Everything here may be hostile."""

from __future__ import annotations

import fcntl
import mmap
import os

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import REGIONS_MAX


class RegionTable:
    """The regions of one connection. A mapping lives until the last view of it is gone."""

    __slots__ = ("_regions",)

    def __init__(self) -> None:
        self._regions: dict[int, memoryview] = {}

    def register(self, region: int, length: int, fd: int) -> None:
        """Map `length` bytes of `fd`; the descriptor stays the caller's. Raises PROTOCOL or TOO_LARGE."""
        if region in self._regions:
            raise error(Code.PROTOCOL, f"region {region} is registered already")
        if len(self._regions) >= REGIONS_MAX:
            raise error(Code.TOO_LARGE, f"a connection may register {REGIONS_MAX} regions")
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        except OSError as exc:
            raise error(Code.PROTOCOL, f"region {region} is not a memfd") from exc
        if not seals & fcntl.F_SEAL_SHRINK:
            raise error(Code.PROTOCOL, f"region {region} is not sealed against shrinking")
        size = os.fstat(fd).st_size
        if not 0 < length <= size:
            raise error(Code.PROTOCOL, f"region {region} is said to have {length} bytes, its memory has {size}")
        try:
            self._regions[region] = memoryview(mmap.mmap(fd, length))
        except OSError as exc:
            raise error(Code.PROTOCOL, f"region {region} cannot be mapped: {exc.strerror}") from exc

    def withdraw(self, region: int) -> None:
        """Raises PROTOCOL for an unknown region."""
        if self._regions.pop(region, None) is None:
            raise error(Code.PROTOCOL, f"region {region} is not registered")

    def view(self, region: int, length: int, offset: int) -> memoryview:
        """Bytes [offset, offset + length). Raises PROTOCOL."""
        whole = self._regions.get(region)
        if whole is None:
            raise error(Code.PROTOCOL, f"region {region} is not registered")
        if offset + length > len(whole):
            raise error(
                Code.PROTOCOL, f"[{offset}, {offset} + {length}) is outside region {region} of {len(whole)} bytes"
            )
        return whole[offset : offset + length]

    def __len__(self) -> int:
        return len(self._regions)

    def clear(self) -> None:
        self._regions.clear()
