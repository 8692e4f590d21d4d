"""Metadata requests through faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fireflyfs.client.cli.waiting import Notice
from fireflyfs.client.meta_client import MetaClient
from fireflyfs.client.retry import RetryPolicy
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.ids import ClientId
from fireflyfs.common.net.methods import service_methods
from fireflyfs.proto import meta_pb2

if TYPE_CHECKING:
    from conftest import FakeCluster, FakeContext


def test_every_rpc_has_a_method() -> None:
    for name in service_methods("META"):
        snake = "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")
        assert callable(getattr(MetaClient, snake)), snake


def test_the_operations_own_error_comes_at_once(cluster: FakeCluster, client: FakeContext) -> None:
    with pytest.raises(FfsError) as caught:
        client.meta.stat(meta_pb2.StatRequest(at=meta_pb2.PathAt(path=b"/missing")))
    assert caught.value.code is Code.NO_ENTRY
    assert cluster.waits == []


def test_a_lost_answer_is_asked_for_again_with_the_same_request_id(cluster: FakeCluster, client: FakeContext) -> None:
    client.open(b"/a").close()
    for server in cluster.meta_servers.values():
        server.requests.clear()
        server.lose_answers = 1
    client.meta.remove(meta_pb2.RemoveRequest(at=meta_pb2.PathAt(path=b"/a")))
    sent = [request for server in cluster.meta_servers.values() for request in server.requests]
    assert len({request.mutation.request_id for request in sent}) == 1  # type: ignore[attr-defined]
    assert sorted(request.mutation.retry for request in sent) == [False, *[True] * (len(sent) - 1)]  # type: ignore[attr-defined]


def test_the_other_server_answers_when_one_is_down(cluster: FakeCluster, client: FakeContext) -> None:
    cluster.meta_servers[1].down = True
    for number in range(5):
        client.open(b"/%d" % number).close()
    assert cluster.waits == []
    cluster.meta_servers[1].down, cluster.meta_servers[2].down = False, True
    client.open(b"/x").close()
    assert cluster.waits == []


def test_waits_for_servers_that_come_back(cluster: FakeCluster, client: FakeContext) -> None:
    for server in cluster.meta_servers.values():
        server.down = True

    def revive() -> None:
        if len(cluster.waits) == 5:
            cluster.meta_servers[2].down = False

    cluster.on_wait = revive
    client.open(b"/x").close()
    assert 5 <= len(cluster.waits) <= 7


def test_gives_up_at_the_deadline(cluster: FakeCluster) -> None:
    for server in cluster.meta_servers.values():
        server.down = True
    meta = MetaClient(
        cluster,
        cluster,
        ClientId(b"x" * 16),
        policy=RetryPolicy(deadline_s=3),
        clock=cluster.clock,
        sleep=cluster.sleep,
    )
    with pytest.raises(FfsError) as caught:
        meta.stat_fs(meta_pb2.StatFsRequest())
    assert caught.value.code is Code.TIMEOUT


def test_a_command_that_has_waited_in_vain_does_not_wait_again(cluster: FakeCluster) -> None:
    with Notice() as notice:
        meta = MetaClient(
            cluster,
            cluster,
            ClientId(b"x" * 16),
            policy=RetryPolicy(on_wait=notice.on_wait, on_give_up=notice.on_give_up),
            clock=cluster.clock,
            sleep=cluster.sleep,
        )
        for server in cluster.meta_servers.values():
            server.down = True
        for waited_s in (60, 0, 0):
            began_s = cluster.clock.monotonic_s()
            with pytest.raises(FfsError) as caught:
                meta.stat_fs(meta_pb2.StatFsRequest())
            assert caught.value.code is Code.TIMEOUT
            assert cluster.clock.monotonic_s() - began_s == pytest.approx(waited_s, abs=1.1)
        cluster.meta_servers[2].down = False  # one of two is enough, and what answers may ask for a pause
        cluster.meta_servers[2].refuse = [Code.TXN_CONFLICT]
        root = meta_pb2.StatRequest(at=meta_pb2.PathAt(path=b"/missing"))
        with pytest.raises(FfsError) as caught:
            meta.stat(root)
        assert caught.value.code is Code.NO_ENTRY


def test_conflicts_are_tried_again(cluster: FakeCluster, client: FakeContext) -> None:
    for server in cluster.meta_servers.values():
        server.refuse = [Code.TXN_CONFLICT, Code.TXN_UNKNOWN, Code.OVERLOADED]
    client.open(b"/x").close()
    assert len(cluster.waits) == 3
