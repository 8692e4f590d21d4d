"""Chunks copied from chain to chain by storage itself, and listed by range."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from fireflyfs.client.routing import Chain
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.limits import COPY_BYTES_MAX, COPY_PIECES_MAX
from fireflyfs.common.net.api import Address, Call
from fireflyfs.common.net.methods import Method
from fireflyfs.proto import mgmtd_pb2, storage_pb2
from fireflyfs.storage.core.target import Public
from fireflyfs.storage.engine.interface import ChunkKey, Writer

ALICE = b"a" * 16
CHUNK = 65536
Make = Callable[[int], Any]


def run(scenario: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


def two_chains(make_cluster: Make) -> Any:
    """Chain 1: targets 10 and 20; chain 2: targets 30 and 40, each on a worker of its own."""
    cluster = make_cluster(4)
    routing = cluster.routing()
    chains = {
        1: Chain(1, cluster.version, ((10, int(Public.SERVING)), (20, int(Public.SERVING)))),
        2: Chain(2, cluster.version, ((30, int(Public.SERVING)), (40, int(Public.SERVING)))),
    }
    targets = {t: mgmtd_pb2.TargetInfo(target_id=t, chain_id=1 if t < 30 else 2) for t in (10, 20, 30, 40)}
    routing = dataclasses.replace(routing, version=routing.version + 1, chains=chains, targets=targets)
    for server in cluster.servers.values():
        server.replicas.install(routing)
    return cluster


def piece(source: int, source_offset: int, target: int, target_offset: int, length: int) -> storage_pb2.CopyPiece:
    return storage_pb2.CopyPiece(
        source=storage_pb2.ChunkId(inode=7, index=source),
        source_chain=1,
        source_offset=source_offset,
        target=storage_pb2.ChunkId(inode=9, index=target),
        target_offset=target_offset,
        length=length,
    )


async def copy(
    cluster: Any, *pieces: storage_pb2.CopyPiece, sequence: int = 1, to: int = 30, size: int = CHUNK
) -> list[int]:
    request = storage_pb2.CopyChunksRequest(
        chain_id=2, chain_version=cluster.version, chunk_size=size, pieces=pieces,
        client_id=ALICE, channel=5, sequence=sequence,
    )  # fmt: skip
    call = Call(Method.STORAGE_COPY_CHUNKS, request.SerializeToString())
    reply = await cluster.net.call(Address(tcp=str(to)), call)
    return list(storage_pb2.CopyChunksReply.FromString(bytes(reply.body)).statuses)


def held(cluster: Any, target_id: int) -> dict[ChunkKey, tuple[int, bytes]]:
    chunks = cluster.servers[target_id].engine.chunks
    return {key: (chunk.committed[0].version, chunk.committed[1]) for key, chunk in chunks.items()}


def test_pieces_of_several_chunks_land_on_every_replica(make_cluster: Make, write_item: Any) -> None:
    async def scenario() -> None:
        cluster = two_chains(make_cluster)
        await cluster.update(10, [write_item(0, b"0123456789"), write_item(4, b"abcdef")], Writer(ALICE, 1, 1))
        pieces = [piece(0, 2, 1, 0, 5), piece(4, 0, 1, 5, 3), piece(4, 4, 3, 10, 100), piece(8, 0, 1, 8, 4)]
        assert await copy(cluster, *pieces) == [0, 0, 0, 0]
        want = {ChunkKey(9, 1): (1, b"23456abc" + bytes(4)), ChunkKey(9, 3): (1, bytes(10) + b"ef" + bytes(98))}
        assert held(cluster, 30) == held(cluster, 40) == want
        cluster.close()

    run(scenario)


def test_a_copy_asked_for_again_happens_once(make_cluster: Make, write_item: Any) -> None:
    async def scenario() -> None:
        cluster = two_chains(make_cluster)
        await cluster.update(10, [write_item(0, b"first")], Writer(ALICE, 1, 1))
        assert await copy(cluster, piece(0, 0, 0, 0, 5)) == [0]
        await cluster.update(10, [write_item(0, b"other")], Writer(ALICE, 1, 2))
        assert await copy(cluster, piece(0, 0, 0, 0, 5)) == [0]  # its answer was lost: it is sent again
        assert held(cluster, 40) == {ChunkKey(9, 0): (1, b"first")}
        assert await copy(cluster, piece(0, 0, 0, 0, 5), sequence=2) == [0]
        assert held(cluster, 40) == {ChunkKey(9, 0): (2, b"other")}
        cluster.close()

    run(scenario)


def test_rot_of_one_source_is_not_copied(make_cluster: Make, write_item: Any) -> None:
    async def scenario() -> None:
        cluster = two_chains(make_cluster)
        await cluster.update(10, [write_item(0, b"good bytes")], Writer(ALICE, 1, 1))
        cluster.servers[10].engine.rot(ChunkKey(7, 0))
        assert await copy(cluster, piece(0, 0, 0, 0, 10)) == [0]
        assert held(cluster, 30) == {ChunkKey(9, 0): (1, b"good bytes")}
        cluster.servers[20].engine.rot(ChunkKey(7, 0))
        with pytest.raises(FfsError) as caught:
            await copy(cluster, piece(0, 0, 1, 0, 10), sequence=2)
        assert caught.value.code is Code.CHECKSUM
        assert ChunkKey(9, 1) not in held(cluster, 30)
        cluster.close()

    run(scenario)


def test_nonsense_and_too_much_are_refused(make_cluster: Make) -> None:
    async def scenario() -> None:
        cluster = two_chains(make_cluster)

        async def code(*pieces: storage_pb2.CopyPiece, **kwargs: Any) -> Code:
            with pytest.raises(FfsError) as caught:
                await copy(cluster, *pieces, **kwargs)
            return caught.value.code

        assert await code() is Code.INVALID
        assert await code(piece(0, 0, 0, 0, 0)) is Code.INVALID
        assert await code(piece(0, 0, 0, CHUNK - 1, 2)) is Code.INVALID
        assert await code(piece(0, (64 << 20) - 1, 0, 0, 2)) is Code.INVALID
        assert await code(piece(0, 0, 0, 0, 1), size=1000) is Code.INVALID
        assert await code(*[piece(0, 0, n, 0, 1) for n in range(COPY_PIECES_MAX + 1)]) is Code.INVALID
        assert await code(*[piece(0, 0, n, 0, COPY_BYTES_MAX) for n in range(2)], size=1 << 26) is Code.TOO_LARGE
        assert await code(piece(0, 0, 0, 0, 1), to=40) is Code.NOT_HEAD
        cluster.close()

    run(scenario)


def test_chunks_are_listed_by_range(make_cluster: Make, write_item: Any) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        items = [write_item(index, b"x" * (index + 1)) for index in (0, 2, 5, 6)]
        await cluster.update(10, items, Writer(ALICE, 1, 1))

        async def listed(begin: int, end: int, limit: int) -> tuple[list[int], list[int], bool]:
            where = storage_pb2.ChunkRange(chain_id=1, chain_version=cluster.version, inode=7, begin=begin, end=end)
            request = storage_pb2.ListRangeRequest(range=where, limit=limit)
            call = Call(Method.STORAGE_LIST_RANGE, request.SerializeToString())
            reply = await cluster.net.call(Address(tcp="10"), call)
            found = storage_pb2.ListRangeReply.FromString(bytes(reply.body))
            return list(found.indexes), list(found.lengths), found.more

        assert await listed(0, 0, 10) == ([0, 2, 5, 6], [1, 3, 6, 7], False)
        assert await listed(1, 6, 10) == ([2, 5], [3, 6], False)
        assert await listed(1, 0, 2) == ([2, 5], [3, 6], True)
        assert await listed(7, 9, 2) == ([], [], False)
        cluster.close()

    run(scenario)
