"""The chain state machine: each rule once, and the invariants under any sequence of events."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fireflyfs.mgmtd.core.chain import (
    Local,
    Member,
    Public,
    next_chain,
    problems_of,
    problems_of_step,
    resync_one,
    rotate_to_preferred,
)

S, L, Y, W, O = Public.SERVING, Public.LASTSRV, Public.SYNCING, Public.WAITING, Public.OFFLINE  # noqa: E741
OFF, ON, UP, UNK = Local.OFFLINE, Local.ONLINE, Local.UPTODATE, Local.UNKNOWN


def step(*members: tuple[Public, Local]) -> list[tuple[int, Public]]:
    decisions = next_chain([Member(place, public, local) for place, (public, local) in enumerate(members, 1)])
    assert all(decision.why for decision in decisions)
    return [(decision.target_id, decision.public) for decision in decisions]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # A lost replica goes to the end; the others move up.
        ([(S, OFF), (S, UP), (S, UP)], [(2, S), (3, S), (1, O)]),
        ([(S, UP), (S, OFF), (O, OFF)], [(1, S), (3, O), (2, O)]),
        # The last one serving waits to lead again; a complete replica elsewhere makes it an ordinary one.
        ([(S, OFF), (O, OFF)], [(1, L), (2, O)]),
        ([(L, OFF), (O, ON)], [(1, L), (2, W)]),
        ([(L, ON), (O, OFF)], [(1, S), (2, O)]),
        ([(S, OFF), (Y, UP)], [(2, S), (1, O)]),
        # Lost together: each of them is complete, and the first that is back leads.
        ([(S, OFF), (S, OFF)], [(1, L), (2, L)]),
        ([(L, OFF), (L, ON)], [(2, S), (1, O)]),
        ([(L, ON), (L, ON)], [(1, S), (2, O)]),
        # One at a time is brought up to date, and only by one that serves.
        ([(S, UP), (O, ON), (O, ON)], [(1, S), (2, Y), (3, W)]),
        ([(S, UP), (Y, UP), (W, ON)], [(1, S), (2, S), (3, Y)]),
        ([(S, UP), (Y, OFF), (W, ON)], [(1, S), (3, Y), (2, O)]),
        ([(S, OFF), (Y, ON)], [(1, L), (2, W)]),
        # Complete by its own word, but demoted: it must come ONLINE first.
        ([(S, UP), (O, UP)], [(1, S), (2, W)]),
        # Not heard of since mgmtd started: nothing moves.
        ([(S, UNK), (S, UNK), (O, UNK)], [(1, S), (2, S), (3, O)]),
        ([(S, UNK), (Y, UNK), (W, UNK)], [(1, S), (2, Y), (3, W)]),
        ([(L, UNK), (O, ON)], [(1, L), (2, W)]),
        # A chain that never served starts with whoever comes first.
        ([(O, OFF), (O, ON)], [(2, S), (1, O)]),
        ([(O, OFF), (O, OFF)], [(1, O), (2, O)]),
    ],
)
def test_rule(old: list[tuple[Public, Local]], new: list[tuple[int, Public]]) -> None:
    assert step(*old) == new


events = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([OFF, ON, UP])), max_size=60)


@settings(max_examples=300, deadline=None)
@given(count=st.integers(1, 4), events=events)
def test_invariants_hold_after_every_event(count: int, events: list[tuple[int, Local]]) -> None:
    chain = [(target, S) for target in range(count)]
    local = dict.fromkeys(range(count), UP)
    version = 1
    complete = set(range(count))  # targets that have every acknowledged write
    for target, new_local in events:
        target %= count
        state = dict(chain)[target]
        # A worker's word keeps to its protocol: complete only while it serves, or at the end of a resync.
        if new_local is UP and state not in (S, Y):
            new_local = ON
        local[target] = new_local
        decisions = next_chain([Member(t, public, local[t]) for t, public in chain])
        new = [(decision.target_id, decision.public) for decision in decisions]
        new_version = version + (new != chain)
        assert problems_of_step(version, chain, new_version, new) == []
        # Only those that hold everything may lead; the rest miss writes from now on.
        finished = {t for t, public in chain if public is Y and local[t] is UP}
        serving = {t for t, public in new if public is S}
        assert serving <= complete | finished
        complete = serving or (complete & {t for t, public in new if public is L})
        assert complete, "no acknowledged write is ever out of reach"
        for t, public in new:
            if public is O and local[t] is UP:
                local[t] = ON
        chain, version = new, new_version


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([S, L, Y, W, O]), st.sampled_from(list(Local))), min_size=1, max_size=6))
def test_any_members_settle(members: list[tuple[Public, Local]]) -> None:
    local = {place: state for place, (_, state) in enumerate(members)}
    chain = [(place, public) for place, (public, _) in enumerate(members)]
    for _ in range(10):
        new = [(d.target_id, d.public) for d in next_chain([Member(t, p, local[t]) for t, p in chain])]
        if new == chain:
            break
        chain = new
    else:
        pytest.fail(f"{members} does not settle")
    assert not [problem for problem in problems_of(chain) if "order" in problem or "at a time" in problem]


def test_rotation_restores_the_preferred_order_one_step_at_a_time() -> None:
    assert rotate_to_preferred([(2, S), (3, S), (1, S)], [1, 2, 3]) == [(3, S), (1, S), (2, O)]
    assert rotate_to_preferred([(3, S), (1, S), (2, S)], [1, 2, 3]) == [(1, S), (2, S), (3, O)]
    assert rotate_to_preferred([(1, S), (2, S), (3, S)], [1, 2, 3]) is None
    assert rotate_to_preferred([(2, S), (1, Y)], [1, 2]) is None
    assert rotate_to_preferred([(2, S)], [1]) is None


def test_a_serving_target_is_resynced_while_another_one_serves() -> None:
    assert resync_one([(1, S), (2, S), (3, O)], 1) == [(2, S), (3, O), (1, O)]
    assert resync_one([(1, S), (2, S)], 2) == [(1, S), (2, O)]
    assert resync_one([(1, S), (2, Y)], 1) is None
    assert resync_one([(1, S), (2, S), (3, O)], 3) is None
    assert resync_one([(1, S), (2, S)], 7) is None


def test_the_validator_names_broken_rules() -> None:
    assert problems_of([(1, O), (2, S)]) == ["rule: order is SERVING, LASTSRV, SYNCING, WAITING, OFFLINE"]
    assert problems_of([(1, S), (1, S)]) == ["rule: each target stands once in a chain"]
    assert problems_of([(1, S), (2, Y), (3, Y)]) == ["rule: one target is brought up to date at a time"]
    assert problems_of([(1, Y)]) == ["rule: SYNCING needs a serving predecessor"]
    assert problems_of([(1, S), (2, L)]) == ["rule: LASTSRV only while nothing serves"]
    assert problems_of([]) == ["rule: a chain has 1 to 16 targets, not 0"]
    assert problems_of_step(1, [(1, S)], 2, [(1, O)]) == [
        "rule: a chain that served keeps a SERVING or a LASTSRV target"
    ]
    assert "may not serve" in problems_of_step(1, [(1, S), (2, O)], 2, [(1, S), (2, S)])[0]
    assert "grows by one" in problems_of_step(1, [(1, S), (2, O)], 3, [(1, S), (2, Y)])[0]


def test_one_that_lost_power_leads_only_when_no_other_comes() -> None:
    """What was acknowledged and not synced may be gone there; the others have it."""
    last = [Member(1, L, ON, lossy=True), Member(2, L, OFF)]
    assert [d.public for d in next_chain(last)] == [L, L]
    assert [(d.target_id, d.public) for d in next_chain(last, waited=True)] == [(1, S), (2, O)]
    sound = [Member(1, L, ON, lossy=True), Member(2, L, ON)]
    assert [(d.target_id, d.public) for d in next_chain(sound)] == [(2, S), (1, O)]
    # With power lost everywhere there is none to wait for.
    lossy = [Member(1, L, ON, lossy=True), Member(2, L, ON, lossy=True)]
    assert [(d.target_id, d.public) for d in next_chain(lossy)] == [(1, S), (2, O)]


def test_one_that_left_when_the_others_were_dead_already_served_last_with_them() -> None:
    gone = [Member(1, S, OFF), Member(2, O, OFF, complete=True), Member(3, O, OFF)]
    assert [(d.target_id, d.public) for d in next_chain(gone)] == [(1, L), (2, L), (3, O)]
    assert not problems_of_step(4, [(1, S), (2, O)], 5, [(1, L), (2, L)], complete=[2])
    assert problems_of_step(4, [(1, S), (2, O)], 5, [(1, L), (2, L)])
