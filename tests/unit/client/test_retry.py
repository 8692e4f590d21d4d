"""What a client does about an error, and when it stops."""

from __future__ import annotations

import math
import random

import pytest

from fireflyfs.client.retry import UNKNOWN_CHAIN_S_MAX, Retry, RetryPolicy
from fireflyfs.client.routing import Routing
from fireflyfs.common.clock import ManualClock
from fireflyfs.common.errors import Code, FfsError, error


def missing() -> FfsError:
    with pytest.raises(FfsError) as caught:
        Routing(version=4).chain(9)
    return caught.value


def test_a_chain_that_newest_routing_lacks_is_given_up_soon() -> None:
    """Also where the deadline is infinite, as on a mount; the error stays what it is."""
    clock = ManualClock()
    retry = Retry(RetryPolicy(math.inf), clock, random.Random(1))
    began_s = clock.monotonic_s()

    def until_it_gives_up() -> None:
        for _ in range(1000):
            clock.advance(retry.after(missing()).pause_s)

    with pytest.raises(FfsError, match="chain 9 is not in routing version 4") as caught:
        until_it_gives_up()
    assert caught.value.code is Code.NO_CHAIN
    assert UNKNOWN_CHAIN_S_MAX <= clock.monotonic_s() - began_s <= UNKNOWN_CHAIN_S_MAX + 1


def test_a_server_that_does_not_know_a_chain_yet_is_waited_for() -> None:
    clock = ManualClock()
    retry = Retry(RetryPolicy(math.inf), clock, random.Random(1))
    for _ in range(100):
        assert retry.after(error(Code.NO_CHAIN, "chain 1 has no target here")).refresh
        clock.advance(1)


def test_another_error_in_between_starts_the_wait_anew() -> None:
    clock = ManualClock()
    retry = Retry(RetryPolicy(math.inf), clock, random.Random(1))
    for _ in range(5):
        retry.after(missing())
        clock.advance(UNKNOWN_CHAIN_S_MAX - 1)
        retry.after(missing())
        retry.after(error(Code.UNAVAILABLE))
        clock.advance(3)


def test_who_waits_is_told_how_long_and_why() -> None:
    clock = ManualClock()
    told: list[tuple[float, str]] = []
    policy = RetryPolicy(10.0, on_wait=lambda waited_s, why: told.append((waited_s, why.message)))
    retry = Retry(policy, clock, random.Random(1))
    retry.after(error(Code.UNAVAILABLE, "away"))
    clock.advance(4)
    retry.after(error(Code.TIMEOUT, "silent"))
    with pytest.raises(FfsError):
        retry.after(error(Code.NO_ENTRY, "an answer is nothing to wait after"))
    clock.advance(7)
    with pytest.raises(FfsError):
        retry.after(error(Code.UNAVAILABLE, "the time is up"))
    assert told == [(0.0, "away"), (4.0, "silent")]
