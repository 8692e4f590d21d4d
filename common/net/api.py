"""The data link as the layers above see it. No layer above may know which link (shm, tcp, rdma) it is on.

One-sided memory model: a request names pieces of the client's memory; the server moves the data. `out` pieces are
pulled by the server (writes), `into` pieces are pushed by it (reads). Memory comes from `MemoryPool.allocate`, which
gives what every link can reach directly; any other writable buffer works too, at the price of one copy on some links.

Client doors: `BlockingLink` (threads, batches; the fastest shape in Python) and `AsyncLink` (asyncio, used between
servers). Server door: `LinkServer` calls a `Handler` with a `ServerRequest`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.ids import ClientId

DEFAULT_DEADLINE_S = 30.0


class Memory(Protocol):
    """A region that links can register. Owned by who allocated it; `close` withdraws it from every connection."""

    @property
    def view(self) -> memoryview:
        """All of it, writable bytes."""

    def slice(self, offset: int, length: int) -> Slice: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Slice:
    """Part of a `Memory`: bytes [offset, offset + length)."""

    memory: Memory
    offset: int
    length: int

    @property
    def view(self) -> memoryview:
        return self.memory.view[self.offset : self.offset + self.length]


Piece = Slice | memoryview  # memoryviews are of bytes ("B"), contiguous


def tainted(piece: Piece) -> bool:
    """Whether a server that did not answer in time may still write there: what was right need not stay so."""
    return isinstance(piece, Slice) and getattr(piece.memory, "tainted", False)


class Spread:
    """Room for a piece whose bytes end up in several buffers, which are known when the answer's body is there.

    Where bytes travel on a socket they are received straight into these buffers.
    """

    __slots__ = ("length",)

    def __init__(self, length: int) -> None:
        self.length = length

    def places(self, body: bytes, count: int) -> Sequence[memoryview]:
        """Where the `count` bytes that were pushed go, in order; of so many bytes in all. Called once, if any came."""
        raise TypeError(f"{type(self).__name__} has no places")

    def landed(self) -> None:
        """They are there. Called from the thread that took the answer, while others of a batch may be on their way."""

    def fill(self, body: bytes, pushed: memoryview) -> None:
        """Copy what was pushed to another place first."""
        at = 0
        for place in self.places(body, len(pushed)):
            end = at + len(place)
            place[:] = pushed[at:end]
            at = end
        self.landed()


@dataclass(slots=True)
class Call:
    """One request. `body` is the packed or protobuf part; pieces are in the order that the method defines."""

    method: int
    body: bytes | bytearray | memoryview
    out: Sequence[Piece] = ()  # the server reads these
    into: Sequence[Piece] = ()  # the server fills these, possibly short
    deadline_s: float = DEFAULT_DEADLINE_S
    spread: Spread | None = None  # one more `into` piece, after the others


@dataclass(slots=True)
class Reply:
    """A successful answer. `pushed[i]` says how many bytes of `into[i]` were filled from its start."""

    body: bytes | memoryview
    pushed: Sequence[int] = ()


class MemoryPool(Protocol):
    """Allocates memory that the links of this process can reach directly."""

    def allocate(self, length: int) -> Memory: ...


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server's data link listens; an empty field is a closed door (see proto Endpoint)."""

    tcp: str = ""
    unix: str = ""
    host_id: str = ""


class Begun(Protocol):
    """A call that has been sent. One of the two is called, soon and by the same thread."""

    def finish(self) -> Reply:
        """Wait for the answer. Raises as `BlockingLink.call` does."""

    def give_up(self) -> None:
        """Nobody wants the answer. Memory that was offered for it may be tainted."""


class BlockingLink(Protocol):
    """Connections of this process to any number of servers; safe to use from several threads."""

    pool: MemoryPool

    def call(self, address: Address, call: Call) -> Reply:
        """Send, wait, return the answer. Raises FfsError: the server's, or UNAVAILABLE, TIMEOUT, OVERLOADED."""

    def begin(self, address: Address, call: Call) -> Begun:
        """Send, and let the caller do something else before it takes the answer. Raises as `call` does."""

    def call_many(self, calls: Sequence[tuple[Address, Call]]) -> list[Reply | FfsError]:
        """All at once: everything is sent before any answer is waited for. Several calls may go to one address."""

    def close(self) -> None: ...


class AsyncLink(Protocol):
    """The same for an event loop; belongs to one loop."""

    pool: MemoryPool

    async def call(self, address: Address, call: Call) -> Reply: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as the handshake said."""

    client_id: ClientId
    name: str  # for logs: "shm pid 42", "tcp 127.0.0.1:4711"


class ServerRequest(Protocol):
    """One request at the server. Exactly one of `reply` and `fail` is called, once; both never raise for a lost peer.

    `body` and `push_views` are valid until then; what `pull` returned stays valid until then too.
    """

    method: int
    body: memoryview
    peer: Peer
    deadline_s: float  # on the server's monotonic clock
    pull_lengths: Sequence[int]
    push_lengths: Sequence[int]  # room in each of the client's `into` pieces

    async def pull(self) -> list[memoryview]:
        """The client's `out` pieces, in memory that the client can no longer change."""

    def push_views(self) -> list[memoryview]:
        """Where to place the answer's data, one writable view for each `into` piece.

        What is written here may be seen by the client before the reply: write only bytes it may see.
        """

    def reply(self, body: bytes | bytearray | memoryview = b"", pushed: Sequence[int] = ()) -> None: ...

    def fail(self, code: Code, message: str = "") -> None: ...


# A handler answers at once (fast path, returns None) or returns an awaitable that the server runs as a task. An
# exception becomes `fail`: FfsError as it is, anything else INTERNAL and a logged trace.
Handler = Callable[[ServerRequest], Awaitable[None] | None]
