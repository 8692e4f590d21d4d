"""A call of the blocking link on its way, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import DEADLINE_S_MAX
from fireflyfs.common.net.api import Call, Piece, Reply, Slice
from fireflyfs.common.net.memory import SharedMemory


class Pending:
    """`outcome` is set once."""

    __slots__ = (
        "call", "deadline_s", "into", "landing_bytes", "outcome", "payload", "rooms", "shared", "spread", "staged",
        "staging",
    )  # fmt: skip

    def __init__(self, call: Call, now_s: float) -> None:
        self.call = call
        self.deadline_s = now_s + min(call.deadline_s, DEADLINE_S_MAX)
        self.outcome: Reply | FfsError | None = None
        self.rooms: list[int] = []
        self.into: list[memoryview | None] = []  # where inline answers land; None: the server writes there itself
        # (index of the into piece, where it lies, its bytes in the staging buffer)
        self.staged: list[tuple[int, memoryview, memoryview]] = []
        self.spread: memoryview | None = None  # the call's, in the staging buffer; None: it arrives on the socket
        self.staging: SharedMemory | None = None
        self.shared: list[SharedMemory] = []  # the caller's memory that the server may write
        self.payload = 0
        self.landing_bytes = 0  # of it, what answers may bring on the socket

    def sinks(self, body: bytes, pushed: Sequence[int]) -> list[memoryview]:
        """Where the answer's payload on the socket goes, in order."""
        sinks = [place[:n] for place, n in zip(self.into, pushed, strict=False) if place is not None and n]
        count = self._spread_bytes(pushed)
        if count and self.spread is None and self.call.spread is not None:
            sinks += self.call.spread.places(body, count)
        return sinks

    def landed(self, body: bytes, pushed: Sequence[int]) -> None:
        """The answer is there: what went to a staging buffer moves to where the caller wants it."""
        for index, landing, source in self.staged:
            length = pushed[index] if index < len(pushed) else 0
            landing[:length] = source[:length]
        count = self._spread_bytes(pushed)
        if count and self.call.spread is not None:
            if self.spread is None:
                self.call.spread.landed()
            else:
                self.call.spread.fill(body, self.spread[:count])

    def _spread_bytes(self, pushed: Sequence[int]) -> int:
        return pushed[-1] if self.call.spread is not None and len(pushed) == len(self.rooms) else 0

    def regions(self) -> set[int]:
        """Where those of its pieces lie that have been placed."""
        named = {memory.region for memory in self.shared}
        if self.staging is not None:
            named.add(self.staging.region)
        return named


def view_of(piece: Piece) -> memoryview:
    """Raises INVALID for a piece of memory that was closed."""
    if not isinstance(piece, Slice):
        return piece
    view = piece.view
    if len(view) != piece.length:
        raise error(Code.INVALID, "a piece lies in memory that is closed")
    return view
