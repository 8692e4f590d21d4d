"""Evictions that cannot be made, are interrupted, or race with what is put: no block is lost to eviction, or for ever
on its way out."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c

from fireflyfs.common import native
from fireflyfs.common.cache_hash import hash_key
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.net.api import Address, Call
from fireflyfs.common.net.methods import Method
from fireflyfs.proto.storage_wire import CACHE_BLOCK, CACHE_HEADER, CACHE_RESULT, CacheFlag, UpdateKind
from fireflyfs.storage.background import evict as evict_module
from fireflyfs.storage.background.evict import CacheKeeper
from fireflyfs.storage.engine.interface import CacheName, ChunkKey, Extent, NamedBlock, Writer
from fireflyfs.storage.engine.store import create_target, open_engine
from fireflyfs.storage.service import evictor as evictor_module
from fireflyfs.storage.service.target_cache import TargetCache
from fireflyfs.storage.service.wire import Item, encode_update

INODE = 77
SIZE = 8192
KEYS = [b"key of block %06d" % number for number in range(40)]


def run(scenario: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


@pytest.fixture
def head_of(make_cluster: Callable[..., Any], tmp_path: Path) -> Callable[[], Any]:
    """A chain of one stored replica with its index."""

    def engine(target_id: int) -> Any:
        path = tmp_path / str(target_id)
        create_target(path, "test", target_id)
        return open_engine(path, checkpoint_interval_s=0)

    async def make() -> Any:
        cluster = make_cluster(1, engine)
        head = cluster.servers[10]
        await CacheKeeper(head.target, head.service.evictors.of(head.target)).load()
        return cluster, head, head.service.evictors.of(head.target)

    return make


def data_of(key: bytes) -> bytes:
    return (key * (SIZE // len(key) + 1))[:SIZE]


async def put(cluster: Any, keys: Sequence[bytes], sequence: int, capacity_bytes: int = 0) -> None:
    items = []
    for key in keys:
        data = data_of(key)
        item = Item(ChunkKey(INODE, hash_key(key)[0]), UpdateKind.PUT, 0, 1 << 16, 0)
        item.extents = [Extent(0, memoryview(data), crc32c(data))]
        item.name = CacheName(key, 0)
        items.append(item)
    body, pieces = encode_update(1, cluster.version, Writer(b"a" * 16, 1, sequence), 0, items, capacity_bytes)
    reply = await cluster.net.call(Address(tcp="10"), Call(Method.STORAGE_WRITE, body, out=pieces))
    assert not np.frombuffer(reply.body, "<u4").reshape(len(items), 6)[:, 0].any()


def test_victims_of_an_eviction_that_fails_stay_and_are_tried_again(
    head_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        cluster, head, evictor = await head_of()
        await put(cluster, KEYS, 1, capacity_bytes=20 * SIZE)
        before = head.target.cache.stats(INODE)
        with monkeypatch.context() as patch:
            patch.setattr(head.target.engine, "stat", _fail)
            with pytest.raises(FfsError):
                await evictor.once()
        assert head.target.cache.stats(INODE) == before
        assert head.target.cache.over_capacity() == [INODE]
        assert await evictor.once() >= 20
        cluster.close()

    run(scenario)


def _fail(*_: object) -> None:
    raise error(Code.IO_ERROR, "this look-up fails")


def test_a_chain_that_takes_no_removals_is_asked_once_a_pass(head_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt may take its whole deadline, with puts waiting behind it."""

    async def scenario() -> None:
        cluster, head, evictor = await head_of()
        await put(cluster, KEYS, 1, capacity_bytes=20 * SIZE)
        asked = []

        async def refuse(request: Any, deadline_s: float, *, from_client: bool) -> Any:
            asked.append(request)
            raise error(Code.TIMEOUT, "the successor does not answer")

        monkeypatch.setattr(evictor_module, "BATCH", 4)
        monkeypatch.setattr(head.service.updater, "run", refuse)
        assert await evictor.once() == 0
        assert len(asked) == 1
        monkeypatch.undo()
        assert await evictor.once() >= 20
        cluster.close()

    run(scenario)


def test_an_interrupted_eviction_ends_before_the_next_one_begins(head_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its removals are requests of one channel, and its victims must not be on their way out for ever."""

    async def scenario() -> None:
        cluster, head, evictor = await head_of()
        await put(cluster, KEYS, 1, capacity_bytes=20 * SIZE)
        under_way = 0
        go = asyncio.Event()

        async def slow(request: Any, deadline_s: float, *, from_client: bool) -> Any:
            nonlocal under_way
            assert not under_way, "two requests of one channel"
            under_way += 1
            await go.wait()
            under_way -= 1
            raise error(Code.TIMEOUT, "nothing is removed")

        monkeypatch.setattr(head.service.updater, "run", slow)
        first = asyncio.ensure_future(evictor.make_room(5 * SIZE))
        while not under_way:
            await asyncio.sleep(0)
        first.cancel()
        second = asyncio.ensure_future(evictor.make_room(5 * SIZE))
        await asyncio.sleep(0.01)
        go.set()
        assert await second == 0
        with pytest.raises(asyncio.CancelledError):
            await first
        monkeypatch.undo()
        assert head.target.cache.bytes == len(KEYS) * SIZE  # all of it may be evicted
        assert await evictor.make_room(100 * SIZE) == len(KEYS)
        cluster.close()

    run(scenario)


def test_a_block_that_is_put_anew_is_not_removed_for_its_lost_bytes(head_of: Any) -> None:
    async def scenario() -> None:
        cluster, head, evictor = await head_of()
        await put(cluster, KEYS[:2], 1)
        for key in KEYS[:2]:
            head.target.cache.damaged(ChunkKey(INODE, hash_key(key)[0]))
        await put(cluster, KEYS[:1], 2)
        assert await evictor.once() == 1  # the other one
        assert head.target.engine.stat(ChunkKey(INODE, hash_key(KEYS[0])[0])) is not None
        assert head.target.engine.stat(ChunkKey(INODE, hash_key(KEYS[1])[0])) is None
        cluster.close()

    run(scenario)


def test_a_lost_block_that_could_not_be_removed_is_tried_again(head_of: Any) -> None:
    async def scenario() -> None:
        cluster, head, evictor = await head_of()
        await put(cluster, KEYS[:1], 1)
        key = ChunkKey(INODE, hash_key(KEYS[0])[0])
        head.target.cache.damaged(key)
        async with head.target.locks.hold([key], 1):
            assert await evictor.once() == 0
        assert await evictor.once() == 1
        assert await evictor.once() == 0
        cluster.close()

    run(scenario)


def test_an_index_that_could_not_be_made_is_made_later(
    make_cluster: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is there every look-up goes through the engine, and nothing that was stored before is evicted."""

    async def scenario() -> None:
        path = tmp_path / "10"
        create_target(path, "test", 10)
        cluster = make_cluster(1, lambda _: open_engine(path, checkpoint_interval_s=0))
        head = cluster.servers[10]
        await put(cluster, KEYS, 1)
        listed = head.target.engine.blocks_of_cache
        failures = [error(Code.IO_ERROR, "not now"), ValueError("something that nobody thought of")]

        def fail_twice(*args: Any) -> Any:
            if failures:
                raise failures.pop()
            return listed(*args)

        monkeypatch.setattr(evict_module, "EVERY_S", 0.01)
        monkeypatch.setattr(head.target.engine, "blocks_of_cache", fail_twice)
        keeping = asyncio.ensure_future(CacheKeeper(head.target, head.service.evictors.of(head.target)).run())
        while not head.target.cache.ready and not keeping.done():
            await asyncio.sleep(0.01)
        assert head.target.cache.ready
        assert len(head.target.cache) == len(KEYS)
        keeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await keeping
        cluster.close()

    run(scenario)


def test_sums_may_be_asked_for_while_commits_add_namespaces() -> None:
    """The engine tells of commits from threads of its own."""

    class Engine:
        def observe(self, observer: object) -> bool:
            return True

    cache = TargetCache(Engine())  # type: ignore[arg-type]
    stop = threading.Event()

    def commit() -> None:
        for inode in range(1, 3000):
            if stop.is_set():
                break
            name = b"%08d" % inode
            cache.stored(NamedBlock(ChunkKey(inode, inode), CacheName(name, 0), SIZE, 0, (12, inode)))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=commit)
    try:
        thread.start()
        for _ in range(300):
            assert cache.bytes % SIZE == 0
            assert cache.memory_bytes > 0
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


def packed_body(cluster: Any, keys: Sequence[bytes], room: int) -> bytes:
    table = np.zeros(len(keys), CACHE_BLOCK)
    table["index"] = [hash_key(key)[0] for key in keys]
    table["chain_id"], table["chain_version"] = 1, cluster.version
    table["pieces"] = room
    table["key_length"] = [len(key) for key in keys]
    table["key"] = np.array(keys, "S64").view("V64")
    return np.array([(INODE, len(keys), int(CacheFlag.PACKED))], CACHE_HEADER).tobytes() + table.tobytes()


def test_what_stood_in_a_buffer_before_does_not_leave_with_a_block_that_went(
    head_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that is to be read from the disk, and is gone when a thread comes to it, leaves a gap."""

    async def scenario() -> None:
        cluster, head, _ = await head_of()
        await put(cluster, KEYS[:3], 1)
        engine = head.target.engine
        read_places = engine.read_places
        monkeypatch.setattr(native, "blocks", None)  # it does not ask `read_places`; test_block_rows.py has the same

        def first_not_in_memory(wanted: Any, start: int) -> int:
            return int(read_places(wanted, start)) if start else 0

        def gone(key: Any, name: bytes, *args: Any, **kwargs: Any) -> Any:
            raise error(Code.CHUNK_NOT_FOUND, "removed meanwhile")

        monkeypatch.setattr(engine, "read_places", first_not_in_memory)
        monkeypatch.setattr(engine, "read_block", gone)
        into = memoryview(bytearray(b"\xee" * (3 * SIZE)))
        call = Call(Method.STORAGE_CACHE_GET, packed_body(cluster, KEYS[:3], SIZE), (), [into])
        reply = await cluster.net.call(Address(tcp="10"), call)
        rows = np.frombuffer(reply.body, CACHE_RESULT).tolist()
        assert [row[0] for row in rows] == [int(Code.CHUNK_NOT_FOUND), 0, 0]
        assert 0xEE not in bytes(into[: reply.pushed[0]])
        cluster.close()

    run(scenario)


def test_a_get_that_fails_waits_for_the_threads_that_fill_its_memory(
    head_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        cluster, head, _ = await head_of()
        await put(cluster, KEYS[:2], 1)
        engine = head.target.engine
        release, ended = threading.Event(), threading.Event()

        def read_block(key: Any, name: bytes, into: Any, now_unix_s: int) -> Any:
            if name == KEYS[0]:
                raise ValueError("something that nobody thought of")
            release.wait(10)
            ended.set()
            raise error(Code.CHUNK_NOT_FOUND, "gone")

        monkeypatch.setattr(native, "blocks", None)
        monkeypatch.setattr(engine, "read_places", lambda wanted, start: start)
        monkeypatch.setattr(engine, "read_block", read_block)
        request = SimpleNamespace(
            body=memoryview(packed_body(cluster, KEYS[:2], SIZE)),
            push_views=lambda: [memoryview(bytearray(2 * SIZE))],
            deadline_s=1e9,
        )
        asking = asyncio.ensure_future(cluster.net.handlers["10"][Method.STORAGE_CACHE_GET](request))
        await asyncio.wait([asking], timeout=0.2)
        answered_early = asking.done()
        release.set()
        with pytest.raises(ValueError, match="nobody thought of"):
            await asking
        assert not answered_early
        assert ended.is_set()
        cluster.close()

    run(scenario)
