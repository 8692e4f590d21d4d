"""Advisory locks: ranges of one owner, who is in whose way, who is next. Pure.

A range is [start, end], both inclusive, as fcntl(2) has it; flock(2) locks RANGE_END bytes from 0. Locks of one owner
never overlap: a new one replaces what it covers (upgrade, downgrade), splits what it leaves standing, and joins its
neighbours of the same type. Two owners are in each other's way where ranges overlap and one of them writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from fireflyfs.common.lock_spans import Span, with_span

RANGE_END: Final = (1 << 63) - 1  # the last byte that a lock can name
FAIR_NS: Final = 1_000_000_000  # for so long a request waits behind older ones that only wait themselves


class Kind(IntEnum):
    """Two worlds of locks that do not meet: LockKind of proto/meta.proto."""

    RANGE = 0
    FLOCK = 1


class Owner(NamedTuple):
    """Whose a lock is: a number that the client chose for a process or an open file."""

    client_id: bytes
    number: int


class Held(NamedTuple):
    """All that one owner has locked of one inode: sorted, no two overlap or could be one. `pid` asked last."""

    owner: Owner
    pid: int
    spans: tuple[Span, ...]


class Waiter(NamedTuple):
    """A request that waits, since `since_ns`. Tickets of one queue grow."""

    ticket: int
    request_id: bytes
    owner: Owner
    pid: int
    span: Span
    since_ns: int


def blockers(held: Iterable[Held], owner: Owner, wanted: Span) -> list[tuple[Held, Span]]:
    """What other owners have that is in the way of `wanted`: of each its first span, the lowest first."""
    found = []
    for each in held:
        if each.owner != owner:
            first = next((span for span in each.spans if span.meets(wanted)), None)
            if first is not None:
                found.append((each, first))
    return sorted(found, key=lambda pair: (pair[1], pair[0].owner))


def first_of(held: Held | None, wanted: Span) -> Span | None:
    """The lowest span of an owner that has a byte in common with `wanted`, whatever either is for."""
    for_any = wanted._replace(write=True)
    return next((span for span in held.spans if span.meets(for_any)), None) if held is not None else None


def behind(queue: Iterable[Waiter], held: Mapping[Owner, Held], owner: Owner, pid: int, wanted: Span) -> bool:
    """Whether a request that nobody's lock is in the way of should wait for older requests all the same.

    So that readers who come and go do not keep a writer out for ever. Not for one whose process has something locked
    here already: those who wait may wait for just that.
    """
    if any(each.owner == owner or (each.owner.client_id, each.pid) == (owner.client_id, pid) for each in held.values()):
        return False
    return any(waiter.owner != owner and waiter.span.meets(wanted) for waiter in queue)


class Grants(NamedTuple):
    """Who of a queue may go on now, in its order; `more`: others may, beyond the limit."""

    now: tuple[Waiter, ...]
    more: bool


def grants(held: Iterable[Held], queue: Sequence[Waiter], now_ns: int, limit: int) -> Grants:
    """The waiters whose turn has come, oldest first; each sees the locks of those granted before it.

    One that has waited for FAIR_NS waits for locks only. Waiting behind each other across several inodes could be a
    ring that no lock is part of, and it ends so.
    """
    standing = {each.owner: each for each in held}
    left: list[Waiter] = []
    granted: list[Waiter] = []
    for waiter in queue:
        owner, span = waiter.owner, waiter.span
        late = now_ns - waiter.since_ns >= FAIR_NS
        if blockers(standing.values(), owner, span) or (not late and behind(left, standing, owner, waiter.pid, span)):
            left.append(waiter)
            continue
        if len(granted) == limit:
            return Grants(tuple(granted), True)
        granted.append(waiter)
        before = standing.get(owner)
        standing[owner] = Held(owner, waiter.pid, with_span(before.spans if before else (), span))
    return Grants(tuple(granted), False)


def closes_ring(owner: Owner, waits_for: Callable[[Owner], Iterable[Owner]], owners_max: int) -> bool:
    """Whether `owner`, once it waits, waits for itself: somebody in its way waits for it, through any number of others.

    `waits_for(owner)` names who is in the way of an owner now, of `owner` as of its new request. At most `owners_max`
    owners are looked at.
    """
    seen = {owner}
    waiting = [owner]
    while waiting and len(seen) <= owners_max:
        for other in waits_for(waiting.pop()):
            if other == owner:
                return True
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return False
