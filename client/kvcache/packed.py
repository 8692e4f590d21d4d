"""The answer to a request for small blocks: they travel packed, one behind the other, and land where they are wanted.

A block counts when its checksum is right where it landed. That is seen to as soon as its answer is there, while those
of other nodes are on their way. Batches are of many small blocks: so the usual case (all are there, as long as their
room, in the order of the request) takes no step of the interpreter for each.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from crc32c import crc32c

from fireflyfs.common.net.api import Spread

RESULT = struct.Struct("<IIII")  # CACHE_RESULT, whose rows numpy takes longer to take apart
ALIKE_ROWS_MAX = 128  # longer answers pay for being looked at row by row
Target = memoryview | list[memoryview]  # a block's memory: one buffer, or several to be filled in order


@functools.lru_cache(maxsize=64)
def _rows(count: int) -> struct.Struct:
    return struct.Struct(f"<{4 * count}I")


@functools.lru_cache(maxsize=256)
def _checksums(count: int) -> struct.Struct:
    """Of CACHE_RESULT of each row."""
    return struct.Struct("<" + "8xI4x" * count)


@functools.lru_cache(maxsize=256)
def _all_alike(count: int, room: int) -> tuple[int, int]:
    """The answer as one number where all blocks are there, fill `room` each, and stand in order; and which of its bits
    say so: all but the checksums."""
    said = b"".join(RESULT.pack(0, room, 0, row * room) for row in range(count))
    heard = RESULT.pack(0xFFFFFFFF, 0xFFFFFFFF, 0, 0xFFFFFFFF) * count
    return int.from_bytes(said, "little"), int.from_bytes(heard, "little")


class PackedAnswer(Spread):
    """Of one request. `right`, `wrong` and `others` are complete once `landed` has been called."""

    __slots__ = ("_checks", "_expected", "_room", "_rows", "_targets", "_usual", "others", "read", "right", "wrong")

    def __init__(self, rows: list[int], room: Sequence[int], targets: Sequence[Target]) -> None:
        """`rows`: of the batch, in the request's order; `room` and `targets`: of each row of the batch."""
        self._rows = rows
        self._room = [room[row] for row in rows]
        self._targets = [targets[row] for row in rows]
        super().__init__(sum(self._room))
        self._usual: list[memoryview] = []  # where all landed, in order
        self._expected: tuple[int, ...] = ()  # their checksums
        self._checks: list[tuple[int, int, list[memoryview]]] = []  # otherwise: row, checksum, where it landed
        self.read = False
        self.right: list[tuple[int, int]] = []  # rows, and bytes of each
        self.wrong: list[int] = []  # rows of blocks that do not match
        self.others: list[tuple[int, int]] = []  # rows without a block, and why

    def places(self, body: bytes, count: int) -> list[memoryview]:
        self.read = True
        rows = self._rows
        if len(body) != len(rows) * RESULT.size:
            self.others = [(row, 0) for row in rows]
            return [_nowhere(count)] if count else []
        if self._in_order(body, count):
            self._expected = _checksums(len(rows)).unpack(body)
            self._usual = self._targets  # type: ignore[assignment]  # each is one buffer
            return self._usual
        found: list[tuple[int, int, int, list[memoryview]]] = []  # offset, row, checksum, where it goes
        for row, room, target, (status, length, expected, offset) in zip(
            rows, self._room, self._targets, RESULT.iter_unpack(body), strict=True
        ):
            if status or not 0 < length <= room:
                self.others.append((row, status))
            elif offset + length > count:
                self.wrong.append(row)  # beyond what came
            else:
                parts = _first(target if isinstance(target, list) else [target], length)
                found.append((offset, row, expected, parts))
        return self._scattered(found, count)

    def _in_order(self, body: bytes, count: int) -> bool:
        """Whether all blocks are there, each as long as its room and in one buffer, one behind the other."""
        rows, room = len(self._rows), self._room
        if count != self.length or list in set(map(type, self._targets)):
            return False
        if rows <= ALIKE_ROWS_MAX and room[0] and room.count(room[0]) == rows:
            said, heard = _all_alike(rows, room[0])
            return int.from_bytes(body, "little") & heard == said
        numbers = _rows(rows).unpack(body)
        return (
            not any(numbers[0::4])
            and numbers[1::4] == tuple(room)
            and numbers[3::4] == (0, *accumulate(room[:-1]))
            and 0 not in room
        )

    def _scattered(self, found: list[tuple[int, int, int, list[memoryview]]], count: int) -> list[memoryview]:
        """Places of blocks that have gaps between them, or come in another order."""
        sinks: list[memoryview] = []
        at = 0
        for offset, row, expected, parts in sorted(found, key=lambda each: each[0]):
            if offset < at:
                self.wrong.append(row)  # where another one is
                continue
            if offset > at:
                sinks.append(_nowhere(offset - at))
            sinks += parts
            self._checks.append((row, expected, parts))
            at = offset + sum(map(len, parts))
        if at < count:
            sinks.append(_nowhere(count - at))
        return sinks

    def landed(self) -> None:
        sums = tuple(map(crc32c, self._usual))
        if sums and sums == self._expected:
            self.right += zip(self._rows, self._room, strict=True)
            return
        for row, length, found, expected in zip(self._rows, self._room, sums, self._expected, strict=False):
            self._judge(row, length, found == expected)
        for row, expected, parts in self._checks:
            found = 0
            for part in parts:
                found = crc32c(part, found)
            self._judge(row, sum(map(len, parts)), found == expected)

    def _judge(self, row: int, length: int, right: bool) -> None:
        if right:
            self.right.append((row, length))
        else:
            self.wrong.append(row)


def _first(parts: list[memoryview], length: int) -> list[memoryview]:
    """The beginning of the buffers that `length` bytes fill."""
    first: list[memoryview] = []
    for part in parts:
        if length <= 0:
            break
        first.append(part if len(part) <= length else part[:length])
        length -= len(part)
    return first


def _nowhere(count: int) -> memoryview:
    """Memory for bytes that nobody wants."""
    return np.empty(count, np.uint8).data
