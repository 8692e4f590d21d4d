"""Where a service thread's requests come from: the kernel, which is asked again for a moment before the thread sleeps.

A program's next request often follows within microseconds of the answer to its last one, and to wake a sleeping thread
takes longer than most of them take to answer. So one thread of a mount looks again for up to FFS_BUSY_POLL_US
(`common/net/busy_poll.py`), only while no other is at work and only while that has been worth it lately. With fewer
than four processors nobody does: the program and the servers need them.

Each thread has two descriptors of its own: one that sleeps, and one that does not, as only a descriptor can say; reads
that wait together are taken through the second one, too (`gathering.py`). The kernel takes an answer through the one
that the request came from.
"""

from __future__ import annotations

import os
import time

from fireflyfs.common.net.busy_poll import TAKEN_S, Worthwhile, busy_poll_s, many_processors, yield_processor
from fireflyfs.fuse import device


class AtWork:
    """The threads of one mount that have a request, and the one that looks for the next."""

    __slots__ = ("looking", "threads", "wait_s", "worthwhile")

    def __init__(self, wait_s: float | None = None) -> None:
        self.wait_s = (busy_poll_s() if many_processors() else 0.0) if wait_s is None else wait_s
        self.worthwhile = Worthwhile()
        self.threads: set[Arrivals] = set()
        self.looking = False


class Arrivals:
    """Used by one thread, which calls `done` when it has answered. `fd` is where the last request came from."""

    def __init__(self, session_fd: int, at_work: AtWork) -> None:
        self._at_work = at_work
        self.nonblocking = device.clone_nonblocking(session_fd)
        try:
            self._sleeping = self.fd = device.clone(session_fd)
        except BaseException:
            if self.nonblocking is not None:
                os.close(self.nonblocking)
            raise

    def next(self, room: memoryview) -> int:
        """The length of the next request, which is in `room`. Raises OSError: ENODEV after the unmount."""
        at_work = self._at_work
        length = 0
        if at_work.wait_s and self.nonblocking is not None and not (at_work.looking or at_work.threads):
            length = self._look_again(self.nonblocking, room)
        if not length:
            self.fd = self._sleeping
            length = os.readv(self._sleeping, [room])
        at_work.threads.add(self)
        return length

    def _look_again(self, fd: int, room: memoryview) -> int:
        at_work = self._at_work
        if not at_work.worthwhile:
            return 0
        at_work.looking = True
        try:
            return self._look(at_work, fd, room)
        finally:
            at_work.looking = False

    def _look(self, at_work: AtWork, fd: int, room: memoryview) -> int:
        now_s = time.perf_counter()
        end_s = now_s + at_work.wait_s
        while now_s < end_s:
            try:
                length = os.readv(fd, [room])
            except BlockingIOError:
                if at_work.threads:
                    return 0
                yield_processor()
                before_s, now_s = now_s, time.perf_counter()
                if now_s - before_s > TAKEN_S:
                    at_work.worthwhile.give_up()
                    return 0
                continue
            self.fd = fd
            at_work.worthwhile.note(True)
            return length
        at_work.worthwhile.note(False)
        return 0

    def others_at_work(self) -> bool:
        """Asked by a thread that is."""
        return len(self._at_work.threads) > 1

    def done(self) -> None:
        self._at_work.threads.discard(self)

    def close(self) -> None:
        self.done()
        os.close(self._sleeping)
        if self.nonblocking is not None:
            os.close(self.nonblocking)
