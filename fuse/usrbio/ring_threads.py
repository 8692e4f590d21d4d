"""Threads that serve one ring: they take what was submitted, check it, move it, and complete it in order.

There are a few, so that one looks at the ring while others talk to storage, copy or wait. Each takes a batch with a
ticket; a batch completes when those before it have. Many large reads that were taken at once are several threads' work:
one copies its share while storage reads another's.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from typing import Final

import numpy as np
import numpy.typing as npt

from fireflyfs.client.storage_client import StorageClient
from fireflyfs.client.striping import place
from fireflyfs.client.usrbio.core.batching import share, take
from fireflyfs.client.usrbio.layout import FORBID_READ_HOLES, SQE
from fireflyfs.common.errors import FfsError
from fireflyfs.common.limits import FILE_BYTES_MAX, MiB
from fireflyfs.common.net.busy_poll import many_processors
from fireflyfs.fuse.usrbio.known import Known, KnownFile, Region
from fireflyfs.fuse.usrbio.served_ring import ServedRing
from fireflyfs.fuse.usrbio.stages import STAGE_BYTES, Pair, Stages
from fireflyfs.fuse.usrbio.transfer import LOT_ITEMS_MAX, Io, Transfer

log = logging.getLogger(__name__)

THREADS: Final = 3
READ_SHARE_BYTES: Final = 3 * MiB  # of one batch, that one thread reads where others may help
# Of small reads, that one takes at least where there are many processors: of a ring that was emptied at once the
# application has a half back, and submits it again, while the other is read. On two cores it costs more than it gains.
READ_SHARE_COUNT: Final = 64
LOOK_AGAIN_S: Final = 1.0  # at most so long is anything missed, whatever an application does with its bell


class RingThreads:
    """Of one ring. They end after `stop`, or when the ring is broken; who waits at it is told."""

    def __init__(self, ring: ServedRing, storage: StorageClient, known: Known, stages: Stages) -> None:
        self._ring = ring
        self._storage = storage
        self._known = known
        self._stages = stages
        self._stopping = threading.Event()
        self._taking = threading.Lock()  # held by who looks at the ring, also while it sleeps at the bell
        self._tickets = 0
        self._rest: npt.NDArray[np.void] | None = None  # of a batch that was taken, for the next thread
        self._turn = threading.Condition()  # of the batch that may complete
        self._completing = 0
        self._halves = many_processors()
        self._left = THREADS
        self._failed = False
        self._why = errno.ENOLINK
        self._threads = [threading.Thread(target=self._run, name="ring", daemon=True) for _ in range(THREADS)]

    def start(self) -> None:
        for thread in self._threads:
            try:
                thread.start()
            except RuntimeError as exc:  # one alone will do
                log.warning("a ring has a thread less: %s", exc)
                self._why = errno.EAGAIN
                self._thread_ended()

    def stop(self) -> None:
        """Begin no further batch."""
        self._stopping.set()
        self._ring.ring_bell()

    def join(self, timeout_s: float) -> None:
        """Until the ring is given up, or so long."""
        end_s = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, end_s - time.monotonic()))

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                with self._taking:
                    taken = self._rest if self._rest is not None else self._take()
                    if taken is None:
                        continue
                    taken, self._rest = self._divide(taken)
                    ticket, self._tickets = self._tickets, self._tickets + 1
                self._batch(taken, ticket)
        except OSError as exc:
            self._broken(exc.errno or errno.EIO, str(exc))
        except Exception:
            log.exception("a ring is given up")
            self._broken(errno.EIO, "a bug")
        self._thread_ended()

    def _thread_ended(self) -> None:
        with self._turn:
            self._left -= 1
            last = not self._left
        if last:
            self._give_up()

    def _broken(self, number: int, why: str) -> None:
        with self._turn:
            if not self._stopping.is_set():
                log.warning("a ring is given up: %s", why)
                self._why = number
            self._failed = True
            self._stopping.set()
            self._turn.notify_all()
        self._ring.ring_bell()

    def _give_up(self) -> None:
        try:
            self._ring.give_up(self._why)
        except OSError as exc:
            log.debug("nobody is told: %s", exc)
        self._ring.close()

    def _take(self) -> npt.NDArray[np.void] | None:
        """The next batch; None: there was none for a while, or the ring is to be served no more."""
        ring = self._ring
        options = ring.options
        bell = ring.bell()
        count = ring.available()
        if not count:
            ring.sleep(bell, LOOK_AGAIN_S)
            return None
        began_s = time.monotonic()
        while not self._stopping.is_set():
            now, wait_ms = take(count, (time.monotonic() - began_s) * 1e3, options.io_depth, options.timeout_ms)
            if now:
                return ring.take(now)
            ring.sleep(bell, min(wait_ms / 1e3, LOOK_AGAIN_S))
            bell = ring.bell()
            count = ring.available()
        return None

    def _divide(self, sqes: npt.NDArray[np.void]) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void] | None]:
        """This thread's part of a batch, and what is left of it. Writes stay together: they may overlap."""
        count = len(sqes)
        if self._ring.options.for_read:
            count = share(sqes["length"], READ_SHARE_BYTES)
            if self._halves:
                count = min(count, max(READ_SHARE_COUNT, (len(sqes) + 1) // 2))
        return (sqes, None) if count == len(sqes) else (sqes[:count], sqes[count:])

    def _batch(self, sqes: npt.NDArray[np.void], ticket: int) -> None:
        results = np.zeros(len(sqes), np.int64)
        entered: dict[int, KnownFile] = {}
        done = 0

        def finished(count: int) -> None:
            nonlocal done
            if count > done and self._completing == ticket:
                self._ring.complete(results[done:count])
                done = count

        try:
            with self._stages.take(self._ring.options.priority) as pair:
                if not self._usual(sqes, results, pair):
                    transfer = Transfer(self._storage, pair, self._check(sqes, results, entered), results, finished)
                    if self._ring.options.for_read:
                        transfer.read()
                    else:
                        transfer.write()
        finally:
            for file in entered.values():
                self._known.leave(file)
        with self._turn:
            while self._completing != ticket:
                if self._failed:
                    return  # the one before it has broken the ring
                self._turn.wait()
            finished(len(sqes))
            self._completing += 1
            self._turn.notify_all()

    def _usual(self, sqes: npt.NDArray[np.void], results: npt.NDArray[np.int64], pair: Pair) -> bool:
        """The usual batches, in one go: a single read, or small reads of one length of one file into one region.

        False: it is another one, or something went wrong. Nothing is completed, and each is to be looked at by itself.
        """
        options = self._ring.options
        count = len(sqes)
        id_, place_, token, offset, length = SQE.unpack_from(sqes.data)[:5]
        if not options.for_read or options.flags & FORBID_READ_HOLES or not 0 < length <= STAGE_BYTES // count:
            return False
        places, last_place, last_offset = [place_], place_, offset
        if count > 1:
            if (
                count > LOT_ITEMS_MAX
                or (sqes["length"] != length).any()
                or (sqes["file"] != token).any()
                or sqes["region"].tobytes() != id_ * count
            ):
                return False
            places = sqes["region_offset"].tolist()
            last_place, last_offset = max(places), int(sqes["file_offset"].max())
        end = last_offset + length
        try:
            region = self._known.region(id_)
            file = self._known.enter(token)
        except OSError:
            return False
        try:
            if (
                not file.readable
                or last_place + length > region.size
                or end > FILE_BYTES_MAX
                or end > file.length(end, self._known.ask)
            ):
                return False
            pieces = pair.slices(length, count)
            if count == 1:
                self._storage.read_into(file.layout, offset, pieces[0])
            else:
                ios = place(file.layout, sqes["file_offset"].astype(np.int64), length)
                if ios is None or self._storage.read_rows(ios, pieces):
                    return False
            whole = region.view
            if os.preadv(pair.buffers[0].fd, [whole[at : at + length] for at in places], 0) != length * count:
                return False
        except (FfsError, OSError):
            return False
        finally:
            self._known.leave(file)
        results[:] = length
        return True

    def _check(
        self, sqes: npt.NDArray[np.void], results: npt.NDArray[np.int64], entered: dict[int, KnownFile]
    ) -> list[Io | None]:
        """What to move; `results` says how much, or why nothing is moved. Files are entered once each."""
        regions: dict[bytes, Region | int] = {}
        files: dict[int, KnownFile | int] = {}
        lengths: dict[int, tuple[int, bool]] = {}
        ios: list[Io | None] = []
        columns = zip(
            sqes["region"].tolist(),
            sqes["region_offset"].tolist(),
            sqes["file"].tolist(),
            sqes["file_offset"].tolist(),
            sqes["length"].tolist(),
            strict=True,
        )
        for number, (id_, region_offset, token, file_offset, length) in enumerate(columns):
            region = regions.get(id_)
            if region is None:
                region = regions[id_] = self._region(id_)
            file = files.get(token)
            if file is None:
                file = files[token] = self._file(token, entered)
            io = None
            if isinstance(file, int):
                moved = -file
            elif isinstance(region, int):
                moved = -region
            else:
                moved = self._moved(file, file_offset, region, region_offset, length, lengths)
                if moved > 0:
                    io = Io(file, file_offset, region, region_offset, moved)
            results[number] = moved
            ios.append(io)
        return ios

    def _moved(
        self,
        file: KnownFile,
        file_offset: int,
        region: Region,
        region_offset: int,
        length: int,
        lengths: dict[int, tuple[int, bool]],
    ) -> int:
        """How much of one I/O is to be moved, or -errno."""
        options = self._ring.options
        end = file_offset + length
        if not length or region_offset + length > region.size or end > FILE_BYTES_MAX:
            return -errno.EINVAL
        if not (file.readable if options.for_read else file.writable):
            return -errno.EACCES
        if not options.for_read:
            return self._no_room(file, end) or length
        known = self._length(file, end, lengths)
        if known < 0:
            return known
        length = max(0, min(end, known) - file_offset)
        if length and options.flags & FORBID_READ_HOLES:
            return -self._hole(file, file_offset, length) or length
        return length

    def _no_room(self, file: KnownFile, end: int) -> int:
        """0, or -errno of a write up to `end`."""
        try:
            file.make_room(end, self._known.ask)
        except OSError as exc:
            log.debug("no room for %d bytes of inode %d: %s", end, file.layout.inode, exc)
            return -(exc.errno or errno.EIO)
        return 0

    def _length(self, file: KnownFile, end: int, lengths: dict[int, tuple[int, bool]]) -> int:
        """Bytes of the file for a read up to `end`, or -errno. `lengths` are this batch's, and whether the mount said
        so just now: it is asked once for all that lies behind the end."""
        known, said = lengths.get(file.token, (-1, False))
        if end > known and not said:
            try:
                known = file.length(end, self._known.ask)
            except OSError as exc:  # the mount may wait for a metadata server: no reason to give the ring up
                log.debug("no length of inode %d: %s", file.layout.inode, exc)
                known = -(exc.errno or errno.EIO)
            lengths[file.token] = known, known < end
        return known

    def _region(self, id_: bytes) -> Region | int:
        try:
            return self._known.region(id_)
        except OSError as exc:
            return exc.errno or errno.EINVAL

    def _file(self, token: int, entered: dict[int, KnownFile]) -> KnownFile | int:
        try:
            file = self._known.enter(token)
        except OSError as exc:
            return exc.errno or errno.EBADF
        entered[token] = file
        return file

    def _hole(self, file: KnownFile, offset: int, length: int) -> int:
        """0, or ENODATA where a part of it was never written; another errno where storage cannot say."""
        end = offset + length
        try:
            for found in self._storage.ranges.data(file.layout, offset, end):
                if found.start > offset:
                    return errno.ENODATA
                offset = found.end
        except FfsError as exc:
            log.warning("cannot look for holes in inode %d: %s", file.layout.inode, exc)
            return exc.errno
        return errno.ENODATA if offset < end else 0
