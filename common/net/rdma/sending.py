"""Which work requests may be posted now, and what a completion says about earlier ones. Pure: no verbs, no clock.

A send queue holds `depth` work requests and completes them in order. Only some are signalled: the last of an
operation, so that its end is seen (of messages each fourth), and every quarter of the queue, so that it never fills
with silent ones. A completion stands for every request before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from fireflyfs.common.errors import FfsError
from fireflyfs.common.net.rdma.plan import Verb, Work

Finish = Callable[[FfsError | None], None]


class Operation:
    """Work requests that belong together; `finish` is called once, with the error or None.

    Where it is not `signalled` that is when a later one completes.
    """

    __slots__ = ("finish", "next", "signalled", "size", "works")

    def __init__(self, works: Sequence[Work], finish: Finish, *, signalled: bool = True) -> None:
        self.works = works
        self.size = sum(work.length for work in works)
        self.finish = finish
        self.signalled = signalled
        self.next = 0


class SendQueue:
    """The send queue of one connection. `bytes_max` bounds what is on its way at once; one request always may be."""

    def __init__(self, depth: int, bytes_max: int) -> None:
        if depth < 1:
            raise ValueError(f"a send queue of {depth}")
        self.depth = depth
        self._signal_every = max(1, depth // 4)
        self._bytes_max = bytes_max
        self._waiting: deque[Operation] = deque()
        self._posted: deque[tuple[int, int, Operation | None]] = deque()  # number, bytes, operation that ends there
        self._signalled: deque[int] = deque()  # numbers of those posted that tell
        self._number = 0
        self._since_signal = 0
        self._bytes = 0

    @property
    def in_flight(self) -> int:
        """Work requests that the device holds: never more than the depth."""
        return len(self._posted)

    @property
    def bytes_in_flight(self) -> int:
        return self._bytes

    def submit(self, operation: Operation) -> None:
        self._waiting.append(operation)

    def take(self) -> list[tuple[int, Work, bool]]:
        """The chain to post now: (number, work, signalled). Empty: nothing to post, or no room."""
        chain: list[tuple[int, Work, bool]] = []
        while self._waiting and len(self._posted) < self.depth:
            operation = self._waiting[0]
            work = operation.works[operation.next]
            size = work.length if work.verb is not Verb.SEND else 0  # what is sent is bounded by its buffers
            # It waits for those before it only where one of them tells of its end: the last of a chain does.
            if size and (self._signalled or chain) and self._bytes + size > self._bytes_max:
                break
            operation.next += 1
            last = operation.next == len(operation.works)
            if last:
                self._waiting.popleft()
            self._number += 1
            self._since_signal += 1
            signalled = (last and operation.signalled) or self._since_signal >= self._signal_every
            if signalled:
                self._since_signal = 0
                self._signalled.append(self._number)
            self._bytes += size
            self._posted.append((self._number, size, operation if last else None))
            chain.append((self._number, work, signalled))
        if self._waiting and chain and not chain[-1][2]:  # no room for more: its completion is what makes some
            number, work, _ = chain[-1]
            chain[-1] = (number, work, True)
            self._since_signal = 0
            self._signalled.append(number)
        return chain

    def completed(self, number: int) -> list[Operation]:
        """Operations that are finished now that work request `number` has succeeded."""
        finished: list[Operation] = []
        while self._signalled and self._signalled[0] <= number:
            self._signalled.popleft()
        while self._posted and self._posted[0][0] <= number:
            _, length, operation = self._posted.popleft()
            self._bytes -= length
            if operation is not None:
                finished.append(operation)
        return finished

    def drop(self) -> list[Operation]:
        """The connection is gone: every operation that has not finished."""
        dropped = [operation for _, _, operation in self._posted if operation is not None]
        dropped += self._waiting
        self._posted.clear()
        self._signalled.clear()
        self._waiting.clear()
        self._bytes = 0
        return dropped


class Grants:
    """How many bytes a server lets flow towards it at once, over all its connections: against incast.

    First come, first served. What is larger than the whole bound is let through alone.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._granting = False
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()

    @property
    def bytes(self) -> int:
        return self._bytes

    def ask(self, size: int, granted: Callable[[], None]) -> None:
        """Call `granted` now or later; whoever asks gives the same size back once, whatever came of it."""
        self._waiting.append((size, granted))
        self._grant()

    def give_back(self, size: int) -> None:
        self._bytes -= size
        self._grant()

    def _grant(self) -> None:
        if self._granting:  # whoever was just granted gave it back at once: the loop below goes on with the next
            return
        self._granting = True
        try:
            while self._waiting:
                size, granted = self._waiting[0]
                if self._bytes and self._bytes + size > self._bytes_max:
                    return
                self._waiting.popleft()
                self._bytes += size
                granted()
        finally:
            self._granting = False
