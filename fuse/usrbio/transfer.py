"""One batch of I/Os: between storage and the applications' regions, through sealed memory of the agent.

Regions are touched only by preadv and pwritev of the sealed memory's descriptor, with the region as the buffer: where
it was cut off the kernel answers EFAULT, or less than was asked. Large batches go in lots of one buffer: while storage
works on one lot, the one before it (reads) or behind it (writes) is copied.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fireflyfs.client.storage_client import ReadSpan, StorageClient, WriteSpan
from fireflyfs.client.storage_reader import Ios
from fireflyfs.client.striping import place
from fireflyfs.common.errors import FfsError
from fireflyfs.common.net.api import Slice
from fireflyfs.common.net.memory import SharedMemory
from fireflyfs.fuse.usrbio.known import KnownFile, Region
from fireflyfs.fuse.usrbio.stages import STAGE_BYTES, Pair

log = logging.getLogger(__name__)

IOV_MAX: Final = 1024
LOT_ITEMS_MAX: Final = 1024

Finished = Callable[[int], None]  # the first so many I/Os of the batch have ended


class Io(NamedTuple):
    """`length` bytes between the file and the region; checked against both."""

    file: KnownFile
    file_offset: int
    region: Region
    region_offset: int
    length: int


class Part(NamedTuple):
    """Bytes [start, start + length) of I/O `number`, at `at` of the lot's buffer."""

    number: int
    start: int
    length: int
    at: int


@dataclass(slots=True)
class Lot:
    """Parts that fit one buffer, one behind the other; with it the first `ended` I/Os of the batch are complete."""

    parts: list[Part] = field(default_factory=list)
    nbytes: int = 0
    ended: int = 0


def cut(ios: Sequence[Io | None]) -> list[Lot]:
    """The batch in lots, in order; None is an I/O that has ended already."""
    lots = [Lot()]
    for number, io in enumerate(ios):
        start, length = 0, io.length if io is not None else 0
        while start < length:
            lot = lots[-1]
            if lot.nbytes >= STAGE_BYTES or len(lot.parts) >= LOT_ITEMS_MAX:
                lot = Lot()
                lots.append(lot)
            size = min(length - start, STAGE_BYTES - lot.nbytes)
            lot.parts.append(Part(number, start, size, lot.nbytes))
            lot.nbytes += size
            start += size
        lots[-1].ended = number + 1
    for before, lot in itertools.pairwise(lots):  # one with parts only of the middle of an I/O
        lot.ended = max(lot.ended, before.ended)
    return lots


class Transfer:
    """`results` has, for each I/O, the bytes that it moves where all goes well; -errno is put where it does not."""

    def __init__(
        self,
        storage: StorageClient,
        pair: Pair,
        ios: Sequence[Io | None],
        results: npt.NDArray[np.int64],
        finished: Finished,
    ) -> None:
        self._storage = storage
        self._pair = pair
        self._ios = ios
        self._results = results
        self._finished = finished

    def read(self) -> None:
        """Storage to regions."""
        copying: Future[None] | None = None
        last: Lot | None = None
        lots = cut(self._ios)
        for turn, lot in enumerate(lots):
            stage = self._pair.buffer(turn % 2)
            failed = self._fill(lot, stage)
            if copying is not None and last is not None:
                copying.result()
                self._finished(last.ended)
            if len(lots) == 1:
                self._copy(lot, stage, failed, out=True)
                self._finished(lot.ended)
                return
            copying, last = self._pair.copier.submit(self._copy, lot, stage, failed, out=True), lot
        if copying is not None and last is not None:
            copying.result()
            self._finished(last.ended)

    def write(self) -> None:
        """Regions to storage. An I/O of which a part could not be stored has failed; others of its parts may be."""
        lots = cut(self._ios)
        ready: Future[None] | None = None
        refused: list[set[int]] = [set() for _ in lots]
        following = self._pair.buffer(0)
        for turn, lot in enumerate(lots):
            stage = following
            if ready is None:
                self._copy(lot, stage, refused[turn], out=False)
            else:
                ready.result()
            if turn + 1 < len(lots):
                following = self._pair.buffer((turn + 1) % 2)
                ready = self._pair.copier.submit(self._copy, lots[turn + 1], following, refused[turn + 1], out=False)
            self._store(lot, stage, refused[turn])
            self._finished(lot.ended)

    def _fill(self, lot: Lot, stage: SharedMemory) -> set[int]:
        """Read the lot's bytes into `stage`; places of the parts that failed."""
        parts = lot.parts
        if not parts:
            return set()
        pieces = [Slice(stage, part.at, part.length) for part in parts]
        try:
            packed = self._packed(parts)
            if packed is not None:
                failed = self._storage.read_rows(packed, pieces)
            else:
                spans = []
                for part, piece in zip(parts, pieces, strict=True):
                    io = self._one(part)
                    spans.append(ReadSpan(io.file.layout, io.file_offset + part.start, piece))
                failed = self._storage.read(spans)
        except FfsError as exc:
            failed = dict.fromkeys(range(len(parts)), exc)
        return self._note(parts, failed, "read")

    def _packed(self, parts: list[Part]) -> Ios | None:
        """The usual small batch, whole I/Os of one length and one file, placed in numpy; None: it is another one."""
        first = self._one(parts[0])
        file, length = first.file, first.length
        ios = self._ios
        offsets = np.empty(len(parts), np.int64)
        for place_, part in enumerate(parts):
            io = ios[part.number]
            if io is None or io.file is not file or io.length != length or part.length != length:
                return None
            offsets[place_] = io.file_offset
        return place(file.layout, offsets, length)

    def _store(self, lot: Lot, stage: SharedMemory, refused: set[int]) -> None:
        spans: list[WriteSpan] = []
        parts: list[Part] = []
        for place_, part in enumerate(lot.parts):
            if place_ not in refused:
                io = self._one(part)
                piece = Slice(stage, part.at, part.length)
                spans.append(WriteSpan(io.file.layout, io.file_offset + part.start, piece))
                parts.append(part)
        if not spans:
            return
        try:
            failed = self._storage.write(spans)
        except FfsError as exc:
            failed = dict.fromkeys(range(len(spans)), exc)
        wrong = self._note(parts, failed, "write")
        ends: dict[int, tuple[KnownFile, int]] = {}
        torn: dict[int, KnownFile] = {}
        for place_, part in enumerate(parts):
            io = self._one(part)
            if place_ in wrong:
                torn[io.file.token] = io.file
            else:
                end = io.file_offset + part.start + part.length
                known = ends.get(io.file.token)
                ends[io.file.token] = (io.file, max(end, known[1]) if known is not None else end)
        for file in torn.values():
            file.torn()
        for file, end in ends.values():
            file.wrote(end)

    def _note(self, parts: list[Part], failed: dict[int, FfsError], what: str) -> set[int]:
        for place_, exc in failed.items():
            number = parts[place_].number
            log.warning("%s of inode %d: %s", what, self._one(parts[place_]).file.layout.inode, exc)
            self._results[number] = -exc.errno
        return set(failed)

    def _one(self, part: Part) -> Io:
        io = self._ios[part.number]
        assert io is not None  # only those have parts
        return io

    def _copy(self, lot: Lot, stage: SharedMemory, refused: set[int], *, out: bool) -> None:
        """Between the buffer and the regions, all but the parts in `refused`, where those are put whose region does not
        have the memory it had."""
        move = os.preadv if out else os.pwritev
        parts = lot.parts
        place_ = 0
        while place_ < len(parts):
            if place_ in refused:
                place_ += 1
                continue
            end = place_
            views: list[memoryview] = []
            while end < len(parts) and len(views) < IOV_MAX and end not in refused:
                part = parts[end]
                io = self._one(part)
                begin = io.region_offset + part.start
                views.append(io.region.view[begin : begin + part.length])
                end += 1
            begin = parts[place_].at
            wanted = parts[end - 1].at + parts[end - 1].length - begin
            try:
                moved = move(stage.fd, views, begin)
            except OSError as exc:
                if exc.errno != errno.EFAULT:
                    raise
                moved = 0
            if moved == wanted:
                place_ = end
                continue
            while parts[place_].at + parts[place_].length <= begin + moved:
                place_ += 1
            refused.add(place_)
            self._results[parts[place_].number] = -errno.EFAULT
            place_ += 1
