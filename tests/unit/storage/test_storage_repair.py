"""Rot on a chain of replicas in one event loop: mended where a replica has the bytes, never read, and never a hole."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fireflyfs.common.errors import Code
from fireflyfs.proto import storage_pb2
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.background.pending import PendingResolver
from fireflyfs.storage.background.repair import SuspectRepair
from fireflyfs.storage.core.scrub import Outcome
from fireflyfs.storage.core.target import Local
from fireflyfs.storage.engine.interface import Update
from fireflyfs.storage.service import repair
from rot.replicas import (
    DATA,
    KEY,
    MakeCluster,
    MakeItem,
    S,
    X,
    Y,
    all_serve,
    chunk,
    demote,
    mend,
    read,
    resync,
    run,
    writer,
)


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("target_id", [10, 20, 30])
def test_a_read_that_meets_rot_gets_it_mended(
    make_cluster: MakeCluster, write_item: MakeItem, target_id: int, cold: bool
) -> None:
    async def scenario() -> None:
        cluster = make_cluster(3)
        await cluster.update(10, [write_item(0, DATA)], writer(1))
        before = chunk(cluster, target_id).committed
        server = cluster.servers[target_id]
        server.engine.cold = cold
        server.engine.rot(KEY, 9000)
        job = asyncio.ensure_future(SuspectRepair(server.replicas, server.service.repairer, server.target).run())
        assert (await read(cluster, target_id))[0] == Code.CHECKSUM
        async with asyncio.timeout(5):
            while (await read(cluster, target_id))[0]:
                await asyncio.sleep(0.001)
        assert await read(cluster, target_id) == (0, DATA)
        assert chunk(cluster, target_id).committed == before  # version, writer and chain version are what they were
        assert not chunk(cluster, target_id).rotten
        assert server.target.repaired == 1
        assert all_serve(cluster)
        job.cancel()
        await cluster.update(10, [write_item(0, b"goes on", 5)], writer(2))
        assert chunk(cluster, 10).committed == chunk(cluster, 20).committed == chunk(cluster, 30).committed
        cluster.close()

    run(scenario)


def test_rot_comes_and_goes_under_writers(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    """Partial overwrites and appends, which build on the bytes that go bad."""

    async def scenario() -> None:
        cluster = make_cluster(3)
        content = bytearray(DATA)
        await cluster.update(10, [write_item(0, DATA)], writer(1))
        stop = False

        async def spoil() -> None:
            turn = 0
            while not stop:
                target_id = (10, 20, 30)[turn % 3]
                if not any(server.engine.chunks[KEY].rotten for server in cluster.servers.values()):
                    turn += 1
                    cluster.servers[target_id].engine.rot(KEY, 4096 * (turn % 5))
                await mend(cluster, target_id)
                await asyncio.sleep(0)

        spoiler = asyncio.ensure_future(spoil())
        for number in range(2, 150):
            at = number * 977 % min(len(content), 60_000)
            data = bytes([number]) * (number * 31 % 5000 + 1)
            results = await cluster.update(10, [write_item(0, data, at)], writer(number))
            assert results[0].code is Code.OK
            content[at : at + len(data)] = data
        stop = True
        await spoiler
        for target_id in (10, 20, 30):
            await mend(cluster, target_id)
            assert await read(cluster, target_id, length=65_536) == (0, bytes(content))
        assert all_serve(cluster)
        assert sum(server.target.repaired for server in cluster.servers.values()) > 3
        cluster.close()

    run(scenario)


@pytest.mark.parametrize("target_id", [10, 20, 30])
def test_an_update_that_would_build_on_rot_is_stored_all_the_same(
    make_cluster: MakeCluster, write_item: MakeItem, target_id: int
) -> None:
    async def scenario() -> None:
        cluster = make_cluster(3)
        await cluster.update(10, [write_item(0, DATA)], writer(1))
        server = cluster.servers[target_id]
        server.engine.rot(KEY, 9000)
        results = await cluster.update(10, [write_item(0, b"small", 9100), write_item(1, b"other")], writer(2))
        assert [(result.code, result.version) for result in results] == [(Code.OK, 2), (Code.OK, 1)]
        after = DATA[:9100] + b"small" + DATA[9105:]
        for each in (10, 20, 30):
            assert await read(cluster, each) == (0, after)
            assert chunk(cluster, each).committed[0] == chunk(cluster, 10).committed[0]
        assert all_serve(cluster)
        cluster.close()

    run(scenario)


def test_an_update_that_waited_for_a_repair_through_a_change_of_the_chain_is_refused(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        await cluster.update(10, [write_item(0, DATA)], writer(1))
        tail = cluster.servers[20]
        tail.engine.rot(KEY, 9000)
        mend_it = tail.service.repairer.mend

        async def slow(*args: Any) -> Outcome:
            outcome: Outcome = await mend_it(*args)
            cluster.publish((10, S), (20, S))
            return outcome

        tail.service.repairer.mend = slow
        results = await cluster.update(10, [write_item(0, b"small", 9100)], writer(2))
        # The head sends it again along the newest chain, and then it is stored once.
        assert [(result.code, result.version) for result in results] == [(Code.OK, 2)]
        assert tail.replicas.counters["chunks_repaired"] == 1
        for target_id in (10, 20):
            assert await read(cluster, target_id) == (0, DATA[:9100] + b"small" + DATA[9105:])
        cluster.close()

    run(scenario)


def test_an_update_over_rot_that_nobody_can_help_with_changes_nothing(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        await cluster.update(10, [write_item(0, DATA)], writer(1))
        for server in cluster.servers.values():
            server.engine.rot(KEY, 0)
        results = await cluster.update(10, [write_item(0, b"small")], writer(2))
        assert results[0].code is Code.CHECKSUM
        for target_id, server in cluster.servers.items():
            assert server.target.state.local is Local.UPTODATE
            committed = chunk(cluster, target_id).committed[0]
            assert (committed.version, committed.length) == (1, len(DATA))
            assert chunk(cluster, target_id).pending is None
        whole = await cluster.update(10, [write_item(0, bytes(len(DATA)))], writer(3))
        assert whole[0].code is Code.OK
        assert await read(cluster, 10) == await read(cluster, 20) == (0, bytes(len(DATA)))
        cluster.close()

    run(scenario)


def test_pending_versions_are_left_alone(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(3)
        await cluster.update(10, [write_item(0, DATA)], writer(1))
        middle = cluster.servers[20]
        update = Update(KEY, UpdateKind.WRITE, 2, 1, 65536, 0, write_item(0, b"new", 20_080).extents, writer(2))
        middle.engine.apply([update])
        middle.engine.rot(KEY, 0)
        assert await mend(cluster, 20) is Outcome.LATER
        assert chunk(cluster, 20).pending is not None
        # The head sends it again: it is finished, and then there is a version to mend.
        results = await cluster.update(10, [write_item(0, b"new", 20_080)], writer(2))
        assert results[0].code is Code.OK
        middle.engine.rot(KEY, 0)
        assert await mend(cluster, 20) is Outcome.REPAIRED
        assert await read(cluster, 20) == (0, DATA + b"new")
        cluster.close()

    run(scenario)


def test_a_head_whose_pending_version_rots_leaves_it_to_the_next(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    """Nobody has committed it, so nobody can be asked for it; the others have it pending."""

    async def scenario() -> None:
        cluster = make_cluster(3)
        await cluster.update(10, [write_item(0, DATA)], writer(1))
        item = write_item(0, b"new", 100)
        update = Update(KEY, UpdateKind.WRITE, 2, cluster.version, 65536, 0, item.extents, writer(2))
        for target_id in (10, 20, 30):
            cluster.servers[target_id].engine.apply([update])
        chunk(cluster, 10).pending_rotten.add(0)

        def resolver(target_id: int) -> PendingResolver:
            server = cluster.servers[target_id]
            return PendingResolver(server.replicas, server.service.updater, server.target)

        assert await resolver(10).once() == 0
        assert cluster.servers[10].target.state.local is Local.OFFLINE
        cluster.publish((20, S), (30, S), (10, X))
        assert await resolver(20).once() == 1
        demote(cluster, 10, (20, S), (30, S), (10, Y))
        await resync(cluster, 30)
        cluster.publish((20, S), (30, S), (10, S))
        for target_id in (10, 20, 30):
            assert await read(cluster, target_id) == (0, DATA[:100] + b"new" + DATA[103:])
        cluster.close()

    run(scenario)


def test_a_version_that_the_others_have_pending_is_good_enough(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    """The tail has committed, the others have not heard of it yet, and the tail's copy goes bad."""

    async def scenario() -> None:
        cluster = make_cluster(3)
        await cluster.update(10, [write_item(0, DATA)], writer(1))
        item = write_item(0, b"new", 100)
        update = Update(KEY, UpdateKind.WRITE, 2, cluster.version, 65536, 0, item.extents, writer(2))
        for target_id in (10, 20, 30):
            cluster.servers[target_id].engine.apply([update])
        cluster.servers[30].engine.commit([(KEY, 2)], cluster.version)
        cluster.servers[30].engine.rot(KEY, 0)
        assert await mend(cluster, 30) is Outcome.REPAIRED
        assert await read(cluster, 30) == (0, DATA[:100] + b"new" + DATA[103:])
        assert chunk(cluster, 10).pending is not None
        cluster.close()

    run(scenario)


def test_replicas_with_rot_in_different_places_mend_each_other(
    make_cluster: MakeCluster, write_item: MakeItem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "PIECE_BYTES", 4096)

    async def scenario() -> None:
        cluster = make_cluster(2)
        await cluster.update(10, [write_item(0, DATA)], writer(1))
        cluster.servers[10].engine.rot(KEY, 0)
        cluster.servers[20].engine.rot(KEY, 20_000)
        assert await asyncio.gather(mend(cluster, 10), mend(cluster, 20)) == [Outcome.REPAIRED] * 2
        for target_id in (10, 20):
            assert await read(cluster, target_id) == (0, DATA)
        cluster.close()

    run(scenario)


def test_what_no_replica_has_is_damaged_and_no_hole(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(3)
        await cluster.update(10, [write_item(0, DATA), write_item(1, b"good")], writer(1))
        for server in cluster.servers.values():
            server.engine.rot(KEY, 9000)
        outcomes = await asyncio.gather(*(mend(cluster, target_id) for target_id in (10, 20, 30)))
        assert outcomes == [Outcome.LOST] * 3
        for target_id, server in cluster.servers.items():
            assert (await read(cluster, target_id))[0] == Code.CHECKSUM
            assert (await read(cluster, target_id, offset=30_000))[0] == Code.CHECKSUM
            assert await read(cluster, target_id, index=1) == (0, b"good")
            reply = await server.service.scrub(storage_pb2.ScrubRequest())
            (row,) = reply.targets
            assert row.report.damaged_chunks == 1
            assert [(found.chunk.inode, found.chunk.index, found.length) for found in row.damaged] == [
                (7, 0, len(DATA))
            ]
            space = (await server.service.space(storage_pb2.SpaceRequest())).targets[0]
            assert (space.chunks, space.damaged_chunks) == (2, 1)
        # What builds on it is refused on all of them, and they stay one chain.
        assert (await cluster.update(10, [write_item(0, b"x", 50)], writer(2)))[0].code is Code.CHECKSUM
        assert all_serve(cluster)
        last = storage_pb2.QueryLastChunkRequest(
            ranges=[storage_pb2.ChunkRange(chain_id=1, chain_version=cluster.version, inode=7, end=1)]
        )
        assert (await cluster.servers[10].service.query_last_chunk(last)).results[0].length == len(DATA)
        # Written whole it is a chunk like any other.
        assert (await cluster.update(10, [write_item(0, b"n" * len(DATA))], writer(3)))[0].code is Code.OK
        for target_id in (10, 20, 30):
            assert await read(cluster, target_id) == (0, b"n" * len(DATA))
            assert cluster.servers[target_id].engine.quarantined(10) == []
        cluster.close()

    run(scenario)


def test_a_replica_that_is_away_may_still_have_it(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        await cluster.update(10, [write_item(0, DATA)], writer(1))
        head = cluster.servers[10]
        head.engine.rot(KEY, 0)
        cluster.net.down.add("20")
        assert await mend(cluster, 10) is Outcome.LATER
        cluster.publish((10, S), (20, X))
        assert await mend(cluster, 10) is Outcome.LATER
        assert not chunk(cluster, 10).committed[0].damaged
        assert (await read(cluster, 10, offset=8192))[0] == 0  # what is good is read meanwhile
        cluster.net.down.clear()
        cluster.publish((10, S), (20, S))
        assert await mend(cluster, 10) is Outcome.REPAIRED
        cluster.close()

    run(scenario)


def test_damaged_chunks_are_tried_again_when_the_chain_changes(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        await cluster.update(10, [write_item(0, DATA)], writer(1))
        head = cluster.servers[10]
        head.engine.quarantine(KEY, "found when it was alone")
        job = asyncio.ensure_future(SuspectRepair(head.replicas, head.service.repairer, head.target).run())
        async with asyncio.timeout(5):
            while chunk(cluster, 10).committed[0].damaged:
                await asyncio.sleep(0.01)
        assert await read(cluster, 10) == (0, DATA)
        job.cancel()
        cluster.close()

    run(scenario)


def test_an_attempt_that_was_cut_off_is_no_obstacle(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    """The process died between storing the good bytes and committing them."""

    async def scenario() -> None:
        cluster = make_cluster(2)
        await cluster.update(10, [write_item(0, DATA)], writer(1))
        tail = cluster.servers[20]
        tail.engine.rot(KEY, 0)
        version = chunk(cluster, 20).committed[0]
        again = Update(KEY, UpdateKind.REPLACE, 1, 1, 65536, len(DATA), write_item(0, DATA).extents, version.writer)
        tail.engine.apply([again])
        assert await mend(cluster, 20) is Outcome.REPAIRED
        assert chunk(cluster, 20).pending is None
        assert await read(cluster, 20) == (0, DATA)
        cluster.close()

    run(scenario)


def test_replicas_that_disagree_mend_nothing(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        await cluster.update(10, [write_item(0, DATA)], writer(1))
        other = write_item(0, DATA[::-1])
        tail = cluster.servers[20].engine
        tail.apply([Update(KEY, UpdateKind.REPLACE, 1, 1, 65536, len(DATA), other.extents, writer(1))])
        tail.commit([(KEY, 1)], 1)
        cluster.servers[10].engine.rot(KEY, 0)
        assert await mend(cluster, 10) is Outcome.LATER
        assert (await read(cluster, 10))[0] == Code.CHECKSUM
        cluster.close()

    run(scenario)
