"""Small reads that wait in the kernel at the same time: one thread takes several, asks storage for all of them in one
request, and answers each.

A request to a storage worker costs more than the 4 KiB that it asks for, and so does handing the interpreter from one
thread to another. So a thread that has a small read, while others are busy, looks whether the kernel has more; what it
finds that is no such read, it serves when it has answered these.

Only what is answered in one attempt goes this way. A read that must wait (its servers are away, say) is handed to a
thread of its own: no other may wait for it.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from fireflyfs.client.storage_client import ReadSpan
from fireflyfs.common.errors import FfsError
from fireflyfs.common.limits import KiB, MiB
from fireflyfs.common.net.api import Memory, tainted
from fireflyfs.common.net.busy_poll import Worthwhile
from fireflyfs.fuse.operations.files import SimpleRead, simple_read
from fireflyfs.fuse.protocol import OUT_HEADER, Opcode
from fireflyfs.fuse.request import Later, Request, answer
from fireflyfs.fuse.statistics import Table, count
from fireflyfs.fuse.volume import Volume

log = logging.getLogger(__name__)

READS_MAX: Final = 16  # of one request
READ_BYTES_MAX: Final = 128 * KiB  # of each
BYTES_MAX: Final = MiB  # of all, as far as they have room
APART_MAX: Final = 32  # threads of one mount for reads that must wait; beyond, a service thread waits

_apart = threading.BoundedSemaphore(APART_MAX)


class _Taken(NamedTuple):
    """A read that the kernel has handed over and that has no answer yet."""

    fd: int
    unique: int
    read: SimpleRead
    began_s: float


class Gatherer:
    """Of one service thread. `fd` is a descriptor of the session which never blocks."""

    def __init__(self, fd: int, volume: Volume, crowded: Callable[[], bool], times: Table) -> None:
        self.fd = fd
        self.reading: list[tuple[int, int]] = []  # (inode, number) of the reads that are not answered yet
        self._volume = volume
        self._crowded = crowded
        self._times = times
        self._worthwhile = Worthwhile()

    def serve(self, request: Request, room: memoryview) -> int:
        """`request` is a READ, which is in `room`. Answers it together with others, where there are any.

        Returns the length of what is to be served now, which `room` and `request` hold then; 0: nothing is.
        """
        if not self._worthwhile or not self._crowded():
            return request.length
        first = simple_read(self._volume, request, READ_BYTES_MAX)
        if first is None:
            return request.length
        taken = [_Taken(request.fd, request.unique, first, time.monotonic())]
        self.reading = [(request.nodeid, request.unique)]
        try:
            other = self._take_more(taken, request, room)
            self._worthwhile.note(len(taken) > 1)
            if len(taken) == 1 and not other:
                return request.length
            self._answer(taken, request)
        finally:
            self.reading = []
        return request.length if other else 0

    def _take_more(self, taken: list[_Taken], request: Request, room: memoryview) -> bool:
        """True: the last one that the kernel had is none of these reads, and is what `request` is now."""
        left = min(BYTES_MAX, len(request.landing_view)) - taken[0].read.size
        while len(taken) < READS_MAX:
            try:
                length = os.readv(self.fd, [room])
            except OSError as exc:
                if exc.errno in (errno.ENOENT, errno.EINTR):
                    continue  # it was interrupted before we had it
                return False  # there are no more; or no mount any more, as the thread's next read says
            request.parse(room, length, self.fd)
            read = simple_read(self._volume, request, min(READ_BYTES_MAX, left))
            if read is None:
                return True
            taken.append(_Taken(self.fd, request.unique, read, time.monotonic()))
            self.reading.append((request.nodeid, request.unique))
            left -= read.size
        return False

    def _answer(self, taken: list[_Taken], request: Request) -> None:
        left: Sequence[int]
        try:
            left = self._read(taken, request)
        except Exception:  # whoever asked gets an answer, whatever happens here
            log.exception("%d reads failed", len(taken))
            left = range(len(taken))
        view = request.landing_view
        start = 0
        for place, (fd, unique, read, began_s) in enumerate(taken):
            end = start + read.size
            if place not in left:
                answer(fd, [OUT_HEADER.pack(16 + read.size, 0, unique), view[start:end]])
                count(self._times, Opcode.READ, began_s, nbytes=read.size)
            start = end
        for place in left:
            self._answer_apart(taken[place])

    def _read(self, taken: list[_Taken], request: Request) -> Sequence[int]:
        """Into the thread's landing memory, one behind the other. Returns those that are to be read another way."""
        spans: list[ReadSpan] = []
        start = 0
        for _, _, read, _ in taken:
            spans.append(ReadSpan(read.live.file, read.offset, request.landing.slice(start, read.size)))
            start += read.size
        left = self._volume.data.read_once(spans)
        if not tainted(spans[0].into):
            return left
        request.renew_landing(self._volume.backend.pool)
        return range(len(taken))

    def _answer_apart(self, taken: _Taken) -> None:
        later = Later(taken.fd, taken.unique)

        def body() -> None:
            try:
                self._answer_alone(taken.read, later)
            finally:
                _apart.release()

        if not _apart.acquire(blocking=False):
            self._answer_alone(taken.read, later)
            return
        try:
            threading.Thread(target=body, name="fuse-read-apart", daemon=True).start()
        except RuntimeError:  # the system has no thread to give
            body()

    def _answer_alone(self, read: SimpleRead, later: Later) -> None:
        pool = self._volume.backend.pool
        landing: Memory | None = None
        try:
            landing = pool.allocate(read.size)
            self._volume.data.read(read.live.file, read.offset, landing.slice(0, read.size))
            while tainted(landing.slice(0, read.size)):
                landing.close()
                landing = pool.allocate(read.size)
                self._volume.data.read(read.live.file, read.offset, landing.slice(0, read.size))
        except FfsError as exc:
            log.warning("read on inode %d: %s", read.live.id, exc)
            later.answer(exc.errno)
        except Exception:
            log.exception("a read on inode %d failed", read.live.id)
            later.answer(errno.EIO)
        else:
            later.answer(data=landing.view[: read.size])
        finally:
            if landing is not None:
                landing.close()
