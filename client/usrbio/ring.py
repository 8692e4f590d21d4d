"""`ioring`: the application's side of a ring. docs/format/usrbio_ring.md says what it writes and reads when."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import errno
import mmap
import os
import threading
import time
import uuid
from typing import Any, Final

from fireflyfs.client.usrbio import futex, layout
from fireflyfs.client.usrbio.files import registered
from fireflyfs.client.usrbio.iovec import iovec
from fireflyfs.client.usrbio.layout import RingLayout, RingOptions
from fireflyfs.client.usrbio.mountpoint import VIRTUAL
from fireflyfs.client.usrbio.names import ring_name

SHM: Final = "/dev/shm"
# How long a wait looks again before it sleeps: waking takes as long as a small batch.
SPIN_S: Final = 50e-6 if len(os.sched_getaffinity(0)) > 1 else 0.0
WAIT_S_MAX: Final = 1.0  # of one sleep: then the ring is looked at again, whatever was missed


def _fail(number: int, text: str = "") -> OSError:
    return OSError(number, text or os.strerror(number))


class ioring:
    """A ring of `entries` I/Os on the mount at `hf3fs_mount_point`. OSError where it cannot be had.

    `io_depth`, `timeout` (ms), `flags`, `priority` (None: normal): docs/usrbio.md. `numa` is taken and not looked at.
    Safe to use from several threads; a wait of one leaves the others free to prepare.
    """

    def __init__(
        self,
        hf3fs_mount_point: str,
        entries: int,
        for_read: bool = True,
        io_depth: int = 0,
        priority: int | None = None,
        timeout: int | None = None,
        numa: int = -1,
        flags: int = 0,
    ) -> None:
        del numa
        rank = max(-1, min(1, priority or 0))
        options = RingOptions(entries, bool(for_read), io_depth, rank, timeout or 0, flags)
        if not hf3fs_mount_point or options.timeout_ms < 0 or abs(io_depth) > entries:
            raise _fail(errno.EINVAL)
        self._layout = where = RingLayout.of(entries)
        number = uuid.uuid4()
        path = f"{SHM}/hf3fs-iov-{number}"
        link = f"{hf3fs_mount_point}/{VIRTUAL}/iovs/{ring_name(number.bytes, options)}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, where.nbytes)
            os.pwrite(fd, layout.pack_header(options), 0)
            self._map = mmap.mmap(fd, where.nbytes)
            os.symlink(path, link)  # the mount opens the memory, and its agent serves it
        finally:
            os.close(fd)
            os.unlink(path)
        self._link: str | None = link
        self._entries = entries
        self._for_read = options.for_read
        view = memoryview(self._map)
        self._sq_seq = view[where.sq_seq : where.cq_seq].cast("Q")
        self._cq_seq = view[where.cq_seq : where.results].cast("Q")
        self._results = view[where.results : where.results + entries * layout.RESULT_BYTES].cast("q")
        self._words = view[: layout.HEADER_BYTES].cast("I")
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._head = 0  # positions: the next to prepare, and the next to be handed out
        self._reaped = 0
        self._pieces: list[tuple[iovec, Any] | None] = [None] * entries
        self._lock = threading.Lock()
        self._owner = os.getpid()

    @staticmethod
    def size_for_entries(entries: int) -> int:
        """Bytes of shared memory that a ring takes."""
        return RingLayout.of(entries).nbytes

    @property
    def entries(self) -> int:
        return self._entries

    def prepare(self, iov: iovec, read: bool, fd: int, off: int, userdata: Any = None) -> ioring:
        """Queue one I/O: all of `iov`, at `off` of the registered file `fd`. The agent may begin at once.

        OSError: EINVAL (other direction than the ring's, nothing to move, a negative offset), EBADF (not registered),
        EACCES (not open for it), EAGAIN (the ring is full: hand results out first). Nothing is queued then.
        """
        size = iov.size
        if bool(read) is not self._for_read or not size or off < 0 or self._link is None:
            raise _fail(errno.EINVAL)
        file = registered(fd)
        if file is None:
            raise _fail(errno.EBADF, f"descriptor {fd} is not registered")
        if not (file.readable if read else file.writable):
            raise _fail(errno.EACCES, f"descriptor {fd} is not open for {'reading' if read else 'writing'}")
        with self._lock:
            head = self._head
            if head - self._reaped >= self._entries:
                raise _fail(errno.EAGAIN, "the ring is full")
            slot = head % self._entries
            layout.SQE.pack_into(
                self._map, self._layout.sqes + slot * layout.SQE.size, iov._id, iov._start, file.token, off, size, 0
            )
            self._pieces[slot] = (iov, userdata)
            self._head = head + 1
        with self._lock:  # taken anew: what was written before it was let go is seen before this, on every processor
            self._sq_seq[slot] = head + 1
        return self

    def submit(self) -> ioring:
        """Ring the agent's bell. What was prepared may be under way already."""
        with self._lock:
            at = layout.SQ_DOORBELL_AT // 4
            self._words[at] = (self._words[at] + 1) & 0xFFFFFFFF
        futex.wake(self._address + layout.SQ_DOORBELL_AT)
        return self

    def wait(
        self, *, max_results: int = 0, min_results: int = 0, timeout: datetime.timedelta | float | None = None
    ) -> list[iovec]:
        """Finished pieces in the order they were prepared, with `result` and `userdata` set.

        Returns when there are `min_results`, with up to `max_results` (at least `min_results`, at least one) that are
        ready; when `timeout` has passed, with what is there. OSError: the ring was given up.
        """
        most = max(max_results, min_results, 1)
        if isinstance(timeout, datetime.timedelta):
            timeout = timeout.total_seconds()
        end_s = None if timeout is None else time.monotonic() + timeout
        found: list[iovec] = []
        spin_until_s = 0.0
        while True:
            bell = self._words[layout.CQ_DOORBELL_AT // 4]
            self._reap(found, most)
            if len(found) >= min_results:
                return found
            now_s = time.monotonic()
            if end_s is not None and now_s >= end_s:
                return found
            state = self._words[layout.CQ_DOORBELL_AT // 4 + 1]
            if state:
                raise _fail(state if state < 4096 else errno.EIO, "the mount does not serve this ring any more")
            if not spin_until_s:
                spin_until_s = now_s + SPIN_S
            if now_s < spin_until_s:
                os.sched_yield()
                continue
            left_s = WAIT_S_MAX if end_s is None else min(WAIT_S_MAX, end_s - now_s)
            futex.wait(self._address + layout.CQ_DOORBELL_AT, bell, left_s)

    def _reap(self, found: list[iovec], most: int) -> None:
        entries, words = self._entries, self._cq_seq
        with self._lock:
            ready = self._reaped
            least = ready + most - len(found)
            while ready < least and ready < self._head and words[ready % entries] == ready + 1:
                ready += 1
        if ready == self._reaped:
            return
        with self._lock:  # taken anew: results are read after their words, on every processor
            while self._reaped < ready:  # another thread may have handed out some
                slot = self._reaped % entries
                entry = self._pieces[slot]
                assert entry is not None  # reaped < head
                piece, piece._result = entry[0], self._results[slot]
                piece._userdata = entry[1]
                self._pieces[slot] = None
                found.append(piece)
                self._reaped += 1

    def destroy(self) -> None:
        """Take the ring back. What is under way may still land in its region. Twice is no error."""
        link, self._link = self._link, None
        if link is not None and self._owner == os.getpid():  # a forked child's copy leaves the parent's ring alone
            with contextlib.suppress(OSError):  # the mount may be gone
                os.unlink(link)

    def __del__(self) -> None:
        if getattr(self, "_link", None) is not None:
            self.destroy()
