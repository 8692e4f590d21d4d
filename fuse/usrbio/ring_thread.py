"""A thread that serves one ring: takes what was submitted, checks it, moves it, completes it in order."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from fireflyfs.client.storage_client import StorageClient
from fireflyfs.client.usrbio.core.batching import take
from fireflyfs.client.usrbio.layout import FORBID_READ_HOLES
from fireflyfs.common.errors import FfsError
from fireflyfs.common.limits import FILE_BYTES_MAX
from fireflyfs.fuse.usrbio.known import Known, KnownFile, Region
from fireflyfs.fuse.usrbio.served_ring import ServedRing
from fireflyfs.fuse.usrbio.stages import Stages
from fireflyfs.fuse.usrbio.transfer import Io, Transfer

log = logging.getLogger(__name__)

LOOK_AGAIN_S: Final = 1.0  # at most so long is anything missed, whatever an application does with its bell


class RingThread:
    """`run` ends after `stop`, or when the ring is broken; `ended` is called then."""

    def __init__(
        self, ring: ServedRing, storage: StorageClient, known: Known, stages: Stages, ended: Callable[[], None]
    ) -> None:
        self._ring = ring
        self._storage = storage
        self._known = known
        self._stages = stages
        self._ended = ended
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.run, name="ring", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Begin no further batch."""
        self._stopping.set()
        self._ring.ring_bell()

    def join(self, timeout_s: float) -> None:
        """Until the ring is given up, or so long."""
        self._thread.join(max(0.0, timeout_s))

    def run(self) -> None:
        number = errno.ENOLINK
        try:
            while not self._stopping.is_set():
                self._turn()
        except OSError as exc:
            log.warning("a ring is given up: %s", exc)
            number = exc.errno or errno.EIO
        except Exception:
            log.exception("a ring is given up")
            number = errno.EIO
        try:
            self._ring.give_up(number)
        except OSError as exc:
            log.debug("nobody is told: %s", exc)
        self._ring.close()
        self._ended()

    def _turn(self) -> None:
        ring = self._ring
        options = ring.options
        bell = ring.bell()
        count = ring.available()
        if not count:
            ring.sleep(bell, LOOK_AGAIN_S)
            return
        began_s = time.monotonic()
        while True:
            now, wait_ms = take(count, (time.monotonic() - began_s) * 1e3, options.io_depth, options.timeout_ms)
            if now or self._stopping.is_set():
                break
            ring.sleep(bell, min(wait_ms / 1e3, LOOK_AGAIN_S))
            bell = ring.bell()
            count = ring.available()
        if now:
            self._batch(ring.take(now))

    def _batch(self, sqes: npt.NDArray[np.void]) -> None:
        results = np.zeros(len(sqes), np.int64)
        entered: dict[int, KnownFile] = {}
        try:
            ios = self._check(sqes, results, entered)
            done = 0

            def finished(count: int) -> None:
                nonlocal done
                if count > done:
                    self._ring.complete(results[done:count])
                    done = count

            with self._stages.take(self._ring.options.priority) as pair:
                transfer = Transfer(self._storage, pair, ios, results, finished)
                if self._ring.options.for_read:
                    transfer.read()
                else:
                    transfer.write()
        finally:
            for file in entered.values():
                self._known.leave(file)

    def _check(
        self, sqes: npt.NDArray[np.void], results: npt.NDArray[np.int64], entered: dict[int, KnownFile]
    ) -> list[Io | None]:
        """What to move; `results` says how much, or why nothing is moved. Files are entered once each."""
        for_read = self._ring.options.for_read
        no_holes = for_read and self._ring.options.flags & FORBID_READ_HOLES
        regions: dict[bytes, Region | int] = {}
        files: dict[int, KnownFile | int] = {}
        lengths: dict[int, int] = {}
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
            if isinstance(file, int):
                wrong = file
            elif isinstance(region, int):
                wrong = region
            elif not length or region_offset + length > region.size or file_offset + length > FILE_BYTES_MAX:
                wrong = errno.EINVAL
            elif not (file.readable if for_read else file.writable):
                wrong = errno.EACCES
            else:
                if for_read:
                    end = file_offset + length
                    known = lengths.get(token, -1)
                    if end > known:
                        known = lengths[token] = file.length(end, self._known.ask)
                    if end > known:
                        length = max(0, known - file_offset)
                    if no_holes and length and self._has_hole(file, file_offset, length):
                        results[number] = -errno.ENODATA
                        ios.append(None)
                        continue
                results[number] = length
                ios.append(Io(file, file_offset, region, region_offset, length) if length else None)
                continue
            results[number] = -wrong
            ios.append(None)
        return ios

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

    def _has_hole(self, file: KnownFile, offset: int, length: int) -> bool:
        end = offset + length
        try:
            for found in self._storage.ranges.data(file.layout, offset, end):
                if found.start > offset:
                    return True
                offset = found.end
        except FfsError as exc:
            log.warning("cannot look for holes in inode %d: %s", file.layout.inode, exc)
        return offset < end
