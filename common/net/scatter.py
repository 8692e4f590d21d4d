"""Buffers in a row, filled or sent from the front: what has been moved leaves the row."""

from __future__ import annotations

from collections import deque
from typing import TypeVar

from fireflyfs.common.net.frame import Buffer

B = TypeVar("B", memoryview, Buffer)


def advance(row: deque[B], count: int) -> None:
    """The first `count` bytes of the row have been moved. There must be so many."""
    while count:
        first = row[0]
        length = len(first)
        if count >= length:
            count -= length
            row.popleft()
        else:
            row[0] = memoryview(first)[count:]
            count = 0


def fill(row: deque[memoryview], data: memoryview) -> int:
    """Copy `data` to where the row wants it; returns how much of it had room."""
    taken = 0
    while row and taken < len(data):
        part = data[taken : taken + len(row[0])]
        row[0][: len(part)] = part
        taken += len(part)
        advance(row, len(part))
    return taken
