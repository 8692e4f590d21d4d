"""The mount's counters: percentiles, tables of threads that ended, and the control directory on a mount in memory."""

from __future__ import annotations

from fireflyfs.fuse.protocol import Opcode
from fireflyfs.fuse.statistics import BYTES, CLASSES, ERRORS, TOTAL_US, Statistics, percentile


def test_percentiles_are_the_upper_ends_of_their_classes() -> None:
    classes = [0] * CLASSES
    assert percentile(classes, 50) == 0
    classes[3], classes[10] = 90, 10
    assert [percentile(classes, percent) for percent in (1, 50, 90, 91, 100)] == [8, 8, 8, 1024, 1024]


def test_nothing_is_lost_when_a_thread_ends() -> None:
    statistics = Statistics()
    one, other = statistics.table(), statistics.table()
    for table in (one, other):
        row = table[Opcode.READ]
        row[5] += 2
        row[TOTAL_US] += 40
        row[BYTES] += 100
        row[ERRORS] += 1
    before = statistics.operations()
    statistics.ended(one)
    assert statistics.operations() == before
    assert before == {
        "read": {"count": 4, "errors": 2, "bytes": 200, "mean_us": 20.0, "p50_us": 32, "p90_us": 32, "p99_us": 32}
    }
