"""Judges a history. Knows nothing of the system: what clients asked, when, and what they were answered is enough.

Each cell of a file is an atomic register whose writes have distinct values, so whether its history is linearizable can
be decided exactly (Gibbons and Korach, "Testing Shared Memories", 1997). A value's *zone* lies between the earliest end
and the latest beginning of what concerns it (its write and the reads that returned it): *forward* when the end comes
first, and the value must then have stood for all of that time; *backward* otherwise, when one moment inside is enough.
A history is linearizable unless two forward zones overlap, or a backward zone lies inside a forward one.

On top of that, per chunk: a write is stored in one piece. What one read shows of one chunk says which writes came
before which; these orders must have no cycle, with each other and with time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from fault import cells
from fault.history import NEVER, History, Read, Write

VIOLATIONS_MAX = 20  # told of one history
Initial = Mapping[tuple[int, int], int]  # (file, cell): value that stood there when the history began; absent: 0


def check(history: History, chunk_bytes: int, initial: Initial | None = None) -> list[str]:
    """What the history shows that must not be; empty when it is linearizable and no write was torn."""
    found: list[str] = []
    for problem in _problems(history, chunk_bytes, initial or {}):
        found.append(problem)
        if len(found) >= VIOLATIONS_MAX:
            break
    return found


def check_durable(history: History, cut_s: float, after: Iterable[Read], chunk_bytes: int) -> list[str]:
    """What a power cut at `cut_s` must not have done, by reads of what it left.

    What was acknowledged before an fsync of its file began, and the fsync was acknowledged before the cut, is there, or
    something newer; nothing is torn; nothing is there that nobody wrote.
    """
    found: list[str] = []
    by_value = {write.value: write for write in history.writes}
    last_sync: dict[int, float] = defaultdict(lambda: -NEVER)  # file: begin of its last fsync before the cut
    for sync in history.syncs:
        if sync.ended_s <= cut_s:
            last_sync[sync.file] = max(last_sync[sync.file], sync.began_s)
    durable: dict[tuple[int, int], Write] = {}  # of each cell, the synced write that began last
    for write in history.writes:
        if write.ended_s <= last_sync[write.file]:
            for cell in range(write.first, write.first + write.count):
                known = durable.get((write.file, cell))
                if known is None or known.began_s < write.began_s:
                    durable[write.file, cell] = write
    after = list(after)
    for read in after:
        for cell, value in _cells(read):
            if cells.straddles(read.file, cell, chunk_bytes):
                continue
            where = f"after the power cut, file {read.file} cell {cell}"
            synced = durable.get((read.file, cell))
            held = by_value.get(value)
            if value == cells.DAMAGED:
                found.append(f"{where} is damaged")
            elif value and (held is None or not held.first <= cell < held.first + held.count):
                found.append(f"{where} holds {value}, which nobody wrote there")
            elif synced is not None and (held is None or held.ended_s < synced.began_s):
                found.append(f"{where} holds {value}, older than the synced write {synced.value}")
    found += _torn(history, chunk_bytes, after)
    return found[:VIOLATIONS_MAX]


def _problems(history: History, chunk_bytes: int, initial: Initial) -> Iterator[str]:
    writes: dict[tuple[int, int], dict[int, Write]] = defaultdict(dict)
    reads: dict[tuple[int, int], list[tuple[int, Read]]] = defaultdict(list)
    for write in history.writes:
        for cell in range(write.first, write.first + write.count):
            writes[write.file, cell][write.value] = write
    for read in history.reads:
        for cell, value in _cells(read):
            reads[read.file, cell].append((value, read))
    for place, seen in sorted(reads.items()):
        if not cells.straddles(*place, chunk_bytes):
            yield from _register(place, writes[place], seen, initial.get(place, 0))
    yield from _torn(history, chunk_bytes, history.reads)


def _cells(read: Read) -> Iterator[tuple[int, int]]:
    cell = read.first
    for value, count in read.runs:
        for place in range(cell, cell + count):
            yield place, value
        cell += count


def _register(
    place: tuple[int, int], writes: Mapping[int, Write], reads: Iterable[tuple[int, Read]], initial: int
) -> Iterator[str]:
    where = f"file {place[0]} cell {place[1]}"
    ends: dict[int, float] = {value: write.ended_s for value, write in writes.items()}
    begins: dict[int, float] = {value: write.began_s for value, write in writes.items()}
    ends.setdefault(initial, -NEVER)
    begins.setdefault(initial, -NEVER)
    for value, read in reads:
        if value == cells.DAMAGED:
            yield f"{where}: read {read.by} at {read.began_s:.3f} returned damaged bytes"
            continue
        if value not in ends:
            yield f"{where}: read {read.by} at {read.began_s:.3f} returned {value}, which nobody wrote there"
            continue
        write = writes.get(value)
        if write is not None and read.ended_s < write.began_s:
            yield f"{where}: read {read.by} ended at {read.ended_s:.3f}, before {value} was written"
        ends[value] = min(ends[value], read.ended_s)
        begins[value] = max(begins[value], read.began_s)
    forward = sorted((ends[value], begins[value], value) for value in ends if ends[value] < begins[value])
    for (_, until_s, value), (from_s, _, other) in pairwise(forward):
        if from_s < until_s:
            yield (
                f"{where}: {value} was still read at {until_s:.3f}, after {other} stood there at {from_s:.3f}, "
                f"or the other way round: a read went back"
            )
    starts = [from_s for from_s, _, _ in forward]
    for value in ends:
        low_s, high_s = begins[value], ends[value]
        if low_s > high_s or high_s == NEVER:
            continue  # a forward zone; or never acknowledged and never read: it may have happened at no time
        index = bisect_right(starts, low_s) - 1
        if index >= 0 and forward[index][2] != value and forward[index][0] < low_s and high_s < forward[index][1]:
            stale = forward[index]
            yield (
                f"{where}: {value} was written between {low_s:.3f} and {high_s:.3f}, but {stale[2]}, which stood "
                f"there at {stale[0]:.3f}, was read again at {stale[1]:.3f}: an acknowledged write was not seen"
            )


def _torn(history: History, chunk_bytes: int, reads: Iterable[Read]) -> Iterator[str]:
    """Cycles among the orders that reads of one chunk show."""
    by_value = {write.value: write for write in history.writes}
    before: dict[tuple[int, int], dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for read in reads:
        for chunk, runs in _by_chunk(read, chunk_bytes).items():
            orders = before[read.file, chunk]
            for value in {value for value, _, _ in runs}:
                write = by_value.get(value)
                if write is None:
                    continue
                for other, first, end in runs:
                    # `value` is in what was read, and covers cells that show `other`: so `other` came later.
                    if other == value or first >= write.first + write.count or end <= write.first:
                        continue
                    where = f"file {read.file} chunk {chunk}, read {read.by} at {read.began_s:.3f}"
                    if other == 0:
                        yield f"{where}: {value} is there, but cells {first} to {end} that it covers are empty: torn"
                    elif other in by_value and by_value[other].ended_s < write.began_s:
                        yield f"{where}: {value} is there, but its cells {first} to {end} show the older {other}: torn"
                    else:
                        orders[other].add(value)
    for (file, chunk), orders in before.items():
        try:
            TopologicalSorter(orders).prepare()
        except CycleError as exc:
            yield f"file {file} chunk {chunk}: reads show writes in orders that contradict: {exc.args[1]}: torn"


def _by_chunk(read: Read, chunk_bytes: int) -> dict[int, list[tuple[int, int, int]]]:
    """Runs (value, first cell, end) of each chunk; cells in two chunks belong to none."""
    found: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    cell = read.first
    for value, count in read.runs:
        first, end = cell, cell + count
        cell = end
        while first < end:
            chunk = cells.chunk_of(read.file, first, chunk_bytes)
            # The first cell that begins in the next chunk.
            border = -((cells.shift_of(read.file) - (chunk + 1) * chunk_bytes) // cells.CELL_BYTES)
            stop = min(end, border)
            inside = stop - 1 if cells.straddles(read.file, stop - 1, chunk_bytes) else stop
            if inside > first and value != cells.DAMAGED:
                found[chunk].append((value, first, inside))
            first = stop
    return found
