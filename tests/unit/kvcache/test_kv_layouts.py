"""Page layouts: every byte of every page, once, in a fixed order; numpy arrays and torch tensors alike."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from fireflyfs.client.kvcache.layouts import (
    FLASHMLA_FP8_TOKEN,
    HostPages,
    PageMap,
    flashmla_pages,
    layer_first,
    map_pages,
    page_first,
    sglang_device_pages,
    sglang_host_pages,
    vllm_pages,
)
from fireflyfs.client.kvcache.layouts.memory import bytes_of, geometry_of
from fireflyfs.client.kvcache.layouts.pages import Run


def filled(*shape: int, dtype: Any = np.uint16, start: int = 0) -> np.ndarray[Any, Any]:
    """Values that differ, so that a byte at the wrong place shows."""
    return np.arange(start, start + int(np.prod(shape)), dtype=np.int64).astype(dtype).reshape(shape)


def block(pages: HostPages, page: int) -> bytes:
    return b"".join(pages.slices(page))


def test_flashmla_bf16_as_numpy_and_torch() -> None:
    layers = [torch.randn(3, 64, 1, 576).to(torch.bfloat16) for _ in range(61)]
    page_map = flashmla_pages(layers)
    assert (page_map.pages, page_map.page_bytes, len(page_map.runs)) == (3, 61 * 64 * 576 * 2, 61)
    assert page_map.runs[1] == Run(1, 0, 64 * 576 * 2, 64 * 576 * 2)
    pages = HostPages(page_map, layers)
    expected = torch.cat([layer[2].flatten() for layer in layers]).view(torch.uint8).numpy().tobytes()
    assert block(pages, 2) == expected
    # The same memory as numpy sees it is the same block, but of another type, so of another namespace.
    arrays = [layer.view(torch.int16).numpy().view(np.uint16) for layer in layers]
    assert block(HostPages(flashmla_pages(arrays), arrays), 2) == expected
    assert flashmla_pages(arrays).fingerprint() != page_map.fingerprint()


def test_flashmla_fp8() -> None:
    layers = [np.zeros((4, 64), FLASHMLA_FP8_TOKEN).view(np.uint8).reshape(4, 64, 1, 656) for _ in range(61)]
    layers[7][1, 5] = np.arange(656) % 251
    page_map = flashmla_pages(layers, fp8=True)
    assert page_map.page_bytes == 61 * 64 * 656
    token = np.frombuffer(HostPages(page_map, layers).slices(1)[7], FLASHMLA_FP8_TOKEN)[5]
    assert token["nope"].tolist() == [value % 251 for value in range(512)]
    assert token["rope"].tobytes() == bytes(value % 251 for value in range(528, 656))
    assert page_map.fingerprint() != flashmla_pages([np.zeros((4, 64, 576), np.uint16)] * 61).fingerprint()


@pytest.mark.parametrize("shape", [(4, 32, 576), (4, 64, 575), (4, 64, 2, 576), (64, 576)])
def test_what_flashmla_does_not_page_so(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="layer 0 is uint16"):
        flashmla_pages([np.zeros(shape, np.uint16)])


@pytest.mark.parametrize("kind", ["kv first", "blocks first", "heads first", "kernel blocks"])
def test_vllm_shapes(kind: str) -> None:
    blocks, tokens, heads, values = 6, 16, 4, 64
    if kind == "kv first":  # FlashAttention before the standard shape
        caches = {f"l{n}": filled(2, blocks, tokens, heads, values, start=n) for n in range(3)}
        expected = [cache[part, 4] for cache in caches.values() for part in range(2)]
    elif kind == "blocks first":
        caches = {f"l{n}": filled(blocks, tokens, heads, 2 * values, start=n) for n in range(3)}
        expected = [cache[4] for cache in caches.values()]
    elif kind == "heads first":  # what the engine sees is a permuted view; the block is the memory's order
        caches = {f"l{n}": filled(blocks, tokens, heads, values, start=n).swapaxes(1, 2) for n in range(3)}
        expected = [cache.swapaxes(1, 2)[4] for cache in caches.values()]
    else:  # two kernel blocks are one block of the engine
        caches = {f"l{n}": filled(2 * blocks, tokens // 2, heads, values, start=n) for n in range(3)}
        expected = [cache[8:10] for cache in caches.values()]
    page_map = vllm_pages(caches, blocks)
    assert page_map.pages == blocks
    assert block(HostPages(page_map, list(caches.values())), 4) == b"".join(part.tobytes() for part in expected)


def test_the_order_in_memory_is_part_of_the_fingerprint() -> None:
    tokens_first = filled(6, 16, 4, 64)
    heads_first = filled(6, 4, 16, 64).swapaxes(1, 2)
    assert tokens_first.shape == heads_first.shape
    assert vllm_pages({"a": tokens_first}, 6).fingerprint() != vllm_pages({"a": heads_first}, 6).fingerprint()


def test_the_size_of_the_pool_is_not_part_of_the_fingerprint() -> None:
    prints = {
        vllm_pages({"a": np.zeros((2, blocks, 16, 4, 64), np.float16)}, blocks).fingerprint("m")
        for blocks in (3, 5, 900)
    }
    assert len(prints) == 1


def test_everything_else_is_part_of_the_fingerprint() -> None:
    caches = [np.zeros((8, 16, 4, 64), np.float16)] * 2
    base = layer_first(caches)
    prints = [
        base.fingerprint(),
        base.fingerprint("model"),
        base.fingerprint(tp_rank=1, tp_size=2),
        base.fingerprint(tp_size=2),
        layer_first(caches[:1]).fingerprint(),
        layer_first([cache.view(np.uint16) for cache in caches]).fingerprint(),
        layer_first([np.zeros((8, 4, 16, 64), np.float16)] * 2).fingerprint(),
        map_pages("other", caches, 0, facts={"layers": 2}).fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        base.fingerprint(tp_rank=2, tp_size=2)


PAGE, PAGES, LAYERS, HEADS, VALUES = 8, 5, 3, 2, 64


@pytest.mark.parametrize("mla", [False, True])
@pytest.mark.parametrize("layout", ["layer_first", "page_first", "page_first_direct", "page_head"])
def test_sglang_host_pools(layout: Any, mla: bool) -> None:
    heads = 1 if mla else HEADS
    shapes = {
        "layer_first": (2, LAYERS, PAGES * PAGE, heads, VALUES),
        "page_first": (2, PAGES * PAGE, LAYERS, heads, VALUES),
        "page_first_direct": (2, PAGES, LAYERS, PAGE, heads, VALUES),
        "page_head": (2, PAGES, heads, PAGE, LAYERS, VALUES),
    }
    buffer = filled(*(shapes[layout][1:] if mla else shapes[layout]))
    if mla and layout == "page_head":
        with pytest.raises(ValueError, match="no page_head"):
            sglang_host_pages(buffer, layout, PAGE, mla=True)
        return
    page_map = sglang_host_pages(buffer, layout, PAGE, mla=mla)
    assert page_map.pages == PAGES
    assert page_map.page_bytes == buffer.nbytes // PAGES
    halves = buffer[None] if mla else buffer
    rows = slice(3 * PAGE, 4 * PAGE)
    if layout == "layer_first":
        expected = halves[:, :, rows]
    else:
        expected = halves[:, rows] if layout == "page_first" else halves[:, 3]
    assert block(HostPages(page_map, [buffer]), 3) == expected.tobytes()
    pieces = {"layer_first": LAYERS}.get(layout, 1) * len(halves)
    assert len(page_map.runs) == pieces


def test_sglang_device_pools() -> None:
    keys = [torch.randn(PAGES * PAGE, HEADS, VALUES) for _ in range(LAYERS)]
    values = [torch.randn(PAGES * PAGE, HEADS, VALUES) for _ in range(LAYERS)]
    page_map = sglang_device_pages(keys, values, PAGE)
    expected = b"".join(part[PAGE : 2 * PAGE].numpy().tobytes() for part in [*keys, *values])
    assert block(HostPages(page_map, [*keys, *values]), 1) == expected
    with pytest.raises(ValueError, match="3 layers of keys, 2 of values"):
        sglang_device_pages(keys, values[:2], PAGE)
    with pytest.raises(ValueError, match="is not pages of 7"):
        sglang_device_pages(keys, values, 7)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_scatter_and_gather_move_every_byte_once(library: str) -> None:
    def pool() -> list[Any]:
        arrays = [np.zeros((2, 6, 16, 4, 8), np.float32) for _ in range(4)]
        return [torch.from_numpy(array) for array in arrays] if library == "torch" else arrays

    source, target = pool(), pool()
    for number, tensor in enumerate(source):
        tensor[:] = number + 1
        tensor[:, 3] = 100 + number
    page_map = vllm_pages(dict(zip("abcd", source, strict=True)), 6)
    for piece, into in zip(HostPages(page_map, source).slices(3), HostPages(page_map, target).slices(1), strict=True):
        into[:] = piece
    for number, tensor in enumerate(target):
        assert bool((tensor[:, 1] == 100 + number).all())
        tensor[:, 1] = 0
        assert bool((tensor == 0).all()), "only page 1 was written"


def test_pages_of_one_piece() -> None:
    buffer = filled(10, 4, 33)
    page_map = page_first(buffer)
    assert page_map.runs == (Run(0, 0, 4 * 33 * 2, 4 * 33 * 2),)
    pages = HostPages(page_map, [buffer])
    assert [b"".join(parts) for parts in pages.blocks([9, 0])] == [buffer[9].tobytes(), buffer[0].tobytes()]
    for wrong in (-1, 10):
        with pytest.raises(IndexError, match=f"page {wrong} of 10"):
            pages.slices(wrong)


def test_what_has_no_pages() -> None:
    wide = np.zeros((4, 64, 64), np.uint8)
    with pytest.raises(ValueError, match="too scattered"):
        page_first(wide[:, :, ::2])
    with pytest.raises(ValueError, match="over each other"):
        page_first(np.broadcast_to(np.zeros((4, 1, 64), np.uint8), (4, 8, 64)))
    with pytest.raises(ValueError, match="negative strides"):
        page_first(wide[::-1])
    with pytest.raises(ValueError, match="different numbers of pages"):
        layer_first([wide, wide[:3]])
    with pytest.raises(ValueError, match="a block of the KV cache has up to"):
        page_first(np.zeros((1, (16 << 20) + 1), np.uint8))
    with pytest.raises(ValueError, match="no tensors"):
        layer_first([])
    with pytest.raises(TypeError, match="not list"):
        page_first([1, 2])
    with pytest.raises(ValueError, match="no axis of"):
        vllm_pages({"a": wide}, 3)
    with pytest.raises(ValueError, match="lie differently"):
        vllm_pages({"a": np.zeros((2, 6, 16, 64)), "b": np.zeros((6, 16, 64))}, 6)
    with pytest.raises(ValueError, match="ends before its page"):
        HostPages(page_first(wide), [wide[:2]])
    assert isinstance(page_first(wide), PageMap)


def test_torch_is_only_imported_by_who_uses_it() -> None:
    modules = "fireflyfs.client.kvcache, fireflyfs.client.kvcache.layouts, fireflyfs.client.kvcache.device"
    script = f"import sys, {modules}, fireflyfs.client.connectors.records; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", script], check=False, timeout=120).returncode == 0


def test_memory_is_shared_and_kept_alive() -> None:
    tensor = torch.zeros(4, 8)
    view = bytes_of(tensor)
    view[:4] = np.float32(1.5).tobytes()
    assert tensor[0, 0].item() == 1.5
    del tensor
    assert np.frombuffer(view, np.float32)[0] == 1.5
    fixed = np.zeros(8)
    fixed.flags.writeable = False
    assert bytes_of(fixed).readonly
    assert len(bytes_of(np.zeros((0, 4)))) == 0
    assert geometry_of(torch.zeros(2, 3, dtype=torch.bfloat16)) == ((2, 3), (6, 2), 2, "bfloat16")
    with pytest.raises(ValueError, match="a tensor on meta"):
        bytes_of(torch.empty(4, device="meta"))


@pytest.mark.parametrize("seed", range(40))
def test_any_shape_and_order_of_axes(seed: int) -> None:
    """Pages of arrays with axes in any order, some padded: each value in one page, once, in the order of memory."""
    rng = random.Random(seed)
    tokens = rng.choice([1, 2, 4])
    pages = rng.randrange(1, 5)
    shape = [rng.randrange(1, 4) for _ in range(rng.randrange(0, 3))]
    page_axis = rng.randrange(len(shape) + 1)
    shape.insert(page_axis, pages * tokens)
    order = list(range(len(shape)))
    rng.shuffle(order)
    padded = [shape[axis] + rng.choice([0, 0, 1]) for axis in order]
    memory = np.arange(int(np.prod(padded)) * 32, dtype=np.uint32).reshape(*padded, 32)
    cut = memory[tuple(slice(shape[axis]) for axis in order)]
    array = cut.transpose(*np.argsort(order), len(order))
    assert list(array.shape[:-1]) == shape
    layout = map_pages("any", [array], page_axis, tokens=tokens)
    host = HostPages(layout, [array])
    seen: list[np.ndarray[Any, Any]] = []
    for page in range(pages):
        found = np.frombuffer(block(host, page), np.uint32)
        part = array.take(range(page * tokens, (page + 1) * tokens), axis=page_axis)
        assert np.array_equal(np.sort(part, axis=None), found), "the page's values, and memory's order is ascending"
        seen.append(found)
    assert np.array_equal(np.sort(np.concatenate(seen)), np.sort(array, axis=None))
