"""What clients saw, and whether one order of events explains it.

The model of a chunk is a row of cells. A write sets some neighbouring cells to its own number, a truncation and a
removal set cells to 0, a read sees some neighbouring cells; each takes effect at one moment between its call and its
return. What failed or never returned may take effect at any later moment, or never.

The checker looks for such an order (Wing and Gong, with Lowe's memory of what was tried: "Testing for linearizability",
2017). Numbers of writes are unique, so it rarely has to go back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

FOREVER = float("inf")
STEPS_MAX = 2_000_000


class Kind(Enum):
    WRITE = "write"
    ZERO = "zero"
    READ = "read"


@dataclass(slots=True)
class Op:
    """One operation on one chunk: cells [begin, end)."""

    number: int
    kind: Kind
    begin: int
    end: int
    call_s: float
    who: str = ""
    return_s: float = FOREVER
    saw: tuple[int, ...] = ()  # READ
    ok: bool = False  # acknowledged

    def __str__(self) -> str:
        what = f"saw {list(self.saw)}" if self.kind is Kind.READ else f"#{self.number}"
        end = f"{self.return_s:.4f}" if self.ok else "open"
        return f"{self.call_s:.4f}..{end} {self.who} {self.kind.value} [{self.begin},{self.end}) {what}"


class TooHard(Exception):
    """The search went over its bound; says nothing of the history."""


def explain(ops: list[Op], cells: int, initial: tuple[int, ...] | None = None) -> str | None:
    """None when one order explains the history; otherwise where the search stuck, for a person."""
    seen = {value for op in ops if op.kind is Kind.READ and op.ok for value in op.saw}
    relevant = [
        op
        for op in ops
        # What nobody saw and nobody was promised may be taken as never happened; reads that failed say nothing.
        if op.ok or (op.kind is Kind.WRITE and op.number in seen) or op.kind is Kind.ZERO
    ]
    for op in relevant:
        if not op.ok:
            op.return_s = FOREVER
    relevant.sort(key=lambda op: op.call_s)
    state = initial or (0,) * cells
    return _search(relevant, state)


def _search(ops: list[Op], state: tuple[int, ...]) -> str | None:
    total = len(ops)
    must = sum(1 << place for place, op in enumerate(ops) if op.ok)
    done = 0
    tried: set[tuple[int, tuple[int, ...]]] = set()
    stack: list[tuple[int, tuple[int, ...], list[int]]] = []
    first = 0  # all before it are done
    best: tuple[int, int, tuple[int, ...]] = (0, 0, state)
    steps = 0

    def candidates(done: int, state: tuple[int, ...], first: int) -> list[int]:
        """Operations that may come next: called before the first return of those that are left."""
        limit = FOREVER
        found = []
        for place in range(first, total):
            if done >> place & 1:
                continue
            op = ops[place]
            if op.call_s > limit:
                break
            if op.return_s < limit:
                limit = op.return_s
            found.append(place)
        result = []
        for place in found:
            op = ops[place]
            if op.call_s > limit:
                continue
            if op.kind is Kind.READ:
                if state[op.begin : op.end] == op.saw:
                    return [place]  # a read that fits now changes nothing: never worth trying later
                continue
            result.append(place)
        # Those that returned first come first; what was never acknowledged is tried last.
        result.sort(key=lambda place: -ops[place].return_s)
        return result

    options = candidates(done, state, first)
    while True:
        steps += 1
        if steps > STEPS_MAX:
            raise TooHard(f"{total} operations")
        if done & must == must:
            return None
        if options:
            place = options.pop()
            op = ops[place]
            after_done = done | 1 << place
            if op.kind is Kind.READ:
                after = state
            else:
                value = op.number if op.kind is Kind.WRITE else 0
                after = state[: op.begin] + (value,) * (op.end - op.begin) + state[op.end :]
            if (after_done, after) in tried:
                continue
            tried.add((after_done, after))
            stack.append((done, state, options))
            done, state = after_done, after
            while first < total and done >> first & 1:
                first += 1
            count = done.bit_count()
            if count > best[0]:
                best = (count, done, state)
            options = candidates(done, state, first)
            continue
        if not stack:
            break
        done, state, options = stack.pop()
        first = 0
        while first < total and done >> first & 1:
            first += 1
    count, done, state = best
    left = [op for place, op in enumerate(ops) if not done >> place & 1][:8]
    before = [op for place, op in enumerate(ops) if done >> place & 1][-8:]
    lines = [f"no order explains it; {count} of {total} operations lead to {list(state)}; before:"]
    lines += [f"  {op}" for op in before] + ["then none of these fits:"] + [f"  {op}" for op in left]
    return "\n".join(lines)
