"""Staging slots and pipelines: with an engine whose copies the test lets go on, and with torch on host tensors."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from engines.memory_cache import MemoryCache
from fireflyfs.client.kvcache.device import PagePipeline
from fireflyfs.client.kvcache.layouts import HostPages, flashmla_pages, layer_first, vllm_pages
from fireflyfs.client.kvcache.page_saver import PageSaver
from fireflyfs.client.kvcache.slot_ring import SlotRing, State
from fireflyfs.client.kvcache.torch_copies import TorchCopyEngine
from fireflyfs.common.errors import Code, FfsError


class Copy:
    """A copy under way: it happens when its event is waited for, or when the device is drained."""

    def __init__(self, engine: LazyEngine, act: Callable[[], None]) -> None:
        self.engine = engine
        self.act: Callable[[], None] | None = act
        self.passed = threading.Event()

    def done(self) -> bool:
        return self.passed.is_set()

    def wait(self) -> None:
        if self.engine.broken:
            raise RuntimeError("device lost")
        if self.engine.held:
            assert self.passed.wait(30)
        else:
            self.happen()

    def happen(self) -> None:
        if self.act is not None:
            act, self.act = self.act, None
            act()
        self.passed.set()


class LazyEngine:
    """The fault model of a device: copies happen as late as they may, so a slot that is reused early shows.

    `held`: events pass only when the test lets their copies happen. `broken`: waiting fails. `fail_at`: the copy of
    that number is begun, and then the call raises.
    """

    def __init__(self, pages: int, slots: int = 2, slot_pages: int = 3, page_bytes: int = 16) -> None:
        self.slots, self.slot_pages, self.page_bytes = slots, slot_pages, page_bytes
        self.device = [bytes(page_bytes) for _ in range(pages)]
        self._memory = [[memoryview(bytearray(page_bytes)) for _ in range(slot_pages)] for _ in range(slots)]
        self.begun: list[Copy] = []
        self.used: list[int] = []
        self.held = self.broken = False
        self.fail_at: int | None = None
        self.tainted: set[int] = set()

    def rows(self, slot: int) -> list[memoryview]:
        return self._memory[slot]

    def intact(self, slot: int) -> bool:
        return slot not in self.tainted

    def load(self, slot: int, rows: Sequence[int], pages: Sequence[int]) -> Copy:
        def act() -> None:
            for row, page in zip(rows, pages, strict=True):
                self.device[page] = bytes(self._memory[slot][row])

        return self._begin(slot, act)

    def save(self, slot: int, pages: Sequence[int]) -> Copy:
        def act() -> None:
            for row, page in enumerate(pages):
                self._memory[slot][row][:] = self.device[page]

        return self._begin(slot, act)

    def _begin(self, slot: int, act: Callable[[], None]) -> Copy:
        copy = Copy(self, act)
        self.begun.append(copy)
        self.used.append(slot)
        if self.fail_at == len(self.begun):
            raise RuntimeError("a copy could not be begun")
        return copy

    def drain(self) -> None:
        if self.broken:
            raise RuntimeError("device lost")
        for copy in self.begun:
            copy.happen()


def keys_of(count: int) -> list[bytes]:
    return [b"key-%04d" % number for number in range(count)]


def value(number: int, length: int = 16) -> bytes:
    return bytes([number % 251] * length)


def test_load_reuses_slots_only_after_their_copies() -> None:
    cache, engine = MemoryCache(), LazyEngine(pages=20)
    keys = keys_of(17)
    cache.put_batch(keys, [value(number + 1) for number in range(17)])
    pages = list(range(19, 2, -1))
    assert PagePipeline(cache, engine).load(keys, pages) == [True] * 17
    assert [engine.device[page] for page in pages] == [value(number + 1) for number in range(17)]
    assert engine.used == [0, 1, 0, 1, 0, 1]
    assert all(copy.done() for copy in engine.begun)


def test_the_cache_fills_the_next_slot_while_copies_are_under_way() -> None:
    cache, engine = MemoryCache(), LazyEngine(pages=6)
    keys = keys_of(6)
    cache.put_batch(keys, [value(1)] * 6)
    pending: list[int] = []
    get = cache.get_batch

    def watched(keys: Sequence[bytes], out: Sequence[Any]) -> list[int]:
        pending.append(sum(not copy.done() for copy in engine.begun))
        return get(keys, out)

    cache.get_batch = watched  # type: ignore[method-assign]
    PagePipeline(cache, engine).load(keys, range(6))
    assert pending == [0, 1], "the second batch was asked for while the first one's copy was under way"


def test_misses_and_blocks_of_another_length_touch_no_page() -> None:
    cache, engine = MemoryCache(), LazyEngine(pages=8)
    keys = keys_of(8)
    cache.put_batch([keys[0], keys[2], keys[5]], [value(1), value(3), value(6)])
    cache.put_batch([keys[4]], [value(5, 8)])
    found = PagePipeline(cache, engine).load(keys, range(8))
    assert found == [number in (0, 2, 5) for number in range(8)]
    assert [page == bytes(16) for page in engine.device] == [not is_found for is_found in found]
    assert PagePipeline(cache, engine).load(keys_of(3), [7, 6, 5]) == [True, False, True]


def test_memory_that_a_server_may_still_write_to_is_not_loaded_from() -> None:
    cache, engine = MemoryCache(), LazyEngine(pages=6)
    cache.put_batch(keys_of(6), [value(1)] * 6)
    engine.tainted = {0}
    assert PagePipeline(cache, engine).load(keys_of(6), range(6)) == [False] * 3 + [True] * 3


def test_save_stores_every_page_once() -> None:
    cache, engine = MemoryCache(), LazyEngine(pages=20)
    engine.device = [value(number + 1) for number in range(20)]
    keys = keys_of(11)
    cache.refuse = {keys[4]}
    saved = PagePipeline(cache, engine).save(keys, range(5, 16))
    assert saved == [number != 4 for number in range(11)]
    assert cache.blocks == {key: value(number + 6) for number, key in enumerate(keys) if number != 4}
    assert engine.used == [0, 1, 0, 1]


def test_nothing_is_nothing() -> None:
    pipeline = PagePipeline(MemoryCache(), LazyEngine(pages=1))
    assert pipeline.load([], []) == pipeline.save([], []) == []
    with pytest.raises(ValueError, match="1 keys for 0 pages"):
        pipeline.load(keys_of(1), [])


@pytest.mark.parametrize("direction", ["load", "save"])
@pytest.mark.parametrize("what", ["cache", "copy"])
def test_after_an_error_nothing_is_under_way_and_the_pipeline_goes_on(direction: str, what: str) -> None:
    cache, engine = MemoryCache(), LazyEngine(pages=12)
    keys = keys_of(12)
    if direction == "load":
        cache.put_batch(keys, [value(number) for number in range(12)])
    pipeline = PagePipeline(cache, engine)
    call = getattr(pipeline, direction)
    if what == "copy":
        engine.fail_at = 3
    else:
        name = "get_batch" if direction == "load" else "put_batch"
        good = getattr(cache, name)

        def failing(*arguments: Any) -> Any:
            if len(engine.begun) == 2:
                setattr(cache, name, good)
                raise FfsError(Code.UNAVAILABLE)
            return good(*arguments)

        setattr(cache, name, failing)
    with pytest.raises((RuntimeError, FfsError)):
        call(keys, range(12))
    assert all(copy.done() for copy in engine.begun), "every copy is over when the caller hears of the error"
    engine.fail_at = None
    assert call(keys, range(12)) == [True] * 12


def test_a_device_that_cannot_be_waited_for_keeps_its_slots() -> None:
    cache, engine = MemoryCache(), LazyEngine(pages=12)
    keys = keys_of(12)
    cache.put_batch(keys, [value(1)] * 12)
    pipeline = PagePipeline(cache, engine)
    engine.broken = True
    with pytest.raises(RuntimeError, match="device lost"):
        pipeline.load(keys, range(12))
    slots = len(engine.used)
    with pytest.raises(RuntimeError, match="device lost"):
        pipeline.load(keys, range(12))
    assert len(engine.used) == slots == 2, "no slot was filled again"


def test_the_ring_refuses_what_would_break_it() -> None:
    ring = SlotRing(2)
    engine = LazyEngine(pages=1)
    first, second = ring.take(), ring.take()
    with pytest.raises(FfsError, match="in use"):
        ring.next_wait()
    copy = Copy(engine, lambda: None)
    ring.in_flight(first, copy)
    assert ring.next_wait() is copy
    with pytest.raises(ValueError, match="under way"):
        ring.take()
    with pytest.raises(ValueError, match="under way"):
        ring.claim(first)
    with pytest.raises(ValueError, match="in flight, not taken"):
        ring.put_back(first)
    ring.lose(second)
    with pytest.raises(ValueError, match="unknown, not in flight"):
        ring.claim(second)
    copy.happen()
    assert ring.take() == first
    ring.lose(first)
    with pytest.raises(FfsError, match="no staging slot is safe") as lost:
        ring.take()
    assert lost.value.code == Code.IO_ERROR
    ring.drained()
    assert [ring.state(slot) for slot in (0, 1)] == [State.FREE, State.FREE]
    with pytest.raises(ValueError, match="needs a slot"):
        SlotRing(0)


def test_a_free_slot_goes_before_one_in_flight() -> None:
    ring = SlotRing(2)
    ring.in_flight(ring.take(), Copy(LazyEngine(pages=1), lambda: None))
    last = ring.take()
    ring.put_back(last)
    assert ring.next_wait() is None
    assert ring.take() == last


# The saver


def test_pages_are_saved_behind_the_engine() -> None:
    cache, engine = MemoryCache(), LazyEngine(pages=12, slots=4)
    engine.device = [value(number + 1) for number in range(12)]
    saver = PageSaver(cache, engine)
    keys = keys_of(12)
    assert saver.submit(keys, range(12), wait_s=30) == 12
    assert saver.flush(30)
    assert cache.blocks == {key: value(number + 1) for number, key in enumerate(keys)}
    assert saver.counts == (12, 0, 0, 0)
    saver.close()
    saver.close()
    with pytest.raises(ValueError, match="closed"):
        saver.submit(keys, range(12))


def test_what_finds_no_slot_is_dropped() -> None:
    cache, engine = MemoryCache(), LazyEngine(pages=12)
    engine.held = True
    saver = PageSaver(cache, engine)
    keys = keys_of(12)
    assert saver.submit(keys, range(12)) == 6, "two slots of three pages"
    assert saver.counts.dropped == 6
    assert not saver.flush(0.01)
    engine.drain()
    assert saver.flush(30)
    assert sorted(cache.blocks) == keys[:6]
    engine.held = False
    assert saver.submit(keys[6:], range(6, 12), wait_s=30) == 6
    saver.close()
    assert sorted(cache.blocks) == keys
    assert saver.counts == (12, 0, 6, 0)


@pytest.mark.parametrize("what", ["begin", "device", "cache"])
def test_the_saver_outlives_failures(what: str) -> None:
    cache, engine = MemoryCache(), LazyEngine(pages=12, slots=3)
    saver = PageSaver(cache, engine)
    keys = keys_of(3)
    if what == "begin":
        engine.fail_at = 1
        with pytest.raises(RuntimeError):
            saver.submit(keys, range(3))
    else:
        if what == "device":
            engine.broken = True
        else:
            cache.fail = FfsError(Code.UNAVAILABLE)
        assert saver.submit(keys, range(3)) == 3
    assert saver.flush(30)
    assert saver.counts == (0, 0, 0, 3)
    engine.broken = False
    engine.fail_at = None
    for _ in range(4):
        assert saver.submit(keys, range(3), wait_s=30) == 3
    assert saver.flush(30)
    assert saver.counts == (12, 0, 0, 3)
    if what != "cache":
        assert 0 not in engine.used[1:], "the slot whose copy may still be under way was left alone"
    saver.close()


# torch, on tensors of the host, and of a GPU where there is one


DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.mark.parametrize("device", DEVICES)
def test_flashmla_pages_through_torch(device: str) -> None:
    torch.manual_seed(1)
    source = [torch.randn(9, 64, 1, 576, device=device).to(torch.bfloat16) for _ in range(3)]
    target = [torch.zeros_like(layer) for layer in source]
    page_map = flashmla_pages(source)
    cache = MemoryCache()
    keys = keys_of(7)
    assert all(PagePipeline(cache, TorchCopyEngine(page_map, source, slots=2, slot_pages=3)).save(keys, range(1, 8)))
    assert cache.blocks[keys[2]] == b"".join(HostPages(page_map, [layer.cpu() for layer in source]).slices(3))
    cache.delete([keys[3]])
    pages = [8, 0, 5, 6, 1, 7, 3]
    loaded = PagePipeline(cache, TorchCopyEngine(page_map, target, slots=2, slot_pages=3)).load(keys, pages)
    assert loaded == [number != 3 for number in range(7)]
    for before, after in zip(source, target, strict=True):
        for number, page in enumerate(pages):
            assert torch.equal(after[page], torch.zeros_like(after[page]) if number == 3 else before[number + 1])
        assert not after[2].any()
        assert not after[4].any()


@pytest.mark.parametrize("device", DEVICES)
def test_full_slots_go_to_other_pages_each_time(device: str) -> None:
    """What is launched as one from the third time on has the pages of that time, beside slots that are not full."""
    roll = random.Random(2)
    source = [torch.randint(1 << 30, (16, 4, 8), device=device) for _ in range(5)]
    target = [torch.zeros_like(layer) for layer in source]
    model = [layer.cpu() for layer in target]
    page_map = layer_first(source)
    cache = MemoryCache()
    saver, loader = (
        PagePipeline(cache, TorchCopyEngine(page_map, layers, slots=2, slot_pages=3)) for layers in (source, target)
    )
    for turn in range(20):
        count = roll.choice([3, 6, 9, 11])
        keys = [b"%08d" % (100 * turn + number) for number in range(count)]
        from_pages, to_pages = roll.sample(range(16), count), roll.sample(range(16), count)
        for layer in source:
            layer += 1
        assert all(saver.save(keys, from_pages))
        missing = set(roll.sample(range(count), roll.choice([0, 0, 2])))
        cache.delete([keys[number] for number in missing])
        assert loader.load(keys, to_pages) == [number not in missing for number in range(count)]
        for before, after, expected in zip(source, target, model, strict=True):
            for number in set(range(count)) - missing:
                expected[to_pages[number]] = before[from_pages[number]].cpu()
            assert torch.equal(after.cpu(), expected), turn


@pytest.mark.parametrize("shape", [(2, 6, 8, 4, 16), (6, 8, 4, 16), (12, 4, 4, 16)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.uint8])
@pytest.mark.parametrize("device", DEVICES)
def test_scatter_is_the_inverse_of_gather(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    source = {f"l{n}": (torch.arange(np.prod(shape)) % 199 + n).to(device, dtype).reshape(shape) for n in range(3)}
    target = {name: torch.zeros_like(layer) for name, layer in source.items()}
    cache = MemoryCache()
    engines = [
        TorchCopyEngine(vllm_pages(layers, 6), list(layers.values()), slots=1, slot_pages=4)
        for layers in (source, target)
    ]
    PagePipeline(cache, engines[0]).save(keys_of(6), range(6))
    assert PagePipeline(cache, engines[1]).load(keys_of(6), range(6)) == [True] * 6
    assert all(torch.equal(source[name], target[name]) for name in source)


def test_odd_bytes_and_views_into_one_buffer() -> None:
    whole = torch.arange(5 * 3 * 37, dtype=torch.uint8)
    layers = [whole[layer * 37 * 5 :][: 5 * 37].view(5, 37) for layer in range(3)]
    engine = TorchCopyEngine(layer_first(layers), layers, slots=1, slot_pages=5)
    assert engine.pages.dtype == torch.uint8
    cache = MemoryCache()
    PagePipeline(cache, engine).save(keys_of(5), range(5))
    assert cache.blocks[keys_of(5)[2]] == b"".join(layer[2].numpy().tobytes() for layer in layers)


def test_wrong_numbers_and_tensors_are_refused() -> None:
    layers = [torch.zeros(4, 64)]
    page_map = layer_first(layers)
    engine = TorchCopyEngine(page_map, layers, slots=1, slot_pages=2)
    for rows, pages in (([0], [4]), ([0], [-1])):
        with pytest.raises(IndexError):
            engine.load(0, rows, pages)
    for rows, pages in (([2], [0]), ([], []), ([0, 1], [0])):
        with pytest.raises(ValueError, match="a slot has 2"):
            engine.load(0, rows, pages)
    with pytest.raises(ValueError, match="a slot has 2"):
        engine.save(0, [0, 1, 2])
    with pytest.raises(ValueError, match="ends before its page"):
        TorchCopyEngine(page_map, [torch.zeros(3, 64)])
    with pytest.raises(ValueError, match="different devices"):
        TorchCopyEngine(page_map, [layers[0], torch.empty(4, 64, device="meta")])
    with pytest.raises(ValueError, match="at least 1 slot"):
        TorchCopyEngine(page_map, layers, slots=0)
    with pytest.raises(ValueError, match="pinned memory"):
        TorchCopyEngine(page_map, layers, slots=1 << 20, slot_pages=1 << 10)


class SharedMemory:
    """As `FileSystem.allocate` gives it."""

    def __init__(self, length: int) -> None:
        self.view = memoryview(bytearray(length))
        self.tainted = self.closed = False

    def slice(self, offset: int, length: int) -> memoryview:
        return self.view[offset : offset + length]

    def close(self) -> None:
        self.closed = True


def test_staging_that_servers_reach_is_replaced_when_one_may_still_write_there() -> None:
    given: list[SharedMemory] = []

    def allocate(length: int) -> Any:
        given.append(SharedMemory(length))
        return given[-1]

    layers = [torch.arange(6 * 64, dtype=torch.float32).view(6, 64) + number for number in range(2)]
    engine = TorchCopyEngine(layer_first(layers), layers, slots=2, slot_pages=2, allocate=allocate)
    cache = MemoryCache()
    pipeline = PagePipeline(cache, engine)
    assert all(pipeline.save(keys_of(6), range(6)))
    given[1].tainted = True
    before = [layer.clone() for layer in layers]
    for layer in layers:
        layer.zero_()
    assert pipeline.load(keys_of(6), range(6)) == [True] * 6
    assert all(torch.equal(old, new) for old, new in zip(before, layers, strict=True))
    assert [memory.closed for memory in given] == [False, True, False]
    given[0].tainted = True
    assert all(pipeline.save(keys_of(6), range(6)))
    engine.close()
    assert len(given) == 4
    assert all(memory.closed for memory in given)
