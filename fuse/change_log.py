"""What this mount has changed lately, so that an answer from before a change is not given after it.

The kernel drops an answer that it asked for before it changed a file itself. It cannot know of an answer that we asked
meta for before a change, or of a page of a directory that we have read ahead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from fireflyfs.proto import meta_pb2 as m

KEPT_MAX: Final = 16_384
ASKED_MAX: Final = 8  # times that an answer may be overtaken

What = int | tuple[int, bytes]  # an inode, or a name in a directory


class ChangeLog:
    """Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._floor = 0  # what changed until then is forgotten
        self._last: dict[What, int] = {}  # oldest change first

    def mark(self) -> int:
        """Now, as `since` wants it: before meta is asked."""
        return self._count

    def note(self, what: What) -> None:
        """It was changed here, and meta knows; or the kernel was told of it as it is now."""
        with self._lock:
            self._count += 1
            self._last.pop(what, None)
            self._last[what] = self._count
            if len(self._last) > KEPT_MAX:
                self._floor = self._last.pop(next(iter(self._last)))

    def since(self, what: What, mark: int) -> bool:
        """Whether it may have been changed after the mark was taken."""
        return self._floor > mark or self._last.get(what, 0) > mark

    def newest(self, ask: Callable[[], m.Inode]) -> m.Inode:
        """What meta says of an inode: asked again where it was changed here meanwhile."""
        for _ in range(ASKED_MAX):
            mark = self.mark()
            inode = ask()
            if not self.since(inode.id, mark):
                break
        return inode
