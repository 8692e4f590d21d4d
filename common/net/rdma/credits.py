"""How many messages either end of an rdma connection may send, and how deep that makes every queue. Pure.

Each end keeps `window` receive buffers for a connection and says in every message how many messages the peer may have
sent in all. A buffer counts anew once it is posted again. The last credit is kept for a message that carries nothing
but that number: were it spent on frames, both ends could wait for each other. Such a message is taken as it arrives,
however much lies unread before it, so that its own buffer is soon told of again.

What keeps queues from overflowing, all in one place:

- shared receive queue: every connection's window and `SPARE` more are posted. An honest peer never finds it empty; one
  that sends more than it may eats into the spare, is seen when its message is reaped, and loses its connection.
- completions of received messages: as many as there are receive buffers, for a buffer is posted again only after its
  completion was reaped. This holds whatever a peer does.
- send queue and its completions: `SendQueue` holds no more than the depth, and every work request may complete,
  signalled or not, when the queue pair fails.
"""

from __future__ import annotations

import errno
from typing import Final

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import KiB

RECEIVE_BYTES: Final = 8 * KiB  # of one buffer: what 128 reads ask for fits
WINDOW: Final = 16  # buffers for one connection at each end, and as many to send from
WINDOW_MIN: Final = 4  # of a peer: half of it must be more than the one credit that is kept
SPARE: Final = 32
BLOCK: Final = 32  # buffers that are registered together
COUNT_MASK: Final = 0xFFFFFFFF


def send_completions(depth: int) -> int:
    """How deep the completion queue of a send queue is."""
    return depth + 1


def receive_buffers(connections_max: int, window: int = WINDOW) -> int:
    """The most buffers of a shared receive queue: how deep it is, and the completion queue of what comes from it."""
    blocks = -(-(connections_max * window + 2 * SPARE) // BLOCK)
    return blocks * BLOCK


def connections_that_fit(buffers_max: int, window: int = WINDOW) -> int:
    """How many connections a device that allows so many buffers on a queue has room for."""
    return max((buffers_max // BLOCK * BLOCK - 2 * SPARE) // window, 0)


class Credits:
    """Both directions of one connection. Counts are of messages since its start, on the wire modulo 2**32."""

    __slots__ = ("_allowed", "_granted", "_posted_again", "_received", "_sent", "_theirs", "_window")

    def __init__(self, window: int, theirs: int) -> None:
        self._window = window
        self._theirs = theirs
        self._granted = window  # that the peer was told of
        self._received = 0
        self._posted_again = 0
        self._allowed = theirs  # that we were told of
        self._sent = 0

    @property
    def room(self) -> int:
        """Messages with frames that may be sent now."""
        return max(self._allowed - self._sent - 1, 0)

    @property
    def due(self) -> bool:
        """Whether the peer should be told what it may send, and can be."""
        owed = self._window + self._posted_again - self._granted
        return 2 * owed >= self._window and self._allowed > self._sent

    def sends(self) -> int:
        """A message is sent now: what stands in it."""
        self._sent += 1
        self._granted = self._window + self._posted_again
        return self._granted & COUNT_MASK

    def received(self, told: int) -> None:
        """A message has come. Raises PROTOCOL: it was one too many, or grants what the peer cannot have."""
        self._received += 1
        if self._received > self._granted:
            raise error(Code.PROTOCOL, f"message {self._received} came, {self._granted} were granted")
        allowed = self._allowed + ((told - self._allowed) & COUNT_MASK)
        if allowed > self._sent + self._theirs:
            raise error(Code.PROTOCOL, f"a peer with {self._theirs} buffers grants {allowed} after {self._sent}")
        self._allowed = allowed

    def posted_again(self) -> None:
        """The buffer of a message that came can take another."""
        self._posted_again += 1


class ReceiveBudget:
    """How many buffers a shared receive queue has posted, for how many connections. Buffers are kept once made."""

    def __init__(self, connections_max: int, window: int = WINDOW) -> None:
        self.connections = 0
        self.buffers = 0
        self.buffers_max = receive_buffers(connections_max, window)
        self._connections_max = connections_max
        self._window = window

    @property
    def full(self) -> bool:
        return self.connections >= self._connections_max

    def enter(self) -> int:
        """One more connection: how many buffers to post before it may be granted anything. Raises OSError."""
        if self.full:
            raise OSError(errno.ENOBUFS, f"{self.connections} connections share the receive queue")
        self.connections += 1
        need = max(self.connections * self._window + SPARE - self.buffers, 0)
        return self._more(-(-need // BLOCK) * BLOCK)

    def leave(self) -> None:
        self.connections -= 1

    def replace_lost(self) -> int:
        """The queue ran low although nobody sent too much: buffers went with queue pairs. How many to post anew."""
        return self._more(BLOCK)

    def _more(self, count: int) -> int:
        count = min(count, self.buffers_max - self.buffers)
        self.buffers += count
        return count
