"""The checker of histories, on histories whose verdict is known."""

from __future__ import annotations

import pytest

from simulator.history import FOREVER, Kind, Op, explain


def wrote(number: int, cells: tuple[int, int], call_s: float, return_s: float = FOREVER) -> Op:
    """`return_s` FOREVER: not acknowledged."""
    return Op(number, Kind.WRITE, *cells, call_s, return_s=return_s, ok=return_s != FOREVER)


def zeroed(cells: tuple[int, int], call_s: float, return_s: float = FOREVER) -> Op:
    return Op(99, Kind.ZERO, *cells, call_s, return_s=return_s, ok=return_s != FOREVER)


def saw(values: list[int], call_s: float, return_s: float) -> Op:
    return Op(0, Kind.READ, 0, len(values), call_s, return_s=return_s, saw=tuple(values), ok=True)


BOTH, LEFT, RIGHT = (0, 2), (0, 1), (1, 2)


@pytest.mark.parametrize(
    "ops",
    [
        [wrote(1, BOTH, 0, 1), saw([1, 1], 2, 3)],
        # Under way: before it or after it.
        [wrote(1, BOTH, 0, 5), saw([0, 0], 2, 3), saw([1, 1], 2, 3)],
        # What was never answered may happen late, or never.
        [wrote(1, BOTH, 0), saw([0, 0], 5, 6), saw([1, 1], 7, 8)],
        [wrote(1, BOTH, 0), saw([0, 0], 50, 60)],
        [wrote(1, BOTH, 0, 1), wrote(2, LEFT, 2), wrote(3, RIGHT, 2.5, 4), saw([2, 3], 5, 6)],
        [wrote(1, BOTH, 0, 1), zeroed(RIGHT, 2, 3), saw([1, 0], 4, 5)],
        [wrote(1, BOTH, 0, 1), zeroed(BOTH, 2), saw([1, 1], 3, 4), saw([0, 0], 5, 6)],
    ],
)
def test_what_one_order_explains(ops: list[Op]) -> None:
    assert explain(ops, 2) is None


@pytest.mark.parametrize(
    "ops",
    [
        # Lost.
        [wrote(1, BOTH, 0, 1), saw([0, 0], 2, 3)],
        # Gone back.
        [wrote(1, BOTH, 0, 5), saw([1, 1], 2, 3), saw([0, 0], 4, 4.5)],
        [wrote(1, BOTH, 0), saw([1, 1], 2, 3), saw([0, 0], 4, 4.5)],
        # Half done.
        [wrote(1, BOTH, 0), saw([1, 0], 2, 3)],
        # Done twice.
        [wrote(1, LEFT, 0, 1), wrote(2, LEFT, 2, 3), saw([2, 0], 4, 5), saw([1, 0], 6, 7)],
        # Nobody wrote it.
        [saw([7, 7], 0, 1)],
        # Not removed, or back again.
        [wrote(1, BOTH, 0, 1), zeroed(BOTH, 2, 3), saw([1, 1], 4, 5)],
        [wrote(1, BOTH, 0, 1), zeroed(BOTH, 2, 3), saw([0, 0], 4, 5), saw([0, 1], 6, 7)],
    ],
)
def test_what_no_order_explains(ops: list[Op]) -> None:
    assert "no order explains it" in (explain(ops, 2) or "")


def test_a_history_may_begin_with_something() -> None:
    assert explain([saw([4, 5], 0, 1)], 2, (4, 5)) is None
    assert explain([saw([0, 0], 0, 1)], 2, (4, 5)) is not None
