"""One line on the standard error when a command waits: a silent one looks like one that hangs.

Commands wait for servers that are away, up to a minute, because most are back by then. Who has waited so long in vain
for one path does not wait for the next ones too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import click

from fireflyfs.client.routing import Routing
from fireflyfs.common.errors import Code, FfsError, error

NOTICE_S = 3.0  # without an answer
LOOK_S = 0.25
AWAY = {Code.UNAVAILABLE, Code.TIMEOUT, Code.TARGET_OFFLINE, Code.FENCED}  # nobody answers who could
_LINE = "ffs: waiting for {}; `ffs status` shows what is missing, Ctrl-C ends the wait"


class Notice:
    """Says once that the command waits, and for what. A thread looks for it while this is entered."""

    def __init__(self, what: str = "a metadata server (none is up)") -> None:
        """`what` is waited for until `connected`."""
        self._what = what
        self._lock = threading.Lock()
        self._said = False
        self._in_vain = False
        self._done = threading.Event()
        self._routing: Callable[[], Routing] | None = None
        self._thread = threading.Thread(target=self._watch, name="ffs-notice", daemon=True)

    def __enter__(self) -> Notice:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()  # its line stands before what comes next

    def connected(self, routing: Callable[[], Routing]) -> None:
        """A metadata server is known, which is what was waited for until now. From here on `routing` tells."""
        self._routing = routing

    def on_wait(self, waited_s: float, why: FfsError) -> None:
        """A `RetryPolicy`'s: something did not answer. For any thread. Raises TIMEOUT after a wait in vain."""
        if self._in_vain and why.code in AWAY:
            raise error(Code.TIMEOUT, f"not waited for, after a wait in vain: {why.message}") from why
        if waited_s >= NOTICE_S:
            self._say(f"the cluster ({' '.join(why.message.split())})")

    def on_give_up(self) -> None:
        """A `RetryPolicy`'s: a wait was in vain. What is away then is not waited for again. For any thread."""
        self._in_vain = True

    def _watch(self) -> None:
        # A server that is stopped or cut off leaves calls waiting that nobody counts as failed; routing tells of it.
        since_s = time.monotonic()
        while not self._done.wait(LOOK_S):
            if self._routing is not None and self._routing().meta_servers():
                since_s = time.monotonic()
            elif time.monotonic() - since_s >= NOTICE_S:
                self._say(self._what)
                return

    def _say(self, what: str) -> None:
        with self._lock:
            if self._said or self._done.is_set():
                return
            self._said = True
        click.echo(_LINE.format(what), err=True)
