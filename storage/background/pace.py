"""A pace in bytes a second for work that must not crowd out what clients wait for."""

from __future__ import annotations

import asyncio

from fireflyfs.common.clock import Clock

PIECE_BYTES_MIN = 64 << 10  # a small chunk costs as much as so many bytes: its record, its lock, its messages
_IDLE_CREDIT_S = 0.1  # of the pace that an idle moment saves up


class Pace:
    """`bytes_s` 0: as fast as it goes."""

    def __init__(self, clock: Clock, bytes_s: int) -> None:
        self.bytes_s = bytes_s
        self._clock = clock
        self._free_at_s = float("-inf")

    async def wait(self, size: int) -> None:
        """Returns when the next `size` bytes may go."""
        if not self.bytes_s:
            return
        now_s = self._clock.monotonic_s()
        due_s = max(self._free_at_s, now_s - _IDLE_CREDIT_S)
        self._free_at_s = due_s + max(size, PIECE_BYTES_MIN) / self.bytes_s
        if due_s - now_s > 0.001:
            await asyncio.sleep(due_s - now_s)
