"""How many of the waiting I/Os an agent takes at once, and which words of a hostile ring it believes. Pure.

`io_depth` is 3FS's: 0 takes everything there is; above 0 exactly so many, as a training step reads its samples; below
0 at most so many, and with a timeout it waits that long for as many. 3FS waits for ever for the last, partial batch of
an `io_depth` above 0, and never submits one below 0 with a timeout: here a partial batch is taken
when `timeout_ms`, or PARTIAL_MS where there is none, has passed since the first of it was seen.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

PARTIAL_MS: Final = 100.0


def take(available: int, waited_ms: float, io_depth: int, timeout_ms: int) -> tuple[int, float]:
    """(I/Os to take now, milliseconds after which to ask again where it is none)."""
    if not available or not io_depth:
        return available, 0.0
    wanted = abs(io_depth)
    if available >= wanted:
        return wanted, 0.0
    if io_depth < 0 and not timeout_ms:
        return available, 0.0
    left_ms = (timeout_ms or PARTIAL_MS) - waited_ms
    return (available, 0.0) if left_ms <= 0 else (0, left_ms)


def share(lengths: npt.NDArray[np.unsignedinteger], bytes_max: int) -> int:
    """How many of the first I/Os of a batch one thread takes, where others may take the rest: at least one."""
    count = len(lengths)
    if not count or int(lengths.max()) * count <= bytes_max:
        return count
    total = 0
    for number, length in enumerate(lengths.tolist()):
        total += length
        if total > bytes_max:
            return max(1, number)
    return count


def ready(words: npt.NDArray[np.uint64], head: int) -> int:
    """How many slots from position `head` on are published, given the ring's `sq_seq`: a prefix, whatever else is in
    it."""
    entries = len(words)
    slot = head % entries
    tail = entries - slot
    first = _prefix(words[slot:], head + 1)
    return first if first < tail or not slot else first + _prefix(words[:slot], head + 1 + tail)


def _prefix(words: npt.NDArray[np.uint64], begin: int) -> int:
    wrong = words != np.arange(begin, begin + len(words), dtype=np.uint64)
    return int(wrong.argmax()) if wrong.any() else len(words)


def runs(head: int, count: int, entries: int) -> list[tuple[int, int]]:
    """(slot, length) of `count` slots from position `head` on: two where they go around the end."""
    slot = head % entries
    first = min(count, entries - slot)
    return [(slot, first), (0, count - first)] if count > first else [(slot, first)]
