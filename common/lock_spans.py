"""Arithmetic of what one owner has locked: sorted spans, no two of which overlap or could be one.

Both ends are inclusive, as fcntl(2) has it. A new span replaces what it covers, splits what it leaves standing, and
joins its neighbours of the same type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """Bytes [start, end] for reading, or for writing."""

    start: int
    end: int
    write: bool

    def meets(self, other: Span) -> bool:
        """Whether two owners cannot have both."""
        return (self.write or other.write) and self.start <= other.end and other.start <= self.end


def without(spans: Sequence[Span], start: int, end: int) -> tuple[Span, ...]:
    """`spans` with [start, end] unlocked."""
    kept: list[Span] = []
    for span in spans:
        if span.end < start or span.start > end:
            kept.append(span)
            continue
        if span.start < start:
            kept.append(span._replace(end=start - 1))
        if span.end > end:
            kept.append(span._replace(start=end + 1))
    return tuple(kept)


def with_span(spans: Sequence[Span], new: Span) -> tuple[Span, ...]:
    """`spans` with `new` in place of what it covers."""
    joined: list[Span] = []
    for span in sorted([*without(spans, new.start, new.end), new]):
        last = joined[-1] if joined else None
        if last is not None and last.write == span.write and last.end + 1 == span.start:
            joined[-1] = last._replace(end=span.end)
        else:
            joined.append(span)
    return tuple(joined)


def covers(spans: Sequence[Span], start: int, end: int) -> bool:
    """Whether all of [start, end] is locked, for reading or for writing."""
    for span in spans:  # sorted
        if span.start > start:
            return False
        if span.end >= end:
            return True
        start = max(start, span.end + 1)
    return False
