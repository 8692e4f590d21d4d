"""Copies between pinned staging memory and the paged tensors of a GPU, on a stream of their own.

One copy moves a whole slot to the device; there each range of the layout is put to its places by one kernel. So a
batch of pages costs one transfer and as many kernels as the layout has ranges, however many pages it has; for a full
slot they are launched together, as a CUDA graph. Tensors in host memory work the same without streams, which is how
this is tested where there is no GPU.

Needs torch, and is imported by name only: `pip install 'fireflyfs[torch]'`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from fireflyfs.client.kvcache.layouts.memory import bytes_of
from fireflyfs.client.kvcache.layouts.pages import PageMap
from fireflyfs.client.kvcache.slot_ring import Event

STAGING_BYTES_MAX = 8 << 30  # pinned, of one engine
Allocate = Callable[[int], Any]  # bytes -> what `FileSystem.allocate` gives
log = logging.getLogger(__name__)
_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


class _Over:
    """The event of a copy that is over when it returns."""

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        pass


class _CudaEvent:
    """A CUDA event; waiting for it sleeps rather than spins."""

    def __init__(self, stream: Any) -> None:
        self._event: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._event.record(stream)

    def done(self) -> bool:
        return bool(self._event.query())

    def wait(self) -> None:
        self._event.synchronize()

    def hold_back(self, stream: Any) -> None:
        """What is queued on `stream` from now on runs after this."""
        stream.wait_event(self._event)


class PagedTensors:
    """The tensors of a page map, written and read at pages by index on whatever device they are."""

    def __init__(self, page_map: PageMap, tensors: Sequence[torch.Tensor]) -> None:
        self.map = page_map
        self.device = tensors[0].device
        if any(tensor.device != self.device for tensor in tensors):
            raise ValueError("the layers lie on different devices: an engine for each")
        self._word = self._word_bytes(tensors)
        self.dtype = _WORDS[self._word]
        self._views: list[
            tuple[torch.Tensor, int, int]
        ] = []  # [pages, words], where its words begin and end in a block
        at = 0
        for run in page_map.runs:
            tensor = tensors[run.tensor]
            base = tensor.storage_offset() * tensor.element_size() + run.offset
            last = base + (page_map.pages - 1) * run.stride + run.length
            if last > tensor.untyped_storage().nbytes():
                raise ValueError(
                    f"tensor {run.tensor} ends before its page {page_map.pages - 1}: the map is another one's"
                )
            words = run.length // self._word
            view = torch.empty(0, dtype=self.dtype, device=self.device)
            view.set_(
                tensor.untyped_storage(), base // self._word, (page_map.pages, words), (run.stride // self._word, 1)
            )
            self._views.append((view, at, at + words))
            at += words
        self.row_words = at

    def scatter(self, rows: torch.Tensor, pages: torch.Tensor) -> None:
        """Row i of `rows` [n, row_words] goes to page pages[i]."""
        for view, start, stop in self._views:
            view.index_copy_(0, pages, rows[:, start:stop])

    def gather(self, pages: torch.Tensor, rows: torch.Tensor) -> None:
        """Page pages[i] goes to row i of `rows` [n, row_words]."""
        for view, start, stop in self._views:
            rows[:, start:stop].copy_(view.index_select(0, pages))

    def _word_bytes(self, tensors: Sequence[torch.Tensor]) -> int:
        """The widest word that every range begins and ends at: kernels move words."""
        edges = [value for run in self.map.runs for value in (run.offset, run.stride, run.length)]
        edges += [int(tensor.storage_offset()) * tensor.element_size() for tensor in tensors]
        common = math.gcd(*edges, 8)
        return common if common in _WORDS else 1


class _Slot:
    """A slot's memory in the host, a row for each page."""

    def __init__(self, pages: int, words: int, dtype: torch.dtype, cuda: bool, allocate: Allocate | None) -> None:
        self._registered = 0
        self.memory = allocate(pages * words * dtype.itemsize) if allocate is not None else None
        row = words * dtype.itemsize
        self.rows: list[Any]
        if self.memory is None:
            self.tensor = torch.empty((pages, words), dtype=dtype, pin_memory=cuda)
            view = bytes_of(self.tensor)
            self.rows = [view[at : at + row] for at in range(0, pages * row, row)]
            return
        self.tensor = torch.frombuffer(self.memory.view, dtype=torch.uint8).view(dtype).view(pages, words)
        self.rows = [self.memory.slice(at, row) for at in range(0, pages * row, row)]
        if cuda:
            address = self.tensor.data_ptr()
            torch.cuda.check_error(int(torch.cuda.cudart().cudaHostRegister(address, pages * row, 0)))  # type: ignore[no-untyped-call]
            self._registered = address

    @property
    def intact(self) -> bool:
        """Whether nobody else can write here: a server may that did not answer in time."""
        return not getattr(self.memory, "tainted", False)

    def close(self) -> None:
        """Give the memory back. No copy of it is under way."""
        if self._registered:
            address, self._registered = self._registered, 0
            torch.cuda.check_error(int(torch.cuda.cudart().cudaHostUnregister(address)))  # type: ignore[no-untyped-call]
        if self.memory is not None:
            self.memory.close()


class _Launches:
    """Kernels that are launched again and again with the same arguments, on the stream that is current: once one by
    one, then together. A launch takes 10 µs of the processor, and a layout has as many as the model has layers.

    What `work` allocates comes from memory that all of them share: they run one after the other.
    """

    def __init__(self) -> None:
        self._graphs: dict[object, Any] = {}  # None: launched one by one so far
        self._pool: Any = None
        self._possible = True

    def run(self, key: object, work: Callable[[], None]) -> None:
        """`work` is the same for the same key."""
        if not self._possible or key not in self._graphs:
            self._graphs[key] = None
            work()
            return
        if self._graphs[key] is None:
            self._graphs[key] = self._capture(work)
        if self._graphs[key] is None:
            work()
        else:
            self._graphs[key].replay()

    def _capture(self, work: Callable[[], None]) -> Any:
        graph: Any = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            # Other threads of the process may use the device meanwhile.
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        except RuntimeError as exc:
            log.warning("copies to the device are launched one by one: %s", exc)
            self._possible = False
            return None
        return graph


class TorchCopyEngine:
    """A `CopyEngine` for tensors on one device. Holds slots * slot_pages * page_bytes of pinned memory.

    `allocate`: for a cache with servers on this host, `cache.filesystem.allocate`: they move blocks to and from staging
    memory themselves, a copy less.

    Copies run beside the model: they begin after what the calling thread's stream has queued by then, and what it
    queues after a `save` waits until the pages were read. After `load` wait for the event, as the pipelines do.
    """

    def __init__(
        self,
        page_map: PageMap,
        tensors: Sequence[torch.Tensor],
        *,
        slots: int = 3,
        slot_pages: int = 16,
        allocate: Allocate | None = None,
    ) -> None:
        if slots < 1 or slot_pages < 1:
            raise ValueError("staging has at least 1 slot of 1 page")
        self.slots = slots
        self.slot_pages = slot_pages
        self.page_bytes = page_map.page_bytes
        if slots * slot_pages * self.page_bytes > STAGING_BYTES_MAX:
            raise ValueError(f"{slots} slots of {slot_pages} pages are over {STAGING_BYTES_MAX} bytes of pinned memory")
        self.pages = PagedTensors(page_map, tensors)
        device = self.pages.device
        self._cuda = device.type == "cuda"
        shape = (slot_pages, self.pages.row_words)
        self._allocate = allocate
        self._host = [self._new_slot() for _ in range(slots)]
        self._indices = torch.empty((slots, 2 * slot_pages), dtype=torch.int64, pin_memory=self._cuda)
        self._placed = torch.empty((slots, 2 * slot_pages), dtype=torch.int64, device=device)
        self._launches = _Launches()
        # One device buffer for all slots: the stream runs their copies one after the other.
        self._staged = torch.empty(shape, dtype=self.pages.dtype, device=device) if self._cuda else None
        self._stream: Any = torch.cuda.Stream(device) if self._cuda else None  # type: ignore[no-untyped-call]

    def rows(self, slot: int) -> list[Any]:
        return self._fresh(slot).rows

    def intact(self, slot: int) -> bool:
        return self._host[slot].intact

    def load(self, slot: int, rows: Sequence[int], pages: Sequence[int]) -> Event:
        self._check(rows, pages)
        with self._on_stream():
            count = max(rows) + 1
            source = self._host[slot].tensor[:count]
            places, chosen = self._index(slot, pages, rows)
            if self._staged is not None:
                staged = self._staged
                staged[:count].copy_(source, non_blocking=True)
                if len(rows) == self.slot_pages:
                    self._launches.run(("load", slot), lambda: self.pages.scatter(staged, places))
                    return self._event()
                source = staged[:count]
            self.pages.scatter(source if len(rows) == count else source.index_select(0, chosen), places)
            return self._event()

    def save(self, slot: int, pages: Sequence[int]) -> Event:
        rows = range(len(pages))
        self._check(rows, pages)
        with self._on_stream():
            target = self._fresh(slot).tensor[: len(pages)]
            places, _ = self._index(slot, pages, rows)
            if self._staged is None:
                self.pages.gather(places, target)
                return self._event()
            staged = self._staged[: len(pages)]
            if len(pages) == self.slot_pages:
                self._launches.run(("save", slot), lambda: self.pages.gather(places, staged))
            else:
                self.pages.gather(places, staged)
            target.copy_(staged, non_blocking=True)
            event = _CudaEvent(self._stream)
        event.hold_back(torch.cuda.current_stream(self.pages.device))
        return event

    def drain(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def close(self) -> None:
        """Give the staging memory back, when all copies are over."""
        self.drain()
        for slot in self._host:
            slot.close()

    def _new_slot(self) -> _Slot:
        return _Slot(self.slot_pages, self.pages.row_words, self.pages.dtype, self._cuda, self._allocate)

    def _fresh(self, slot: int) -> _Slot:
        """The slot's memory, another one where somebody else may still write to it."""
        if not self._host[slot].intact:
            self._host[slot].close()
            self._host[slot] = self._new_slot()
        return self._host[slot]

    def _on_stream(self) -> AbstractContextManager[Any]:
        if self._stream is None:
            return nullcontext()
        self._stream.wait_stream(torch.cuda.current_stream(self.pages.device))
        return torch.cuda.stream(self._stream)

    def _index(self, slot: int, pages: Sequence[int], rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Page numbers and row numbers on the device; their memory is the slot's, so it lives as long.

        One contiguous piece: torch copies anything else through memory that is not pinned, and waits for the stream.
        """
        count = len(pages)
        indices = self._indices[slot, : 2 * count]
        indices[:count] = torch.tensor(pages, dtype=torch.int64)
        indices[count:] = torch.tensor(rows, dtype=torch.int64)
        placed = self._placed[slot, : 2 * count]
        placed.copy_(indices, non_blocking=True)
        return placed[:count], placed[count:]

    def _event(self) -> Event:
        return _CudaEvent(self._stream) if self._stream is not None else _Over()

    def _check(self, rows: Sequence[int], pages: Sequence[int]) -> None:
        """Numbers are checked here: on a device a wrong one is an error that ends the process, or another page."""
        if not rows or len(rows) != len(pages) or not 0 <= min(rows) <= max(rows) < self.slot_pages:
            raise ValueError(f"{len(rows)} rows for {len(pages)} pages; a slot has {self.slot_pages}")
        if not 0 <= min(pages) <= max(pages) < self.pages.map.pages:
            raise IndexError(f"page {max(pages)} of {self.pages.map.pages}")
