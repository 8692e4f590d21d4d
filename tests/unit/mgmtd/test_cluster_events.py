"""Membership and chains as workers live and die, with time standing still between events."""

from __future__ import annotations

from typing import Any

import pytest

from fireflyfs.client.routing import Routing, apply_delta
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.mgmtd.core import operator
from fireflyfs.mgmtd.core.chain import Local
from fireflyfs.mgmtd.core.state import REMOVALS_KEPT_MAX
from fireflyfs.proto import mgmtd_pb2
from fireflyfs.proto.common_pb2 import NODE_TYPE_STORAGE

OFF, ON, UP = Local.OFFLINE, Local.ONLINE, Local.UPTODATE


def three_replicas(harness: Any) -> None:
    """Nodes 1 to 3 with targets 101, 201, 301 in chain 7, all serving."""
    for node in (1, 2, 3):
        harness.register(node, [node * 100 + 1])
        harness.beat(node, {node * 100 + 1: OFF})
        harness.beat(node, {node * 100 + 1: ON})
    harness.do(operator.set_chains(harness.cluster, [mgmtd_pb2.ChainSpec(chain_id=7, targets=[101, 201, 301])]))
    for node in (1, 2, 3):
        harness.beat(node, {node * 100 + 1: UP})


def beat_all(harness: Any, nodes: tuple[int, ...], seconds: float, local: Local = UP) -> None:
    """Let time pass while `nodes` keep beating once a second."""
    for _ in range(int(seconds)):
        for node in nodes:
            harness.beat(node, {node * 100 + 1: local})
        harness.tick(1.0)


def code_of(failure: pytest.ExceptionInfo[FfsError]) -> Code:
    return failure.value.code


def test_targets_that_are_up_serve_at_once(harness: Any) -> None:
    three_replicas(harness)
    assert harness.states(7) == [(101, "SERVING"), (201, "SERVING"), (301, "SERVING")]
    assert harness.cluster.chains[7].version == 1


def test_a_chain_of_silent_targets_starts_when_they_come(harness: Any) -> None:
    for node in (1, 2):
        harness.register(node, [node * 100 + 1])
    harness.do(operator.set_chains(harness.cluster, [mgmtd_pb2.ChainSpec(chain_id=7, targets=[101, 201])]))
    assert harness.states(7) == [(101, "OFFLINE"), (201, "OFFLINE")]
    harness.beat(2, {201: OFF})
    harness.beat(2, {201: ON})
    assert harness.states(7) == [(201, "SERVING"), (101, "OFFLINE")]


def test_a_silent_worker_is_lost_and_comes_back_through_a_resync(harness: Any) -> None:
    three_replicas(harness)
    beat_all(harness, (1, 2, 3), 3)
    beat_all(harness, (1, 3), 3)
    assert harness.states(7)[1] == (201, "SERVING"), "silent for four seconds: not yet"
    beat_all(harness, (1, 3), 2)
    assert harness.states(7) == [(101, "SERVING"), (301, "SERVING"), (201, "OFFLINE")]
    assert not harness.cluster.nodes[2].alive
    # It was only cut off: what it says of the old chain does not count.
    harness.beat(2, {201: UP}, chain_version=1)
    harness.settle()
    assert harness.states(7)[2] == (201, "OFFLINE")
    harness.beat(2, {201: ON})
    assert harness.states(7)[2] == (201, "SYNCING")
    harness.beat(2, {201: UP})
    assert harness.states(7)[2] == (201, "SERVING")


def test_a_restarted_worker_leaves_its_chain_first(harness: Any) -> None:
    three_replicas(harness)
    harness.beat(1, {101: UP}, generation=2)  # faster than mgmtd could notice, and claims to be complete
    assert harness.states(7) == [(201, "SERVING"), (301, "SERVING"), (101, "OFFLINE")]
    harness.beat(1, {101: ON}, generation=2)
    assert harness.states(7)[2] == (101, "SYNCING")
    with pytest.raises(FfsError) as failure:
        harness.beat(1, {101: UP}, generation=1)  # the old process is still there
    assert code_of(failure) is Code.STALE_HEARTBEAT
    with pytest.raises(FfsError) as failure:
        harness.beat(1, {101: UP}, generation=2, sequence=1)
    assert code_of(failure) is Code.STALE_HEARTBEAT


def test_a_planned_stop_counts_at_once(harness: Any) -> None:
    three_replicas(harness)
    harness.beat(1, {101: UP}, stopping=True)
    assert harness.states(7)[2] == (101, "OFFLINE")
    assert not harness.cluster.nodes[1].alive


def test_a_worker_whose_host_had_its_date_set_back_is_heard_when_its_former_life_is_over(harness: Any) -> None:
    three_replicas(harness)
    harness.beat(1, {101: UP}, generation=100)
    for _ in range(6):
        with pytest.raises(FfsError) as failure:
            harness.beat(1, {101: UP}, generation=50)
        assert code_of(failure) is Code.STALE_HEARTBEAT
        harness.tick(0.8)
        harness.beat(2, {201: UP})
        harness.beat(3, {301: UP})
    harness.tick(0.8)
    harness.beat(1, {101: UP}, generation=50)
    assert harness.states(7)[2] == (101, "OFFLINE"), "it leaves its chain first, as after any start"
    harness.beat(1, {101: ON}, generation=50)
    assert harness.states(7)[2] == (101, "SYNCING")
    assert harness.cluster.nodes[1].alive


def test_a_death_that_the_supervisor_reports_counts_at_once(harness: Any) -> None:
    three_replicas(harness)
    doors = harness.cluster.nodes[1].worker(0).endpoint
    report = mgmtd_pb2.HeartbeatRequest(
        node_id=1, type=NODE_TYPE_STORAGE, generation=2, sequence=1, stopping=True
    )  # knows neither the targets nor the doors
    harness.do(harness.cluster.heartbeat(report, harness.clock.monotonic_s(), harness.clock.unix_ns()))
    assert harness.states(7)[2] == (101, "OFFLINE")
    assert harness.cluster.nodes[1].worker(0).endpoint == doors
    with pytest.raises(FfsError) as failure:
        harness.beat(1, {101: UP}, generation=1)  # was still on its way
    assert code_of(failure) is Code.STALE_HEARTBEAT
    harness.beat(1, {101: ON}, generation=3)
    assert harness.cluster.nodes[1].alive


def test_all_lost_together_wait_for_the_first_that_returns(harness: Any) -> None:
    three_replicas(harness)
    harness.tick(6.0)
    assert {state for _, state in harness.states(7)} == {"LASTSRV"}
    harness.beat(3, {301: OFF}, generation=2)
    harness.beat(3, {301: ON}, generation=2)
    assert harness.states(7)[0] == (301, "SERVING")
    harness.beat(1, {101: ON}, generation=2)
    harness.beat(1, {101: ON}, generation=2)
    assert (101, "SYNCING") in harness.states(7)


def test_restarts_faster_than_detection_keep_one_complete_replica(harness: Any) -> None:
    three_replicas(harness)
    for node in (1, 2, 3):
        harness.beat(node, {node * 100 + 1: OFF}, generation=2)
    assert harness.states(7) == [(301, "LASTSRV"), (101, "OFFLINE"), (201, "OFFLINE")]
    for node in (1, 2, 3):
        harness.beat(node, {node * 100 + 1: ON}, generation=2)
    harness.settle()
    assert harness.states(7)[0] == (301, "SERVING")


def test_a_target_that_is_not_reported_is_lost(harness: Any) -> None:
    three_replicas(harness)
    harness.beat(1, {})
    assert harness.states(7)[2] == (101, "OFFLINE")


def test_restart_of_mgmtd_loses_nothing_and_gives_a_grace_period(harness: Any) -> None:
    three_replicas(harness)
    harness.do(operator.set_chain_table(harness.cluster, 1, [7], "first")[0])
    before = harness.cluster.delta(0)
    published = harness.cluster.version
    harness.clock.advance(60)  # mgmtd is away for a minute
    harness.load()
    assert harness.cluster.version > published
    after = harness.cluster.delta(0)
    for field in ("chains", "chain_tables"):
        assert list(getattr(after, field)) == list(getattr(before, field))
    assert [node.node_id for node in after.nodes] == [1, 2, 3]
    assert all(node.alive for node in after.nodes)
    harness.tick(4)
    assert harness.states(7) == [(101, "SERVING"), (201, "SERVING"), (301, "SERVING")]
    harness.beat(1, {101: UP})
    harness.beat(2, {201: UP})
    harness.tick(2)
    assert harness.states(7) == [(101, "SERVING"), (201, "SERVING"), (301, "OFFLINE")]


def test_a_worker_that_restarted_while_mgmtd_was_away_is_seen_offline_first(harness: Any) -> None:
    three_replicas(harness)
    harness.load()
    harness.beat(2, {201: UP}, generation=2)
    assert harness.states(7)[2] == (201, "OFFLINE")


def test_time_in_which_mgmtd_stood_still_counts_against_no_one(harness: Any) -> None:
    three_replicas(harness)
    harness.tick()
    harness.clock.advance(30)  # stopped by a debugger, or the host slept
    harness.do(harness.cluster.tick(harness.clock.monotonic_s()))
    assert harness.cluster.chains[7].version == 1
    harness.tick(6)
    assert harness.cluster.chains[7].version == 2


def test_disabling_takes_a_node_out(harness: Any) -> None:
    three_replicas(harness)
    harness.do(harness.cluster.set_disabled(1, True))
    assert harness.states(7)[2] == (101, "OFFLINE")
    with pytest.raises(FfsError) as failure:
        harness.beat(1, {101: UP})
    assert code_of(failure) is Code.NODE_DISABLED
    harness.do(harness.cluster.set_disabled(1, False))
    harness.beat(1, {101: ON})
    assert harness.states(7)[2] == (101, "SYNCING")


def test_unknown_and_mistyped_nodes_are_refused(harness: Any) -> None:
    with pytest.raises(FfsError) as failure:
        harness.beat(9, {})
    assert code_of(failure) is Code.UNKNOWN_NODE
    harness.register(1, [101])
    with pytest.raises(FfsError) as failure:
        harness.cluster.register_node(1, 2, "")
    assert code_of(failure) is Code.EXISTS
    assert not harness.cluster.register_node(1, 3, "host1"), "the same again changes nothing"


def test_a_node_goes_only_when_nothing_needs_it(harness: Any) -> None:
    three_replicas(harness)
    with pytest.raises(FfsError, match="alive") as failure:
        harness.cluster.unregister_node(1)
    assert code_of(failure) is Code.BUSY
    harness.beat(1, {101: OFF}, stopping=True)
    with pytest.raises(FfsError, match="chain 7"):
        harness.cluster.unregister_node(1)
    harness.do(operator.update_chain(harness.cluster, 7, 101, mgmtd_pb2.UPDATE_CHAIN_REMOVE))
    since = harness.cluster.version
    harness.do(harness.cluster.unregister_node(1))
    delta = harness.cluster.delta(since)
    assert not delta.full
    assert list(delta.removed_nodes) == [1]
    assert list(delta.removed_targets) == [101]
    harness.load()
    assert 1 not in harness.cluster.nodes
    assert 101 not in harness.cluster.targets


def test_a_target_is_moved_only_when_nobody_serves_it(harness: Any) -> None:
    three_replicas(harness)
    with pytest.raises(FfsError) as failure:
        harness.cluster.register_target(101, 2, 0, "")
    assert code_of(failure) is Code.BUSY
    changes = harness.beat(2, {201: UP, 101: UP})
    assert any("belongs to node 1" in reason for reason in changes.reasons)
    assert harness.cluster.targets[101].node_id == 1
    harness.beat(2, {201: UP, 202: ON})
    assert harness.cluster.targets[202].node_id == 2, "a registered node vouches for new targets"


def test_a_resync_takes_a_serving_target_out_and_back_and_never_the_last(harness: Any) -> None:
    three_replicas(harness)
    resync = mgmtd_pb2.UPDATE_CHAIN_RESYNC
    with pytest.raises(FfsError) as failure:
        operator.update_chain(harness.cluster, 7, 999, resync)
    assert code_of(failure) is Code.INVALID
    harness.do(operator.update_chain(harness.cluster, 7, 101, resync))
    assert harness.states(7) == [(201, "SERVING"), (301, "SERVING"), (101, "OFFLINE")]
    harness.do(operator.update_chain(harness.cluster, 7, 301, resync))
    for target_id in (201, 101):
        with pytest.raises(FfsError) as failure:
            operator.update_chain(harness.cluster, 7, target_id, resync)
        assert code_of(failure) is Code.BUSY
    harness.beat(1, {101: ON})  # it has seen that it was demoted
    assert harness.states(7)[1] == (101, "SYNCING")
    harness.beat(1, {101: UP})
    harness.beat(3, {301: ON})
    harness.beat(3, {301: UP})
    assert harness.states(7) == [(201, "SERVING"), (101, "SERVING"), (301, "SERVING")]


def test_chains_change_one_target_at_a_time(harness: Any) -> None:
    three_replicas(harness)
    harness.register(4, [401])
    cluster = harness.cluster
    with pytest.raises(FfsError, match="already in chain 7"):
        operator.update_chain(cluster, 7, 101, mgmtd_pb2.UPDATE_CHAIN_ADD)
    harness.do(operator.update_chain(cluster, 7, 401, mgmtd_pb2.UPDATE_CHAIN_ADD))
    assert harness.states(7)[3] == (401, "OFFLINE")
    harness.beat(4, {401: OFF})
    harness.beat(4, {401: ON})
    assert harness.states(7)[3] == (401, "SYNCING")
    harness.beat(4, {401: UP})
    harness.do(operator.update_chain(cluster, 7, 101, mgmtd_pb2.UPDATE_CHAIN_REMOVE))
    assert harness.states(7) == [(201, "SERVING"), (301, "SERVING"), (401, "SERVING")]
    for node in (2, 3):
        harness.beat(node, {node * 100 + 1: OFF}, stopping=True)
    with pytest.raises(FfsError) as failure:
        operator.update_chain(cluster, 7, 401, mgmtd_pb2.UPDATE_CHAIN_REMOVE)
    assert code_of(failure) is Code.BUSY


def test_rotation_through_the_whole_cycle(harness: Any) -> None:
    three_replicas(harness)
    harness.beat(1, {101: OFF}, generation=2)
    harness.beat(1, {101: ON}, generation=2)
    harness.beat(1, {101: UP}, generation=2)
    assert [target for target, _ in harness.states(7)] == [201, 301, 101]
    for _ in range(5):
        changes = harness.do(operator.update_chain(harness.cluster, 7, 0, mgmtd_pb2.UPDATE_CHAIN_ROTATE))
        if not changes:
            break
        moved = harness.states(7)[2][0]
        harness.beat(moved // 100, {moved: ON}, generation=2 if moved == 101 else 1)
        harness.beat(moved // 100, {moved: UP}, generation=2 if moved == 101 else 1)
    assert [target for target, _ in harness.states(7)] == [101, 201, 301]


def test_bad_chains_and_tables_are_refused_with_every_problem(harness: Any) -> None:
    three_replicas(harness)
    harness.register(4, [401, 402])
    spec = mgmtd_pb2.ChainSpec
    bad = [
        spec(chain_id=0, targets=[401]),
        spec(chain_id=8, targets=[401, 402]),
        spec(chain_id=9, targets=[101, 999]),
        spec(chain_id=9, targets=[]),
    ]
    with pytest.raises(FfsError) as failure:
        operator.set_chains(harness.cluster, bad)
    for part in ("chain id is 1", "both on node 4", "already in chain 7", "999 is not registered", "given twice"):
        assert part in failure.value.message
    with pytest.raises(FfsError) as failure:
        operator.set_chains(harness.cluster, [spec(chain_id=7, targets=[101, 201])])
    assert code_of(failure) is Code.EXISTS
    again = [spec(chain_id=7, targets=[301, 101, 201])]
    assert not operator.set_chains(harness.cluster, again), "the same targets: nothing to do"
    assert operator.set_chains(harness.cluster, again, set_preferred_order=True)
    with pytest.raises(FfsError, match="chain 8 does not exist"):
        operator.set_chain_table(harness.cluster, 1, [7, 8], "")
    with pytest.raises(FfsError, match="given twice"):
        operator.set_chain_table(harness.cluster, 1, [7, 7], "")


def test_deltas_lead_to_the_same_routing_as_everything(harness: Any) -> None:
    routing = Routing()
    seen: list[int] = []

    def follow() -> None:
        nonlocal routing
        routing = apply_delta(routing, harness.cluster.delta(routing.version))
        seen.append(routing.version)
        full = apply_delta(Routing(), harness.cluster.delta(0))
        assert routing.chains == full.chains
        assert routing.addresses == full.addresses
        assert {n: t.public_state for n, t in routing.targets.items()} == {
            n: t.public_state for n, t in full.targets.items()
        }
        assert {n: v.alive for n, v in routing.nodes.items()} == {n: v.alive for n, v in full.nodes.items()}

    follow()
    three_replicas(harness)
    follow()
    harness.beat(1, {101: OFF}, generation=2)
    follow()
    harness.tick(7)
    follow()
    harness.load()
    follow()
    assert seen == sorted(set(seen))


def test_a_delta_names_only_what_changed_and_old_readers_get_everything(harness: Any) -> None:
    three_replicas(harness)
    since = harness.cluster.version
    assert not harness.cluster.delta(since).chains
    harness.beat(1, {101: OFF}, stopping=True)
    delta = harness.cluster.delta(since)
    assert not delta.full
    assert [node.node_id for node in delta.nodes] == [1]
    assert [chain.chain_id for chain in delta.chains] == [7]
    for number in range(REMOVALS_KEPT_MAX + 1):
        harness.do(harness.cluster.register_node(1000 + number, 3, ""))
        harness.do(harness.cluster.unregister_node(1000 + number))
    assert harness.cluster.delta(since).full
    assert harness.cluster.delta(harness.cluster.version + 5).full


def test_progress_is_told_and_is_no_new_version(harness: Any) -> None:
    three_replicas(harness)
    version = harness.cluster.version
    for done in (1, 2, 3):
        harness.sequence += 1
        request = mgmtd_pb2.HeartbeatRequest(node_id=1, type=3, generation=1, sequence=harness.sequence)
        request.endpoint.tcp = "127.0.0.1:9001"
        report = request.targets.add(
            target_id=101,
            local_state=3,
            chain_version=1,
            capacity_bytes=1000,
            free_bytes=900,
            resync_done_chunks=done,
            resync_total_chunks=3,
        )
        report.scrub.done_chunks = 7 * done
        report.scrub.damaged_chunks = done - 1
        harness.do(harness.cluster.heartbeat(request, harness.clock.monotonic_s(), 0))
        assert harness.cluster.version == version
        info = next(target for target in harness.cluster.delta(0).targets if target.target_id == 101)
        assert (info.resync_done_chunks, info.resync_total_chunks) == (done, 3)
        assert (info.scrub.done_chunks, info.scrub.damaged_chunks) == (7 * done, done - 1)


def test_free_space_alone_is_no_new_version_until_it_matters(harness: Any) -> None:
    three_replicas(harness)
    version = harness.cluster.version
    request = mgmtd_pb2.HeartbeatRequest()
    for free_bytes, changed in ((895, False), (800, True)):
        harness.sequence += 1
        request = mgmtd_pb2.HeartbeatRequest(node_id=1, type=3, generation=1, sequence=harness.sequence)
        request.endpoint.tcp = "127.0.0.1:9001"
        request.targets.add(target_id=101, local_state=3, chain_version=1, capacity_bytes=1000, free_bytes=free_bytes)
        harness.do(harness.cluster.heartbeat(request, harness.clock.monotonic_s(), 0))
        assert (harness.cluster.version > version) is changed
        assert harness.cluster.target_info(101).free_bytes == free_bytes
