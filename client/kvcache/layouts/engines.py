"""The page layouts of FlashMLA, vLLM and SGLang."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from fireflyfs.client.kvcache.layouts.memory import geometry_of
from fireflyfs.client.kvcache.layouts.pages import PageMap, map_pages

FLASHMLA_TOKENS = 64  # of a page
MLA_VALUES = 576  # of a token and layer: 512 compressed, 64 with rotary positions
# A token of FlashMLA's fp8 cache: 512 values e4m3, a float32 scale for each 128 of them, 64 bf16 values not quantised.
FLASHMLA_FP8_TOKEN = np.dtype([("nope", np.uint8, (512,)), ("scales", "<f4", (4,)), ("rope", "<u2", (64,))])
assert FLASHMLA_FP8_TOKEN.itemsize == 656

HostLayout = Literal["layer_first", "page_first", "page_first_direct", "page_head"]


def flashmla_pages(caches: Sequence[Any], *, fp8: bool = False) -> PageMap:
    """DeepSeek's MLA cache as FlashMLA pages it: one tensor a layer of [pages, 64 tokens, (1 head,) values].

    576 values of 2 bytes (bf16), or with `fp8` 656 bytes a token (`FLASHMLA_FP8_TOKEN`). All ranks of tensor
    parallelism hold the same cache, so its fingerprint is made for rank 0 of 1.
    """
    token_bytes = FLASHMLA_FP8_TOKEN.itemsize if fp8 else MLA_VALUES * 2
    for layer, cache in enumerate(caches):
        geometry = geometry_of(cache)
        heads = geometry.shape[2:-1]
        whole = len(geometry.shape) in (3, 4) and geometry.shape[-1] * geometry.itemsize == token_bytes
        if not whole or geometry.shape[1] != FLASHMLA_TOKENS or heads not in ((), (1,)):
            raise ValueError(
                f"layer {layer} is {geometry.dtype} {geometry.shape}: not pages of {FLASHMLA_TOKENS} tokens of "
                f"{token_bytes} bytes"
            )
    return map_pages("flashmla", caches, 0, facts={"fp8": fp8, "layers": len(caches)})


def vllm_pages(caches: Mapping[str, Any], num_blocks: int) -> PageMap:
    """vLLM's cache as `register_kv_caches` hands it out: a tensor a layer, in any of its attention backends' shapes.

    Blocks are the first axis, or the second behind keys and values ([2, blocks, ...], FlashAttention before the
    standard shape). An axis of a multiple of `num_blocks` holds kernel blocks: several of them are one block.
    """
    if not caches or num_blocks <= 0:
        raise ValueError("no layers or no blocks to map")
    axes = {_block_axis(name, geometry_of(cache).shape, num_blocks) for name, cache in caches.items()}
    if len(axes) != 1:
        raise ValueError(
            "layers whose blocks lie differently are not supported: hybrid models need a cache for each kind"
        )
    axis, kernel_blocks = axes.pop()
    return map_pages("vllm", list(caches.values()), axis, tokens=kernel_blocks, facts={"layers": len(caches)})


def _block_axis(layer: str, shape: tuple[int, ...], num_blocks: int) -> tuple[int, int]:
    """Which axis the blocks are, and how many kernel blocks of the tensor make one."""
    behind_kv = len(shape) > 2 and shape[0] == 2
    for axis in (1, 0) if behind_kv and shape[1] >= num_blocks else (0,):
        if shape[axis] and shape[axis] % num_blocks == 0:
            return axis, shape[axis] // num_blocks
    raise ValueError(f"{layer}: no axis of {shape} holds {num_blocks} blocks")


def sglang_host_pages(buffer: Any, layout: HostLayout, page_size: int, *, mla: bool = False) -> PageMap:
    """The host pool of SGLang's hierarchical cache: `kv_buffer` of an MHA pool ([2, ...]) or of an MLA one.

    | layout | shape, MHA |
    |---|---|
    | layer_first | 2, layers, tokens, heads, values |
    | page_first | 2, tokens, layers, heads, values |
    | page_first_direct | 2, pages, layers, page_size, heads, values |
    | page_head | 2, pages, heads, page_size, layers, values |

    An MLA pool has the same without the 2, and one head.
    """
    axes = {
        "layer_first": (2, page_size),
        "page_first": (1, page_size),
        "page_first_direct": (1, 1),
        "page_head": (1, 1),
    }
    if layout not in axes:
        raise ValueError(f"unknown layout {layout!r}: {', '.join(axes)}")
    if mla and layout == "page_head":
        raise ValueError("an MLA pool has no page_head layout")
    axis, tokens = axes[layout]
    facts = {"host_layout": layout, "page_size": page_size}
    return map_pages("sglang-host", [buffer], axis - mla, tokens=tokens, facts=facts)


def sglang_device_pages(keys: Sequence[Any], values: Sequence[Any], page_size: int) -> PageMap:
    """The token pools on the device: keys and values of each layer, [tokens, heads, values] (MLA: no `values`).

    The pool's last page takes what padding writes; it is a page like any other here.
    """
    if values and len(values) != len(keys):
        raise ValueError(f"{len(keys)} layers of keys, {len(values)} of values")
    facts = {"layers": len(keys), "page_size": page_size}
    return map_pages("sglang-device", [*keys, *values], 0, tokens=page_size, facts=facts)


def page_first(buffer: Any) -> PageMap:
    """Pages one after the other, each in one piece: [pages, ...]."""
    return map_pages("page-first", [buffer], 0)


def layer_first(layers: Sequence[Any]) -> PageMap:
    """A tensor a layer, pages first in each: [pages, ...]."""
    return map_pages("layer-first", layers, 0, facts={"layers": len(layers)})
