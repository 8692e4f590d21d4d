"""Turns of events that a simulated cluster met and that broke a promise: each with the least that brings it about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.net.api import Address, Call
from fireflyfs.common.net.methods import Method
from fireflyfs.proto import storage_pb2
from fireflyfs.proto.storage_wire import CREATES, READ_IO, READ_RESULT, UpdateKind
from fireflyfs.storage.background.resync import Resync
from fireflyfs.storage.core import forward
from fireflyfs.storage.core.target import Local, Public, TargetState
from fireflyfs.storage.engine.interface import ChunkKey, Update, Writer
from fireflyfs.storage.service.wire import Item, Result, decode_results, encode_update

ALICE, BOB = b"a" * 16, b"b" * 16
S, Y, X = Public.SERVING, Public.SYNCING, Public.OFFLINE
KEY = ChunkKey(7, 0)
MakeCluster = Callable[[int], Any]
MakeItem = Callable[..., Item]


def writer(sequence: int, client: bytes = ALICE) -> Writer:
    return Writer(client, 1, sequence)


def run(scenario: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


def restart(cluster: Any, target_id: int) -> None:
    """A new process over the same engine, serving."""
    cluster.add(target_id, cluster.servers[target_id].engine)
    cluster.servers[target_id].target.state = TargetState(Local.UPTODATE, returning=False)


def committed(cluster: Any, target_id: int, key: ChunkKey = KEY) -> tuple[int, bytes] | None:
    chunk = cluster.servers[target_id].engine.chunks.get(key)
    return (chunk.committed[0].version, chunk.committed[1]) if chunk is not None and chunk.committed else None


async def read_status(cluster: Any, target_id: int) -> int:
    body = np.array([(7, 0, 1, cluster.version, 0, 100)], READ_IO).tobytes()
    into = memoryview(bytearray(100))
    reply = await cluster.net.call(Address(tcp=str(target_id)), Call(Method.STORAGE_READ, body, into=[into]))
    return int(np.frombuffer(reply.body, READ_RESULT)["status"][0])


async def forwarded(cluster: Any, to: int, item: Item, who: Writer) -> Result:
    body, pieces = encode_update(1, cluster.version, who, 0, [item])
    reply = await cluster.net.call(Address(tcp=str(to)), Call(Method.STORAGE_UPDATE, body, out=pieces, deadline_s=5))
    return decode_results(reply.body, 1)[0]


def test_a_request_is_known_again_when_every_replica_was_restarted(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    """The chunk names its last writer only, and that is another one by now."""

    async def scenario() -> None:
        cluster = make_cluster(2)
        first = await cluster.update(10, [write_item(0, b"alice")], writer(1))
        await cluster.update(10, [write_item(0, b"bob..")], writer(1, BOB))
        for target_id in (10, 20):
            restart(cluster, target_id)
        cluster.publish()
        again = await cluster.update(10, [write_item(0, b"alice")], writer(1))
        assert again == first
        assert committed(cluster, 10) == committed(cluster, 20) == (2, b"bob..")
        cluster.close()

    run(scenario)


def test_a_replica_that_was_brought_up_to_date_knows_what_was_done(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        cluster.publish((10, S), (20, X))
        first = await cluster.update(10, [write_item(0, b"alice")], writer(1))
        await cluster.update(10, [write_item(0, b"bob..")], writer(1, BOB))
        cluster.servers[20].target.set_state(TargetState(Local.ONLINE, returning=False))
        cluster.publish((10, S), (20, Y))
        head = cluster.servers[10]
        hop = forward.next_hop(head.target.chain, 10)
        job = Resync(head.replicas, head.service.updater, head.service.repairer, head.target)
        await job.once(head.target.chain, hop)
        cluster.publish((20, S), (10, X))
        again = await cluster.update(20, [write_item(0, b"alice")], writer(1))
        assert [(result.code, result.version) for result in again] == [(Code.OK, first[0].version)]
        assert committed(cluster, 20) == (2, b"bob..")
        cluster.close()

    run(scenario)


def test_an_update_that_waited_for_its_chunk_is_judged_by_the_newest_chain(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        local = cluster.servers[10].target
        async with local.locks.hold([KEY], 1.0):
            waiting = asyncio.ensure_future(cluster.update(10, [write_item(0, b"late")], writer(1)))
            await asyncio.sleep(0.05)
            cluster.publish((20, S), (10, X))
        with pytest.raises(FfsError) as caught:
            await waiting
        assert caught.value.code is Code.CHAIN_VERSION
        assert not cluster.servers[10].engine.chunks, "stored nothing: its time was over"
        cluster.close()

    run(scenario)


def test_a_repeated_request_that_waited_for_its_chunk_is_not_done_twice(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    """While it waited, another one finished what its first attempt had left pending."""

    async def scenario() -> None:
        cluster = make_cluster(2)
        local = cluster.servers[10].target
        async with local.locks.hold([KEY], 1.0):
            waiting = asyncio.ensure_future(cluster.update(10, [write_item(0, b"alice")], writer(1)))
            await asyncio.sleep(0.05)
            for number, (data, who) in enumerate([(b"alice", writer(1)), (b"bob..", writer(1, BOB))], 1):
                item = write_item(0, data)
                update = Update(KEY, UpdateKind.WRITE, number, cluster.version, 65536, 0, item.extents, who)
                for server in cluster.servers.values():
                    server.engine.apply([update])
                    server.engine.commit([(KEY, number)], cluster.version)
                    found = server.engine.chunks[KEY].committed[0]
                    result = Result(Code.OK, cluster.version, number, found.length, found.crc32c)
                    server.target.once.note(who, [(KEY, result)])
        assert [(result.code, result.version) for result in await waiting] == [(Code.OK, 1)]
        assert committed(cluster, 10) == committed(cluster, 20) == (2, b"bob..")
        cluster.close()

    run(scenario)


def test_an_update_ends_in_the_term_it_began_in(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    """Its replica left the chain and is the tail of it now: it may not acknowledge what it began as head."""

    async def scenario() -> None:
        cluster = make_cluster(2)
        cluster.net.hung.add("20")
        work = asyncio.ensure_future(cluster.update(10, [write_item(0, b"data")], writer(1)))
        await asyncio.sleep(0.1)
        # Faster than the waiting update comes to its turn.
        cluster.publish((20, S), (10, X))
        cluster.publish((20, S), (10, Y))
        cluster.servers[10].target.set_state(TargetState(Local.UPTODATE, returning=False))
        cluster.publish((20, S), (10, S))
        assert [result.code for result in await work] == [Code.TARGET_OFFLINE]
        assert committed(cluster, 10) is None
        cluster.close()

    run(scenario)


def test_a_late_forward_does_not_bring_a_removed_chunk_back(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        await cluster.update(10, [write_item(0, b"data")], writer(1))
        where = storage_pb2.ChunkRange(chain_id=1, chain_version=cluster.version, inode=7)
        await cluster.servers[10].service.remove_chunks(storage_pb2.RemoveChunksRequest(range=where))
        late = write_item(0, b"data")
        late.version, late.length = 1, CREATES
        assert (await forwarded(cluster, 20, late, writer(1))).code is Code.STALE_UPDATE
        assert committed(cluster, 20) is None
        # A new one goes on from there, so that it never looks like the old.
        assert (await cluster.update(10, [write_item(0, b"new")], writer(2)))[0].version == 3
        cluster.close()

    run(scenario)


def test_a_removal_that_was_done_leaves_alone_what_was_made_since(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        service = cluster.servers[10].service
        await cluster.update(10, [write_item(0, b"old")], writer(1))
        request = storage_pb2.RemoveChunksRequest(
            range=storage_pb2.ChunkRange(chain_id=1, chain_version=cluster.version, inode=7),
            client_id=ALICE,
            channel=5,
            sequence=1,
        )
        await service.remove_chunks(request)
        await cluster.update(10, [write_item(1, b"new")], writer(1, BOB))
        await service.remove_chunks(request)  # its answer was lost
        assert committed(cluster, 10, ChunkKey(7, 1)) == committed(cluster, 20, ChunkKey(7, 1)) == (1, b"new")
        # The same of one that found nothing to do.
        empty = storage_pb2.RemoveChunksRequest(range=request.range, client_id=ALICE, channel=5, sequence=2)
        empty.range.inode = 8
        await service.remove_chunks(empty)
        item = Item(ChunkKey(8, 0), UpdateKind.WRITE, 0, 65536, 0, 0, write_item(0, b"new").extents)
        await cluster.update(10, [item], writer(2, BOB))
        await service.remove_chunks(empty)
        assert committed(cluster, 20, ChunkKey(8, 0)) == (1, b"new")
        cluster.close()

    run(scenario)


def test_a_chunk_whose_first_version_is_under_way_is_not_missing(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        update = Update(KEY, UpdateKind.WRITE, 1, cluster.version, 65536, 0, write_item(0, b"data").extents, writer(1))
        cluster.servers[10].engine.apply([update])
        assert await read_status(cluster, 10) == Code.CHUNK_NOT_FOUND, "the tail has not committed it"
        cluster.servers[20].engine.apply([update])
        cluster.servers[20].engine.commit([(KEY, 1)], cluster.version)
        assert await read_status(cluster, 10) in (Code.OK, Code.CHUNK_PENDING), "somebody may have read it already"
        cluster.close()

    run(scenario)


def test_a_removal_that_the_tail_has_not_committed_hides_nothing(
    make_cluster: MakeCluster, write_item: MakeItem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took the place of the pending version that the tail said to be committed, before that was read."""

    async def scenario() -> None:
        cluster = make_cluster(2)
        await cluster.update(10, [write_item(0, b"old")], writer(1))
        new = Update(KEY, UpdateKind.WRITE, 2, cluster.version, 65536, 0, write_item(0, b"new").extents, writer(2))
        for target_id in (10, 20):
            cluster.servers[target_id].engine.apply([new])
        cluster.servers[20].engine.commit([(KEY, 2)], cluster.version)
        engine = cluster.servers[10].engine
        read = engine.read

        def overtaken(*arguments: Any, pending: bool = False, **how: Any) -> Any:
            if pending:
                monkeypatch.undo()
                engine.commit([(KEY, 2)], cluster.version)
                engine.apply([Update(KEY, UpdateKind.REMOVE, 3, cluster.version, 65536, 0, (), writer(3))])
            return read(*arguments, pending=pending, **how)

        monkeypatch.setattr(engine, "read", overtaken)
        assert await read_status(cluster, 10) == Code.OK
        cluster.close()

    run(scenario)


def test_a_new_tail_does_not_show_what_was_before_its_pending_version(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    """The tail that is gone may have shown readers the pending one."""

    async def scenario() -> None:
        cluster = make_cluster(3)
        await cluster.update(10, [write_item(0, b"old")], writer(1))
        update = Update(KEY, UpdateKind.WRITE, 2, cluster.version, 65536, 0, write_item(0, b"new").extents, writer(2))
        for target_id in (10, 20):
            cluster.servers[target_id].engine.apply([update])
        cluster.publish((10, S), (20, S), (30, X))
        assert await read_status(cluster, 20) == Code.CHUNK_PENDING
        assert await read_status(cluster, 10) == Code.CHUNK_PENDING
        cluster.close()

    run(scenario)


def test_a_replica_that_lacks_what_its_successor_has_committed_leaves_the_chain(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        update = Update(
            KEY, UpdateKind.WRITE, 1, cluster.version, 65536, 0, write_item(0, b"bob").extents, writer(1, BOB)
        )
        cluster.servers[20].engine.apply([update])
        cluster.servers[20].engine.commit([(KEY, 1)], cluster.version)
        results = await cluster.update(10, [write_item(0, b"alice")], writer(1))
        assert [result.code for result in results] == [Code.TARGET_OFFLINE]
        assert cluster.servers[10].target.state.local is Local.OFFLINE
        assert cluster.servers[20].target.state.local is Local.UPTODATE
        cluster.close()

    run(scenario)


def test_a_chain_that_nobody_serves_has_synced_nothing(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        cluster.publish((10, Public.LASTSRV), (20, X))
        syncing = asyncio.ensure_future(
            cluster.servers[10].service.sync_chains(storage_pb2.SyncChainsRequest(chains=[1]))
        )
        await asyncio.sleep(0.2)
        assert not syncing.done()
        cluster.publish((10, S), (20, X))
        await syncing
        assert cluster.servers[10].engine.syncs == 1
        cluster.close()

    run(scenario)


def test_a_sync_counts_only_under_the_same_version_of_the_chain(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    """One that has not heard of the newest chain may leave out a replica that has acknowledged writes."""

    async def scenario() -> None:
        cluster = make_cluster(3)
        cluster.publish((10, S), (20, S), (30, X), only=[10, 20])
        # The third still knows the chain in which it served.
        syncing = asyncio.ensure_future(
            cluster.servers[30].service.sync_chains(storage_pb2.SyncChainsRequest(chains=[1]))
        )
        await asyncio.sleep(0.2)
        assert not syncing.done()
        cluster.publish()
        await syncing
        assert cluster.servers[10].engine.syncs >= 1
        assert cluster.servers[20].engine.syncs >= 1
        cluster.close()

    run(scenario)


def test_a_replica_without_room_for_what_it_lacks_holds_nobody_up(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    """It is only being brought up to date: it leaves, and comes again later."""

    async def scenario() -> None:
        cluster = make_cluster(2)
        returning = cluster.servers[20]
        returning.engine.full = True
        cluster.publish((10, S), (20, X))
        returning.target.set_state(TargetState(Local.ONLINE, returning=False))
        cluster.publish((10, S), (20, Y))
        work = asyncio.ensure_future(cluster.update(10, [write_item(0, b"data")], writer(1)))
        while returning.target.state.local is not Local.OFFLINE:
            await asyncio.sleep(0.01)
        assert not work.done()
        cluster.publish((10, S), (20, X))
        assert [result.code for result in await work] == [Code.OK]
        assert returning.target.state.local is Local.OFFLINE, "at once it would fail again"
        returning.target.look_again()
        assert returning.target.state.local is Local.OFFLINE
        returning.target._rests_until_s = 1e-9
        returning.target.look_again()
        assert returning.target.state.local is Local.ONLINE
        cluster.close()

    run(scenario)


def test_a_write_over_a_pending_version_that_a_lost_tail_may_have_shown_waits(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    async def scenario() -> None:
        cluster = make_cluster(3)
        await cluster.update(10, [write_item(0, b"old")], writer(1))
        update = Update(KEY, UpdateKind.WRITE, 2, cluster.version, 65536, 0, write_item(0, b"NEW").extents, writer(2))
        cluster.servers[10].engine.apply([update])
        cluster.servers[20].engine.full = True
        cluster.publish((10, S), (20, S), (30, X))
        results = await cluster.update(10, [write_item(0, b"x")], writer(1, BOB))
        assert [result.code for result in results] == [Code.NO_SPACE]
        cluster.servers[20].engine.full = False
        await cluster.update(10, [write_item(0, b"x")], writer(2, BOB))
        assert committed(cluster, 10) == committed(cluster, 20) == (3, b"xEW")
        cluster.close()

    run(scenario)


def test_a_removal_takes_along_what_was_given_up_on_the_way(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    """The middle one had stored a write that the tail had no room for."""

    async def scenario() -> None:
        cluster = make_cluster(3)
        cluster.servers[30].engine.full = True
        results = await cluster.update(10, [write_item(0, b"data")], writer(1))
        assert [result.code for result in results] == [Code.NO_SPACE]
        item = Item(KEY, UpdateKind.REMOVE, 0, 65536, 0)
        assert [result.code for result in await cluster.update(10, [item], writer(2))] == [Code.OK]
        assert [server.engine.chunks for server in cluster.servers.values()] == [{}, {}, {}]
        cluster.close()

    run(scenario)


def test_an_update_is_stored_before_it_is_forwarded(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    """What the tail shows to readers must not be lost with a head that is killed and comes back first."""

    async def scenario() -> None:
        cluster = make_cluster(3)
        seen: list[tuple[str, bool]] = []
        for name, before in (("20", 10), ("30", 20)):
            handler = cluster.net.handlers[name][Method.STORAGE_UPDATE]

            async def arrives(request: Any, name: str = name, before: int = before, handler: Any = handler) -> None:
                chunk = cluster.servers[before].engine.chunks.get(KEY)
                seen.append((name, chunk is not None and chunk.pending is not None))
                await handler(request)

            cluster.net.handlers[name][Method.STORAGE_UPDATE] = arrives
        await cluster.update(10, [write_item(0, b"data")], writer(1))
        assert seen == [("20", True), ("30", True)]
        cluster.close()

    run(scenario)


def test_a_target_that_was_just_loaded_waits_for_mgmtds_word(make_cluster: MakeCluster) -> None:
    """Until it has seen its demotion, older routing may still show it serving."""

    async def scenario() -> None:
        cluster = make_cluster(2)
        engine = cluster.servers[20].engine
        loaded = cluster.add(20, engine).target
        loaded.look_again()
        assert loaded.state.local is Local.OFFLINE
        cluster.publish()
        assert loaded.state.local is Local.OFFLINE, "mgmtd has not noticed yet that it was away"
        cluster.publish((10, S), (20, X))
        assert loaded.state.local is Local.ONLINE
        cluster.close()

    run(scenario)


def test_what_was_given_up_is_not_left_out_once_a_late_copy_of_it_was_stored(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    """The tail had no room for it, then it had, and readers saw it: the update that takes its place comes too late."""

    async def scenario() -> None:
        cluster = make_cluster(2)
        tail = cluster.servers[20]
        await cluster.update(10, [write_item(0, b"old")], writer(1))
        tail.engine.full = True
        assert (await cluster.update(10, [write_item(0, b"X", 1)], writer(2)))[0].code is Code.NO_SPACE
        late = Update(KEY, UpdateKind.WRITE, 2, cluster.version, 65536, 0, write_item(0, b"X", 1).extents, writer(2))
        handler = cluster.net.handlers["20"][Method.STORAGE_UPDATE]
        calls = 0

        async def arrives(request: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:  # after the attempt to finish the pending one
                tail.engine.full = False
                tail.engine.apply([late])
                tail.engine.commit([(KEY, 2)], cluster.version)
            await handler(request)

        cluster.net.handlers["20"][Method.STORAGE_UPDATE] = arrives
        results = await cluster.update(10, [write_item(0, b"Y")], writer(1, BOB))
        assert calls == 2
        assert [result.code for result in results] == [Code.TARGET_OFFLINE]
        assert committed(cluster, 20) == (2, b"oXd")
        assert cluster.servers[10].target.state.local is Local.OFFLINE, "it comes back by a resync"
        cluster.close()

    run(scenario)
