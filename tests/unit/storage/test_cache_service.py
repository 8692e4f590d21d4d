"""The storage worker's side of the KV cache: look-ups, replication, eviction, rot, and nonsense at the door."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c

from fireflyfs.common.cache_hash import Keys, hash_key
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.net.api import Address, Call
from fireflyfs.common.net.methods import Method
from fireflyfs.proto import storage_pb2
from fireflyfs.proto.storage_wire import CACHE_BLOCK, CACHE_HEADER, CACHE_LOOKUP, CACHE_RESULT, CacheFlag, UpdateKind
from fireflyfs.storage.background.evict import CacheKeeper
from fireflyfs.storage.engine.interface import CacheName, ChunkKey, Extent, Writer
from fireflyfs.storage.engine.store import create_target, open_engine
from fireflyfs.storage.service.wire import Item, decode_update, encode_update

pytestmark = pytest.mark.usefixtures("way")
Make = Callable[..., Any]
INODE = 77
ALICE = b"a" * 16
SIZE = 8192


def run(scenario: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


@pytest.fixture
def cluster_of(make_cluster: Make, tmp_path: Path) -> Make:
    """cluster_of(n): n replicas on stored engines, each with its index."""

    def engine(target_id: int) -> Any:
        path = tmp_path / str(target_id)
        create_target(path, "test", target_id)
        return open_engine(path, checkpoint_interval_s=0)

    async def make(count: int, *, load: bool = True) -> Any:
        cluster = make_cluster(count, engine)
        for server in cluster.servers.values() if load else ():
            await CacheKeeper(server.target, server.service.evictors.of(server.target)).load()
        return cluster

    return make


def data_of(key: bytes, size: int = SIZE) -> bytes:
    return (key * (size // len(key) + 1))[:size]


def item_of(key: bytes, data: bytes | None = None, expires_s: int = 0, index: int | None = None) -> Item:
    data = data_of(key) if data is None else data
    place = ChunkKey(INODE, hash_key(key)[0] if index is None else index)
    item = Item(place, UpdateKind.PUT, 0, 1 << 16, 0, extents=[Extent(0, memoryview(data), crc32c(data))])
    item.name = CacheName(key, expires_s)
    return item


def keys_of(count: int) -> list[bytes]:
    return [b"key of block %06d" % number for number in range(count)]


async def put(cluster: Any, items: Sequence[Item], sequence: int, capacity_bytes: int = 0, to: int = 10) -> list[Code]:
    writer = Writer(ALICE, 1, sequence)
    body, pieces = encode_update(1, cluster.version, writer, 0, items, capacity_bytes)
    reply = await cluster.net.call(Address(tcp=str(to)), Call(Method.STORAGE_WRITE, body, out=pieces))
    statuses = np.frombuffer(reply.body, "<u4").reshape(len(items), 6)[:, 0]
    return [Code(int(status)) for status in statuses]


async def get(
    cluster: Any, keys: Sequence[bytes], *, to: int = 10, flags: int = 0, room: int = 1 << 16, index: int | None = None
) -> list[bytes | Code]:
    """The block of each key, or why there is none; verified."""
    batch = Keys(keys)
    table = np.zeros(len(keys), CACHE_BLOCK)
    table["index"] = batch.index if index is None else index
    table["chain_id"] = 1
    table["chain_version"] = cluster.version
    packed = bool(flags & CacheFlag.PACKED)
    table["pieces"] = room if packed else 2
    table["key_length"] = batch.length
    table["key"] = batch.table.view("V64")
    header = np.array([(INODE, len(keys), flags)], CACHE_HEADER)
    if packed:
        into = [memoryview(bytearray(room * len(keys)))]
    else:
        into = [memoryview(bytearray(size)) for _ in keys for size in (100, room - 100)]
    call = Call(Method.STORAGE_CACHE_GET, header.tobytes() + table.tobytes(), (), into)
    reply = await cluster.net.call(Address(tcp=str(to)), call)
    found: list[bytes | Code] = []
    for row, (status, length, crc, offset) in enumerate(np.frombuffer(reply.body, CACHE_RESULT).tolist()):
        if status:
            found.append(Code(status))
            continue
        if packed:
            assert offset + length <= reply.pushed[0]
            data = bytes(into[0][offset : offset + length])
        else:
            assert list(reply.pushed[2 * row : 2 * row + 2]) == [min(100, length), length - min(100, length)]
            data = (bytes(into[2 * row]) + bytes(into[2 * row + 1]))[:length]
        assert crc32c(data) == crc
        found.append(data)
    return found


async def exists(cluster: Any, keys: Sequence[bytes], to: int = 10, version: int = 0) -> list[int]:
    batch = Keys(keys)
    table = np.zeros(len(keys), CACHE_LOOKUP)
    table["index"], table["check"] = batch.index, batch.check
    table["chain_id"], table["chain_version"] = 1, version or cluster.version
    body = np.array([(INODE, len(keys), 0)], CACHE_HEADER).tobytes() + table.tobytes()
    return list((await cluster.net.call(Address(tcp=str(to)), Call(Method.STORAGE_CACHE_EXISTS, body))).body)


@pytest.mark.parametrize("flags", [0, CacheFlag.PACKED, CacheFlag.VERIFY, CacheFlag.PACKED | CacheFlag.VERIFY])
@pytest.mark.parametrize("load", [True, False], ids=["index", "no index yet"])
def test_every_replica_answers_with_the_block_of_that_key(cluster_of: Make, flags: int, load: bool) -> None:
    async def scenario() -> None:
        cluster = await cluster_of(3, load=load)
        keys = keys_of(20)
        assert await put(cluster, [item_of(key) for key in keys[::2]], 1) == [Code.OK] * 10
        expected = [data_of(key) if number % 2 == 0 else Code.CHUNK_NOT_FOUND for number, key in enumerate(keys)]
        for target in (10, 20, 30):
            assert await get(cluster, keys, to=target, flags=flags) == expected
            assert await exists(cluster, keys, to=target) == [1, 0] * 10
            small = [Code.TOO_LARGE if number % 2 == 0 else Code.CHUNK_NOT_FOUND for number in range(20)]
            assert await get(cluster, keys, to=target, flags=flags, room=SIZE - 1) == small
        stats = cluster.servers[20].target.cache.stats(INODE)
        assert (stats.hits, stats.misses, stats.hit_bytes) == (10, 30, 10 * SIZE)
        cluster.close()

    run(scenario)


@pytest.mark.parametrize("flags", [CacheFlag.PACKED, CacheFlag.VERIFY])
def test_a_collision_is_a_miss_or_an_overwrite_never_anothers_block(cluster_of: Make, flags: int) -> None:
    async def scenario() -> None:
        cluster = await cluster_of(1)
        one, two = b"first key", b"second key"
        await put(cluster, [item_of(one, index=5)], 1)
        assert await get(cluster, [two], flags=flags, index=5) == [Code.CHUNK_NOT_FOUND]
        await put(cluster, [item_of(two, index=5)], 2)
        assert await get(cluster, [one], flags=flags, index=5) == [Code.CHUNK_NOT_FOUND]
        assert await get(cluster, [two], flags=flags, index=5) == [data_of(two)]
        cluster.close()

    run(scenario)


def test_a_successor_takes_over_with_blocks_and_a_resync_brings_names(cluster_of: Make) -> None:
    async def scenario() -> None:
        cluster = await cluster_of(2)
        await put(cluster, [item_of(key, expires_s=4_000_000_000) for key in keys_of(5)], 1)
        versions = [cluster.servers[t].engine.stat(item_of(keys_of(1)[0]).key).committed for t in (10, 20)]
        assert versions[0].name == versions[1].name == (keys_of(1)[0], 4_000_000_000)
        item = Item(item_of(keys_of(1)[0]).key, UpdateKind.REPLACE, 9, 1 << 16, 4, 0)
        item.name = versions[0].name
        data = memoryview(b"data")
        item.extents = [Extent(0, data, crc32c(data))]
        body, pieces = encode_update(1, 1, Writer(ALICE, 1, 1), 2, [item])
        (decoded,) = decode_update(memoryview(body), [4], from_client=False).items
        assert decoded.name == item.name
        assert pieces == [data]
        cluster.close()

    run(scenario)


def test_removals_go_through_the_chain_and_spare_what_was_put_since(cluster_of: Make) -> None:
    async def scenario() -> None:
        cluster = await cluster_of(2)
        keys = keys_of(40)
        head = cluster.servers[10]
        await put(cluster, [item_of(key) for key in keys], 1, capacity_bytes=20 * SIZE)
        evictor = head.service.evictors.of(head.target)
        assert await cluster.servers[20].service.evictors.of(cluster.servers[20].target).once() == 0  # no head
        removed = await evictor.once()
        assert 20 <= removed <= 22
        for target in (10, 20):
            assert sum(await exists(cluster, keys, to=target)) == 40 - removed
            assert cluster.servers[target].target.cache.stats(INODE).blocks == 40 - removed
        assert await evictor.once() == 0
        # What is chosen and is being written at that moment stays.
        await put(cluster, [item_of(key) for key in keys[:10]], 2, capacity_bytes=5 * SIZE)
        async with head.target.locks.hold(sorted(item_of(key).key for key in keys), 1):
            assert await evictor.once() == 0
        assert await evictor.once() > 0
        request = storage_pb2.DropBlocksRequest(chain_id=1, chain_version=cluster.version, inode=INODE, keys=keys)
        there = sum(await exists(cluster, keys))
        assert (await head.service.drop_blocks(request)).removed == there
        assert await exists(cluster, keys, to=20) == [0] * 40
        cluster.close()

    run(scenario)


def test_rot_is_a_miss_mended_from_another_replica_and_else_removed(cluster_of: Make, tmp_path: Path) -> None:
    def spoil(target: int) -> None:
        for path in (tmp_path / str(target) / "blocks").iterdir():
            with path.open("r+b") as file:
                for at in range(0, path.stat().st_size, SIZE):
                    file.seek(at + 10)
                    file.write(b"rot")

    async def scenario() -> None:
        cluster = await cluster_of(2)
        key = keys_of(1)[0]
        await put(cluster, [item_of(key)], 1)
        tail = cluster.servers[20]
        spoil(20)
        assert await get(cluster, [key], to=20, flags=CacheFlag.VERIFY) == [Code.CHECKSUM]
        assert await get(cluster, [key], to=10, flags=CacheFlag.VERIFY) == [data_of(key)]
        assert tail.target.suspected.is_set()  # it is mended in the background
        await tail.service.repairer.mend(tail.target, item_of(key).key)
        assert await get(cluster, [key], to=20) == [data_of(key)]
        spoil(10)
        spoil(20)
        head = cluster.servers[10]
        await head.service.repairer.mend(head.target, item_of(key).key)
        assert await exists(cluster, [key]) == [0]
        assert head.target.cache.stats(INODE).damaged == 1
        assert await head.service.evictors.of(head.target).once() == 1
        assert await exists(cluster, [key], to=20) == [0]
        assert not head.engine.space().chunks
        assert await put(cluster, [item_of(key)], 2) == [Code.OK]
        assert await get(cluster, [key]) == [data_of(key)]
        cluster.close()

    run(scenario)


def test_single_blocks_for_any_language(cluster_of: Make) -> None:
    async def scenario() -> None:
        cluster = await cluster_of(1)
        service = cluster.servers[10].service
        where = {"chain_id": 1, "chain_version": cluster.version, "inode": INODE}
        key, data = b"over gRPC", bytes(range(256)) * 16
        write = storage_pb2.WriteBlockRequest(
            **where, key=key, data=data, crc32c=crc32c(data), chunk_size=1 << 16, capacity_bytes=1 << 20
        )
        assert (await service.write_block(write)).version == 1
        reply = await service.read_block(storage_pb2.ReadBlockRequest(**where, key=key))
        assert (reply.data, reply.crc32c) == (data, crc32c(data))
        found = await service.find_blocks(storage_pb2.FindBlocksRequest(**where, keys=[key, b"another key"]))
        assert list(found.found) == [True, False]
        (stats,) = (await service.block_stats(storage_pb2.BlockStatsRequest(inodes=[INODE]))).stats
        assert (stats.blocks, stats.bytes, stats.capacity_bytes, stats.leads, stats.ready) == (
            1,
            4096,
            1 << 20,
            True,
            True,
        )
        with pytest.raises(FfsError) as caught:
            await service.read_block(storage_pb2.ReadBlockRequest(**where, key=b"another key"))
        assert caught.value.code is Code.CHUNK_NOT_FOUND
        write.crc32c ^= 1
        with pytest.raises(FfsError) as caught:
            await service.write_block(write)
        assert caught.value.code is Code.CHECKSUM
        cluster.close()

    run(scenario)


def test_a_replica_that_knows_another_chain_says_so(cluster_of: Make) -> None:
    async def scenario() -> None:
        cluster = await cluster_of(1)
        await put(cluster, [item_of(keys_of(1)[0])], 1)
        assert await exists(cluster, keys_of(1), version=cluster.version + 1) == [2]
        cluster.version += 1
        assert await get(cluster, keys_of(1)) == [Code.CHAIN_VERSION]
        cluster.close()

    run(scenario)


def test_nonsense_is_refused(cluster_of: Make) -> None:
    async def scenario() -> None:
        cluster = await cluster_of(1)
        good = np.zeros(1, CACHE_BLOCK)
        good["chain_id"], good["chain_version"], good["pieces"], good["key_length"] = 1, cluster.version, 1, 8
        room = [memoryview(bytearray(100))]

        def header(rows: int, flags: int = 0) -> bytes:
            return np.array([(INODE, rows, flags)], CACHE_HEADER).tobytes()

        def changed(**fields: int) -> bytes:
            other = good.copy()
            for name, value in fields.items():
                other[name] = value
            return other.tobytes()

        packed = int(CacheFlag.PACKED)
        for body in (
            b"",
            header(2) + good.tobytes(),
            header(1 << 20),
            header(1) + changed(pieces=2),
            header(1) + changed(pieces=0),
            header(1) + changed(pieces=(1 << 32) - 1),
            header(1) + changed(key_length=7),
            header(1) + changed(key_length=65),
            header(1, packed) + changed(pieces=101),
        ):
            with pytest.raises(FfsError) as caught:
                await cluster.net.call(Address(tcp="10"), Call(Method.STORAGE_CACHE_GET, body, (), room))
            assert caught.value.code in (Code.PROTOCOL, Code.TOO_LARGE)
        for body in (b"", header(3), header(1 << 20)):
            with pytest.raises(FfsError) as caught:
                await cluster.net.call(Address(tcp="10"), Call(Method.STORAGE_CACHE_EXISTS, body))
            assert caught.value.code in (Code.PROTOCOL, Code.TOO_LARGE)
        nameless, gap = item_of(keys_of(1)[0]), item_of(keys_of(1)[0])
        nameless.name = None
        gap.extents = [gap.extents[0]._replace(offset=4)]
        long, late = item_of(b"k" * 64), item_of(keys_of(1)[0])
        late.kind = UpdateKind.WRITE
        for item in (nameless, gap, late):
            with pytest.raises(FfsError) as caught:
                await put(cluster, [item], 1)
            assert caught.value.code is Code.PROTOCOL
        body, pieces = encode_update(1, cluster.version, Writer(ALICE, 1, 1), 0, [long])
        spoiled = bytearray(body)
        spoiled[-80:-76] = (65).to_bytes(4, "little")
        for broken in (bytes(spoiled), body[:-1], body + b"x"):
            with pytest.raises(FfsError) as caught:
                await cluster.net.call(Address(tcp="10"), Call(Method.STORAGE_WRITE, broken, out=pieces))
            assert caught.value.code is Code.PROTOCOL
        assert await put(cluster, [long], 1) == [Code.OK]
        cluster.close()

    run(scenario)
