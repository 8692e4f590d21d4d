"""Bytes that programs have written and storage does not have yet: kept for a moment, merged, sent in batches.

One lock guards the books; nothing is sent under it. Rules:

* At most `dirty_bytes_max` bytes wait; who writes more flushes first.
* A file is flushed in the background when it has `start_bytes` waiting or its oldest byte is `age_s` old; by its
  writer when it has `file_bytes_max` waiting; and at fsync and close, before a truncate, and before a read that
  overlaps what waits.
* Several flushes of a file may be under way: the next is on its way before the last has been acknowledged. Bytes
  that overlap those under way are sent only when these have arrived: of two writes to a byte the later one wins.
* Bytes under way are still "waiting" for a read: they leave the books when storage has acknowledged them.
* A failed flush drops its bytes and keeps the error for the next fsync or close of each descriptor, once: retries
  while servers are away happen below, in the client library, and do not end while the mount lives.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Final

from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import FfsError
from fireflyfs.common.limits import KiB, MiB
from fireflyfs.common.net.api import Piece
from fireflyfs.fuse.segments import Segment, SegmentPool

log = logging.getLogger(__name__)

# The more of a chunk is sent together, the less each byte costs its replicas: they update a chunk once for all of it.
DIRTY_BYTES_MAX: Final = 128 * MiB
START_BYTES: Final = 8 * MiB  # of one file, before the background sends them
FILE_BYTES_MAX: Final = 64 * MiB  # of one file, before its writer sends them itself
START_EXTENTS: Final = 512
FILE_EXTENTS_MAX: Final = 8192
FLUSHES_MAX: Final = 3  # of one file, under way at once
AGE_S: Final = 0.5
JOIN_BYTES_MAX: Final = 64 * KiB  # neighbours smaller than this are copied together: fewer extents on the wire


@dataclass(slots=True)
class Extent:
    """Bytes [start, end) of a file, at `position` of `segment`."""

    start: int
    end: int
    segment: Segment
    position: int

    def piece(self) -> Piece:
        return self.segment.slice(self.position, self.end - self.start)


class ExtentMap:
    """What waits of one file: extents in order that do not overlap; the newer write wins."""

    __slots__ = ("_starts", "extents")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self.extents: list[Extent] = []

    def __len__(self) -> int:
        return len(self.extents)

    def overlaps(self, start: int, end: int) -> bool:
        place = bisect_right(self._starts, start)
        if place and self.extents[place - 1].end > start:
            return True
        return place < len(self._starts) and self._starts[place] < end

    def meets(self, other: ExtentMap) -> bool:
        """Whether a byte is in both."""
        few, many = (self, other) if len(self) < len(other) else (other, self)
        return any(many.overlaps(extent.start, extent.end) for extent in few.extents)

    def insert(self, new: Extent, hold: Callable[[Segment], None], drop: Callable[[Segment], None]) -> int:
        """Place `new`, cut away what it covers. Returns by how many bytes the map grew.

        `hold` and `drop` are called for each piece more or less in a segment (`new`'s own not).
        """
        starts, extents = self._starts, self.extents
        if not starts or new.start >= extents[-1].end:
            starts.append(new.start)
            extents.append(new)
            return new.end - new.start
        first = bisect_right(starts, new.start)
        if first and extents[first - 1].end > new.start:
            first -= 1
        last = bisect_left(starts, new.end, lo=first)
        grown = new.end - new.start
        kept: list[Extent] = []
        after: list[Extent] = []
        for old in extents[first:last]:
            grown -= min(old.end, new.end) - max(old.start, new.start)
            if old.start < new.start:
                kept.append(Extent(old.start, new.start, old.segment, old.position))
            if old.end > new.end:
                after.append(Extent(new.end, old.end, old.segment, old.position + new.end - old.start))
            pieces = (old.start < new.start) + (old.end > new.end)
            if pieces == 2:
                hold(old.segment)
            elif pieces == 0:
                drop(old.segment)
        fresh = [*kept, new, *after]
        extents[first:last] = fresh
        starts[first:last] = [extent.start for extent in fresh]
        return grown


class DirtyFile:
    """The bytes of one inode that storage does not have. All of it is under the books' lock."""

    __slots__ = ("bytes", "error", "errors", "key", "sending", "since_s", "waiting", "wanted")

    def __init__(self, key: int) -> None:
        self.key = key
        self.waiting = ExtentMap()
        self.sending: list[ExtentMap] = []
        self.bytes = 0  # that wait
        self.since_s = 0.0
        self.wanted = False  # in the queue of the background
        self.error: FfsError | None = None  # the last one
        self.errors = 0  # how many there were


def joined(extents: Sequence[Extent]) -> list[tuple[int, Piece]]:
    """(offset, piece) for the wire: runs of small neighbours are copied together, up to 1 MiB each."""
    pieces: list[tuple[int, Piece]] = []
    run: list[Extent] = []
    run_bytes = 0

    def finish() -> None:
        nonlocal run_bytes
        if len(run) == 1:
            pieces.append((run[0].start, run[0].piece()))
        elif run:
            joint = memoryview(bytearray(run_bytes))
            base = run[0].start
            for extent in run:
                length = extent.end - extent.start
                source = extent.segment.view[extent.position : extent.position + length]
                joint[extent.start - base : extent.end - base] = source
            pieces.append((base, joint))
        run.clear()
        run_bytes = 0

    for extent in extents:
        length = extent.end - extent.start
        small = length < JOIN_BYTES_MAX
        if run and (not small or run[-1].end != extent.start or run_bytes + length > MiB):
            finish()
        if small:
            run.append(extent)
            run_bytes += length
        else:
            pieces.append((extent.start, extent.piece()))
    finish()
    return pieces


class WriteBehind:
    """The books of all files of one mount. Safe to use from several threads.

    `send(key, pieces)` stores pieces of one file; it raises FfsError when they are lost for good.
    """

    def __init__(
        self,
        send: Callable[[int, Sequence[tuple[int, Piece]]], None],
        segments: SegmentPool,
        clock: Clock,
        *,
        dirty_bytes_max: int = DIRTY_BYTES_MAX,
        file_bytes_max: int = FILE_BYTES_MAX,
        start_bytes: int = START_BYTES,
        age_s: float = AGE_S,
    ) -> None:
        self._send = send
        self._segments = segments
        self._clock = clock
        self._books = threading.Condition(threading.Lock())  # notified when a flush ends
        self._files: dict[int, DirtyFile] = {}
        self._dirty_bytes = 0
        self._dirty_bytes_max = dirty_bytes_max
        self._file_bytes_max = file_bytes_max
        self._start_bytes = start_bytes
        self._age_s = age_s
        self._wanted: SimpleQueue[int | None] = SimpleQueue()
        self.flushes = 0
        self.flushed_bytes = 0
        self.flush_errors = 0

    @property
    def dirty_bytes(self) -> int:
        return self._dirty_bytes

    def write(self, key: int, offset: int, segment: Segment, position: int, length: int) -> Callable[[], None] | None:
        """Keep `length` bytes at `position` of `segment` as the file's bytes at `offset`.

        The segment gains a user for them. Where too much waits now, returns what the writer does about it once it
        holds no lock: a flush, so it may take long; an error of that flush is kept, not raised.
        """
        extent = Extent(offset, offset + length, segment, position)
        self._segments.hold(segment)
        with self._books:
            file = self._files.get(key)
            if file is None:
                file = self._files[key] = DirtyFile(key)
            if not file.waiting.extents:
                file.since_s = self._clock.monotonic_s()
            grown = file.waiting.insert(extent, self._segments.hold, self._segments.drop)
            file.bytes += grown
            self._dirty_bytes += grown
            full = file.bytes >= self._file_bytes_max or len(file.waiting) >= FILE_EXTENTS_MAX
            if not file.wanted and (file.bytes >= self._start_bytes or len(file.waiting) >= START_EXTENTS):
                file.wanted = True
                self._wanted.put(file.key)
            if full:
                return partial(self._send_waiting, file)
            if self._dirty_bytes >= self._dirty_bytes_max:
                return partial(self.flush, max(self._files.values(), key=lambda each: each.bytes).key)
            return None

    def overlaps(self, key: int, start: int, end: int) -> bool:
        """Whether any byte of the range is not in storage yet."""
        file = self._files.get(key)
        if file is None:
            return False
        with self._books:
            return any(each.overlaps(start, end) for each in (file.waiting, *file.sending))

    def is_dirty(self, key: int) -> bool:
        file = self._files.get(key)
        return file is not None and bool(file.waiting.extents or file.sending)

    def flush(self, key: int) -> None:
        """Send everything of one file that waits now, and wait for what is under way. Errors are kept."""
        file = self._files.get(key)
        if file is None:
            return
        self._send_waiting(file)
        with self._books:
            before = list(file.sending)
            while any(each in before for each in file.sending):
                self._books.wait()

    def errors(self, key: int) -> int:
        """How often bytes of a file were lost so far: a place for `error_since`."""
        file = self._files.get(key)
        return file.errors if file is not None else 0

    def error_since(self, key: int, seen: int) -> tuple[FfsError | None, int]:
        """The last error, if there were any since there were `seen` of them; and how many there are now."""
        file = self._files.get(key)
        if file is None:
            return None, seen
        with self._books:
            return (file.error if file.errors != seen else None), file.errors

    def want_old(self) -> None:
        """Queue the files whose oldest waiting byte is `age_s` old for the background."""
        now = self._clock.monotonic_s()
        with self._books:
            for file in self._files.values():
                if file.waiting.extents and not file.wanted and now - file.since_s >= self._age_s:
                    file.wanted = True
                    self._wanted.put(file.key)

    def run_background(self) -> None:
        """Flush what is queued, until `stop_background`; a thread's body. Several may run."""
        while (key := self._wanted.get()) is not None:
            file = self._files.get(key)
            if file is not None:
                self._send_waiting(file)

    def stop_background(self, threads: int) -> None:
        for _ in range(threads):
            self._wanted.put(None)

    def dirty_keys(self) -> list[int]:
        with self._books:
            return [file.key for file in self._files.values() if file.waiting.extents or file.sending]

    def forget(self, key: int) -> None:
        """The file is closed everywhere here: drop its books if nothing waits."""
        with self._books:
            file = self._files.get(key)
            if file is not None and not file.waiting.extents and not file.sending:
                del self._files[key]

    def _send_waiting(self, file: DirtyFile) -> None:
        """Send what waits of a file, once its turn has come; returns when that is stored or lost."""
        with self._books:
            file.wanted = False
            while file.waiting.extents and (
                len(file.sending) >= FLUSHES_MAX or any(each.meets(file.waiting) for each in file.sending)
            ):
                self._books.wait()
            sending = file.waiting
            if not sending.extents:
                return
            file.wanted = False
            file.sending.append(sending)
            file.waiting = ExtentMap()
            sent_bytes, file.bytes = file.bytes, 0
        lost: FfsError | None = None
        try:
            self._send(file.key, joined(sending.extents))
        except FfsError as exc:
            lost = exc
            log.error("inode %d: %d bytes could not be stored: %s", file.key, sent_bytes, exc)
        finally:
            with self._books:
                file.sending.remove(sending)
                self._dirty_bytes -= sent_bytes
                self.flushes += 1
                self.flushed_bytes += sent_bytes
                if lost is not None:
                    file.error = lost
                    file.errors += 1
                    self.flush_errors += 1
                self._books.notify_all()
            for extent in sending.extents:
                self._segments.drop(extent.segment)
