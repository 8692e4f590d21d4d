"""Saves pages behind an engine's back: the device copies them to staging memory, a thread stores them.

An engine that has finished a step hands over the pages it filled and goes on at once; it may write to them again as
soon as its device's queue has passed the copy. What finds no free slot is dropped and counted: a cache that cannot keep
up must not slow its engine.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from typing import NamedTuple

from fireflyfs.client.kvcache.api import Cache
from fireflyfs.client.kvcache.device import CopyEngine
from fireflyfs.client.kvcache.slot_ring import Event, SlotRing
from fireflyfs.common.errors import FfsError

log = logging.getLogger(__name__)


class SaverCounts(NamedTuple):
    """Pages since the beginning."""

    stored: int = 0
    refused: int = 0  # by the cache: no room, a server away
    dropped: int = 0  # no slot was free
    failed: int = 0  # the device or the cache raised


class PageSaver:
    """One thread, and the slots of `engine`, which serves nothing else."""

    def __init__(self, cache: Cache, engine: CopyEngine) -> None:
        self._cache = cache
        self._engine = engine
        self._ring = SlotRing(engine.slots)
        self._changed = threading.Condition()  # guards the ring and the counts
        self._counts = SaverCounts()
        self._work: queue.SimpleQueue[tuple[int, list[bytes], Event] | None] = queue.SimpleQueue()  # up to one a slot
        self._under_way = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="ffs-page-saver", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> SaverCounts:
        with self._changed:
            return self._counts

    def submit(self, keys: Sequence[bytes], pages: Sequence[int], *, wait_s: float = 0.0) -> int:
        """Begin to save page pages[i] as block keys[i]; how many are under way, from the first on.

        `wait_s`: how long to wait for each free slot before what is left is dropped. Raises what the device raises; the
        pages before are under way then.
        """
        if len(keys) != len(pages):
            raise ValueError(f"{len(keys)} keys for {len(pages)} pages")
        step = self._engine.slot_pages
        for start in range(0, len(keys), step):
            part = list(keys[start : start + step])
            slot = self._take(wait_s)
            if slot is None:
                self._count(dropped=len(keys) - start)
                return start
            try:
                event = self._engine.save(slot, pages[start : start + step])
            except BaseException:
                with self._changed:
                    self._ring.lose(slot)
                self._count(failed=len(part))
                raise
            with self._changed:
                self._ring.in_flight(slot, event)
                self._under_way += 1
            self._work.put((slot, part, event))
        return len(keys)

    def flush(self, timeout_s: float) -> bool:
        """Until what was submitted is stored or counted as not; whether that was in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._under_way, timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Store what is under way, and end the thread. Nothing may be submitted any more."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
        self._work.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.warning("pages were still being stored after %.1f s", timeout_s)

    def _take(self, wait_s: float) -> int | None:
        with self._changed:
            if self._closed:
                raise ValueError("the saver is closed")
            self._changed.wait_for(self._has_free, wait_s)
            return self._ring.take() if self._has_free() else None

    def _has_free(self) -> bool:
        """Whether a slot is free: those in flight are the thread's to take back."""
        try:
            return self._ring.next_wait() is None
        except FfsError:
            return False

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            slot, keys, event = item
            try:
                event.wait()
            except Exception:
                log.exception("the device failed: %d pages are not saved", len(keys))
                self._over(slot, failed=len(keys), lost=True)
                continue
            with self._changed:
                self._ring.claim(slot)
            try:
                stored = sum(self._cache.put_batch(keys, self._engine.rows(slot)[: len(keys)]))
            except Exception:
                log.exception("the cache failed: %d pages are not saved", len(keys))
                self._over(slot, failed=len(keys))
            else:
                self._over(slot, stored=stored, refused=len(keys) - stored)

    def _over(self, slot: int, *, lost: bool = False, **counts: int) -> None:
        with self._changed:
            if not lost:  # a lost slot stays in flight with an event that failed: it is never taken
                self._ring.put_back(slot)
            self._under_way -= 1
            self._add(counts)
            self._changed.notify_all()

    def _count(self, **counts: int) -> None:
        with self._changed:
            self._add(counts)

    def _add(self, counts: dict[str, int]) -> None:
        self._counts = self._counts._replace(
            **{name: getattr(self._counts, name) + more for name, more in counts.items()}
        )
