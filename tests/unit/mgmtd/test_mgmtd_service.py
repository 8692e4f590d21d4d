"""mgmtd over gRPC, with the real clients: every rpc, long polls, a restart, membership."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fireflyfs.client.membership import Membership
from fireflyfs.client.mgmtd_client import AsyncMgmtdClient, MgmtdClient
from fireflyfs.client.routing import Routing
from fireflyfs.client.routing_source import AsyncRoutingSource, RoutingSource
from fireflyfs.common import config
from fireflyfs.common.clock import ManualClock, SystemClock
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.kv.memory import MemoryKv
from fireflyfs.common.kv.rocksdb import RocksKv
from fireflyfs.mgmtd.core.leases import LeaseTable
from fireflyfs.mgmtd.server import MgmtdConfig, MgmtdServer
from fireflyfs.mgmtd.service import MgmtdService
from fireflyfs.proto import mgmtd_pb2 as pb
from fireflyfs.proto.common_pb2 import NODE_TYPE_CLIENT, NODE_TYPE_META, NODE_TYPE_STORAGE, Endpoint

CLUSTER = "test"


def with_server(
    body: Callable[[MgmtdServer, AsyncMgmtdClient], Awaitable[None]],
    *,
    parsers: dict[int, Callable[[str], object]] | None = None,
) -> None:
    async def go() -> None:
        server = MgmtdServer(MgmtdConfig(CLUSTER, kv="memory", grpc_port=0), engine=MemoryKv(), config_parsers=parsers)
        await server.start()
        client = AsyncMgmtdClient([server.address], CLUSTER, patience_s=2)
        try:
            await asyncio.wait_for(body(server, client), 20)
        finally:
            await client.close()
            await server.stop()

    asyncio.run(go())


async def refused(call: Awaitable[Any]) -> Code:
    with pytest.raises(FfsError) as failure:
        await call
    return failure.value.code


def test_nodes_targets_chains_and_tables() -> None:
    async def body(server: MgmtdServer, client: AsyncMgmtdClient) -> None:
        assert (await client.get_cluster_info()).cluster_id == CLUSTER
        for node in (1, 2):
            info = await client.register_node(pb.RegisterNodeRequest(node_id=node, type=NODE_TYPE_STORAGE))
            assert info.node_id == node
            target = await client.register_target(
                pb.RegisterTargetRequest(target_id=node * 100, node_id=node, path="/data")
            )
            assert target.path == "/data"
        await client.set_chains(pb.SetChainsRequest(chains=[pb.ChainSpec(chain_id=1, targets=[100, 200])]))
        reply = await client.set_chain_table(pb.SetChainTableRequest(table_id=1, chains=[1], description="d"))
        assert reply.version == 1
        routing = await client.routing()
        assert routing.full
        assert routing.chain_tables[0].replicas == 2
        assert await refused(client.register_node(pb.RegisterNodeRequest(node_id=0, type=3))) is Code.INVALID
        assert await refused(client.register_node(pb.RegisterNodeRequest(node_id=5, type=5))) is Code.INVALID
        assert await refused(client.unregister_node(pb.UnregisterNodeRequest(node_id=1))) is Code.BUSY
        assert await refused(client.unregister_node(pb.UnregisterNodeRequest(node_id=9))) is Code.UNKNOWN_NODE
        assert (
            await refused(client.update_chain(pb.UpdateChainRequest(chain_id=1, target_id=3, kind=1))) is Code.INVALID
        )
        began_s = time.monotonic()
        missing = client.update_chain(pb.UpdateChainRequest(chain_id=77, target_id=100, kind=1))
        assert await refused(missing) is Code.NO_CHAIN
        assert time.monotonic() - began_s < 1.5  # not asked again until patience (2 s) is out
        info = await client.set_node_disabled(pb.SetNodeDisabledRequest(node_id=1, disabled=True))
        assert info.disabled

    with_server(body)


def test_a_change_of_a_chain_whose_answer_was_lost_is_not_made_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    update = MgmtdService.update_chain

    async def lost(self: MgmtdService, request: pb.UpdateChainRequest) -> pb.ChainInfo:
        asked.append(request.kind)
        await update(self, request)
        raise error(Code.UNAVAILABLE, "the connection broke")

    monkeypatch.setattr(MgmtdService, "update_chain", lost)

    async def body(_server: MgmtdServer, client: AsyncMgmtdClient) -> None:
        for node in (1, 2, 3):
            await client.register_node(pb.RegisterNodeRequest(node_id=node, type=NODE_TYPE_STORAGE))
            await client.register_target(pb.RegisterTargetRequest(target_id=node * 100, node_id=node, path="/data"))
        await client.set_chains(pb.SetChainsRequest(chains=[pb.ChainSpec(chain_id=1, targets=[100, 200])]))
        add = pb.UpdateChainRequest(chain_id=1, target_id=300, kind=pb.UPDATE_CHAIN_ADD)
        with pytest.raises(FfsError, match="whether UpdateChain was carried out is not known") as unknown:
            await client.update_chain(add)
        assert unknown.value.code is Code.UNAVAILABLE
        assert asked == [pb.UPDATE_CHAIN_ADD]
        (chain,) = (await client.routing()).chains
        assert len(chain.targets) == 3
        # Who says which version is meant may ask again: it is refused once it is done.
        remove = pb.UpdateChainRequest(chain_id=1, target_id=300, kind=pb.UPDATE_CHAIN_REMOVE)
        remove.expected_version = chain.chain_version
        with pytest.raises(FfsError, match=f"at version {chain.chain_version + 1}, not {chain.chain_version}") as done:
            await client.update_chain(remove)
        assert done.value.code is Code.BUSY
        assert asked == [pb.UPDATE_CHAIN_ADD, pb.UPDATE_CHAIN_REMOVE, pb.UPDATE_CHAIN_REMOVE]
        (chain,) = (await client.routing()).chains
        assert len(chain.targets) == 2

    with_server(body)


def test_another_cluster_is_refused_by_every_method() -> None:
    async def body(server: MgmtdServer, client: AsyncMgmtdClient) -> None:
        foreign = AsyncMgmtdClient([server.address], "other", patience_s=1)
        calls = [
            foreign.heartbeat(pb.HeartbeatRequest()),
            foreign.get_routing(pb.GetRoutingRequest()),
            foreign.register_node(pb.RegisterNodeRequest()),
            foreign.unregister_node(pb.UnregisterNodeRequest()),
            foreign.set_node_disabled(pb.SetNodeDisabledRequest()),
            foreign.register_target(pb.RegisterTargetRequest()),
            foreign.set_chains(pb.SetChainsRequest()),
            foreign.set_chain_table(pb.SetChainTableRequest()),
            foreign.update_chain(pb.UpdateChainRequest()),
            foreign.set_config(pb.SetConfigRequest()),
            foreign.get_config(pb.GetConfigRequest()),
            foreign.list_configs(pb.ListConfigsRequest()),
            foreign.extend_session(pb.ExtendSessionRequest()),
            foreign.list_sessions(pb.ListSessionsRequest()),
        ]
        for call in calls:
            assert await refused(call) is Code.WRONG_CLUSTER
        await foreign.close()

    with_server(body)


def test_configurations_have_versions_and_are_checked() -> None:
    def parser(content: str) -> None:
        if "bad" in content:
            raise FfsError(Code.CONFIG, "unknown key bad")

    async def body(server: MgmtdServer, client: AsyncMgmtdClient) -> None:
        empty = await client.get_config(pb.GetConfigRequest(type=NODE_TYPE_STORAGE))
        assert empty.version == 0
        for number in (1, 2):
            stored = await client.set_config(pb.SetConfigRequest(type=NODE_TYPE_STORAGE, content=f"a = {number}"))
            assert stored.version == number
        newest = await client.get_config(pb.GetConfigRequest(type=NODE_TYPE_STORAGE))
        assert newest.content == "a = 2"
        first = await client.get_config(pb.GetConfigRequest(type=NODE_TYPE_STORAGE, version=1))
        assert first.content == "a = 1"
        assert [c.version for c in (await client.list_configs(pb.ListConfigsRequest())).configs] == [2, 1]
        for content, expected in (
            ("a = ", Code.CONFIG),
            ("bad = 1", Code.CONFIG),
            ("a = '" + "x" * 300_000, Code.TOO_LARGE),
        ):
            assert await refused(client.set_config(pb.SetConfigRequest(type=3, content=content))) is expected
        stale = pb.SetConfigRequest(type=NODE_TYPE_STORAGE, content="a = 3", expected_version=1)
        assert await refused(client.set_config(stale)) is Code.BUSY
        missing = pb.GetConfigRequest(type=NODE_TYPE_STORAGE, version=9)
        assert await refused(client.get_config(missing)) is Code.NO_ENTRY

    with_server(body, parsers={NODE_TYPE_STORAGE: parser})


def test_leases_over_the_wire() -> None:
    async def body(server: MgmtdServer, client: AsyncMgmtdClient) -> None:
        session = pb.ClientSession(client_id=b"c" * 16, type=NODE_TYPE_CLIENT, hostname="h")
        reply = await client.extend_session(pb.ExtendSessionRequest(session=session))
        assert reply.lease_ms == 60_000
        listed = await client.list_sessions(pb.ListSessionsRequest())
        assert [s.hostname for s in listed.sessions] == ["h"]
        assert not listed.complete
        await client.extend_session(pb.ExtendSessionRequest(session=session, closing=True))
        assert not (await client.list_sessions(pb.ListSessionsRequest())).sessions
        short = pb.ExtendSessionRequest(session=pb.ClientSession(client_id=b"c"))
        assert await refused(client.extend_session(short)) is Code.INVALID

    with_server(body)


def test_lease_rules() -> None:
    clock = ManualClock()
    leases = LeaseTable(10, clock.monotonic_s(), sessions_max=2)
    for name in (b"a", b"b"):
        leases.extend(pb.ClientSession(client_id=name * 16), clock.monotonic_s(), 1)
        for _ in range(6 if name == b"a" else 3):
            clock.advance(1)
            assert not leases.expire(clock.monotonic_s())
    clock.advance(2)
    with pytest.raises(FfsError):
        leases.extend(pb.ClientSession(client_id=b"c" * 16), clock.monotonic_s(), 1)
    assert [s.client_id for s in leases.sessions(clock.monotonic_s())] == [b"b" * 16]
    assert leases.complete(clock.monotonic_s())
    leases.extend(pb.ClientSession(client_id=b"b" * 16), clock.monotonic_s(), 2)
    assert [s.client_id for s in leases.expire(clock.monotonic_s())] == [b"a" * 16]
    assert leases.sessions(clock.monotonic_s())[0].start_unix_ns == 1


def test_connections_over_absurdly_many_links_are_refused() -> None:
    leases = LeaseTable(10, 0.0)
    leases.extend(pb.ClientSession(client_id=b"a" * 16, links={"tcp": 3, "shm": 1}), 0.0, 1)
    assert leases.sessions(0.0)[0].links == {"tcp": 3, "shm": 1}
    with pytest.raises(FfsError) as caught:
        leases.extend(pb.ClientSession(client_id=b"a" * 16, links={f"l{n}": n for n in range(9)}), 0.0, 1)
    assert caught.value.code is Code.INVALID


def test_time_in_which_mgmtd_stood_still_takes_no_lease() -> None:
    clock = ManualClock()
    leases = LeaseTable(10, clock.monotonic_s())
    leases.extend(pb.ClientSession(client_id=b"a" * 16), clock.monotonic_s(), 1)
    clock.advance(1)
    assert leases.expire(clock.monotonic_s()) == []
    clock.advance(60)
    assert len(leases.sessions(clock.monotonic_s())) == 1, "who asks before anybody could be heard"
    assert not leases.complete(clock.monotonic_s())
    assert leases.expire(clock.monotonic_s()) == []
    assert len(leases.sessions(clock.monotonic_s())) == 1
    for _ in range(9):
        assert leases.expire(clock.monotonic_s()) == []
        clock.advance(1)
    assert [s.client_id for s in leases.expire(clock.monotonic_s())] == [b"a" * 16]
    assert leases.complete(clock.monotonic_s())


def test_a_long_poll_ends_with_the_next_change_and_not_before() -> None:
    async def body(server: MgmtdServer, client: AsyncMgmtdClient) -> None:
        version = (await client.routing()).version
        poll = asyncio.ensure_future(client.get_routing(pb.GetRoutingRequest(since_version=version, wait_ms=10_000)))
        done, _ = await asyncio.wait({poll}, timeout=0.2)
        assert not done
        await client.register_node(pb.RegisterNodeRequest(node_id=1, type=NODE_TYPE_META))
        delta = await asyncio.wait_for(poll, 2)
        assert not delta.full
        assert [node.node_id for node in delta.nodes] == [1]
        unchanged = await client.get_routing(pb.GetRoutingRequest(since_version=delta.version, wait_ms=50))
        assert unchanged.version == delta.version
        assert not unchanged.nodes

    with_server(body)


def test_membership_beats_follows_and_says_goodbye() -> None:
    async def body(server: MgmtdServer, client: AsyncMgmtdClient) -> None:
        seen: list[Routing] = []
        reports: list[pb.TargetReport] = [pb.TargetReport(target_id=100, local_state=pb.LOCAL_ONLINE)]
        member = Membership(
            client,
            1,
            NODE_TYPE_STORAGE,
            0,
            Endpoint(tcp="127.0.0.1:1"),
            lambda: reports,
            seen.append,
            SystemClock(),
            interval_s=0.1,
        )
        await member.start()
        await asyncio.sleep(0.3)
        assert member.last_error is not None, "not registered: refused, and it goes on"
        assert member.last_error.code is Code.UNKNOWN_NODE
        assert member.last_heartbeat_ok is None
        await client.register_node(pb.RegisterNodeRequest(node_id=1, type=NODE_TYPE_STORAGE))
        routing = await member.wait_until(lambda r: 100 in r.targets and r.nodes[1].alive, 5)
        assert routing.address(100).tcp == "127.0.0.1:1"
        async with asyncio.timeout(5):  # the news of it may overtake the heartbeat's own answer: two calls
            while member.last_heartbeat_ok is None:
                await asyncio.sleep(0.01)
        assert [r.version for r in seen] == sorted({r.version for r in seen})
        await client.set_chains(pb.SetChainsRequest(chains=[pb.ChainSpec(chain_id=1, targets=[100])]))
        await member.wait_until(lambda r: 1 in r.chains, 2)
        await member.stop(planned=True)
        assert not server.manager.cluster.nodes[1].alive
        assert server.manager.cluster.chains[1].members[0][1].name == "LASTSRV"
        assert seen[-1].chains[1].targets[0][1] == pb.PUBLIC_LASTSRV, "what it has under way must know that it is out"

    with_server(body)


def test_clients_wait_for_a_restarting_mgmtd_and_go_on(tmp_path: Path) -> None:
    """The same store and port after a stop: sources and membership go on by themselves, nothing is lost."""

    async def go() -> None:
        settings = MgmtdConfig(CLUSTER, kv_path=str(tmp_path), grpc_port=0)
        server = MgmtdServer(settings, engine=RocksKv(tmp_path))
        await server.start()
        port = int(server.address.rpartition(":")[2])
        client = AsyncMgmtdClient(["127.0.0.1:1", server.address], CLUSTER, patience_s=10)
        blocking = MgmtdClient([server.address], patience_s=10)
        assert await asyncio.to_thread(lambda: blocking.cluster_id) == CLUSTER
        source = RoutingSource(blocking, poll_wait_s=1)
        asynchronous = AsyncRoutingSource(client, poll_wait_s=1)
        await asynchronous.start()
        await client.register_node(pb.RegisterNodeRequest(node_id=1, type=NODE_TYPE_META))
        before = await asynchronous.wait_until(lambda r: 1 in r.nodes, 5)
        await asyncio.to_thread(source.wait_until, lambda r: 1 in r.nodes, 5)
        await server.stop()

        waiting = asyncio.ensure_future(client.get_cluster_info())
        await asyncio.sleep(0.3)
        server = MgmtdServer(MgmtdConfig(CLUSTER, kv_path=str(tmp_path), grpc_port=port), engine=RocksKv(tmp_path))
        await server.start()
        assert (await waiting).routing_version > before.version
        await client.register_node(pb.RegisterNodeRequest(node_id=2, type=NODE_TYPE_META))
        after = await asynchronous.wait_until(lambda r: {1, 2} <= set(r.nodes), 5)
        assert after.version > before.version
        await asyncio.to_thread(source.wait_until, lambda r: {1, 2} <= set(r.nodes), 5)
        with pytest.raises(FfsError):
            await asyncio.to_thread(source.wait_until, lambda r: False, 0.05)
        await asynchronous.close()
        await asyncio.to_thread(source.close)
        await asyncio.to_thread(blocking.close)
        await client.close()
        await server.stop()

    asyncio.run(asyncio.wait_for(go(), 40))


def test_an_absent_mgmtd_is_an_error_after_some_patience() -> None:
    client = MgmtdClient(["127.0.0.1:1"], CLUSTER, patience_s=0.3)
    with pytest.raises(FfsError) as failure:
        client.get_cluster_info()
    assert failure.value.code in (Code.UNAVAILABLE, Code.TIMEOUT)
    client.close()
    with pytest.raises(FfsError):
        client.get_cluster_info()
    with pytest.raises(FfsError):
        MgmtdClient([" "])


def test_a_change_whose_caller_left_is_finished_before_the_next() -> None:
    async def body(server: MgmtdServer, client: AsyncMgmtdClient) -> None:
        manager = server.manager
        commits: list[int] = []
        real = manager.store.commit

        def slow(writes: Any, version: int) -> None:
            time.sleep(0.2)
            commits.append(version)
            real(writes, version)

        manager.store.commit = slow  # type: ignore[method-assign]
        first = asyncio.ensure_future(manager.change(lambda: manager.cluster.register_node(1, 2, "")))
        await asyncio.sleep(0.05)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        await manager.change(lambda: manager.cluster.register_node(2, 2, ""))
        assert set(manager.cluster.nodes) == {1, 2}
        assert commits == sorted(set(commits))

    with_server(body)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("failed_after_s = 1.0", "three times"),
        ('kv = "etcd"', "kv is"),
        ("tick_interval_s = 9.0", "quarter"),
        ("nonsense = 1", "unknown key nonsense"),
    ],
)
def test_bad_configuration_is_refused(text: str, part: str) -> None:
    with pytest.raises(FfsError, match=part):
        config.parse(MgmtdConfig, f'cluster_id = "c"\nkv_path = "/nowhere"\n{text}\n')
