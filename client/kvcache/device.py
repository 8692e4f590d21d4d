"""Pages between the KV cache and a device: batch after batch through staging memory, each step beside the next one.

While the device copies one slot's pages to their places, the cache fills the next slot. The copies themselves are a
`CopyEngine`'s: `torch_copies.TorchCopyEngine` for GPUs, and for tensors in host memory.

On an error nothing is under way any more when it reaches the caller, as far as the device can still be waited for; what
it cannot be waited for keeps its slots for ever. Pages that were being loaded then hold anything.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from fireflyfs.client.kvcache.api import Cache
from fireflyfs.client.kvcache.slot_ring import Event, SlotRing

log = logging.getLogger(__name__)


class CopyEngine(Protocol):
    """Moves pages between slots of staging memory in the host and a device, in the order it is told to."""

    slots: int
    slot_pages: int
    page_bytes: int

    def rows(self, slot: int) -> list[Any]:
        """The slot's memory, a buffer for each page: asked for before a slot is filled."""

    def intact(self, slot: int) -> bool:
        """Whether the slot holds what was put there: not when a server may still write to it."""

    def load(self, slot: int, rows: Sequence[int], pages: Sequence[int]) -> Event:
        """Begin to copy row rows[i] of the slot to page pages[i]. If it raises, copies may have been begun."""

    def save(self, slot: int, pages: Sequence[int]) -> Event:
        """Begin to copy page pages[i] to row i of the slot. If it raises, copies may have been begun."""

    def drain(self) -> None:
        """Until all that was begun is over. Raises when the device failed."""


class PagePipeline:
    """Loads and saves pages. Calls from several threads wait for each other; an engine serves one pipeline."""

    def __init__(self, cache: Cache, engine: CopyEngine) -> None:
        self._cache = cache
        self._engine = engine
        self._ring = SlotRing(engine.slots)
        self._lock = threading.Lock()

    def load(self, keys: Sequence[bytes], pages: Sequence[int]) -> list[bool]:
        """Fill page pages[i] of the device with block keys[i]; whether each was there, whole.

        On return every copy is over. A page whose block was missing was not touched.
        """
        _check_lengths(keys, pages)
        loaded = [False] * len(keys)
        size = self._engine.page_bytes
        with self._lock:
            try:
                for start, stop in self._parts(len(keys)):
                    slot = self._take()
                    try:
                        placed = self._cache.get_batch(keys[start:stop], self._engine.rows(slot)[: stop - start])
                    except BaseException:
                        self._ring.put_back(slot)
                        raise
                    # A block of another length is none of this layout's pages.
                    found = [row for row, count in enumerate(placed) if count == size and self._engine.intact(slot)]
                    if not found:
                        self._ring.put_back(slot)
                        continue
                    targets = [pages[start + row] for row in found]
                    self._begin(slot, partial(self._engine.load, slot, found, targets))
                    for row in found:
                        loaded[start + row] = True
                for event in self._ring.events():
                    event.wait()
            except BaseException:
                self._abandon()
                raise
        return loaded

    def save(self, keys: Sequence[bytes], pages: Sequence[int]) -> list[bool]:
        """Store page pages[i] of the device as block keys[i]; whether each was stored."""
        _check_lengths(keys, pages)
        saved: list[bool] = []
        begun: deque[tuple[int, int, int, Event]] = deque()
        with self._lock:
            try:
                for start, stop in self._parts(len(keys)):
                    if len(begun) == self._engine.slots:
                        saved += self._store_next(keys, begun)
                    slot = self._take()
                    event = self._begin(slot, partial(self._engine.save, slot, pages[start:stop]))
                    begun.append((slot, start, stop, event))
                while begun:
                    saved += self._store_next(keys, begun)
            except BaseException:
                self._abandon()
                raise
        return saved

    def _parts(self, count: int) -> list[tuple[int, int]]:
        step = self._engine.slot_pages
        return [(start, min(start + step, count)) for start in range(0, count, step)]

    def _take(self) -> int:
        event = self._ring.next_wait()
        if event is not None:
            event.wait()
        return self._ring.take()

    def _begin(self, slot: int, copy: Callable[[], Event]) -> Event:
        try:
            event = copy()
        except BaseException:
            self._ring.lose(slot)
            raise
        self._ring.in_flight(slot, event)
        return event

    def _store_next(self, keys: Sequence[bytes], begun: deque[tuple[int, int, int, Event]]) -> list[bool]:
        slot, start, stop, event = begun.popleft()
        event.wait()
        self._ring.claim(slot)
        try:
            return self._cache.put_batch(keys[start:stop], self._engine.rows(slot)[: stop - start])
        finally:
            self._ring.put_back(slot)

    def _abandon(self) -> None:
        """After an error: nothing is left under way, or its slots are never used again."""
        try:
            self._engine.drain()
        except Exception:
            log.exception("the device cannot be waited for: its staging slots are given up")
        else:
            self._ring.drained()


def _check_lengths(keys: Sequence[bytes], pages: Sequence[int]) -> None:
    if len(keys) != len(pages):
        raise ValueError(f"{len(keys)} keys for {len(pages)} pages")
