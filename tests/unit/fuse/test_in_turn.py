"""Which files are believed to be opened next."""

from __future__ import annotations

import random

from fireflyfs.fuse.in_turn import GAP_MAX, RUN_MIN, InTurn


def turn_of(numbers: list[int]) -> InTurn:
    turn = InTurn()
    for number in numbers:
        turn.add(number)
    return turn


def opens(turn: InTurn, numbers: list[int], count: int = 2) -> list[list[int]]:
    return [turn.opened(number, count) for number in numbers]


MADE = list(range(10, 400, 10))
LISTED = random.Random(3).sample(MADE, len(MADE))  # by name, say


def test_files_opened_as_they_are_listed():
    found = opens(turn_of(LISTED), LISTED)
    assert found[:RUN_MIN] == [[]] * RUN_MIN
    assert found[RUN_MIN:] == [LISTED[at + 1 : at + 3] for at in range(RUN_MIN, len(LISTED))]


def test_files_opened_as_they_were_made():
    found = opens(turn_of(LISTED), MADE)
    assert found[RUN_MIN:] == [MADE[at + 1 : at + 3] for at in range(RUN_MIN, len(MADE))]


def test_a_file_that_is_passed_over_breaks_no_row():
    numbers = list(range(1, 40))
    found = opens(turn_of(numbers), numbers[::GAP_MAX])
    assert all(found[RUN_MIN:-1])
    assert not any(opens(turn_of(numbers), numbers[:: GAP_MAX + 1]))


def test_files_opened_in_no_order_or_backwards():
    numbers = list(range(100, 400))
    random.Random(1).shuffle(numbers)
    turn = turn_of(numbers)
    shuffled = random.Random(2).sample(numbers, len(numbers))
    assert sum(map(bool, opens(turn, shuffled))) < 10
    assert not any(opens(turn_of(LISTED), MADE[::-1]))
    assert not any(opens(turn_of(MADE), MADE[::-1]))


def test_the_row_goes_on_where_more_is_listed_meanwhile():
    turn = turn_of([10, 20, 30, 40])
    opens(turn, [10, 20, 30])
    turn.add(35)
    turn.add(5)
    assert turn.opened(40, 9) == [35, 5]  # as listed: both orders were followed
    assert len(turn) == 6


def test_what_is_unknown_or_opened_again_says_nothing():
    turn = turn_of(MADE)
    opens(turn, MADE[:4])
    assert turn.opened(11, 2) == []
    assert turn.opened(MADE[4], 2) == MADE[5:7]
    assert turn.opened(MADE[4], 2) == []
    turn.add(MADE[0])
    assert len(turn) == len(MADE)
