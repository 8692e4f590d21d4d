"""A page of an engine's paged cache as byte ranges of its tensors.

An engine keeps keys and values of a page (a fixed number of tokens) in several places: each layer's tensor, keys apart
from values, heads apart from tokens. `PageMap` lists the ranges of page 0 and how far it is to page 1, 2, 3. So a page
is one block of the KV cache: gathered from its ranges by put, scattered into them by get, without a copy between.

The order of the ranges is by tensor, then by place in memory, so it follows from the tensors' strides alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fireflyfs.client.kvcache.api import BLOCK_BYTES_MAX, PIECES_MAX
from fireflyfs.client.kvcache.layouts.memory import Geometry, bytes_of, geometry_of

FORMAT = 1  # of the fingerprint: another number, another namespace
RUNS_MAX = 16_384  # ranges of one page
RUN_BYTES_MIN = 64  # shorter ranges cost more than the copy they spare


class Run(NamedTuple):
    """One range of each page: page p lies at `offset + p * stride` of tensor `tensor`."""

    tensor: int
    offset: int  # bytes from the tensor's first element
    stride: int  # bytes to the next page's
    length: int  # bytes


@dataclass(frozen=True)
class PageMap:
    """Where all pages lie. `facts` describe a page, not the pool: engines with more or fewer pages share a cache."""

    name: str
    pages: int
    runs: tuple[Run, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.page_bytes <= BLOCK_BYTES_MAX:
            raise ValueError(
                f"a page of {self.page_bytes} bytes: a block of the KV cache has up to {BLOCK_BYTES_MAX}; "
                "take fewer tokens for a page, or fewer layers"
            )

    @property
    def page_bytes(self) -> int:
        """Bytes of one page, and of its block."""
        return sum(run.length for run in self.runs)

    def fingerprint(self, model: str = "", *, tp_rank: int = 0, tp_size: int = 1) -> str:
        """Equal exactly when a block of one engine is a page of the other: same model, shard, types, shapes, order.

        For the cache's namespace, which refuses another one. `tp_rank`: 0 where all ranks hold the same (MLA).
        """
        if not 0 <= tp_rank < tp_size:
            raise ValueError(f"rank {tp_rank} of {tp_size}")
        described = {
            "format": FORMAT,
            "layout": self.name,
            "model": model,
            "tp": [tp_rank, tp_size],
            "facts": dict(self.facts),
            "lengths": [
                [len(list(same)), length] for length, same in itertools.groupby(run.length for run in self.runs)
            ],
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


class HostPages:
    """Pages of tensors in host memory, as lists of memoryviews in the order of their block."""

    def __init__(self, page_map: PageMap, tensors: Sequence[Any]) -> None:
        """`tensors`: those that the map was made from, or others of the same geometry."""
        if len(page_map.runs) > PIECES_MAX:
            raise ValueError(f"a page in {len(page_map.runs)} pieces; the KV cache takes {PIECES_MAX}")
        self.map = page_map
        self._views = [bytes_of(tensor) for tensor in tensors]
        for run in page_map.runs:
            if run.offset + (page_map.pages - 1) * run.stride + run.length > len(self._views[run.tensor]):
                raise ValueError(
                    f"tensor {run.tensor} ends before its page {page_map.pages - 1}: the map is another one's"
                )

    def slices(self, page: int) -> list[memoryview]:
        """The ranges of one page. Raises IndexError beyond the last."""
        if not 0 <= page < self.map.pages:
            raise IndexError(f"page {page} of {self.map.pages}")
        views = self._views
        return [
            views[tensor][offset + page * stride : offset + page * stride + length]
            for tensor, offset, stride, length in self.map.runs
        ]

    def blocks(self, pages: Sequence[int]) -> list[list[memoryview]]:
        """The ranges of each of many pages: what `put_batch` gathers and `get_batch` fills."""
        return [self.slices(page) for page in pages]


def runs_of(tensor: int, geometry: Geometry, page_axis: int, tokens: int = 1) -> list[Run]:
    """The ranges of a tensor's pages in the order of memory. `tokens`: how many steps along `page_axis` are one page.

    Raises ValueError for a shape that has no such pages, or too many ranges.
    """
    if not 0 <= page_axis < len(geometry.shape) or tokens <= 0 or geometry.shape[page_axis] % tokens:
        raise ValueError(f"axis {page_axis} of {geometry.shape} is not pages of {tokens}")
    axes = [
        (geometry.strides[axis], tokens if axis == page_axis else size)
        for axis, size in enumerate(geometry.shape)
        if (tokens if axis == page_axis else size) != 1
    ]
    axes.sort(key=lambda axis: -axis[0])
    length = geometry.itemsize
    while axes and axes[-1][0] == length:
        length *= axes.pop()[1]
    if any(stride < length for stride, _ in axes):
        raise ValueError("elements of the tensor lie over each other")
    count = 1
    for _, size in axes:
        count *= size
    if count > RUNS_MAX or (length < RUN_BYTES_MIN and count > 1):
        raise ValueError(f"a page lies in {count} pieces of {length} bytes: too scattered to be moved without a copy")
    stride = geometry.strides[page_axis] * tokens
    offsets = itertools.product(*(range(0, step * size, step) for step, size in axes))
    return [Run(tensor, sum(place), stride, length) for place in offsets]


def map_pages(
    name: str, tensors: Sequence[Any], page_axis: int, *, tokens: int = 1, facts: Mapping[str, Any] | None = None
) -> PageMap:
    """The map of pages that lie along one axis of each of `tensors`. They have equally many; shapes may differ.

    The facts that every map has: data types, shapes of a page and the order of axes in memory.
    """
    if not tensors:
        raise ValueError("no tensors, no pages")
    geometries = [geometry_of(tensor) for tensor in tensors]
    runs: list[Run] = []
    pages = {geometry.shape[page_axis] // tokens for geometry in geometries if len(geometry.shape) > page_axis}
    for number, geometry in enumerate(geometries):
        runs += runs_of(number, geometry, page_axis, tokens)
        if len(runs) > RUNS_MAX:
            raise ValueError(f"a page lies in more than {RUNS_MAX} pieces")
    if len(pages) != 1:
        raise ValueError(f"tensors of different numbers of pages: {sorted(pages)}")
    shapes = [_described(geometry, page_axis, tokens) for geometry in geometries]
    grouped = [[len(list(same)), shape] for shape, same in itertools.groupby(shapes)]
    return PageMap(name, pages.pop(), tuple(runs), {"tensors": grouped, **(facts or {})})


def _described(geometry: Geometry, page_axis: int, tokens: int) -> list[Any]:
    """Type and shape of one page, and its axes from the outermost in memory to the innermost."""
    shape = list(geometry.shape)
    shape[page_axis] = tokens
    order = sorted((axis for axis, size in enumerate(shape) if size != 1), key=lambda axis: -geometry.strides[axis])
    return [geometry.dtype, shape, order]
