"""Which files will be opened next, where a program goes through many: in the order in which they were listed, or in
that of their inode numbers, in which they were made."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Final

RUN_MIN: Final = 3  # opens in one order, until the next are believed to follow it
GAP_MAX: Final = 2  # so far behind the last one is still in order: one that is open already, say, is passed over


class InTurn:
    """Files by inode number; its owner bounds how many, and serialises calls."""

    def __init__(self) -> None:
        self._listed: list[int] = []
        self._places: dict[int, int] = {}
        self._numbers: list[int] = []
        self._last = 0
        self._listed_run = self._number_run = 0

    def __len__(self) -> int:
        return len(self._listed)

    def add(self, inode: int) -> None:
        """It was listed behind the others; not if it is known."""
        if inode not in self._places:
            self._places[inode] = len(self._listed)
            self._listed.append(inode)
            insort(self._numbers, inode)

    def opened(self, inode: int, count: int) -> list[int]:
        """Takes note; up to `count` files that probably follow, none where the last opens were in no order."""
        place = self._places.get(inode)
        if place is None:
            return []
        number_place = bisect_left(self._numbers, inode)
        if self._last:
            gap = place - self._places[self._last]
            self._listed_run = self._listed_run + 1 if 0 < gap <= GAP_MAX else 0
            gap = number_place - bisect_left(self._numbers, self._last)
            self._number_run = self._number_run + 1 if 0 < gap <= GAP_MAX else 0
        self._last = inode
        if max(self._listed_run, self._number_run) < RUN_MIN:
            return []
        if self._listed_run >= self._number_run:
            return self._listed[place + 1 : place + 1 + count]
        return self._numbers[number_place + 1 : number_place + 1 + count]
