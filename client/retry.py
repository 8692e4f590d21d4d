"""What to do after an error: give up, pause and ask again, refresh routing first, or ask another replica.

`Retry` is one operation's memory of its attempts. Clock and random source are arguments; it never sleeps itself: it
says how long to wait, and its user does (with `wait_newer` of routing when `refresh` is set, else by sleeping).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from fireflyfs.client.routing import ChainNotInRouting
from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import Code, FfsError, Reaction, error

AT_ONCE_MAX = 2  # attempts at another replica, or with refreshed routing, before pausing
UNKNOWN_CHAIN_S_MAX = 5.0  # for routing that has the chain: longer than a new version needs to reach everybody
DAMAGED_MAX = 12  # answers of damaged data in one operation: by then every replica was asked several times


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds of one operation, in seconds. `deadline_s` may be infinite (a mount that waits for its servers).

    `on_wait` is told of each failure after which an operation waits: for how long it has been tried, and why.
    It is called in the operation's own thread, and ends the operation where it raises. `on_give_up` is told when an
    operation's time is up.
    """

    deadline_s: float = 60.0
    call_deadline_s: float = 6.0  # a little longer than mgmtd takes to give a silent server up
    first_read_s: float = 2.0  # of a read's first attempt: another replica may answer while one hangs
    first_pause_s: float = 0.01
    pause_s_max: float = 1.0
    on_wait: Callable[[float, FfsError], None] | None = None
    on_give_up: Callable[[], None] | None = None


class Step(NamedTuple):
    """Wait `pause_s`; with `refresh`, newer routing ends the wait early."""

    pause_s: float
    refresh: bool


class Retry:
    """Attempts of one operation. Not shared between threads."""

    __slots__ = (
        "_at_once",
        "_attempts",
        "_began_s",
        "_clock",
        "_damaged",
        "_end_s",
        "_pause_s",
        "_policy",
        "_random",
        "_unknown_since_s",
    )

    def __init__(self, policy: RetryPolicy, clock: Clock, rng: random.Random) -> None:
        self._policy = policy
        self._clock = clock
        self._random = rng
        self._began_s = clock.monotonic_s()
        self._end_s = self._began_s + policy.deadline_s
        self._pause_s = policy.first_pause_s
        self._attempts = 0
        self._at_once = 0
        self._damaged = 0
        self._unknown_since_s: float | None = None  # when routing was first found to lack the chain

    @property
    def attempts(self) -> int:
        """Failures so far."""
        return self._attempts

    def call_deadline_s(self) -> float:
        """For the next attempt: never beyond the operation's own deadline by more than a moment."""
        left = self._end_s - self._clock.monotonic_s()
        return max(0.05, min(self._policy.call_deadline_s, left))

    def after(self, exc: FfsError, *, replicas_left: bool = False) -> Step:
        """What to do after `exc`. `replicas_left`: the same question can go to a replica that did not fail yet.

        Raises `exc` where asking again is useless, or when routing does not get the chain within a while, and TIMEOUT
        that names `exc` when the time is up.
        """
        self._attempts += 1
        reaction = exc.reaction
        if reaction is Reaction.GIVE_UP:
            raise exc
        if exc.code is Code.CHECKSUM:
            self._damaged += 1
            if self._damaged > DAMAGED_MAX:
                raise exc
        now_s = self._clock.monotonic_s()
        if isinstance(exc, ChainNotInRouting):
            if self._unknown_since_s is None:
                self._unknown_since_s = now_s
            elif now_s - self._unknown_since_s >= UNKNOWN_CHAIN_S_MAX:
                raise exc  # whatever the deadline: a mount would wait for ever
        else:
            self._unknown_since_s = None
        left = self._end_s - now_s
        if left <= 0:
            if self._policy.on_give_up is not None:
                self._policy.on_give_up()
            raise error(
                Code.TIMEOUT,
                f"gave up after {self._attempts} attempts in {self._policy.deadline_s:g} s; "
                f"last: {exc.code.name.lower()}: {exc.message}",
            ) from exc
        if replicas_left and reaction in (Reaction.OTHER_REPLICA, Reaction.REFRESH) and self._at_once < AT_ONCE_MAX:
            self._at_once += 1
            return Step(0.0, False)
        if self._policy.on_wait is not None:
            self._policy.on_wait(now_s - self._began_s, exc)
        pause = self._pause_s * self._random.uniform(0.5, 1.0)  # jitter: clients that failed together come apart
        self._pause_s = min(self._pause_s * 2, self._policy.pause_s_max)
        return Step(min(pause, left), reaction is Reaction.REFRESH)
