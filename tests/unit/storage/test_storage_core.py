"""The deciding code of storage, case by case."""

from __future__ import annotations

import pytest

from fireflyfs.client.membership import INTERVAL_S
from fireflyfs.client.mgmtd_client import HEARTBEAT_DEADLINE_S
from fireflyfs.client.routing import Chain
from fireflyfs.common.errors import Code
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.core import exactly_once, fence, forward, read, resync, target, versions
from fireflyfs.storage.core.target import Local, Public, TargetState
from fireflyfs.storage.core.versions import Action
from fireflyfs.storage.engine.interface import ChunkKey, ChunkState, Version, Writer

KEY = ChunkKey(7, 0)
ALICE = Writer(b"a" * 16, 1, 5)
BOB = Writer(b"b" * 16, 1, 9)


def version(number: int, writer: Writer = BOB, length: int = 10, crc: int = 1, removed: bool = False) -> Version:
    return Version(number, 1, length, crc, writer, removed)


def chunk(committed: Version | None = None, pending: Version | None = None) -> ChunkState:
    return ChunkState(KEY, 65536, committed, pending)


@pytest.mark.parametrize(
    ("state", "kind", "length", "action", "number"),
    [
        (None, UpdateKind.WRITE, 0, Action.APPLY, 1),
        (None, UpdateKind.REMOVE, 0, Action.NOTHING, 0),
        (None, UpdateKind.TRUNCATE, 3, Action.NOTHING, 0),
        (chunk(version(4)), UpdateKind.WRITE, 0, Action.APPLY, 5),
        (chunk(version(4)), UpdateKind.TRUNCATE, 10, Action.NOTHING, 4),
        (chunk(version(4)), UpdateKind.TRUNCATE, 9, Action.APPLY, 5),
        (chunk(version(4)), UpdateKind.REMOVE, 0, Action.APPLY, 5),
        (chunk(version(4, ALICE)), UpdateKind.WRITE, 0, Action.ANSWER, 4),
        (chunk(version(4), version(5)), UpdateKind.WRITE, 0, Action.FINISH_FIRST, 5),
        (chunk(version(4), version(5, ALICE)), UpdateKind.WRITE, 0, Action.FORWARD, 5),
        (chunk(None, version(1)), UpdateKind.REMOVE, 0, Action.FINISH_FIRST, 1),
    ],
)
def test_the_head_numbers_updates(
    state: ChunkState | None, kind: UpdateKind, length: int, action: Action, number: int
) -> None:
    decision = versions.decide_head(state, kind, length, ALICE)
    assert (decision.action, decision.version) == (action, number)


@pytest.mark.parametrize(
    ("state", "action"),
    [
        (chunk(version(4, BOB)), Action.APPLY),
        (chunk(version(5, BOB)), Action.REFUSE),
        (chunk(version(4, BOB._replace(sequence=10))), Action.REFUSE),  # removed and made anew under the same number
        (chunk(version(4, BOB), version(5, BOB)), Action.FINISH_FIRST),
        (None, Action.NOTHING),
        (chunk(version(4, BOB), version(5, ALICE)), Action.FORWARD),  # its own earlier attempt
    ],
)
def test_an_update_of_what_was_seen_happens_over_nothing_else(state: ChunkState | None, action: Action) -> None:
    assert versions.decide_head(state, UpdateKind.REMOVE, 0, ALICE, seen=(4, BOB)).action is action


def test_the_head_refuses_what_its_channel_has_passed() -> None:
    later = ALICE._replace(sequence=6)
    assert versions.decide_head(chunk(version(4, later)), UpdateKind.WRITE, 0, ALICE).code == Code.STALE_UPDATE


def test_a_pending_version_that_is_committed_nowhere_is_replaced_under_the_next_number() -> None:
    decision = versions.decide_head(chunk(version(4), version(5)), UpdateKind.REMOVE, 0, ALICE, replace_pending=True)
    assert (decision.action, decision.version) == (Action.APPLY, 6)
    decision = versions.decide_head(chunk(None, version(1)), UpdateKind.REMOVE, 0, ALICE, replace_pending=True)
    assert (decision.action, decision.version) == (Action.APPLY, 2)


def test_a_pending_version_of_an_older_chain_may_have_been_seen() -> None:
    """The tail that committed it may be gone: what builds on the version before it would take it back."""
    pending = version(5)._replace(chain_version=7)
    assert versions.may_replace_pending(Code.NO_SPACE, pending, UpdateKind.WRITE, 7)
    assert not versions.may_replace_pending(Code.NO_SPACE, pending, UpdateKind.WRITE, 8)
    assert not versions.may_replace_pending(Code.NO_SPACE, pending, UpdateKind.TRUNCATE, 8)
    assert versions.may_replace_pending(Code.NO_SPACE, pending, UpdateKind.REMOVE, 8), "nothing of it is left"
    assert not versions.may_replace_pending(Code.TIMEOUT, pending, UpdateKind.REMOVE, 7)


@pytest.mark.parametrize(
    ("state", "kind", "number", "crc", "action", "code"),
    [
        (None, UpdateKind.WRITE, 1, 0, Action.APPLY, Code.OK),
        (None, UpdateKind.WRITE, 2, 0, Action.REFUSE, Code.MISSING_UPDATE),
        (None, UpdateKind.REPLACE, 9, 3, Action.APPLY, Code.OK),
        (None, UpdateKind.REMOVE, 2, 0, Action.NOTHING, Code.OK),
        # What was given up is gone with the removal, or whoever leads next would finish it.
        (chunk(None, version(1)), UpdateKind.REMOVE, 2, 0, Action.APPLY, Code.OK),
        (chunk(version(4), version(7)), UpdateKind.WRITE, 5, 0, Action.REFUSE, Code.STALE_UPDATE),
        (chunk(version(4)), UpdateKind.WRITE, 5, 0, Action.APPLY, Code.OK),
        (chunk(version(4)), UpdateKind.WRITE, 6, 0, Action.REFUSE, Code.MISSING_UPDATE),
        (chunk(version(4)), UpdateKind.WRITE, 3, 0, Action.REFUSE, Code.STALE_UPDATE),
        (chunk(version(4, ALICE)), UpdateKind.WRITE, 4, 1, Action.ANSWER, Code.OK),
        (chunk(version(4, ALICE)), UpdateKind.WRITE, 4, 2, Action.REFUSE, Code.STALE_UPDATE),
        (chunk(version(4)), UpdateKind.WRITE, 4, 0, Action.REFUSE, Code.STALE_UPDATE),
        (chunk(version(4), version(5, ALICE)), UpdateKind.WRITE, 5, 0, Action.FORWARD, Code.OK),
        (chunk(version(4), version(5)), UpdateKind.WRITE, 5, 0, Action.APPLY, Code.OK),
        (chunk(version(4)), UpdateKind.WRITE, 0, 0, Action.REFUSE, Code.PROTOCOL),
    ],
)
def test_a_replica_takes_the_number_it_is_given(
    state: ChunkState | None, kind: UpdateKind, number: int, crc: int, action: Action, code: Code
) -> None:
    decision = versions.decide_replica(state, kind, number, crc, ALICE, syncing=False, chain_version=1)
    assert (decision.action, decision.code) == (action, code)


@pytest.mark.parametrize(
    ("state", "built_on", "code"),
    [
        (None, 0, Code.OK),
        (None, 4, Code.MISSING_UPDATE),
        (chunk(version(4)), 4, Code.OK),
        (chunk(version(4), version(5)), 4, Code.OK),
        (chunk(version(5)), 4, Code.STALE_UPDATE),
        (chunk(version(3)), 4, Code.MISSING_UPDATE),
    ],
)
def test_a_replacement_takes_the_place_of_what_its_sender_saw(
    state: ChunkState | None, built_on: int, code: Code
) -> None:
    decision = versions.decide_replica(state, UpdateKind.REPLACE, 7, 3, ALICE, syncing=False, built_on=built_on)
    assert decision.code == code


def test_while_syncing_versions_are_set() -> None:
    state = chunk(version(9), version(10))
    assert versions.decide_replica(state, UpdateKind.REPLACE, 2, 1, ALICE, syncing=True).action is Action.APPLY
    assert versions.decide_replica(state, UpdateKind.WRITE, 2, 1, ALICE, syncing=True).code == Code.PROTOCOL
    assert versions.decide_replica(None, UpdateKind.REMOVE, 2, 1, ALICE, syncing=True).action is Action.NOTHING


def test_exactly_once_answers_the_same_sequence_and_refuses_a_lower_one() -> None:
    table: exactly_once.ExactlyOnce[str] = exactly_once.ExactlyOnce()
    assert table.begin(ALICE) == (Code.OK, {})
    assert table.begin(ALICE)[0] == Code.CHUNK_BUSY
    table.end(ALICE, [(KEY, "done")])
    assert table.begin(ALICE) == (Code.OK, {KEY: "done"})
    table.end(ALICE, [])
    assert table.begin(ALICE._replace(sequence=4))[0] == Code.STALE_UPDATE
    assert table.begin(ALICE._replace(sequence=6)) == (Code.OK, {})


def test_exactly_once_knows_what_it_was_forwarded() -> None:
    table: exactly_once.ExactlyOnce[str] = exactly_once.ExactlyOnce()
    table.note(ALICE, [(KEY, "x")])
    table.note(ALICE._replace(sequence=3), [(KEY, "old")])
    assert table.begin(ALICE) == (Code.OK, {KEY: "x"})


def test_exactly_once_forgets_the_longest_unused_channel() -> None:
    table: exactly_once.ExactlyOnce[str] = exactly_once.ExactlyOnce(channels_max=2)
    for channel in range(3):
        table.note(ALICE._replace(channel=channel), [(KEY, "x")])
    assert len(table) == 2
    assert table.begin(ALICE._replace(channel=0)) == (Code.OK, {})


def test_a_returning_target_waits_until_it_is_seen_offline() -> None:
    state = TargetState()
    for public in (Public.SERVING, Public.SYNCING, Public.WAITING):
        assert target.on_routing(state, public).local is Local.OFFLINE
    state = target.on_routing(state, Public.OFFLINE)
    assert state.local is Local.ONLINE
    state = target.on_routing(state, Public.SYNCING)
    assert state.local is Local.ONLINE
    assert target.may_receive(state, Public.SYNCING)
    assert not target.may_serve(state, Public.SYNCING)
    state = target.on_sync_done(state, Public.SYNCING)
    assert state.local is Local.UPTODATE
    state = target.on_routing(state, Public.SERVING)
    assert target.may_serve(state, Public.SERVING)


def test_a_demoted_target_must_sync_again() -> None:
    serving = TargetState(Local.UPTODATE, returning=False)
    for public in (Public.OFFLINE, Public.LASTSRV, Public.WAITING):
        assert target.on_routing(serving, public).local is Local.ONLINE
    failed = target.on_failure(serving, "disk")
    assert target.on_routing(failed, Public.SERVING).local is Local.OFFLINE


def test_a_target_that_has_lost_an_update_comes_back_through_a_resync() -> None:
    state = target.on_divergence(TargetState(Local.UPTODATE, returning=False), "its disk is full")
    assert state.local is Local.OFFLINE
    assert target.on_routing(state, Public.SERVING).local is Local.OFFLINE
    assert target.on_routing(state, Public.OFFLINE).local is Local.ONLINE


def test_the_next_hop_follows_the_chain() -> None:
    chain = Chain(1, 3, ((10, Public.SERVING), (20, Public.SERVING), (30, Public.SYNCING), (40, Public.OFFLINE)))
    assert forward.is_head(chain, 10)
    assert forward.next_hop(chain, 10) == forward.Hop(forward.Form.SAME, 20)
    assert forward.next_hop(chain, 20) == forward.Hop(forward.Form.REPLACE, 30)
    assert forward.next_hop(chain, 30) == forward.TAIL
    assert forward.next_hop(chain, 40) is None
    assert forward.tail(chain) == 20


def test_the_fence_closes_before_mgmtd_gives_up() -> None:
    assert fence.is_fenced(10.0, None)
    assert not fence.is_fenced(10.0, 7.1)
    assert fence.is_fenced(10.0, 7.0)
    # One heartbeat may be lost, and its successor answered, before the fence closes.
    assert INTERVAL_S + HEARTBEAT_DEADLINE_S < fence.FENCE_S


def held(key: ChunkKey, number: int, crc: int = 1, pending: bool = False) -> resync.Held:
    return resync.Held(key, number, pending, 10, crc, 65536)


def test_resync_sends_what_differs_and_removes_extras() -> None:
    keys = [ChunkKey(1, n) for n in range(6)]
    ours = [ChunkState(key, 65536, version(2), None) for key in keys[:4]]
    ours.append(ChunkState(keys[4], 65536, None, version(1)))
    theirs = [held(keys[0], 2), held(keys[1], 1), held(keys[2], 2, crc=9), held(keys[4], 7), held(keys[5], 1)]
    steps = [work.step for work in resync.compare(ours, theirs, None)]
    write, remove, skip = resync.Step.WRITE, resync.Step.REMOVE, resync.Step.SKIP
    assert steps == [skip, write, write, write, remove, remove]


def test_resync_compares_only_what_both_pages_cover() -> None:
    keys = [ChunkKey(1, n) for n in range(6)]
    ours = [ChunkState(key, 65536, version(2), None) for key in keys]
    theirs = [held(key, 2) for key in keys[:3]]
    end = resync.horizon(ours, False, theirs, True)
    assert end == keys[2]
    assert len(resync.compare(ours, theirs, end)) == 3
    assert resync.horizon(ours, False, theirs, False) is None


def test_a_read_is_answered_only_by_who_serves_in_the_newest_chain() -> None:
    serving = TargetState(Local.UPTODATE, returning=False)
    assert read.admit(serving, Public.SERVING, 5, 4) == Code.OK
    assert read.admit(serving, Public.SERVING, 5, 6) == Code.CHAIN_VERSION
    assert read.admit(serving, Public.SYNCING, 5, 5) == Code.TARGET_OFFLINE


def test_the_tail_decides_which_version_is_read() -> None:
    def told(number: int, crc: int = 1) -> read.Truth:
        return read.Truth(number, crc)

    assert read.choose(version(4), version(5), told(4)) is read.Choice.COMMITTED
    assert read.choose(version(4), version(5), told(5)) is read.Choice.PENDING
    assert read.choose(version(4), version(5), told(5, 77)) is read.Choice.AGAIN, "another one under this number"
    assert read.choose(version(4), version(5, removed=True), read.NO_CHUNK) is read.Choice.MISSING
    assert read.choose(version(4), None, told(5)) is read.Choice.AGAIN
    assert read.choose(version(4), None, read.NO_CHUNK) is read.Choice.AGAIN
    assert read.choose(None, version(1), read.NO_CHUNK) is read.Choice.MISSING


def test_a_tail_does_not_say_what_it_does_not_know() -> None:
    assert read.truth(None) == read.truth(chunk()) == read.NO_CHUNK
    assert read.truth(chunk(version(4))) == read.Truth(4, 1)
    assert read.truth(chunk(version(4), version(5))) is None, "its own tail, that is gone now, may have committed it"
    assert read.truth(chunk(None, version(1))) is None


def test_a_resync_gives_way_to_clients_only() -> None:
    assert resync.give_way_s(0.02, asked=True) == 0.02
    assert resync.give_way_s(0.02, asked=False) == 0
    assert resync.give_way_s(60, asked=True) == resync.GIVE_WAY_S_MAX, "a slow disk must not stretch it for ever"
