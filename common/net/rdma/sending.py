"""Which work requests may be posted now, and what a completion says about earlier ones. Pure: no verbs, no clock.

A send queue holds `depth` work requests and completes them in order. Only some are signalled, and a completion stands
for every request before it: the last of an operation whose end somebody waits for (of messages each fourth), one
in every quarter of the queue, and what would leave more than a bound of bytes without a signal, because their buffers
come back with a later completion only.

READs wait in a lane of their own, and few bytes of them are posted at once. The peer answers a queue pair's requests
in order: a SEND posted behind 16 MiB of READs would arrive when those have moved, and then all answers together, with
nothing left to move until the peer has asked again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from fireflyfs.common.errors import FfsError
from fireflyfs.common.net.rdma.plan import Verb, Work

Finish = Callable[[FfsError | None], None]


class Operation:
    """Work requests that belong together; `finish` is called once, with the error or None.

    Where it is not `signalled` that is when a later one completes. `keeps` says how many bytes of buffers it holds
    until then, which may be more than it moves.
    """

    __slots__ = ("finish", "keeps", "next", "signalled", "size", "works")

    def __init__(self, works: Sequence[Work], finish: Finish, *, signalled: bool = True, keeps: int = 0) -> None:
        self.works = works
        self.keeps = keeps
        self.size = sum([work.length for work in works])
        self.finish = finish
        self.signalled = signalled
        self.next = 0


class Silence:
    """How many bytes of buffers all queues of one server keep for what has no signal behind it, each up to
    `queue_bytes_max`."""

    __slots__ = ("bytes", "bytes_max", "queue_bytes_max")

    def __init__(self, bytes_max: int, queue_bytes_max: int) -> None:
        self.bytes = 0
        self.bytes_max = bytes_max
        self.queue_bytes_max = queue_bytes_max


class _Lane:
    """Operations that wait for their turn, and how many bytes of earlier ones are on their way."""

    __slots__ = ("bytes", "bytes_max", "waiting")

    def __init__(self, bytes_max: int) -> None:
        self.bytes = 0
        self.bytes_max = bytes_max
        self.waiting: deque[Operation] = deque()


class SendQueue:
    """The send queue of one connection. `bytes_max` bounds what is on its way at once to the peer, `read_bytes_max`
    what comes from it; one request each way always may be."""

    def __init__(
        self,
        depth: int,
        bytes_max: int,
        *,
        read_bytes_max: int | None = None,
        silence: Silence | None = None,
        whole_chains: bool = False,
    ) -> None:
        """`whole_chains`: nothing of a chain is done before all of it is, so the last one's signal does for all."""
        if depth < 1:
            raise ValueError(f"a send queue of {depth}")
        self.depth = depth
        self._signal_every = max(1, depth // 4)
        self._lane = _Lane(bytes_max)  # WRITE and SEND, in order
        self._reads = _Lane(bytes_max if read_bytes_max is None else read_bytes_max)
        self._reads_next = False  # whose turn it is where both could go on
        self._posted: deque[tuple[int, int, _Lane, Operation | None]] = deque()  # the operation that ends there
        self._signalled: deque[int] = deque()  # numbers of those posted that tell
        self._number = 0
        self._since_signal = 0
        self._whole_chains = whole_chains
        self._silence = silence if silence is not None else Silence(bytes_max, bytes_max)
        self._silent = 0  # bytes of buffers kept for what was posted since the last signal

    @property
    def in_flight(self) -> int:
        """Work requests that the device holds: never more than the depth."""
        return len(self._posted)

    @property
    def bytes_in_flight(self) -> int:
        return self._lane.bytes + self._reads.bytes

    @property
    def waits(self) -> bool:
        return bool(self._lane.waiting or self._reads.waiting)

    def submit(self, operation: Operation) -> None:
        """An operation that begins with a READ may be overtaken by WRITEs and SENDs, and the other way round."""
        lane = self._reads if operation.works[0].verb is Verb.READ else self._lane
        lane.waiting.append(operation)

    def take(self) -> list[tuple[int, Work, bool]]:
        """The chain to post now: (number, work, signalled). Empty: nothing to post, or no room."""
        chain: list[tuple[int, Work, bool]] = []
        posted, silence = self._posted, self._silence
        waiting, reads = self._lane.waiting, self._reads.waiting
        number, since_signal = self._number, self._since_signal
        awaited = False  # somebody waits for what has no signal yet
        while (waiting or reads) and len(posted) < self.depth:
            if reads:  # in turn with WRITEs: neither keeps the queue for itself; messages are short, and go first
                first = waiting and waiting[0].works[waiting[0].next].verb is Verb.SEND
                lane = self._reads if not waiting or (self._reads_next and not first) else self._lane
                self._reads_next = lane is self._lane
            else:
                lane = self._lane
            operation = lane.waiting[0]
            work = operation.works[operation.next]
            size = work.length if work.verb is not Verb.SEND else 0  # what is sent is bounded by its buffers
            # It waits for those before it only where one of them tells of its end: the last of a chain does.
            if size and lane.bytes and lane.bytes + size > lane.bytes_max and (chain or self._signalled):
                if not reads or not waiting or self._full(lane is self._lane):
                    break
                continue  # it was the other's turn next
            operation.next += 1
            number += 1
            since_signal += 1
            ends: Operation | None = None
            signalled = since_signal >= self._signal_every
            if operation.next == len(operation.works):
                lane.waiting.popleft()
                ends = operation
                if operation.signalled and not signalled:
                    awaited = self._whole_chains
                    signalled = not awaited
                self._silent += operation.keeps
                silence.bytes += operation.keeps
            if signalled:
                since_signal = 0
                self._signals(number)
            lane.bytes += size
            posted.append((number, size, lane, ends))
            chain.append((number, work, signalled))
        self._number, self._since_signal = number, since_signal
        if chain and not chain[-1][2]:
            # No room for more, and its completion is what makes some; or its signal is for all that has none.
            too_much = self._silent > silence.queue_bytes_max or silence.bytes > silence.bytes_max
            if awaited or waiting or reads or too_much:
                number, work, _ = chain[-1]
                chain[-1] = (number, work, True)
                self._since_signal = 0
                self._signals(number)
        return chain

    def _full(self, reads: bool) -> bool:
        """Whether the first of READs, or of the rest, has to wait as well."""
        lane = self._reads if reads else self._lane
        operation = lane.waiting[0]
        work = operation.works[operation.next]
        return work.verb is not Verb.SEND and bool(lane.bytes) and lane.bytes + work.length > lane.bytes_max

    def _signals(self, number: int) -> None:
        self._signalled.append(number)
        self._silence.bytes -= self._silent
        self._silent = 0

    def completed(self, number: int) -> list[Operation]:
        """Operations that are finished now that work request `number` has succeeded."""
        finished: list[Operation] = []
        while self._signalled and self._signalled[0] <= number:
            self._signalled.popleft()
        while self._posted and self._posted[0][0] <= number:
            _, length, lane, operation = self._posted.popleft()
            lane.bytes -= length
            if operation is not None:
                finished.append(operation)
        return finished

    def drop(self) -> list[Operation]:
        """The connection is gone: every operation that has not finished."""
        dropped = [operation for _, _, _, operation in self._posted if operation is not None]
        for lane in (self._lane, self._reads):
            dropped += lane.waiting
            lane.waiting.clear()
            lane.bytes = 0
        self._posted.clear()
        self._signalled.clear()
        self._silence.bytes -= self._silent
        self._silent = 0
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
