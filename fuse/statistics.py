"""What a mount did: operations by kind, with how long they took. Counters on the hot path, everything else when asked.

Each service thread counts into a table of its own, so nothing is locked for a request; the table of a thread that ended
is added to what is kept. Times lie in classes of powers of two of a microsecond: a percentile is the upper end of its
class, so at most twice what it was.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Final

from fireflyfs.fuse.protocol import Opcode

OPCODES_MAX: Final = 64
CLASSES: Final = 32  # of times: class n holds those below 2**n µs; the last one all others
ERRORS: Final = CLASSES  # places in a row behind the classes
TOTAL_US: Final = CLASSES + 1
BYTES: Final = CLASSES + 2
ROW: Final = CLASSES + 3

Table = list[list[int]]  # by opcode


def new_table() -> Table:
    return [[0] * ROW for _ in range(OPCODES_MAX)]


def count(table: Table, opcode: int, began_s: float, *, failed: bool = False, nbytes: int = 0) -> None:
    """One operation that has been answered; `began_s` by time.monotonic."""
    took_us = int((time.monotonic() - began_s) * 1e6)
    row = table[opcode]
    row[min(took_us.bit_length(), CLASSES - 1)] += 1
    row[TOTAL_US] += took_us
    row[BYTES] += nbytes
    if failed:
        row[ERRORS] += 1


class Statistics:
    """The tables of all service threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: list[Table] = []
        self._ended = new_table()

    def table(self) -> Table:
        """For one thread, until it gives the table back."""
        table = new_table()
        with self._lock:
            self._live.append(table)
        return table

    def ended(self, table: Table) -> None:
        with self._lock:
            self._live.remove(table)
            _add(self._ended, table)

    def operations(self) -> dict[str, dict[str, Any]]:
        """By name of the operation, those that there were: count, errors, bytes, and times in microseconds."""
        total = new_table()
        with self._lock:
            for table in (self._ended, *self._live):
                _add(total, table)
        return {
            Opcode(opcode).name.lower(): _summary(row)
            for opcode, row in enumerate(total)
            if any(row[:CLASSES]) and opcode in Opcode._value2member_map_
        }


def _add(into: Table, table: Table) -> None:
    for mine, other in zip(into, table, strict=True):
        for place, value in enumerate(other):
            mine[place] += value


def _summary(row: list[int]) -> dict[str, Any]:
    count = sum(row[:CLASSES])
    return {
        "count": count,
        "errors": row[ERRORS],
        "bytes": row[BYTES],
        "mean_us": round(row[TOTAL_US] / count, 1),
        **{f"p{percent}_us": percentile(row[:CLASSES], percent) for percent in (50, 90, 99)},
    }


def percentile(classes: list[int], percent: int) -> int:
    """The upper end of the class in which `percent` of all lie; 0 when there are none."""
    wanted = -(-sum(classes) * percent // 100)
    seen = 0
    for number, count in enumerate(classes):
        seen += count
        if seen >= wanted and count:
            return 1 << number
    return 0
