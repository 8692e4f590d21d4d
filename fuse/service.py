"""One service thread: read a request, do it, write the reply from the buffer that the data landed in."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable

from fireflyfs.common.errors import FfsError
from fireflyfs.fuse import protocol
from fireflyfs.fuse.arrivals import Arrivals
from fireflyfs.fuse.callers import is_killed
from fireflyfs.fuse.gathering import Gatherer
from fireflyfs.fuse.operations import HANDLERS, control
from fireflyfs.fuse.operations.control import CONTROL_FIRST
from fireflyfs.fuse.protocol import IN_HEADER_BYTES, OUT_HEADER, Opcode
from fireflyfs.fuse.request import Reply, Request, answer
from fireflyfs.fuse.statistics import BYTES, OPCODES_MAX, count
from fireflyfs.fuse.usrbio import virtual
from fireflyfs.fuse.volume import Volume

log = logging.getLogger(__name__)

_NO_REPLY = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY})
_UNDOES = {Opcode.OPEN: Opcode.RELEASE, Opcode.OPENDIR: Opcode.RELEASEDIR}  # where the kernel takes no answer
# What may end early where its caller was killed, while it is still being done: it changes nothing, or is undone.
_LEAVES_NOTHING = frozenset(
    {Opcode.LOOKUP, Opcode.GETATTR, Opcode.STATX, Opcode.STATFS, Opcode.ACCESS, Opcode.READLINK, Opcode.READ}
    | {Opcode.GETXATTR, Opcode.LISTXATTR, Opcode.READDIR, Opcode.READDIRPLUS}
    | set(_UNDOES)
)
_ALIGN = 64  # kept writes start at multiples of this
# Answers of everyday life that are not worth a line in the log.
_QUIET = frozenset(
    {errno.ENOENT, errno.EEXIST, errno.EACCES, errno.EPERM, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR}
    | {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY, errno.ESTALE, errno.EINVAL, errno.ENXIO, errno.ENODATA}
    | {errno.ENAMETOOLONG, errno.ELOOP, errno.EXDEV, errno.EMLINK, errno.EFBIG}
    | {errno.EAGAIN, errno.EINTR, errno.EDEADLK, errno.EDQUOT}
)


class Service:
    """A thread's loop over its requests. `busy_since_s` is 0 while it waits for the kernel."""

    def __init__(
        self, arrivals: Arrivals, volume: Volume, request_bytes_max: int, may_end: Callable[[Service], bool]
    ) -> None:
        self._arrivals = arrivals
        self.volume = volume
        self.busy_since_s = 0.0
        self.busy_with = 0
        self.busy_node = self.busy_unique = self._busy_pid = 0
        self._interrupted = 0  # number of a request whose caller has had a signal
        self._request_bytes = request_bytes_max + protocol.REQUEST_EXTRA_BYTES
        self._landing = volume.backend.pool.allocate(request_bytes_max)
        self._may_end = may_end
        self._times = volume.times.table()
        self._gatherer: Gatherer | None = None
        if arrivals.nonblocking is not None:
            self._gatherer = Gatherer(arrivals.nonblocking, volume, arrivals.others_at_work, self._times)

    def reads(self, nodeid: int, before: int) -> bool:
        """Whether it has a READ of the inode that came before the request with this number."""
        reading = list(self._gatherer.reading) if self._gatherer is not None else []
        if self.busy_since_s and self.busy_with == Opcode.READ:
            reading.append((self.busy_node, self.busy_unique))
        return any(inode == nodeid and unique < before for inode, unique in reading)

    def interrupted(self, unique: int) -> None:
        """The caller of a request has had a signal. A disk's callers are disturbed by none but SIGKILL: after that the
        kernel waits for nothing but our answer. In any thread."""
        if self.busy_unique == unique:
            self._interrupted = unique
            self.look_after_callers()

    def look_after_callers(self) -> None:
        """Now and then while a request with a signal goes on: the kernel tells of the first signal alone."""
        unique, pid, opcode = self._interrupted, self._busy_pid, self.busy_with
        if not unique:
            return
        if not self.busy_since_s or self.busy_unique != unique:
            self._interrupted = 0
        elif opcode in _LEAVES_NOTHING and is_killed(pid):
            self._interrupted = 0
            answer(self._arrivals.fd, [OUT_HEADER.pack(16, -errno.EINTR, unique)])  # the other answer comes too late

    def run(self) -> None:
        """Until the file system is unmounted, or `may_end` says that this thread is not needed."""
        try:
            self._loop()
        finally:
            self._arrivals.close()
            self._landing.close()
            self.volume.times.ended(self._times)

    def _loop(self) -> None:
        volume, arrivals, need = self.volume, self._arrivals, self._request_bytes
        segments, counts, times = volume.segments, volume.counts, self._times
        gatherer = self._gatherer
        segment = segments.take()
        request = Request(segment, self._landing)
        position = 0
        room = segment.view[:need]
        monotonic = time.monotonic
        try:
            while True:
                try:
                    length = arrivals.next(room)
                except OSError as exc:
                    if exc.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                        continue  # the request was interrupted before we had it
                    if exc.errno != errno.ENODEV:
                        log.error("cannot read requests: %s", exc)
                    return
                self.busy_since_s = monotonic()
                request.parse(room, length, arrivals.fd)
                request.body_position = position + IN_HEADER_BYTES
                if request.opcode == Opcode.READ and gatherer is not None:
                    self.busy_with, self._busy_pid = Opcode.READ, request.pid
                    self.busy_node, self.busy_unique = request.nodeid, request.unique
                    length = gatherer.serve(request, room)
                    if not length:
                        self.busy_since_s = 0.0
                        arrivals.done()
                        if self._may_end(self):
                            return
                        continue
                opcode = self.busy_with = request.opcode
                self._busy_pid, self.busy_node, self.busy_unique = request.pid, request.nodeid, request.unique
                handler = HANDLERS.get(opcode)
                if request.nodeid >= protocol.VIRTUAL_BASE:
                    if request.nodeid < CONTROL_FIRST:
                        handler = virtual.handle
                    elif handler is not None:
                        handler = control.handle
                reply: Reply = None
                number = 0
                if handler is None:
                    if opcode == Opcode.DESTROY:
                        answer(request.fd, [OUT_HEADER.pack(16, 0, request.unique)])
                        return
                    number = errno.ENOSYS
                else:
                    try:
                        reply = handler(volume, request)
                    except FfsError as exc:
                        number = exc.errno
                        self._failed(request, number, exc)
                    except OSError as exc:
                        number = exc.errno or errno.EIO
                        self._failed(request, number, exc)
                    except Exception:
                        number = errno.EIO
                        log.exception("operation %d on inode %d failed", opcode, request.nodeid)
                        counts["failures"] += 1
                if number:
                    if opcode not in _NO_REPLY:
                        answer(request.fd, [OUT_HEADER.pack(16, -number, request.unique)])
                elif reply is None:
                    pass
                elif isinstance(reply, bytes):
                    taken = answer(request.fd, [OUT_HEADER.pack(16 + len(reply), 0, request.unique), reply])
                    if not taken and opcode in _UNDOES:
                        self._undo(request, reply)
                else:
                    total = 16 + sum(map(len, reply))
                    answer(request.fd, [OUT_HEADER.pack(total, 0, request.unique), *reply])
                    if opcode == Opcode.READ:
                        times[opcode][BYTES] += total - 16
                if request.after_reply is not None:
                    volume.notify(request.after_reply)
                    request.after_reply = None
                if opcode == Opcode.WRITE:
                    times[opcode][BYTES] += length - protocol.WRITE_DATA_OFFSET
                    position += (length + _ALIGN - 1) & -_ALIGN
                    if position + need > segments.segment_bytes:
                        request.body = memoryview(b"")
                        room.release()
                        segments.drop(segment)
                        segment = request.segment = segments.take()
                        position = 0
                    room = segment.view[position : position + need]
                if opcode < OPCODES_MAX:
                    count(times, opcode, self.busy_since_s, failed=bool(number))
                self.busy_since_s = 0.0
                arrivals.done()
                if self._may_end(self):
                    return
        finally:
            request.body = memoryview(b"")
            request.landing.close()  # it may be another one by now
            segments.drop(segment)

    def _undo(self, request: Request, reply: bytes) -> None:
        """Close what was opened for a caller that was killed: nobody else knows the handle."""
        request.body = memoryview(protocol.RELEASE_IN.pack(int.from_bytes(reply[:8], "little"), 0, 0, 0))
        try:
            HANDLERS[_UNDOES[Opcode(request.opcode)]](self.volume, request)
        except (FfsError, OSError) as exc:
            log.warning("closing what nobody has opened: %s", exc)

    def _failed(self, request: Request, number: int, exc: Exception) -> None:
        if number not in _QUIET:
            self.volume.counts["errors"] += 1
            log.warning("%s on inode %d: %s", Opcode(request.opcode).name.lower(), request.nodeid, exc)
