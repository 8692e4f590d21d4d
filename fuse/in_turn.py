"""Which files are opened next, where a program goes through many: in the order in which a directory lists them, or in
that of their inode numbers, which is the order in which they were made.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Final

RUN_MIN: Final = 3  # opens in order, until the next are believed to come
GAP_MAX: Final = 4  # a file that is opened may be so far behind the one before


class _Order:
    """Files in one order, and how many of the last opens followed it."""

    __slots__ = ("last", "run")

    def __init__(self) -> None:
        self.last = -1
        self.run = 0

    def step(self, place: int, last: int) -> bool:
        """The file at `place` is opened, and the one before is at `last` by now; whether that makes a row."""
        self.run = self.run + 1 if 0 < place - last <= GAP_MAX else 0
        return self.run >= RUN_MIN


class InTurn:
    """Of one mount; its owner serialises calls. Knows at most `files_max` files, by inode number."""

    def __init__(self, files_max: int) -> None:
        self._files_max = files_max
        self._listed: list[int] = []
        self._place: dict[int, int] = {}
        self._sorted: list[int] = []
        self._by_list = _Order()
        self._by_number = _Order()

    def __contains__(self, inode_id: int) -> bool:
        return inode_id in self._place

    def add(self, inode_id: int) -> bool:
        """Behind those that were listed before it. False: it was known. All others are forgotten when they are many."""
        if inode_id in self._place:
            return False
        if len(self._listed) >= self._files_max:
            self.__init__(self._files_max)  # type: ignore[misc]
        self._place[inode_id] = len(self._listed)
        self._listed.append(inode_id)
        insort(self._sorted, inode_id)
        return True
