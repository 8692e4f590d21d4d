"""Routing is built from deltas, and refuses one that does not fit."""

from __future__ import annotations

import pytest

from fireflyfs.client.routing import Routing, apply_delta
from fireflyfs.common.errors import Code, GiveUp, RefreshRouting
from fireflyfs.proto import common_pb2, mgmtd_pb2


def full(version: int = 5) -> mgmtd_pb2.RoutingDelta:
    worker = mgmtd_pb2.WorkerInfo(worker=0, endpoint=common_pb2.Endpoint(tcp="127.0.0.1:1", host_id="h"), alive=True)
    return mgmtd_pb2.RoutingDelta(
        version=version,
        full=True,
        nodes=[mgmtd_pb2.NodeInfo(node_id=1, type=common_pb2.NODE_TYPE_STORAGE, alive=True, workers=[worker])],
        targets=[mgmtd_pb2.TargetInfo(target_id=11, node_id=1, chain_id=7)],
        chains=[
            chain(1, (11, mgmtd_pb2.PUBLIC_SERVING), (12, mgmtd_pb2.PUBLIC_OFFLINE), (13, mgmtd_pb2.PUBLIC_SYNCING))
        ],
    )


def chain(version: int, *members: tuple[int, mgmtd_pb2.PublicState]) -> mgmtd_pb2.ChainInfo:
    targets = [mgmtd_pb2.ChainTarget(target_id=target, state=state) for target, state in members]
    return mgmtd_pb2.ChainInfo(chain_id=7, chain_version=version, targets=targets)


def test_full_then_increment() -> None:
    first = apply_delta(Routing(), full())
    assert first.address(11).tcp == "127.0.0.1:1"
    assert first.chain(7).serving == (11,)
    delta = mgmtd_pb2.RoutingDelta(version=6, since_version=5, chains=[chain(2, (11, mgmtd_pb2.PUBLIC_SERVING))])
    second = apply_delta(first, delta)
    assert (second.version, second.chain(7).version, first.chain(7).version) == (6, 2, 1)
    assert second.targets[11] is first.targets[11]
    assert apply_delta(second, delta) is second


def test_increment_from_another_version_is_refused() -> None:
    with pytest.raises(GiveUp, match="starts at version 3") as caught:
        apply_delta(apply_delta(Routing(), full()), mgmtd_pb2.RoutingDelta(version=9, since_version=3))
    assert caught.value.code is Code.PROTOCOL


def test_removed_entries_go() -> None:
    delta = mgmtd_pb2.RoutingDelta(version=6, since_version=5, removed_chains=[7], removed_nodes=[1])
    routing = apply_delta(apply_delta(Routing(), full()), delta)
    assert not routing.chains
    assert not routing.addresses
    with pytest.raises(Exception, match="chain 7 is not in routing version 6"):
        routing.chain(7)
    with pytest.raises(RefreshRouting, match="no routing is known yet") as caught:
        Routing().chain(7)
    assert caught.value.code is Code.UNAVAILABLE


def test_successor_skips_what_is_not_live() -> None:
    routing = apply_delta(Routing(), full())
    assert routing.chain(7).successor(11) == (13, mgmtd_pb2.PUBLIC_SYNCING)
    assert routing.chain(7).successor(13) is None
    assert routing.chain(7).successor(12) is None
