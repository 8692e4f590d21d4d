"""Closes that meta did not take before their deadline: told again with each renewal of the client's lease.

Until meta knows, it keeps the session, and with it the chunks of a file that is removed; the lease that keeps the
client alive keeps its sessions too, for as long as the process runs.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from fireflyfs.common.errors import FfsError, Reaction

log = logging.getLogger(__name__)

WAITING_MAX: Final = 65_536  # the oldest are given up then: their sessions end with the process

Tell = Callable[[], None]  # raises FfsError


class LateCloses:
    """Safe to use from several threads."""

    def __init__(self) -> None:
        self._waiting: deque[Tell] = deque(maxlen=WAITING_MAX)
        self._telling = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, tell: Tell) -> None:
        """To be told later. It must be the same request each time, for meta to know it again."""
        self._waiting.append(tell)

    def tell_beside(self) -> None:
        """As `tell_all`, in a thread of its own unless one is at it; returns at once."""
        if self._waiting and not self._telling.locked():
            threading.Thread(target=self.tell_all, name="ffs-late-closes", daemon=True).start()

    def tell_all(self) -> None:
        """Tell those that wait now, until meta does not answer."""
        with self._telling:
            for _ in range(len(self._waiting)):
                tell = self._waiting.popleft()
                try:
                    tell()
                except FfsError as exc:
                    if exc.reaction is not Reaction.GIVE_UP:
                        self._waiting.append(tell)
                        return
                    log.warning("a file was not closed at the metadata service: %s", exc)
