"""The remote storage plugin for LMCache, called as LMCache's backend calls it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from engines.interfaces import differences, recorded, stand_in
from engines.lmcache_host import CHUNK, HIDDEN, LAYERS, MODULE, Host, chunk, key, running
from fireflyfs.common.errors import Code, FfsError


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with running(monkeypatch) as host:
        yield host


def test_it_is_what_lmcache_calls() -> None:
    with stand_in("lmcache"):
        import fireflyfs.client.connectors.lmcache as module

        modules = recorded("lmcache")
        assert differences(module.FireflyRemote, modules[MODULE + ".base_connector"]["RemoteConnector"]) == []
        assert differences(module.FireflyAdapter, modules[MODULE]["ConnectorAdapter"]) == []


def test_chunks_go_out_and_come_back(host: Host) -> None:
    connector = host.connector()
    assert host.opened.calls[0][0].ttl_s == 60
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
    host.run(connector.put(key(1), chunk(7, tokens=9)))
    found = host.run(connector.get(key(1)))
    assert len(found.byte_array) == found.tensor.nbytes * 9 // CHUNK
    assert bytes(found.byte_array) == bytes(chunk(7, tokens=9).byte_array)
    host.cache.blocks[next(iter(host.cache.blocks))] = bytes(5000)  # no whole number of tokens
    assert host.run(connector.get(key(1))) is None
    assert host.cpu.held() == 1
    host.run(connector.put(key(2), chunk(7, tokens=2)))
    assert not connector.exists_sync(key(2)), "smaller than a block may be"


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


def test_what_raises_half_way_leaves_no_memory_behind(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    connector = host.connector()
    host.run(connector.batched_put([key(1), key(2)], [chunk(1), chunk(2, tokens=9)]))
    monkeypatch.setattr(connector, "reshape_partial_chunk", None)  # LMCache's own, behind a chunk that is right
    with pytest.raises(TypeError):
        host.run(connector.batched_get([key(1), key(2)]))
    assert host.cpu.held() == 0
    give = host.cpu.allocate

    def third_fails(*args: object) -> object:
        if len(host.cpu.given) >= 4:
            raise RuntimeError("no memory")
        return give(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(host.cpu, "allocate", third_fails)
    with pytest.raises(RuntimeError):
        host.run(connector.batched_get([key(1)] * 3))
    assert host.cpu.held() == 0


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
    assert (host.opened.calls[0][0].mgmtd, host.opened.calls[0][0].namespace, host.opened.calls[0][0].replication) == (
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
    assert len(set(host.opened.fingerprints)) == 3


def test_what_cannot_be_is_refused_at_the_start(host: Host) -> None:
    with pytest.raises(FfsError, match="use_layerwise"):
        host.connector(layerwise=True)
    with pytest.raises(FfsError, match="set chunk_size to 238 or less"):
        host.connector(shapes=[(1, 61, 256, 576)], chunk_size=256)
    connector = host.connector()
    with pytest.raises(FfsError, match="names of chunks"):
        host.run(connector.list())
