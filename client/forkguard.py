"""A client belongs to the process that made it: sockets, threads and channels cannot be shared with a fork."""

from __future__ import annotations

import os
from collections.abc import Callable

from fireflyfs.common.errors import Code, error

_parents: list[object] = []


def leave_to_parent(*things: object) -> None:
    """In a forked child: these are its parent's, and no destructor may close them here."""
    _parents.extend(things)


class ForkGuard:
    """Remembers the process it was made in."""

    __slots__ = ("_getpid", "_pid")

    def __init__(self, getpid: Callable[[], int] = os.getpid) -> None:
        self._getpid = getpid
        self._pid = getpid()

    def forked(self) -> bool:
        """Whether this is a child of that process."""
        return self._getpid() != self._pid

    def check(self) -> None:
        """Raises CONFIG in a forked child."""
        if self.forked():
            raise error(
                Code.CONFIG,  # keeps the text on its way to OSError, which an errno code would not
                f"this FireflyFS client was connected in process {self._pid} and cannot be used in its fork "
                f"{self._getpid()}: connect again after the fork, or start workers with 'spawn'",
            )
