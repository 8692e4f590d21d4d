"""What the metadata service needs of storage, on an event loop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from fireflyfs.client.async_storage import AsyncStorageClient
from fireflyfs.client.retry import RetryPolicy
from fireflyfs.client.routing import Routing
from fireflyfs.client.storage_calls import LastChunk
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.net.api import Address, Call, MemoryPool, Reply
from fireflyfs.proto.common_pb2 import Layout

if TYPE_CHECKING:
    from conftest import FakeCluster

SIZE = 1 << 16
LAYOUT = Layout(chunk_size=SIZE, chains=[1, 2, 3])


class AsyncFace:
    """The cluster as an AsyncLink and an AsyncRoutingView."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.pool: MemoryPool = cluster.pool

    async def call(self, address: Address, call: Call) -> Reply:
        await asyncio.sleep(0)
        return self.cluster.call(address, call)

    async def close(self) -> None: ...

    def current(self) -> Routing:
        return self.cluster.current()

    async def wait_newer(self, version: int, timeout_s: float) -> Routing:
        return self.cluster.wait_newer(version, timeout_s)

    async def sleep(self, seconds: float) -> None:
        self.cluster.sleep(seconds)


def run(cluster: FakeCluster, body: Callable[[AsyncStorageClient], Awaitable[None]]) -> None:
    async def main() -> None:
        face = AsyncFace(cluster)
        storage = AsyncStorageClient(
            face,
            face,
            policy=RetryPolicy(deadline_s=5.0),
            clock=cluster.clock,
            rng=random.Random(1),
            sleep=face.sleep,
        )
        await body(storage)

    asyncio.run(main())


def fill(cluster: FakeCluster, chunks: int) -> None:
    cluster.file_chains[7] = (1, 2, 3)
    for index in range(chunks):
        cluster.chunks[7, index] = bytearray(SIZE if index + 1 < chunks else 5)


def test_last_chunk_of_all_chains(cluster: FakeCluster) -> None:
    async def body(storage: AsyncStorageClient) -> None:
        assert await storage.query_last_chunk(7, LAYOUT) is None
        fill(cluster, 10)
        last = await storage.query_last_chunk(7, LAYOUT)
        assert last == LastChunk(9, 5, 10, 9 * SIZE + 5)
        assert last.end(SIZE) == 9 * SIZE + 5
        assert await storage.query_last_chunk(7, LAYOUT, end=4) == LastChunk(3, SIZE, 4, 4 * SIZE)

    cluster.file_chains[7] = (1, 2, 3)
    run(cluster, body)


def test_what_was_seen_beyond_an_end_is_dropped_in_steps(cluster: FakeCluster) -> None:
    async def body(storage: AsyncStorageClient) -> None:
        end = 3 * SIZE + 100
        seen = await storage.see_beyond(7, LAYOUT, end, 1)
        assert seen.more
        assert await storage.drop_seen(seen)
        for _ in range(3):
            assert await storage.drop_seen(seen := await storage.see_beyond(7, LAYOUT, end, 1))
        assert not seen.more
        assert sorted(cluster.chunks) == [(7, index) for index in range(4)]
        assert len(cluster.chunks[7, 3]) == 100
        assert (await storage.see_beyond(7, LAYOUT, end)).chunks == {}
        assert sum(map(len, (await storage.see_beyond(7, LAYOUT, 3 * SIZE)).chunks.values())) == 1

    fill(cluster, 10)
    run(cluster, body)


def test_what_was_written_since_it_was_seen_is_not_dropped(cluster: FakeCluster) -> None:
    async def body(storage: AsyncStorageClient) -> None:
        seen = await storage.see_beyond(7, LAYOUT, SIZE + 100)
        cluster.chunks[7, 1][:] = b"new" * 100
        assert not await storage.drop_seen(seen)
        assert cluster.chunks[7, 1] == b"new" * 100
        assert sorted(cluster.chunks) == [(7, 0), (7, 1)]

    fill(cluster, 3)
    run(cluster, body)


def test_a_chunk_that_is_busy_is_dropped_when_it_no_longer_is(cluster: FakeCluster) -> None:
    async def body(storage: AsyncStorageClient) -> None:
        for worker in cluster.workers.values():
            worker.item_codes[7, 1] = [Code.CHUNK_BUSY]
        assert await storage.drop_seen(await storage.see_beyond(7, LAYOUT, 0))
        assert cluster.chunks == {}

    fill(cluster, 3)
    run(cluster, body)


def test_whole_files_are_removed_chain_by_chain(cluster: FakeCluster) -> None:
    async def body(storage: AsyncStorageClient) -> None:
        assert await storage.remove_files(1, [7, 8], 2) == [7]
        assert await storage.remove_files(1, [7], 2) == []
        assert sorted(index % 3 for _, index in cluster.chunks) == [1] * 3 + [2] * 3
        for chain_id in (2, 3):
            while await storage.remove_files(chain_id, [7, 8], 2):
                pass
        assert cluster.chunks == {}

    cluster.file_chains[8] = (2, 3)
    fill(cluster, 10)
    run(cluster, body)


def test_sync_and_space_with_a_dead_worker(cluster: FakeCluster) -> None:
    async def body(storage: AsyncStorageClient) -> None:
        await storage.sync_chains(LAYOUT)
        assert sorted(cluster.synced) == [1, 2, 3]
        assert sorted(space.target_id for space in await storage.space()) == [2, 3]
        assert len(cluster.waits) == 3

    def fail_over() -> None:
        if len(cluster.waits) == 3:
            cluster.set_chain(1, [2])

    cluster.workers[1].down = True
    cluster.on_wait = fail_over
    run(cluster, body)


def test_the_deadline_ends_it(cluster: FakeCluster) -> None:
    async def body(storage: AsyncStorageClient) -> None:
        with pytest.raises(FfsError) as caught:
            await storage.query_last_chunk(7, LAYOUT)
        assert caught.value.code is Code.TIMEOUT

    for worker in cluster.workers.values():
        worker.down = True
    run(cluster, body)
