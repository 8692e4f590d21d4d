"""Rot: what is decided about a chunk whose bytes may not match, which of them wait, and when all are looked at again.

Nothing here reads a disk. `service/repair.py` mends one chunk, `background/repair.py` those that somebody stumbled
over, `background/scrub.py` looks for those that nobody reads.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from fireflyfs.storage.engine.interface import ChunkKey, ChunkState

SUSPECTS_MAX = 1024  # of one target, waiting
TRIES_MAX = 8
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 30.0
REST_S = 60.0  # so long a chunk that could not be mended is not tried again, however often it is read
RESTING_MAX = 4096


class Outcome(Enum):
    """What became of one chunk."""

    GOOD = "its bytes match"
    REPAIRED = "it has the bytes of another replica"
    LATER = "not now: an update is under way, or a replica that could help does not answer"
    LOST = "no replica that serves has its bytes"
    GONE = "there is no such chunk any more"


def judge(state: ChunkState | None) -> Outcome | None:
    """What can be said before any byte is read; None: it has to be looked at. The caller holds the chunk."""
    if state is None or state.committed is None:
        return Outcome.GONE if state is None else Outcome.LATER
    # The same version pending: an attempt to mend it that was cut off. It is replaced.
    if state.pending is not None and state.pending.version != state.committed.version:
        return Outcome.LATER
    return None


class Missing(NamedTuple):
    """A range of a chunk that is still to be had from somebody."""

    offset: int
    length: int


def pieces(missing: list[Missing], size: int) -> list[Missing]:
    """The same bytes in ranges of at most `size`, cut at multiples of it."""
    return [
        Missing(at, min(size - at % size, offset + length - at))
        for offset, length in missing
        for at in [offset, *range(offset - offset % size + size, offset + length, size)]
    ]


class _Suspect(NamedTuple):
    tries: int
    due_s: float


class Suspects:
    """Chunks that somebody found damaged: each once, a bounded number, those that wait for longest first.

    Times are monotonic seconds that the caller passes in.
    """

    def __init__(self, suspects_max: int = SUSPECTS_MAX) -> None:
        self._suspects_max = suspects_max
        self._waiting: OrderedDict[ChunkKey, _Suspect] = OrderedDict()
        self._resting: OrderedDict[ChunkKey, float] = OrderedDict()  # until when
        self._busy: dict[ChunkKey, int] = {}  # tries so far
        self.dropped = 0  # over the bound: the scrubber finds them again

    def __len__(self) -> int:
        return len(self._waiting) + len(self._busy)

    def add(self, key: ChunkKey, now_s: float) -> bool:
        """Whether it is news: False when the chunk waits, is being mended, or was tried not long ago."""
        if key in self._waiting or key in self._busy or self._resting.get(key, now_s) > now_s:
            return False
        if len(self._waiting) >= self._suspects_max:
            self.dropped += 1
            return False
        self._waiting[key] = _Suspect(0, now_s)
        return True

    def take(self, now_s: float) -> ChunkKey | None:
        """The next chunk that is due. `put_back` must follow."""
        key = next((key for key, suspect in self._waiting.items() if suspect.due_s <= now_s), None)
        if key is not None:
            self._busy[key] = self._waiting.pop(key).tries
        return key

    def next_due_s(self) -> float | None:
        return min((suspect.due_s for suspect in self._waiting.values()), default=None)

    def put_back(self, key: ChunkKey, outcome: Outcome, now_s: float) -> bool:
        """What became of a chunk that was taken. Whether it will be tried again by itself."""
        tries = self._busy.pop(key) + 1
        if outcome is Outcome.LATER and tries < TRIES_MAX:
            self._waiting[key] = _Suspect(tries, now_s + min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 4.0**tries))
            return True
        if outcome in (Outcome.LATER, Outcome.LOST):
            self._resting.pop(key, None)
            self._resting[key] = now_s + REST_S
            while len(self._resting) > RESTING_MAX:
                self._resting.popitem(last=False)
        return False


@dataclass(slots=True)
class Progress:
    """The scrubber's passes over one target. Kept across restarts, roughly: `background/scrub.py`."""

    passes: int = 0  # finished
    ended_unix_s: float = 0.0  # of the last one; 0: there was none
    empty_unix_s: float = 0.0  # when the target was seen to begin without a chunk; 0: it was not
    running: bool = False
    after: ChunkKey | None = None  # of the pass under way: everything up to here was looked at
    chunks: int = 0  # looked at in the pass under way, or in the last one
    total: int = 0  # that it will look at, as far as one knows
    bytes: int = 0
    damaged: int = 0  # found in this pass
    repaired: int = 0
    lost: int = 0

    def begin(self, total: int) -> None:
        """Start a pass from the first chunk, or go on where a pass was cut off."""
        self.running = True
        if self.after is None:
            self.chunks = self.bytes = self.damaged = self.repaired = self.lost = 0
        self.total = max(total, self.chunks)

    def note(self, key: ChunkKey, size: int, outcome: Outcome) -> None:
        """One more chunk of `size` bytes, in key order."""
        self.after = key
        self.chunks += 1
        self.total = max(self.total, self.chunks)
        self.bytes += size
        self.damaged += outcome in (Outcome.REPAIRED, Outcome.LOST, Outcome.LATER)
        self.repaired += outcome is Outcome.REPAIRED
        self.lost += outcome is Outcome.LOST

    def end(self, now_unix_s: float) -> None:
        """The pass has reached the last chunk."""
        self.running = False
        self.passes += 1
        self.ended_unix_s = now_unix_s
        self.after = None
        self.total = self.chunks

    def due(self, now_unix_s: float, every_s: float) -> bool:
        """Whether a pass should run by itself: one was cut off, or the last one ended `every_s` ago; all chunks of a
        target that began empty are younger than it is. 0: never."""
        last_unix_s = max(self.ended_unix_s, self.empty_unix_s)
        return every_s > 0 and (self.after is not None or now_unix_s - last_unix_s >= every_s)
