"""What a mount knows of delegated directories: when it may say that a name is missing, and when it must ask."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from fireflyfs.common.clock import ManualClock
from fireflyfs.common.errors import Code, error
from fireflyfs.fuse import delegations
from fireflyfs.fuse.delegations import HELD_MAX, IDLE_S, Delegations
from fireflyfs.proto import common_pb2
from fireflyfs.proto import meta_pb2 as m

DIR = 7
TERM_MS = 2000


class Meta:
    """Grants what it is told to, and says what it was asked. `during` runs while a call is under way."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.names: list[bytes] | None = []
        self.recalled: list[int] = []
        self.asked: list[m.DelegateRequest] = []
        self.polls: list[m.AwaitRecallsRequest] = []
        self.during: Callable[[], object] = lambda: None
        self.fails = False
        self.number = 0

    def delegate(self, request: m.DelegateRequest) -> m.DelegateReply:
        self.asked.append(request)
        self.during()
        if self.fails:
            raise error(Code.UNAVAILABLE)
        if self.names is None:
            return m.DelegateReply()
        self.number += 1
        grant = m.Delegation(directory=request.directory, number=self.number)
        return m.DelegateReply(granted=grant, names=self.names, term_ms=TERM_MS)

    def await_recalls(self, request: m.AwaitRecallsRequest) -> m.AwaitRecallsReply:
        self.polls.append(request)
        self.during()
        if self.fails:
            raise error(Code.UNAVAILABLE)
        return m.AwaitRecallsReply(recalled=self.recalled, term_ms=TERM_MS)

    def returned(self) -> list[tuple[int, int]]:
        return [(one.directory, one.number) for poll in self.polls for one in poll.returned]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def meta(clock: ManualClock) -> Meta:
    return Meta(clock)


@pytest.fixture
def names(meta: Meta, clock: ManualClock) -> Delegations:
    return Delegations(meta, common_pb2.Caller(), clock)  # type: ignore[arg-type]


def miss(names: Delegations, times: int = 2, nodeid: int = DIR) -> None:
    for _ in range(times):
        names.missed(nodeid)


def poll(names: Delegations) -> None:
    """One turn of the thread's loop."""
    names._turn()


def test_the_second_miss_asks_and_then_only_what_is_known_is_asked_for(names: Delegations, meta: Meta) -> None:
    meta.names = [b"there"]
    names.missed(DIR)
    assert not meta.asked
    assert not names.absent(DIR, b"x")
    names.missed(DIR)
    assert names.absent(DIR, b"x")
    assert not names.absent(DIR, b"there")
    assert not names.absent(DIR, b".")
    assert not names.absent(DIR, b"..")
    assert not names.absent(DIR + 1, b"x")


def test_a_large_directory_is_asked_for_after_many_misses(names: Delegations, meta: Meta) -> None:
    meta.names = None
    miss(names, 64)
    assert [request.names_max for request in meta.asked] == [128, 256, 512, 1024, 2048, 4096]
    assert len(names) == 0


def test_a_name_that_is_being_made_may_be_there(names: Delegations) -> None:
    miss(names)
    with names.making(DIR, b"new"):
        assert not names.absent(DIR, b"new")
    assert not names.absent(DIR, b"new")
    assert names.absent(DIR, b"other")


def test_a_name_whose_making_began_before_the_delegation_may_be_there(names: Delegations) -> None:
    making = names.making(DIR, b"new")
    miss(names)
    with making:
        assert not names.absent(DIR, b"new")
    assert not names.absent(DIR, b"new")


def test_a_name_that_is_made_while_the_delegation_comes_may_be_there(names: Delegations, meta: Meta) -> None:
    def make() -> None:
        assert not names.absent(DIR, b"other")
        with names.making(DIR, b"new"):
            pass

    meta.during = make
    miss(names)
    assert not names.absent(DIR, b"new")
    assert names.absent(DIR, b"other")


def test_what_is_recalled_is_forgotten_and_given_back(names: Delegations, meta: Meta) -> None:
    miss(names)
    meta.recalled = [DIR]
    poll(names)
    assert not names.absent(DIR, b"x")
    poll(names)
    assert meta.returned() == [(DIR, 1)]
    assert meta.polls[-1].wait_ms == 0


def test_what_is_recalled_before_it_is_here_is_given_back(names: Delegations, meta: Meta) -> None:
    def recall() -> None:
        meta.during, meta.recalled = (lambda: None), [DIR]
        poll(names)

    meta.during = recall
    miss(names)
    assert not names.absent(DIR, b"x")
    poll(names)
    assert meta.returned() == [(DIR, 1)]


def test_it_is_not_asked_for_again_before_it_is_given_back(names: Delegations, meta: Meta) -> None:
    miss(names)
    meta.recalled = [DIR]
    poll(names)
    miss(names, 8)
    assert len(meta.asked) == 1


def test_a_term_begins_when_the_question_is_sent(names: Delegations, meta: Meta, clock: ManualClock) -> None:
    meta.during = lambda: clock.advance(1.5)
    miss(names)
    clock.advance(0.4)
    assert names.absent(DIR, b"x")
    poll(names)
    clock.advance(0.4)
    assert names.absent(DIR, b"x")
    clock.advance(0.1)
    assert not names.absent(DIR, b"x")


def test_a_mount_that_could_not_ask_for_a_while_knows_nothing(
    names: Delegations, meta: Meta, clock: ManualClock
) -> None:
    miss(names)
    clock.advance(TERM_MS / 1000)
    assert not names.absent(DIR, b"x")
    poll(names)
    assert names.absent(DIR, b"x"), "meta says that nobody has made a name meanwhile"
    meta.fails = True
    poll(names)
    assert not names.absent(DIR, b"x")


def test_a_refusal_and_an_error_leave_nothing(names: Delegations, meta: Meta) -> None:
    meta.fails = True
    miss(names)
    meta.fails, meta.names = False, None
    miss(names, 2)
    assert len(names) == 0
    assert len(meta.asked) == 2
    assert not names.absent(DIR, b"x")


def test_what_nobody_looks_into_is_given_back(names: Delegations, meta: Meta, clock: ManualClock) -> None:
    miss(names)
    miss(names, nodeid=8)
    for _ in range(int(IDLE_S) + 2):
        clock.advance(1)
        poll(names)
        assert names.absent(8, b"x")
    assert meta.returned() == [(DIR, 1)]
    assert len(names) == 1


def test_a_bounded_number_of_directories(names: Delegations, meta: Meta, clock: ManualClock) -> None:
    for nodeid in range(1, HELD_MAX + 2):
        miss(names, nodeid=nodeid)
        clock.advance(0.001)
    assert len(names) == HELD_MAX
    poll(names)
    assert meta.returned() == [(1, 1)]


def test_a_bounded_number_of_names(names: Delegations, meta: Meta, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delegations, "NAMES_MAX", 50)
    monkeypatch.setattr(delegations, "ALL_NAMES_MAX", 100)
    for nodeid in (DIR, 8, 9):
        miss(names, nodeid=nodeid)
    for number in range(60):
        with names.making(DIR, b"%d" % number):
            pass
    assert not names.absent(DIR, b"x")
    for number in range(47):
        for nodeid in (8, 9):
            with names.making(nodeid, b"%d" % number):
                pass
    meta.names = [b"%d" % number for number in range(40)]
    miss(names, nodeid=10)
    poll(names)
    assert sorted(meta.returned()) == [(DIR, 1), (8, 2)]
    assert names.absent(9, b"x")
    assert names.absent(10, b"x")


def test_at_the_end_everything_is_given_back(names: Delegations, meta: Meta) -> None:
    meta.during = lambda: None
    miss(names)
    asking: Any = threading.Thread(target=names.run)
    asking.start()
    names.stop()
    asking.join(10)
    assert not asking.is_alive()
    assert meta.returned() == [(DIR, 1)]
    assert not names.absent(DIR, b"x")
    miss(names, 8)
    assert len(meta.asked) == 1
