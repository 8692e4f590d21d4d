"""How many I/Os are taken at once, which entries of a ring are believed, and how a batch is cut for copying."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fireflyfs.client.usrbio.core.batching import PARTIAL_MS, ready, runs, share, take
from fireflyfs.fuse.usrbio.stages import STAGE_BYTES
from fireflyfs.fuse.usrbio.transfer import LOT_ITEMS_MAX, Io, cut


@pytest.mark.parametrize(
    ("available", "waited_ms", "io_depth", "timeout_ms", "want"),
    [
        (0, 0, 0, 0, (0, 0)),
        (7, 0, 0, 0, (7, 0)),
        (7, 0, 4, 0, (4, 0)),
        (3, 0, 4, 0, (0, PARTIAL_MS)),
        (3, PARTIAL_MS, 4, 0, (3, 0)),
        (3, 10, 4, 25, (0, 15)),
        (3, 25, 4, 25, (3, 0)),
        (7, 0, -4, 0, (4, 0)),
        (3, 0, -4, 0, (3, 0)),
        (3, 5, -4, 20, (0, 15)),
        (3, 20, -4, 20, (3, 0)),
        (4, 0, -4, 20, (4, 0)),
    ],
)
def test_take(available: int, waited_ms: float, io_depth: int, timeout_ms: int, want: tuple[int, float]) -> None:
    assert take(available, waited_ms, io_depth, timeout_ms) == want


@given(st.integers(0, 400), st.integers(0, 1000), st.integers(-64, 64), st.integers(0, 50))
def test_a_batch_is_never_left_behind(available: int, waited_ms: int, io_depth: int, timeout_ms: int) -> None:
    count, wait_ms = take(available, waited_ms, io_depth, timeout_ms)
    assert 0 <= count <= available
    if io_depth:
        assert count <= abs(io_depth)
    if available and not count:
        assert wait_ms > 0
        assert take(available, waited_ms + wait_ms, io_depth, timeout_ms)[0] > 0


@given(st.integers(1, 40), st.integers(0, 200), st.data())
def test_ready_is_the_published_prefix(entries: int, head: int, data: Any) -> None:
    """Whatever the words of the other slots are."""
    count = data.draw(st.integers(0, entries))
    words = np.array([data.draw(st.sampled_from([0, 1, (1 << 64) - 1])) for _ in range(entries)], np.uint64)
    for position in range(head, head + count):
        words[position % entries] = position + 1
    if count < entries:
        words[(head + count) % entries] = max(0, head + count + 1 - entries)  # as the last time around, or never
    assert ready(words, head) == count


@given(st.integers(1, 40), st.integers(0, 200), st.data())
def test_runs(entries: int, head: int, data: Any) -> None:
    count = data.draw(st.integers(0, entries))
    slots = [slot for start, length in runs(head, count, entries) for slot in range(start, start + length)]
    assert slots == [(head + n) % entries for n in range(count)]


@given(st.lists(st.integers(0, 1 << 64).map(lambda n: min(n, (1 << 64) - 1)), max_size=40), st.integers(1, 1 << 24))
def test_shares(lengths: list[int], bytes_max: int) -> None:
    """As many as fit, and one at least; whatever an application says of lengths."""
    count = share(np.array(lengths, np.uint64), bytes_max)
    assert bool(lengths) <= count <= len(lengths)
    assert count <= 1 or sum(lengths[:count]) <= bytes_max
    assert count == len(lengths) or sum(lengths[: count + 1]) > bytes_max


def io(length: int) -> Io:
    return Io(SimpleNamespace(), 0, SimpleNamespace(), 0, length)  # type: ignore[arg-type]


@given(st.lists(st.one_of(st.none(), st.integers(1, 3 * STAGE_BYTES), st.integers(1, 5000)), max_size=40))
def test_lots(lengths: list[int | None]) -> None:
    """Every byte once, in order, within a buffer; and with the last lot all have ended."""
    lots = cut([io(length) if length is not None else None for length in lengths])
    moved = [0] * len(lengths)
    for lot in lots:
        at = 0
        for part in lot.parts:
            assert part.at == at
            assert part.start == moved[part.number]
            at += part.length
            moved[part.number] += part.length
        assert at == lot.nbytes <= STAGE_BYTES
        assert len(lot.parts) <= LOT_ITEMS_MAX
        assert all(moved[number] == (length or 0) for number, length in enumerate(lengths[: lot.ended]))
    assert moved == [length or 0 for length in lengths]
    assert lots[-1].ended == len(lengths)
    assert [lot.ended for lot in lots] == sorted(lot.ended for lot in lots)


def test_many_small_ones_are_cut_too() -> None:
    assert [len(lot.parts) for lot in cut([io(1)] * (LOT_ITEMS_MAX + 5))] == [LOT_ITEMS_MAX, 5]
