"""The remote storage plugin for LMCache, called as LMCache's backend calls it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engines.interfaces import differences, stand_in
from engines.memory_cache import MemoryCache
from fireflyfs.client.kvcache.layouts.memory import bytes_of
from fireflyfs.common.errors import Code, FfsError

MODULE = "lmcache.v1.storage_backend.connector"
CHUNK, LAYERS, HIDDEN = 16, 3, 64
SHAPE = (2, LAYERS, CHUNK, HIDDEN)


class Memory:
    """LMCache's memory object: a reference is given back once."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.tensor = torch.zeros(shape, dtype=torch.bfloat16)
        self.nbytes = self.tensor.nbytes
        self.references = 1

    @property
    def byte_array(self) -> memoryview:
        assert self.references > 0
        return bytes_of(self.tensor)[: self.nbytes]

    def ref_count_down(self) -> None:
        self.references -= 1
        assert self.references >= 0


class Base:
    """What LMCache's base class works out for a connector."""

    def __init__(self, config: Any, metadata: Any) -> None:
        self.meta_shapes = [torch.Size(shape) for shape in metadata.shapes]
        self.meta_dtypes = [torch.bfloat16 for _ in metadata.shapes]
        self.meta_fmt = "KV_2LTD"
        self.full_chunk_size_bytes = sum(shape.numel() * 2 for shape in self.meta_shapes)
        self.single_token_size = self.full_chunk_size_bytes // metadata.chunk_size

    def reshape_partial_chunk(self, memory: Memory, nbytes: int) -> Memory:
        memory.nbytes = nbytes
        return memory


class Cpu:
    """LMCache's local backend: hands out memory until there is none."""

    def __init__(self) -> None:
        self.given: list[Memory] = []
        self.room = 1 << 30

    def allocate(self, shapes: Sequence[Any], dtypes: Any, fmt: str) -> Memory | None:
        if len(self.given) >= self.room:
            return None
        self.given.append(Memory(tuple(shapes[0])))
        return self.given[-1]

    def held(self) -> int:
        return sum(memory.references for memory in self.given)


class Host:
    def __init__(self, names: dict[str, Any], module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names, self.module = names, module
        self.cpu = Cpu()
        self.opened: list[tuple[Any, int, str]] = []
        self.cache = MemoryCache()
        self.loop = asyncio.new_event_loop()

        def opened(settings: Any, host: str, block_size: int, fingerprint: str) -> MemoryCache:
            assert host == "lmcache"
            self.opened.append((settings, block_size, fingerprint))
            return self.cache

        monkeypatch.setattr("fireflyfs.client.connectors.settings.CacheSettings.open", opened)

    def connector(self, url: str = "plugin://fireflyfs", layerwise: bool = False, **changes: Any) -> Any:
        prefix = "remote_storage_plugin.fireflyfs."
        extra = {prefix + "module_path": "m", prefix + "class_name": "c", prefix + "mgmtd": "h:1", prefix + "ttl_s": 60}
        config = SimpleNamespace(extra_config=extra, use_layerwise=layerwise)
        metadata = SimpleNamespace(**{"shapes": [SHAPE], "chunk_size": CHUNK} | changes)
        adapter = self.module.FireflyAdapter()
        assert adapter.can_parse(url)
        plugin = "fireflyfs" if url.startswith("plugin") else None
        return adapter.create_connector(
            SimpleNamespace(
                url=url,
                loop=self.loop,
                local_cpu_backend=self.cpu,
                config=config,
                metadata=metadata,
                plugin_name=plugin,
            )
        )

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(call)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with stand_in("lmcache", RemoteConnector=Base) as names:
        import fireflyfs.client.connectors.lmcache as module

        made = Host(names, module, monkeypatch)
        yield made
        made.loop.close()


def key(number: int) -> Any:
    return SimpleNamespace(to_string=lambda: f"model@1@0@{number:x}@bfloat16")


def chunk(number: int, tokens: int = CHUNK) -> Memory:
    memory = Memory((2, LAYERS, tokens, HIDDEN))
    memory.tensor.fill_(number)
    return memory


def test_it_is_what_lmcache_calls() -> None:
    with stand_in("lmcache"):
        import fireflyfs.client.connectors.lmcache as module

        assert differences(module.FireflyRemote, "lmcache", MODULE + ".base_connector", "RemoteConnector") == []
        assert differences(module.FireflyAdapter, "lmcache", MODULE, "ConnectorAdapter") == []


def test_chunks_go_out_and_come_back(host: Host) -> None:
    connector = host.connector()
    assert host.opened[0][0].ttl_s == 60
    host.run(connector.put(key(1), chunk(1)))
    host.run(connector.batched_put([key(2), key(3)], [chunk(2), chunk(3)]))
    assert host.run(connector.exists(key(1)))
    assert [connector.exists_sync(key(number)) for number in (2, 9)] == [True, False]
    assert connector.batched_contains([key(number) for number in (1, 2, 9, 3)]) == 2
    assert host.run(connector.batched_async_contains("l", [key(1), key(2), key(3)])) == 3
    found = host.run(connector.batched_get([key(3), key(9), key(1)]))
    assert found[1] is None
    assert [bool((memory.tensor == number).all()) for memory, number in ((found[0], 3), (found[2], 1))] == [True, True]
    assert host.cpu.held() == 2, "the memory of the miss was given back"
    first = host.run(connector.batched_get_non_blocking("l", [key(1), key(9), key(3)]))
    assert len(first) == 1
    assert host.cpu.held() == 3, "what is behind a miss was given back"
    assert host.run(connector.get(key(2))).tensor[0, 0, 0, 0] == 2
    assert [connector.remove_sync(key(2)) for _ in range(2)] == [True, False]
    host.run(connector.close())
    assert host.cache.closed


def test_a_chunk_that_is_not_full_keeps_its_length(host: Host) -> None:
    connector = host.connector()
    host.run(connector.put(key(1), chunk(7, tokens=5)))
    found = host.run(connector.get(key(1)))
    assert len(found.byte_array) == found.tensor.nbytes * 5 // CHUNK
    assert bytes(found.byte_array) == bytes(chunk(7, tokens=5).byte_array)
    host.cache.blocks[next(iter(host.cache.blocks))] = bytes(5000)  # no whole number of tokens
    assert host.run(connector.get(key(1))) is None
    assert host.cpu.held() == 1


def test_no_memory_and_errors_leave_nothing_behind(host: Host) -> None:
    connector = host.connector()
    host.run(connector.batched_put([key(1), key(2)], [chunk(1), chunk(2)]))
    host.cpu.room = 1
    found = host.run(connector.batched_get([key(1), key(2)]))
    assert [memory is not None for memory in found] == [True, False]
    host.cpu.room = 100
    host.cache.fail = FfsError(Code.UNAVAILABLE)
    with pytest.raises(FfsError):
        host.run(connector.batched_get([key(1), key(2)]))
    assert host.cpu.held() == 1


@pytest.mark.parametrize("direction", ["get", "put"])
def test_who_stops_waiting_neither_loses_memory_nor_frees_it_too_early(host: Host, direction: str) -> None:
    connector = host.connector()
    host.run(connector.put(key(1), chunk(1)))
    begun, go_on = threading.Event(), threading.Event()
    name = f"{direction}_batch"
    real = getattr(host.cache, name)

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert go_on.wait(30)
        return real(*arguments)

    setattr(host.cache, name, slow)
    stored = chunk(2)

    async def cancelled() -> None:
        call = connector.get(key(1)) if direction == "get" else connector.put(key(2), stored)
        task = asyncio.create_task(call)
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        await asyncio.sleep(0)
        assert task.done() == (direction == "get"), "LMCache frees what it stores when the waiting ends"
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    host.run(cancelled())
    setattr(host.cache, name, real)
    host.run(connector.close())
    if direction == "get":
        assert host.cpu.held() == 0
    else:
        assert len(host.cache.blocks) == 2


def test_urls_name_a_cache_too(host: Host) -> None:
    host.connector("fireflyfs://a:1,b:2/shared?replication=2")
    assert (host.opened[0][0].mgmtd, host.opened[0][0].namespace, host.opened[0][0].replication) == (
        "a:1,b:2",
        "shared",
        2,
    )
    adapter = host.module.FireflyAdapter()
    assert [adapter.can_parse(url) for url in ("plugin://fireflyfs.two", "plugin://fs", "redis://a:1")] == [
        True,
        False,
        False,
    ]


def test_other_shapes_are_other_fingerprints(host: Host) -> None:
    host.connector()
    host.connector(shapes=[(2, LAYERS, CHUNK, 2 * HIDDEN)])
    host.connector(shapes=[(2, LAYERS, CHUNK // 2, HIDDEN)], chunk_size=CHUNK // 2)
    assert len({fingerprint for _, _, fingerprint in host.opened}) == 3


def test_what_cannot_be_is_refused_at_the_start(host: Host) -> None:
    with pytest.raises(FfsError, match="use_layerwise"):
        host.connector(layerwise=True)
    with pytest.raises(FfsError, match="set chunk_size to 238 or less"):
        host.connector(shapes=[(1, 61, 256, 576)], chunk_size=256)
    connector = host.connector()
    with pytest.raises(FfsError, match="names of chunks"):
        host.run(connector.list())
