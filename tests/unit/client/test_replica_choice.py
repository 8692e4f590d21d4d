"""Which replica is read from."""

from __future__ import annotations

import random
from collections import Counter

from fireflyfs.client.replica_choice import AVOID_S, EXPLORE, ReplicaChoice
from fireflyfs.common.clock import ManualClock
from fireflyfs.common.net.api import Address

ADDRESSES = {target: Address(tcp=f"w:{target % 10}") for target in (1, 2, 3, 11, 12, 13)}


def make() -> tuple[ReplicaChoice, ManualClock]:
    clock = ManualClock()
    return ReplicaChoice(clock, random.Random(1)), clock


def ask(choice: ReplicaChoice, serving: tuple[int, ...], took_s: float = 0.001, **options: object) -> int:
    chosen = choice.choose(serving, ADDRESSES, **options)  # type: ignore[arg-type]
    assert chosen is not None
    target, address = chosen
    choice.end(address, choice.begin(address, 4096), took_s)
    return target


def test_one_request_after_the_other_stays_with_one_worker() -> None:
    choice, _ = make()
    for _ in range(20):  # until all are measured
        ask(choice, (1, 2, 3))
    counts = Counter(ask(choice, (1, 2, 3) if turn % 2 else (12, 11, 13)) % 10 for turn in range(1000))
    assert counts.most_common(1)[0][1] > 1000 * (1 - 2 * EXPLORE)


def test_several_under_way_spread() -> None:
    choice, _ = make()
    for _ in range(20):
        ask(choice, (1, 2, 3))
    counts: Counter[int] = Counter()
    for _ in range(30):
        chosen = choice.choose((1, 2, 3), ADDRESSES)
        assert chosen is not None
        choice.begin(chosen[1], 1 << 20)
        counts[chosen[0]] += 1
    assert min(counts[target] for target in (1, 2, 3)) >= 6


def test_a_slow_worker_is_left() -> None:
    choice, _ = make()
    counts: Counter[int] = Counter()
    for _ in range(1000):
        chosen = choice.choose((1, 2), ADDRESSES)
        assert chosen is not None
        choice.end(chosen[1], choice.begin(chosen[1], 4096), 0.01 if chosen[0] == 1 else 0.001)
        counts[chosen[0]] += 1
    assert counts[2] > 900
    assert counts[1] > 5  # still looked at now and then


def test_failed_and_excluded_targets_come_last() -> None:
    choice, clock = make()
    choice.failed(ADDRESSES[1], 0, (1,))
    assert {ask(choice, (1, 2)) for _ in range(200)} == {2}
    assert ask(choice, (1,)) == 1
    assert {ask(choice, (1, 2), exclude={2}) for _ in range(50)} == {1}
    assert {ask(choice, (1, 2), exclude={1, 2}) for _ in range(200)} >= {1}
    clock.advance(AVOID_S + 1)
    assert {ask(choice, (1, 2)) for _ in range(200)} == {1, 2}


def test_targets_without_an_address_are_no_choice() -> None:
    choice, _ = make()
    assert choice.choose((7, 8), ADDRESSES) is None
    assert choice.choose((), ADDRESSES) is None
    assert ask(choice, (7, 2)) == 2
