"""Which lengths and bytes a file may show, whatever overlaps: the judge of the files' histories.

A file is a row of cells. A write fills some neighbouring cells with its own number, a truncation empties all cells from
its length on; what was never written, and what was cut off, reads as 0. Each takes effect at some moment between call
and return; what failed may take effect at any later moment, or never. With operations that overlap, several outcomes
are right: only what no order allows is a violation.

Bytes: a cell must not show a write that something acknowledged has overwritten or cut off before the read began, nor
emptiness over an acknowledged write that nothing can have cut off. Lengths: what was closed, synced, or seen by anyone,
stays until a truncation that can have come after it; and a length must come from a write or a truncation that was not
cut off since.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

FOREVER = float("inf")


class What(Enum):
    WRITE = "write"
    TRUNCATE = "truncate"
    READ = "read"
    LENGTH = "length"  # the length that meta tells


@dataclass(slots=True)
class Event:
    """One operation on one file. WRITE: cells [begin, end). TRUNCATE: to `end` cells. READ: `saw` from `begin` on."""

    number: int
    what: What
    begin: int
    end: int
    call_s: float
    who: str
    return_s: float = FOREVER
    ok: bool = False
    saw: tuple[int, ...] = ()
    told_s: float = FOREVER  # WRITE: when it was closed or synced
    known_s: float = -1.0  # READ: when its client last asked meta for the file's length

    def __str__(self) -> str:
        span = f"[{self.begin},{self.end})" if self.what in (What.WRITE, What.READ) else str(self.end)
        until = f"{self.return_s:.4f}" if self.ok else "open"
        saw = f" saw {list(self.saw)}" if self.what is What.READ else ""
        return f"{self.call_s:.4f}..{until} {self.who} {self.what.value} #{self.number} {span}{saw}"


@dataclass
class FileHistory:
    """Everything that was done to one inode."""

    inode: int
    chunk_cells: int
    writes: list[Event] = field(default_factory=list)
    truncates: list[Event] = field(default_factory=list)
    reads: list[Event] = field(default_factory=list)
    lengths: list[Event] = field(default_factory=list)
    seen_s: dict[tuple[int, int], float] = field(default_factory=dict)  # of (write, cell): when a read first showed it

    def add(self, event: Event) -> None:
        places = {
            What.WRITE: self.writes,
            What.TRUNCATE: self.truncates,
            What.READ: self.reads,
            What.LENGTH: self.lengths,
        }
        places[event.what].append(event)

    def problems(self) -> list[str]:
        """What no order of events allows; at most the first of each kind."""
        self._note_seen()
        found = [self._bytes(), self._short_read(), self._too_short(), self._too_long()]
        return [f"file {self.inode}: {text}" for text in found if text is not None]

    def _note_seen(self) -> None:
        for read in self.reads:
            for cell, number in enumerate(read.saw, read.begin):
                key = (number, cell)
                self.seen_s[key] = min(read.return_s, self.seen_s.get(key, FOREVER))

    def _effect_s(self, write: Event, cell: int) -> float:
        """When a write surely had happened to a cell: it returned, or someone saw it there. Chunks are not together."""
        return min(write.return_s, self.seen_s.get((write.number, cell), FOREVER))

    # Bytes

    def _bytes(self) -> str | None:
        by_number = {write.number: write for write in self.writes}
        for read in self.reads:
            if not read.ok:
                continue
            for place, number in enumerate(read.saw):
                cell = read.begin + place
                text = self._hidden(read, cell) if not number else self._wrong(read, cell, by_number.get(number))
                if text is not None:
                    return f"cell {cell} of\n  {read}\n{text}"
        return None

    def _wrong(self, read: Event, cell: int, write: Event | None) -> str | None:
        if write is None or not write.begin <= cell < write.end:
            return "  no write put that there"
        if write.call_s > read.return_s:
            return f"  was written later:\n  {write}"
        effect_s = self._effect_s(write, cell)
        for other in self.writes:
            if not other.begin <= cell < other.end:
                continue
            if effect_s < other.call_s and self._effect_s(other, cell) < read.call_s:
                return f"  shows\n  {write}\n  which was overwritten by\n  {other}"
        for cut in self.truncates:
            if cut.end <= cell and effect_s < cut.call_s and cut.return_s < read.call_s:
                return f"  shows\n  {write}\n  which was cut off by\n  {cut}"
        return None

    def _hidden(self, read: Event, cell: int) -> str | None:
        """A cell read as empty: is there an acknowledged write that nothing can have cut off?"""
        for write in self.writes:
            surely = write.ok and write.begin <= cell < write.end and write.return_s < read.call_s
            if surely and not self._may_be_cut(write, cell + 1, read):
                return f"  is empty, though nothing cut off\n  {write}"
        return None

    def _short_read(self) -> str | None:
        """A client sees what it wrote itself, and what had been told to meta when it last asked."""
        for read in self.reads:
            end = read.begin + len(read.saw)
            client = read.who.split(".")[0]
            for write in self.writes if read.ok and end < read.end else ():
                own = write.who.split(".")[0] == client and write.return_s < read.call_s
                there = write.ok and write.end > end and write.begin < read.end
                if there and (own or write.told_s < read.known_s) and not self._may_be_cut(write, write.end, read):
                    return f"short read:\n  {read}\n  though nothing cut off\n  {write}"
        return None

    def _may_be_cut(self, event: Event, end: int, seen: Event) -> bool:
        """Whether a truncation below `end` can have come after `event` and before `seen` was over."""
        return any(
            cut is not event and cut.end < end and cut.return_s > event.call_s and cut.call_s < seen.return_s
            for cut in self.truncates
        )

    # Lengths

    def _too_short(self) -> str | None:
        for seen in self.lengths:
            longer = [event for event in (*self.writes, *self.truncates, *self.lengths) if event.end > seen.end]
            for event in longer if seen.ok else ():
                known_s = event.told_s if event.what is What.WRITE else event.return_s
                if event.ok and known_s < seen.call_s and not self._may_be_cut(event, event.end, seen):
                    return f"too short:\n  {seen}\n  though since {known_s:.4f} nothing cut off\n  {event}"
        return None

    def _too_long(self) -> str | None:
        for seen in self.lengths:
            if seen.ok and seen.end and not any(self._explains(event, seen) for event in self.writes + self.truncates):
                cuts = [cut for cut in self.truncates if cut.ok and cut.return_s < seen.call_s and cut.end < seen.end]
                last = max(cuts, key=lambda cut: cut.return_s, default=None)
                after = f"\n  after\n  {last}" if last is not None else ""
                return f"too long:\n  {seen}{after}\n  nothing that is left reaches that far"
        return None

    def _explains(self, event: Event, seen: Event) -> bool:
        """Whether `event` can be why the file is that long."""
        if event.call_s > seen.return_s:
            return False
        if event.what is What.TRUNCATE:
            fits = event.end == seen.end
        else:
            # Of a write that was cut off in part, or stored in part, whole chunks may be left.
            fits = event.end == seen.end or (event.begin < seen.end < event.end and seen.end % self.chunk_cells == 0)
        return fits and not any(
            cut.end < seen.end and event.return_s < cut.call_s and cut.return_s < seen.call_s for cut in self.truncates
        )
