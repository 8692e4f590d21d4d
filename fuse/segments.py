"""Request memory: slabs that links reach directly. A write's bytes stay where the kernel put them until they are sent.

Each service thread reads requests into its current segment, at a position that only a kept write moves forward. A
segment goes back to the pool when no kept piece and no thread uses it. So a buffered write is not copied in this
process at all.
"""

from __future__ import annotations

import threading
from typing import Final

from fireflyfs.common.limits import MiB
from fireflyfs.common.net.api import Memory, MemoryPool, Slice

SEGMENT_BYTES: Final = 4 * MiB
SEGMENTS_FREE_MAX: Final = 32  # kept for reuse
SEGMENTS_MAX: Final = 64  # in all; who needs one more waits for write-behind


class Segment:
    """One slab. `users` counts its thread and the kept pieces in it; changed under the pool's lock only."""

    __slots__ = ("memory", "users", "view")

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.view = memory.view
        self.users = 0

    def slice(self, offset: int, length: int) -> Slice:
        return Slice(self.memory, offset, length)


class SegmentPool:
    """All segments of one mount; safe to use from several threads."""

    def __init__(
        self, pool: MemoryPool, *, segment_bytes: int = SEGMENT_BYTES, segments_max: int = SEGMENTS_MAX
    ) -> None:
        self._pool = pool
        self._free: list[Segment] = []
        self._changed = threading.Condition(threading.Lock())
        self._made = 0
        self._segments_max = segments_max
        self.segment_bytes = segment_bytes

    @property
    def made(self) -> int:
        """Segments that exist now."""
        return self._made

    def take(self) -> Segment:
        """A segment with one user, the caller. Waits while `segments_max` are all in use."""
        with self._changed:
            while not self._free and self._made >= self._segments_max:
                self._changed.wait()
            if self._free:
                segment = self._free.pop()
                segment.users = 1
                return segment
            self._made += 1
        try:
            segment = Segment(self._pool.allocate(self.segment_bytes))
        except BaseException:
            with self._changed:
                self._made -= 1
                self._changed.notify()
            raise
        segment.users = 1
        return segment

    def hold(self, segment: Segment) -> None:
        """One more user of a segment that has some."""
        with self._changed:
            segment.users += 1

    def drop(self, segment: Segment, count: int = 1) -> None:
        """`count` users fewer; the last one gives the segment back."""
        with self._changed:
            segment.users -= count
            if segment.users:
                return
            if len(self._free) < SEGMENTS_FREE_MAX:
                self._free.append(segment)
                self._changed.notify()
                return
            self._made -= 1
            self._changed.notify()
        segment.view.release()
        segment.memory.close()

    def close(self) -> None:
        """Free what nobody uses."""
        with self._changed:
            free, self._free = self._free, []
            self._made -= len(free)
        for segment in free:
            segment.view.release()
            segment.memory.close()
