"""What both ends of an rdma connection are made of: a queue pair, its send queue, its messages, and their end.

Nothing here calls whoever uses the connection: a failure is kept in `failed` for the owner to act on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.net.rdma.choice import Choice
from fireflyfs.common.net.rdma.credits import WINDOW, Credits
from fireflyfs.common.net.rdma.messages import Messages, SendBuffers
from fireflyfs.common.net.rdma.queues import POLL_MAX, RECEIVED, SUCCESS, Completions, QueuePair
from fireflyfs.common.net.rdma.receiving import Receives
from fireflyfs.common.net.rdma.sending import Operation, SendQueue
from fireflyfs.common.net.rdma.verbs import Domain
from fireflyfs.common.net.rdma.wire import Parameters

log = logging.getLogger(__name__)


class _Closes(Protocol):
    def close(self) -> None: ...


class Posted:
    """What was given to devices since the start."""

    __slots__ = ("chains", "work_requests")

    def __init__(self) -> None:
        self.chains = self.work_requests = 0


class Endpoint:
    """`completions` are of what is sent, and where `received` is None of what comes too."""

    def __init__(
        self,
        domain: Domain,
        completions: Completions,
        receives: Receives,
        queue: SendQueue,
        sges: int,
        *,
        remote: bool,
        posted: Posted,
        received: Completions | None = None,
    ) -> None:
        """Owns `completions` and a place among the users of `receives`, whatever comes of it. Raises OSError."""
        self.completions = completions
        self.failed: FfsError | None = None
        self.closed = False
        self.held_bytes = 0  # of WRITEs that wait for the message they are posted with
        self._receives = receives
        self._queue = queue
        self._posted = posted
        opened: list[_Closes] = [completions]
        try:
            self._buffers = SendBuffers(domain)
            opened.append(self._buffers)
            self.pair = QueuePair(
                domain, completions, queue.depth, sges, remote=remote, receives=receives.queue, received=received
            )
        except BaseException:
            _close_all(opened)
            receives.leave()
            raise
        self.messages: Messages | None = None

    def connect(self, choice: Choice, ours: Parameters, theirs: Parameters) -> Messages:
        """Raises OSError."""
        credits = Credits(WINDOW, theirs.receives)
        self.messages = Messages(credits, theirs.receive_bytes, self._buffers, self._receives, self.submit)
        self.pair.connect(choice.port.number, choice.gid.number, ours, theirs)
        return self.messages

    def submit(self, operations: Sequence[Operation]) -> None:
        """Post them now or when there is room, in order."""
        for operation in operations:
            self._queue.submit(operation)
        self.post()

    def put_before(self, operation: Operation, held_bytes: int = 0) -> None:
        """To be posted in one call with what is submitted next, or by `post`. A message that says that it was done
        follows, for `held_bytes` of it by whoever submits next; until there is room for that, it may wait too."""
        self.held_bytes += held_bytes
        self._queue.submit(operation)

    def post(self) -> None:
        self.held_bytes = 0
        if self.failed is not None:
            return
        chain = self._queue.take()
        if not chain:
            return
        try:
            self.pair.post(chain)
        except OSError as exc:
            self.fail(error(Code.UNAVAILABLE, f"work requests cannot be posted: {exc}"))
            return
        self._posted.chains += 1
        self._posted.work_requests += len(chain)

    @property
    def waits(self) -> bool:
        """Whether something is to be posted."""
        return self._queue.waits

    def reap(self, *, post: bool = True) -> int:
        """Take what has completed; returns how much. Operations are told, nobody else. `post` what there is room for
        again; else the caller does."""
        count = 0
        try:
            more = not self.closed
            while more:
                found = self.completions.poll()
                more = len(found) == POLL_MAX
                count += len(found)
                finished: list[Operation] = []
                for number, status, length, _ in found:
                    if number >= RECEIVED:
                        self.arrived(number - RECEIVED, status, length)
                    elif status == SUCCESS:
                        finished += self._queue.completed(number)
                    else:
                        self.fail(error(Code.UNAVAILABLE, f"a transfer ended with status {status}"))
                for operation in finished:
                    operation.finish(None)
        except OSError as exc:
            self.fail(error(Code.UNAVAILABLE, str(exc)))
        if count and post:
            self.post()
        return count

    def arrived(self, number: int, status: int, length: int) -> None:
        """Receive buffer `number` was completed by our queue pair."""
        try:
            if status == SUCCESS and self.failed is None and self.messages is not None:
                try:
                    self.messages.arrived(number, length)
                except FfsError as exc:
                    self._receives.post(number)
                    self.fail(exc)
            else:
                self._receives.post(number)
                if status != SUCCESS:
                    self.fail(error(Code.UNAVAILABLE, f"a message ended with status {status}"))
        except OSError as exc:
            self.fail(error(Code.UNAVAILABLE, str(exc)))

    def fail(self, exc: FfsError) -> None:
        """Keep the first."""
        if self.failed is None:
            self.failed = exc
            if self.messages is not None:
                self.messages.failed = exc

    def end(self) -> None:
        """First of all: nothing moves any more, and what has arrived can be reaped to have its buffers back."""
        try:
            self.pair.end()
        except OSError as exc:
            log.debug("a queue pair: %s", exc)

    def close(self, exc: FfsError) -> None:
        """After `end`. Queue pair, completions, then buffers, for until then the device may touch them; all that
        waited fails with `exc`."""
        if self.closed:
            return
        self.fail(exc)
        self.closed = True
        _close_all([self._buffers, self.completions, self.pair])
        try:
            if self.messages is not None:
                self.messages.close()
        except OSError as problem:
            log.warning("rdma: %s", problem)
        self._receives.leave()
        for operation in self._queue.drop():
            operation.finish(exc)


def _close_all(opened: Sequence[_Closes]) -> None:
    """The last first."""
    for owned in reversed(opened):
        try:
            owned.close()
        except OSError as problem:
            log.warning("rdma: %s", problem)
