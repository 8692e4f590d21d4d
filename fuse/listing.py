"""One pass over a directory that goes on while the directory changes: no entry doubled, none lost. No I/O of its own.

Positions are entry numbers. Entries come in pages by name, so a directory is read page after page behind the last name
seen, whatever was removed meanwhile. A page that was shown keeps its names and numbers until the pass begins anew
(rewinddir): who goes back to a position of it (seekdir) finds the same entries behind it. What was removed since may
still be shown, what was made since may not: POSIX leaves both open.

The names of passed pages are kept packed, within a bound for all passes of a mount. Beyond it the oldest page of a pass
is asked for again when somebody goes back to it: then entries that were removed since move the ones behind them.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable
from struct import Struct
from typing import Final

from fireflyfs.common.limits import MiB
from fireflyfs.proto import meta_pb2 as m

KEPT_BYTES_MAX: Final = 64 * MiB  # of names of all open directories of a mount
_ENTRY = Struct("<QIH")  # inode, mode, length of the name; then the name

Fetch = Callable[[bytes, bool], m.ListReply]  # (name to begin behind, with attributes) -> one page


class Budget:
    """Bytes that all passes of a mount may keep. Safe to use from several threads."""

    def __init__(self, bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._lock = threading.Lock()
        self._left = bytes_max

    def take(self, count: int) -> bool:
        with self._lock:
            if count > self._left:
                return False
            self._left -= count
            return True

    def give_back(self, count: int) -> None:
        with self._lock:
            self._left += count


class Listing:
    """The caller serializes the calls. `asked`: its mark of when it last asked for a page."""

    __slots__ = (
        "_afters", "_budget", "_current", "_entries", "_kept", "_more", "_starts", "_with", "asked", "parent",
    )  # fmt: skip

    def __init__(self, parent: int, budget: Budget) -> None:
        """`parent`: the inode of `..` until a page says it."""
        self.parent = parent
        self._budget = budget
        self._kept: list[bytes | None] = []
        self._begin()

    def _begin(self) -> None:
        self._starts: list[int] = []  # number of the first entry of each page that was read
        self._afters: list[bytes] = [b""]  # the name that each page begins behind, and the next one
        self._kept.clear()  # packed names of each page that was passed
        self._current = -1
        self._entries: list[m.DirEntry] = []
        self._more = True
        self._with = False  # the current page has attributes
        self.asked = 0

    @property
    def begun(self) -> bool:
        return bool(self._starts)

    def rewind(self) -> None:
        """Begin anew, and show the directory as it is now."""
        self.close()
        self._begin()

    def close(self) -> None:
        self._budget.give_back(sum(len(kept) for kept in self._kept if kept is not None))
        self._kept.clear()

    def entries_from(self, number: int, fetch: Fetch, *, attributes: bool) -> tuple[int, list[m.DirEntry]]:
        """(number of the first of them, entries from `number` to the end of a page); none: that is the end.

        Raises what `fetch` raises; the pass is as before then.
        """
        while True:
            page = bisect_right(self._starts, number) - 1
            if page < 0 or (page == len(self._starts) - 1 and self._at_end(page, number)):
                if not self._more:
                    return number, []
                self._next_page(fetch, attributes)
                continue
            if page != self._current:
                self._go_back(page, fetch)
            elif attributes and not self._with:
                self._add_attributes(fetch)
            first = self._starts[page]
            if page < len(self._starts) - 1:  # a page asked for again may be shorter: its last numbers are used
                first = self._starts[page + 1] - len(self._entries)
            number = max(number, first)
            found = self._entries[number - first :]
            if found or page == len(self._starts) - 1:
                return number, found
            number = self._starts[page + 1]

    def _at_end(self, page: int, number: int) -> bool:
        if page != self._current:
            return False
        return number - self._starts[page] >= len(self._entries)

    def _next_page(self, fetch: Fetch, attributes: bool) -> None:
        last = len(self._starts) - 1
        if last >= 0 and self._current != last:
            self._go_back(last, fetch)
        reply = fetch(self._afters[-1], attributes)
        if last >= 0:
            self._keep(last)
        self._starts.append(self._starts[last] + len(self._entries) if last >= 0 else 0)
        self._entries = list(reply.entries)
        self._current = len(self._starts) - 1
        self._more = reply.more and bool(self._entries)
        self._with = attributes
        self._afters.append(self._entries[-1].name if self._entries else self._afters[-1])
        if reply.parent:
            self.parent = reply.parent

    def _keep(self, page: int) -> None:
        """Remember the names of the current page, which is `page`, before it is left."""
        if page < len(self._kept):
            return
        packed = b"".join(_ENTRY.pack(entry.inode, entry.mode, len(entry.name)) + entry.name for entry in self._entries)
        self._kept.append(packed if self._budget.take(len(packed)) else None)

    def _go_back(self, page: int, fetch: Fetch) -> None:
        if self._current == len(self._starts) - 1:
            self._keep(self._current)
        packed = self._kept[page]
        self._with = False
        if packed is not None:
            self._entries = _unpacked(packed)
        else:
            end = self._afters[page + 1]
            found = [entry for entry in fetch(self._afters[page], False).entries if entry.name <= end]
            if page < len(self._starts) - 1:
                span = self._starts[page + 1] - self._starts[page]
                found = found[max(0, len(found) - span) :]
            self._entries = found
        self._current = page

    def _add_attributes(self, fetch: Fetch) -> None:
        """To the entries of the current page that are still there."""
        found = {entry.name: entry for entry in fetch(self._afters[self._current], True).entries}
        for entry in self._entries:
            now = found.get(entry.name)
            if now is not None and now.inode == entry.inode and now.HasField("attributes"):
                entry.attributes.CopyFrom(now.attributes)
        self._with = True


def _unpacked(packed: bytes) -> list[m.DirEntry]:
    entries = []
    place = 0
    while place < len(packed):
        inode, mode, length = _ENTRY.unpack_from(packed, place)
        place += _ENTRY.size
        entries.append(m.DirEntry(name=packed[place : place + length], inode=inode, mode=mode))
        place += length
    return entries
