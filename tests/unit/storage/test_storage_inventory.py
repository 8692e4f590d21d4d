"""What a check of the cluster asks of a storage worker: lists of chunks, and dropping exactly what was seen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from crc32c import crc32c

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.proto import storage_pb2
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.core.target import Public
from fireflyfs.storage.engine.interface import ChunkKey, Extent, Update, Writer
from fireflyfs.storage.service.wire import Item

MakeCluster = Callable[[int], Any]
MakeItem = Callable[..., Item]
ALICE, BOB = b"a" * 16, b"b" * 16


def run(scenario: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


async def listed(cluster: Any, target_id: int, **options: Any) -> storage_pb2.ListChunksReply:
    request = storage_pb2.ListChunksRequest(target_id=target_id, **options)
    reply: storage_pb2.ListChunksReply = await cluster.servers[target_id].service.list_chunks(request)
    return reply


def named(*indexes: int) -> list[storage_pb2.ChunkId]:
    return [storage_pb2.ChunkId(inode=7, index=index) for index in indexes]


async def drop(cluster: Any, seen: list[storage_pb2.SeenChunk], sequence: int = 1) -> list[int]:
    request = storage_pb2.DropChunksRequest(
        chain_id=1, chain_version=cluster.version, chunks=seen, client_id=BOB, channel=1, sequence=sequence
    )
    reply = await cluster.servers[10].service.drop_chunks(request)
    return list(reply.statuses)


async def seen_now(cluster: Any, *indexes: int, keep_bytes: int = 0) -> list[storage_pb2.SeenChunk]:
    reply = await listed(cluster, 10, chunks=named(*indexes))
    return [
        storage_pb2.SeenChunk(
            chunk=one.state.chunk, version=one.state.committed_version, writer=one.writer, keep_bytes=keep_bytes
        )
        for one in reply.chunks
    ]


def test_pages_follow_one_another_in_key_order(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        await cluster.update(10, [write_item(index, b"x" * (index + 1)) for index in range(7)], Writer(ALICE, 1, 1))
        for target_id in (10, 20):
            indexes: list[int] = []
            after = None
            while True:
                reply = await listed(cluster, target_id, after=after, limit=3)
                assert (reply.serving, reply.chain_id, reply.chain_version) == (True, 1, cluster.version)
                indexes += [one.state.chunk.index for one in reply.chunks]
                assert all(one.state.length == one.state.chunk.index + 1 for one in reply.chunks)
                assert not any(one.HasField("writer") or one.busy for one in reply.chunks)
                if not reply.more:
                    break
                after = reply.chunks[-1].state.chunk
            assert indexes == list(range(7))
        cluster.close()

    run(scenario)


def test_named_chunks_come_with_their_writers_and_missing_ones_empty(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    async def scenario() -> None:
        cluster = make_cluster(1)
        await cluster.update(10, [write_item(3, b"three")], Writer(ALICE, 4, 9))
        reply = await listed(cluster, 10, chunks=named(5, 3))
        missing, present = reply.chunks
        assert (missing.state.chunk.index, missing.state.committed_version, missing.state.pending_version) == (5, 0, 0)
        assert (present.state.chunk.index, present.state.committed_version) == (3, 1)
        assert (present.writer.client_id, present.writer.channel, present.writer.sequence) == (ALICE, 4, 9)
        with pytest.raises(FfsError) as caught:
            await listed(cluster, 10, chunks=named(*range(3000)))
        assert caught.value.code is Code.TOO_LARGE
        cluster.close()

    run(scenario)


def test_a_chunk_under_update_is_busy_and_a_pending_version_is_shown(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    async def scenario() -> None:
        cluster = make_cluster(1)
        await cluster.update(10, [write_item(0, b"one")], Writer(ALICE, 1, 1))
        server = cluster.servers[10]
        async with server.target.locks.hold([ChunkKey(7, 0)], 1):
            assert [one.busy for one in (await listed(cluster, 10, chunks=named(0, 1))).chunks] == [True, False]
        server.engine.apply([Update(ChunkKey(7, 0), UpdateKind.TRUNCATE, 2, 1, 65536, 1, [], Writer(BOB, 2, 3))])
        (one,) = (await listed(cluster, 10, chunks=named(0))).chunks
        assert (one.busy, one.state.pending_version, one.pending_writer.sequence) == (False, 2, 3)
        (one,) = (await listed(cluster, 10)).chunks
        assert one.state.pending_version == 2
        cluster.close()

    run(scenario)


def test_targets_that_do_not_serve_answer_and_say_so(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        await cluster.update(10, [write_item(0, b"one")], Writer(ALICE, 1, 1))
        cluster.publish((10, Public.SERVING), (20, Public.OFFLINE))
        reply = await listed(cluster, 20)
        assert (reply.serving, len(reply.chunks)) == (False, 1)
        cluster.heartbeat_age_s = 1000  # fenced: it may have left its chain without knowing
        assert not (await listed(cluster, 10)).serving
        with pytest.raises(FfsError) as caught:
            await cluster.servers[10].service.list_chunks(storage_pb2.ListChunksRequest(target_id=99))
        assert caught.value.code is Code.TARGET_OFFLINE
        cluster.close()

    run(scenario)


def test_dropping_removes_and_shortens_on_every_replica(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(3)
        await cluster.update(10, [write_item(index, b"0123456789") for index in range(3)], Writer(ALICE, 1, 1))
        seen = await seen_now(cluster, 0) + await seen_now(cluster, 1, keep_bytes=4)
        assert await drop(cluster, seen) == [0, 0]
        for server in cluster.servers.values():
            chunks = server.engine.chunks
            assert sorted(key.chunk_index for key in chunks) == [1, 2]
            assert chunks[ChunkKey(7, 1)].committed[1] == b"0123"
            assert chunks[ChunkKey(7, 2)].committed[1] == b"0123456789"
        assert await drop(cluster, seen) == [0, 0], "the same request again"
        assert await drop(cluster, await seen_now(cluster, 0), 2) == [0], "it is gone already"
        cluster.close()

    run(scenario)


def test_a_chunk_that_was_written_since_stays(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        await cluster.update(10, [write_item(0, b"old")], Writer(ALICE, 1, 1))
        seen = await seen_now(cluster, 0)
        await cluster.update(10, [write_item(0, b"new")], Writer(ALICE, 1, 2))
        assert await drop(cluster, seen) == [Code.STALE_UPDATE]
        # Removed and made anew: the same version number, the same bytes even, and another writer.
        await cluster.update(10, [Item(ChunkKey(7, 0), UpdateKind.REMOVE, 0, 65536, 0)], Writer(ALICE, 1, 3))
        cluster.publish(*cluster.states)  # under a new version of the chain, numbers start again
        await cluster.update(10, [write_item(0, b"old")], Writer(ALICE, 1, 4))
        (now,) = await seen_now(cluster, 0)
        assert now.version == seen[0].version
        assert await drop(cluster, seen, 2) == [Code.STALE_UPDATE]
        assert cluster.servers[20].engine.chunks[ChunkKey(7, 0)].committed[1] == b"old"
        with pytest.raises(FfsError) as caught:
            await drop(cluster, [now, now], 3)
        assert caught.value.code is Code.INVALID
        with pytest.raises(FfsError) as caught:
            await drop(cluster, [], 4)
        assert caught.value.code is Code.INVALID
        cluster.close()

    run(scenario)


async def see(cluster: Any, begin: int, keep_bytes: int = 0, limit: int = 0) -> storage_pb2.SeeChunksReply:
    where = storage_pb2.ChunkRange(chain_id=1, chain_version=cluster.version, inode=7, begin=begin)
    request = storage_pb2.SeeChunksRequest(range=where, keep_bytes=keep_bytes, limit=limit)
    reply: storage_pb2.SeeChunksReply = await cluster.servers[10].service.see_chunks(request)
    return reply


def indexes_of(reply: storage_pb2.SeeChunksReply) -> list[int]:
    return [one.chunk.index for one in reply.chunks]


def test_what_a_trim_sees_is_what_it_drops(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        await cluster.update(10, [write_item(index, b"x" * 10) for index in range(5)], Writer(ALICE, 1, 1))
        assert indexes_of(await see(cluster, 1)) == [1, 2, 3, 4]
        assert indexes_of(await see(cluster, 1, keep_bytes=10)) == [2, 3, 4]
        page = await see(cluster, 1, keep_bytes=10, limit=2)
        assert (indexes_of(page), page.more) == ([2, 3], True)  # what stays takes no room
        seen = list((await see(cluster, 1, keep_bytes=4)).chunks)
        await cluster.update(10, [write_item(3, b"y")], Writer(ALICE, 1, 2))
        assert await drop(cluster, seen) == [0, 0, Code.STALE_UPDATE, 0]
        assert indexes_of(await see(cluster, 0)) == [0, 1, 3]
        assert indexes_of(await see(cluster, 1, keep_bytes=4)) == [3]
        cluster.close()

    run(scenario)


def test_a_trim_does_not_pass_over_what_only_the_tail_has_committed(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    """A reader may have seen it: after the trim it must not be there."""

    async def scenario() -> None:
        cluster = make_cluster(1)
        engine = cluster.servers[10].engine
        engine.apply([Update(ChunkKey(7, 0), UpdateKind.WRITE, 1, 1, 65536, 0, [extent(b"one")], Writer(BOB, 2, 3))])
        for sequence in (1, 2):
            seen = list((await see(cluster, 0)).chunks)
            assert len(seen) == 1
            assert await drop(cluster, seen, sequence) == [Code.STALE_UPDATE if sequence == 1 else 0]
        assert not (await see(cluster, 0)).chunks
        cluster.close()

    run(scenario)


def extent(data: bytes) -> Extent:
    return Extent(0, memoryview(data), crc32c(data))
