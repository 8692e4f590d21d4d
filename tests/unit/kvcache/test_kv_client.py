"""`KVCache` with workers of the test's own: what it does with memory, keys and answers that a cluster rarely gives."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c

from fireflyfs.client.kvcache import MISS, AsyncKVCache, KVCache, Namespace
from fireflyfs.client.kvcache.nodes import AWAY_S, Nodes
from fireflyfs.client.kvcache.placement import Placed, Placement, Rows, arrange, place
from fireflyfs.client.routing import SERVING, Chain, Routing
from fireflyfs.client.scratch import Scratch
from fireflyfs.client.striping import FileLayout
from fireflyfs.common import native
from fireflyfs.common.cache_hash import Keys
from fireflyfs.common.clock import ManualClock, SystemClock
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.ids import InodeId
from fireflyfs.common.net.api import Address, Call, Reply, Slice
from fireflyfs.common.net.memory import PrivatePool, SharedMemory, SharedPool
from fireflyfs.common.net.methods import Method
from fireflyfs.common.to_its_end import to_its_end
from fireflyfs.proto.storage_wire import CACHE_BLOCK, CACHE_HEADER, CACHE_RESULT, CacheFlag

BLOCK = 64 << 10
KEYS = [b"key of block %06d" % number for number in range(6)]
PATIENCE_S = 30.0


def block_of(key: bytes, size: int = BLOCK) -> bytes:
    return (key * (size // len(key) + 1))[:size]


class Workers:
    """Two replicas of one chain that have the same blocks; a link to them."""

    def __init__(self) -> None:
        self.pool = PrivatePool()
        self.blocks = {key: block_of(key) for key in KEYS}
        self.before: Callable[[str, Call], None] = lambda name, call: None  # of each call; may raise
        self.calls: list[str] = []
        self.answer: bytes | None = None  # of other methods than GET

    def call(self, address: Address, call: Call) -> Reply:
        self.calls.append(address.tcp)
        self.before(address.tcp, call)
        if call.method != Method.STORAGE_CACHE_GET:
            assert self.answer is not None
            return Reply(self.answer, ())
        _, rows, flags = np.frombuffer(call.body, CACHE_HEADER, 1).tolist()[0]
        into = iter(call.into)
        results, at = [], 0
        packed = memoryview(bytearray(call.spread.length)) if call.spread is not None else None
        assert (packed is not None) == bool(flags & CacheFlag.PACKED)
        for row in np.frombuffer(call.body, CACHE_BLOCK, rows, CACHE_HEADER.itemsize):
            data = self.blocks.get(bytes(row["key"])[: row["key_length"]])
            pieces = [] if packed is not None else [next(into) for _ in range(row["pieces"])]
            if data is None:
                results.append((int(Code.CHUNK_NOT_FOUND), 0, 0, 0))
                continue
            results.append((0, len(data), crc32c(data), at))
            if packed is not None:
                packed[at : at + len(data)] = data
                at += len(data)
            else:
                done = 0
                for piece in pieces:
                    part = data[done : done + len(_view(piece))]
                    _view(piece)[: len(part)] = part
                    done += len(part)
        body = np.array(results, CACHE_RESULT).tobytes()
        if call.spread is not None and packed is not None and at:
            call.spread.fill(body, packed[:at])
        return Reply(body, ())

    def call_many(self, calls: Sequence[tuple[Address, Call]]) -> list[Reply | FfsError]:
        answers: list[Reply | FfsError] = []
        for address, call in calls:
            try:
                answers.append(self.call(address, call))
            except FfsError as exc:
                answers.append(exc)
        return answers

    # RoutingView

    def current(self) -> Routing:
        chain = Chain(1, 1, ((10, int(SERVING)), (20, int(SERVING))))
        return Routing(1, chains={1: chain}, addresses={10: Address(tcp="head"), 20: Address(tcp="tail")})

    def wait_newer(self, version: int, timeout_s: float) -> Routing:
        return self.current()


def _view(piece: Any) -> memoryview:
    return piece.view if isinstance(piece, Slice) else piece


@pytest.fixture(autouse=True, params=["library", "python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches divided by the library in C, and without it."""
    if request.param == "python":
        monkeypatch.setattr(native, "blocks", None)
    elif native.blocks is None:
        pytest.skip("the library in C was not built")


@pytest.fixture
def workers() -> Workers:
    return Workers()


@pytest.fixture
def cache(workers: Workers) -> KVCache:
    context = SimpleNamespace(
        link=workers, routing=workers, scratch=Scratch(workers.pool), clock=SystemClock(), storage=None
    )
    namespace = Namespace("test", 77, BLOCK, 2, 0, 0.0, b"")
    filesystem: Any = SimpleNamespace(context=context, close=lambda: None)
    return KVCache(filesystem, namespace, FileLayout(InodeId(77), BLOCK, (1,)))


def test_blocks_land_whole(cache: KVCache, workers: Workers) -> None:
    out = [bytearray(BLOCK) for _ in KEYS]
    del workers.blocks[KEYS[2]]
    assert cache.get_batch(KEYS, out) == [BLOCK, BLOCK, MISS, BLOCK, BLOCK, BLOCK]
    assert [bytes(each) for each in out[3:]] == [block_of(key) for key in KEYS[3:]]


def test_memory_that_a_server_may_still_write_to_has_no_blocks(cache: KVCache, workers: Workers) -> None:
    """The head hangs and may go on whenever it likes; what the other replica placed there is right for now only."""
    pool = SharedPool()
    hung, safe = pool.allocate(3 * BLOCK), pool.allocate(3 * BLOCK)

    def hang(name: str, call: Call) -> None:
        if name == "head":
            _taint(call)
            raise error(Code.TIMEOUT, "no answer in time")

    workers.before = hang
    out = [hung.slice(at, BLOCK) for at in range(0, 3 * BLOCK, BLOCK)]
    assert cache.get_batch(KEYS[:3], out) == [MISS] * 3
    assert workers.calls == ["head", "tail"]
    workers.answer = b""
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.away) == (0, 3, 3)
    # Other memory is as good as ever, also beside such memory in one batch.
    out = [safe.slice(0, BLOCK), hung.slice(BLOCK, BLOCK), safe.slice(2 * BLOCK, BLOCK)]
    assert cache.get_batch(KEYS[:3], out) == [BLOCK, MISS, BLOCK]
    assert bytes(safe.view[:BLOCK]) == block_of(KEYS[0])
    for memory in (hung, safe):
        memory.close()


def _taint(call: Call) -> None:
    for piece in call.into:
        if isinstance(piece, Slice) and isinstance(piece.memory, SharedMemory):
            piece.memory.tainted = True


@pytest.mark.parametrize("key", ["a key of text", 12345678, None, ("a", "b", "c", "d", "e", "f", "g", "h"), b"short"])
def test_what_is_no_key_is_refused_and_says_so(cache: KVCache, key: Any) -> None:
    out = [bytearray(BLOCK)]
    for call in (
        lambda: cache.get_batch([key], out),
        lambda: cache.put_batch([key], out),
        lambda: cache.exists_batch([key]),
        lambda: cache.match_prefix([key]),
        lambda: cache.delete([key]),
    ):
        with pytest.raises(FfsError) as caught:
            call()
        assert caught.value.code is Code.INVALID


def test_a_key_may_be_any_kind_of_bytes(cache: KVCache) -> None:
    keys: list[Any] = [bytearray(KEYS[0]), memoryview(KEYS[1]), KEYS[2]]
    assert cache.get_batch(keys, [bytearray(BLOCK) for _ in keys]) == [BLOCK] * 3


def test_an_answer_that_is_nonsense_is_no_answer(cache: KVCache, workers: Workers) -> None:
    workers.answer = b"\xff\xff\xff"
    assert cache.delete(KEYS) == 0
    assert cache.exists_batch(KEYS) == [False] * len(KEYS)


def test_a_child_process_does_not_use_its_parents_cache(cache: KVCache) -> None:
    """Their puts would go by the same channels and numbers: the child's would be taken for done."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            cache.get_batch(KEYS, [bytearray(BLOCK) for _ in KEYS])
        except FfsError as exc:
            cache.close()  # which is the parent's: nothing happens
            status = 0 if exc.code is Code.CONFIG and not cache._closed else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert cache.get_batch(KEYS[:1], [bytearray(BLOCK)]) == [BLOCK]


# Whom it asks


def nodes_of(workers: Workers, clock: ManualClock, chains: tuple[int, ...] = (1,)) -> tuple[Nodes, Placement]:
    placement = Placement(FileLayout(InodeId(77), BLOCK, chains))
    link: Any = workers
    return Nodes(link, workers, placement, clock, 1.0), placement


def asked(nodes: Nodes, placement: Placement, keys: Sequence[bytes] = KEYS) -> tuple[list[str], list[int]]:
    """Who is asked for the keys, one call to each, and the rows that nobody answered for."""
    names: list[str] = []

    positions = placement.positions_of(Keys(keys))

    def pack(placed: Placed, rows: Rows, table: bytes | None) -> list[tuple[Rows, Call, None]]:
        return [(rows, Call(Method.STORAGE_CACHE_EXISTS, b"".join(keys[row] for row in rows)), None)]

    def note(name: str, call: Call) -> None:
        names.append(name)
        before(name, call)

    workers: Any = nodes._link
    before, workers.before, workers.answer = workers.before, note, b""
    try:
        left = nodes.ask_all(
            lambda plan, rows: place(plan, positions, rows),
            np.arange(len(keys)),
            pack,
            lambda rows, reply, memory: [],
        )
    finally:
        workers.before = before
    return names, left


def test_who_did_not_answer_is_asked_again_after_a_second(workers: Workers) -> None:
    clock = ManualClock()
    nodes, placement = nodes_of(workers, clock)
    routing = workers.current()
    workers.current = lambda: routing  # type: ignore[method-assign]
    assert asked(nodes, placement) == (["head"], [])

    def fail(name: str, call: Call) -> None:
        if name in failing:
            raise error(Code.TIMEOUT, "no answer in time")

    workers.before, failing = fail, {"head"}
    assert asked(nodes, placement) == (["head", "tail"], [])
    failing.clear()
    assert asked(nodes, placement) == (["tail"], [])
    clock.advance(AWAY_S / 2)
    assert asked(nodes, placement) == (["tail"], [])
    clock.advance(AWAY_S / 2)
    assert asked(nodes, placement) == (["head"], [])
    failing.update(("head", "tail"))
    assert asked(nodes, placement) == (["head", "tail"], list(range(len(KEYS))))
    assert asked(nodes, placement) == ([], list(range(len(KEYS))))
    clock.advance(AWAY_S)
    failing.clear()
    assert asked(nodes, placement) == (["head"], [])


def test_newer_routing_is_followed_at_once(workers: Workers) -> None:
    nodes, placement = nodes_of(workers, ManualClock())
    old = workers.current()
    new = Routing(2, chains={1: Chain(1, 2, ((20, int(SERVING)),))}, addresses=old.addresses)
    for routing, expected in ((old, ["head"]), (new, ["tail"]), (Routing(3), [])):
        workers.current = lambda routing=routing: routing  # type: ignore[method-assign,misc]
        assert asked(nodes, placement)[0] == expected


def test_a_batch_is_divided_by_node_with_every_row_once() -> None:
    chance = random.Random(5)
    for _ in range(30):
        chains = tuple(chance.randrange(1, 9) for _ in range(chance.randrange(1, 20)))
        placement = Placement(FileLayout(InodeId(77), BLOCK, chains))
        listed = {chain: Chain(chain, chain + 100, ((chain, int(SERVING)),)) for chain in range(1, 8)}  # 8 is unknown
        addresses = {chain: Address(tcp=f"node {chain % 3}") for chain in range(1, 7)}  # 7 has no address
        plan = placement.plan(
            Routing(1, chains=listed, addresses=addresses),
            lambda chain, at=addresses: (chain.chain_id, at[chain.chain_id]) if chain.chain_id in at else None,
        )
        keys = Keys([chance.randbytes(16) for _ in range(100)])
        chain_of = placement.chains_of(keys).tolist()
        rows = np.array(sorted(chance.sample(range(100), 60)))
        placed = place(plan, placement.positions_of(keys), rows)
        seen = list(placed.homeless)
        assert all(chain_of[row] in (7, 8) for row in placed.homeless)
        for node, mine, _ in placed.nodes:
            assert len(mine)
            for row in mine.tolist():
                assert node.address == addresses[chain_of[row]]
                assert chain_of[row] in node.targets
                assert placed.versions[row] == chain_of[row] + 100
            seen += mine.tolist()
        assert sorted(seen) == rows.tolist()


def test_the_library_divides_a_batch_as_python_does() -> None:
    library = native.blocks
    if library is None:
        return
    chance = random.Random(9)
    for count in (0, 1, 2, 64, 1024):
        chains = tuple(chance.randrange(1, 9) for _ in range(chance.randrange(1, 20)))
        placement = Placement(FileLayout(InodeId(77), BLOCK, chains))
        at = {chain: Address(tcp=f"node {chain % 3}") for chain in range(1, chance.randrange(1, 9))}
        routing = Routing(1, chains={chain: Chain(chain, chain + 100, ((chain, int(SERVING)),)) for chain in at})
        plan = placement.plan(routing, lambda chain, at=at: (chain.chain_id, at[chain.chain_id]))
        keys = Keys([chance.randbytes(chance.randint(8, 64)) for _ in range(count)])
        rooms = [chance.randrange(1 << 32) for _ in range(count)]
        positions = placement.positions_of(keys)
        expected = place(plan, positions, np.arange(count))
        table = placement.get_table(keys, positions, rooms)
        found = arrange(library, plan, keys, rooms)
        assert found.homeless == expected.homeless
        assert [(node, mine.tolist()) for node, mine, _ in found.nodes] == [
            (node, mine.tolist()) for node, mine, _ in expected.nodes
        ]
        for _, mine, packed in found.nodes:
            assert packed is not None
            assert placement.body_of(packed, len(mine), 2) == placement.body(table, expected, mine, 2)


# On asyncio


def test_a_caller_that_is_cancelled_twice_still_waits_for_its_memory(cache: KVCache, workers: Workers) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(name: str, call: Call) -> None:
        begun.set()
        assert go.wait(PATIENCE_S)

    workers.before = slow
    out = [bytearray(BLOCK) for _ in KEYS]

    async def scenario() -> None:
        aio = AsyncKVCache(cache)
        task = asyncio.create_task(aio.get_batch(KEYS, out))
        await asyncio.to_thread(begun.wait, PATIENCE_S)
        task.cancel()
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await aio.close()

    asyncio.run(scenario())


def test_a_cache_that_nobody_waits_for_any_more_is_closed(cache: KVCache, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()

    def opening(*_: object, **__: object) -> KVCache:
        begun.set()
        assert go.wait(PATIENCE_S)
        return cache

    monkeypatch.setattr(KVCache, "open", opening)

    async def scenario() -> None:
        task = asyncio.create_task(AsyncKVCache.open("nobody:1", "test", block_size=BLOCK))
        await asyncio.to_thread(begun.wait, PATIENCE_S)
        task.cancel()
        await asyncio.sleep(0.01)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    with pytest.raises(FfsError) as caught:
        cache.exists_batch(KEYS)
    assert caught.value.code is Code.CANCELLED


def test_work_that_fails_when_nobody_waits_is_not_complained_about(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        work: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(to_its_end(work))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        work.set_exception(ValueError("late"))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert not caplog.records
