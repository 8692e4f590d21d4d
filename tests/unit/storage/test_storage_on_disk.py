"""The chain on real engines: what only real storage shows."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import crc32c as crc32c_module
import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.background import disk
from fireflyfs.storage.background.disk import DiskWatcher
from fireflyfs.storage.background.resync import Resync
from fireflyfs.storage.core import forward
from fireflyfs.storage.core.target import Local, Public, TargetState
from fireflyfs.storage.engine.interface import ChunkKey, Extent, Writer
from fireflyfs.storage.engine.store import create_target, open_engine
from fireflyfs.storage.service.local_target import LocalTarget
from fireflyfs.storage.service.reading import Reader
from fireflyfs.storage.service.wire import Item

CHUNK = 65536


def _all(engine: Any) -> dict[ChunkKey, tuple[int, bytes]]:
    found = {}
    for state in engine.scan(None, 10_000):
        assert state.pending is None, state
        data = memoryview(bytearray(state.committed.length))
        assert engine.read(state.key, 0, data).length == len(data)
        found[state.key] = (state.committed.version, bytes(data))
    return found


def test_random_updates_a_lost_replica_and_its_return(make_cluster: Callable[..., Any], tmp_path: Path) -> None:
    def engine(number: int) -> Any:
        path = tmp_path / str(number)
        create_target(path, "test", number)
        return open_engine(path, cluster_id="test", target_id=number)

    async def scenario() -> None:
        chance = random.Random(5)
        cluster = make_cluster(3, engine)
        model: dict[ChunkKey, bytearray] = {}
        sequence = 0

        async def change() -> None:
            nonlocal sequence
            sequence += 1
            items = []
            for index in chance.sample(range(12), chance.randint(1, 4)):
                key = ChunkKey(7, index)
                kind = chance.choice([UpdateKind.WRITE] * 6 + [UpdateKind.TRUNCATE, UpdateKind.REMOVE])
                item = Item(key, kind, 0, CHUNK, 0)
                if kind is UpdateKind.WRITE:
                    content = model.setdefault(key, bytearray())
                    for _ in range(chance.randint(1, 3)):
                        offset = chance.randrange(CHUNK - 1)
                        data = chance.randbytes(min(CHUNK - offset, chance.choice([1, 100, 5000, 40_000])))
                        content.extend(bytes(max(0, offset + len(data) - len(content))))
                        content[offset : offset + len(data)] = data
                        item.extents.append(Extent(offset, memoryview(data), crc32c_module.crc32c(data)))
                elif kind is UpdateKind.TRUNCATE:
                    item.length = chance.randrange(CHUNK)
                    if key in model:
                        del model[key][item.length :]
                else:
                    model.pop(key, None)
                items.append(item)
            results = await cluster.update(10, items, Writer(b"c" * 16, 1, sequence))
            assert [result.code for result in results] == [Code.OK] * len(items)

        for _ in range(60):
            await change()
        cluster.publish((10, Public.SERVING), (20, Public.SERVING), (30, Public.OFFLINE))
        for _ in range(60):
            await change()
        cluster.servers[30].target.set_state(TargetState(Local.ONLINE, returning=False))
        cluster.publish((10, Public.SERVING), (20, Public.SERVING), (30, Public.SYNCING))
        middle = cluster.servers[20]
        hop = forward.next_hop(middle.target.chain, 20)
        job = Resync(middle.replicas, middle.service.updater, middle.service.repairer, middle.target)

        async def changes() -> None:
            for _ in range(60):
                await change()

        await asyncio.gather(changes(), job.once(middle.target.chain, hop))
        assert cluster.servers[30].target.state.local is Local.UPTODATE
        cluster.publish((10, Public.SERVING), (20, Public.SERVING), (30, Public.SERVING))
        await changes()
        copies = [_all(server.engine) for server in cluster.servers.values()]
        assert {key: data for key, (_, data) in copies[0].items()} == {k: bytes(v) for k, v in model.items()}
        assert copies[0] == copies[1] == copies[2]
        cluster.close()

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_disk_that_fails_when_it_is_looked_at_is_told_as_one_that_fails_at_work(tmp_path: Path) -> None:
    create_target(tmp_path, "test", 7)
    local = LocalTarget(7, open_engine(tmp_path, cluster_id="test", target_id=7), path=tmp_path / "gone")

    async def look() -> None:
        with pytest.raises(FfsError) as caught:
            await DiskWatcher(local).once()
        assert caught.value.code is Code.DISK_FAILED

    asyncio.run(look())
    assert local.state.failed
    local.close()


def test_a_target_whose_disk_hangs_comes_back_only_when_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its chain would take it in again at once, to be brought up to date, and writes would wait for it."""
    monkeypatch.setattr(disk, "STALL_S", 0.02)
    monkeypatch.setattr(disk, "EVERY_S", 0.01)
    create_target(tmp_path, "test", 7)
    local = LocalTarget(7, open_engine(tmp_path, cluster_id="test", target_id=7), path=tmp_path)
    local.place(None, Public.OFFLINE)
    local.place(None, Public.SERVING)
    assert local.serves()
    answers = threading.Event()
    space = local.engine.space

    def hang() -> Any:
        answers.wait()
        return space()

    monkeypatch.setattr(local.engine, "space", hang)

    async def until(state: Local) -> None:
        async with asyncio.timeout(10):
            while local.state.local is not state:
                await asyncio.sleep(0.005)

    async def look() -> None:
        watching = asyncio.create_task(DiskWatcher(local).run())
        try:
            await until(Local.OFFLINE)
            local.place(None, Public.OFFLINE)  # mgmtd has taken it out
            await asyncio.sleep(0.05)
            assert local.state.local is Local.OFFLINE
            answers.set()
            await until(Local.ONLINE)
        finally:
            answers.set()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(look())
    local.close()


def test_whoever_is_cancelled_twice_still_waits_for_the_thread(tmp_path: Path) -> None:
    create_target(tmp_path, "test", 7)
    local = LocalTarget(7, open_engine(tmp_path, cluster_id="test", target_id=7))
    go_on = threading.Event()

    async def scenario() -> None:
        task = asyncio.create_task(local.call(go_on.wait))
        for _ in range(3):
            await asyncio.sleep(0.01)
            task.cancel()  # its connection is lost, its call superseded, the server stops
        await asyncio.sleep(0.01)
        early = task.done()
        go_on.set()
        await asyncio.gather(task, return_exceptions=True)
        assert not early, "its memory and locks are given back while the thread works on"
        assert task.cancelled()

    asyncio.run(scenario())
    local.close()


def test_a_read_that_fails_waits_for_the_others_of_its_request() -> None:
    replicas: Any = SimpleNamespace(count=lambda *_: None, fenced=lambda: False)
    reader = Reader(replicas)
    landed: list[ChunkKey] = []

    async def read(_: Any, key: ChunkKey, *__: Any) -> None:
        if key.chunk_index == 1:
            raise RuntimeError("nobody thought of it")
        await asyncio.sleep(0.02)
        landed.append(key)
        raise FfsError(Code.CHECKSUM)

    reader.read = read  # type: ignore[assignment, method-assign]
    keys = [ChunkKey(7, 1), ChunkKey(7, 2)]
    work: Any = [(place, None, key, 0, memoryview(b"")) for place, key in enumerate(keys)]

    async def scenario() -> None:
        request: Any = SimpleNamespace(deadline_s=1.0)
        with pytest.raises(RuntimeError):
            await reader._finish(request, [(0, 0, 0, 0, 0)] * 2, work)
        assert landed == keys[1:]

    asyncio.run(scenario())
