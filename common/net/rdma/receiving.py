"""A shared receive queue and its registered buffers: messages of every connection on it land there.

Safe to use from several threads. Bounds and depths: credits.py.
"""

from __future__ import annotations

import mmap
import threading
from typing import Any

from fireflyfs.common.net.rdma.credits import RECEIVE_BYTES, ReceiveBudget
from fireflyfs.common.net.rdma.queues import SharedReceives
from fireflyfs.common.net.rdma.verbs import Domain, Region


class Receives:
    """Of one domain, for up to `connections_max` connections. Buffers are numbered from 0."""

    def __init__(self, domain: Domain, connections_max: int) -> None:
        """Raises OSError."""
        self._domain = domain
        self._budget = ReceiveBudget(connections_max)
        self._lock = threading.Lock()
        self._blocks: list[Region] = []
        self._views: list[memoryview] = []
        self._requests: list[Any] = []
        self.queue = SharedReceives(domain, self._budget.buffers_max)

    @property
    def depth(self) -> int:
        """Completions that messages from this queue may have at once, whatever peers do."""
        return self._budget.buffers_max

    @property
    def full(self) -> bool:
        return self._budget.full

    @property
    def bytes(self) -> int:
        """Registered now."""
        return len(self._views) * RECEIVE_BYTES

    def enter(self) -> None:
        """One more connection. Raises OSError."""
        with self._lock:
            try:
                self._make(self._budget.enter())
            except OSError:
                self._budget.leave()
                raise

    def leave(self) -> None:
        with self._lock:
            self._budget.leave()

    def replace_lost(self) -> int:
        """How many buffers were posted for those that are lost. Raises OSError."""
        with self._lock:
            count = self._budget.replace_lost()
            self._make(count)
            return count

    def _make(self, count: int) -> None:
        if not count:
            return
        try:
            memory = memoryview(mmap.mmap(-1, count * RECEIVE_BYTES))
            region = self._domain.register(memory, remote=False)
        except OSError:
            self._budget.buffers -= count
            raise
        self._blocks.append(region)
        for begin in range(0, count * RECEIVE_BYTES, RECEIVE_BYTES):
            number = len(self._views)
            self._views.append(memory[begin : begin + RECEIVE_BYTES])
            self._requests.append(self.queue.request(number, region.address + begin, RECEIVE_BYTES, region.lkey))
            self.queue.post(self._requests[number])

    def post(self, number: int) -> None:
        """The buffer may be filled anew. Raises OSError."""
        self.queue.post(self._requests[number])

    def view(self, number: int) -> memoryview:
        return self._views[number]

    def close(self) -> None:
        """After the last queue pair on it. Raises OSError."""
        self.queue.close()
        for region in self._blocks:
            region.close()
        self._blocks.clear()
