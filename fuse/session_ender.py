"""Sessions that have ended here and of which meta need not hear at once: told many at a time, a moment later.

A file that was opened for writing and closed unwritten leaves nothing to record; a round trip for each would take as
long as making the file did. Until meta knows, it keeps the chunks of the file if it is removed: nothing else.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Final

from fireflyfs.common.errors import FfsError
from fireflyfs.common.limits import SESSIONS_ENDED_MAX

log = logging.getLogger(__name__)

DELAY_S: Final = 0.02
WAITING_MAX: Final = 4096  # beyond, who ends one waits until the others are told

Ended = tuple[int, bytes]  # inode, session


class SessionEnder:
    """`tell` gets up to SESSIONS_ENDED_MAX sessions, and raises FfsError when meta refuses them. Safe to use from
    several threads; `run` is a thread's body."""

    def __init__(self, tell: Callable[[Sequence[Ended]], None]) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self._waiting: list[Ended] = []
        self._some = threading.Event()
        self._stopped = threading.Event()

    def add(self, inode: int, sessions: Sequence[bytes]) -> None:
        with self._lock:
            self._waiting += [(inode, session) for session in sessions]
            full = len(self._waiting) >= WAITING_MAX
        self._some.set()
        if full:
            self.tell_all()

    def tell_all(self) -> None:
        """Meta knows of all that were added before when this returns."""
        with self._telling:
            with self._lock:
                waiting, self._waiting = self._waiting, []
                self._some.clear()
            for start in range(0, len(waiting), SESSIONS_ENDED_MAX):
                try:
                    self._tell(waiting[start : start + SESSIONS_ENDED_MAX])
                except FfsError as exc:  # they end with this client's lease
                    log.error("sessions of closed files were not ended: %s", exc)

    def run(self) -> None:
        """Until `stop`; what waits then is told."""
        while not self._stopped.is_set():
            self._some.wait()
            self._stopped.wait(DELAY_S)
            self.tell_all()

    def stop(self) -> None:
        self._stopped.set()
        self._some.set()
