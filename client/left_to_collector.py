"""Requests of files that the garbage collector finds open.

It runs wherever memory is allocated, in a thread that may hold locks of the library: a request made there could wait
for its own thread. So what a collected file still has to say is said by a thread of its own, in order. Files that go
because their last reference does are closed where that happens, as Python's own are.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import queue
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

DRAIN_S = 60.0  # as long as a close may take
EXIT_DRAIN_S = 10.0

_collecting = 0  # the thread that collects garbage
_found: list[Callable[[], object]] = []  # by the collection that runs


class _Thread:
    """Does what is left, one thing after the other. A forked child has one of its own."""

    def __init__(self) -> None:
        self._left: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()  # which destructors may use
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="ffs-left-files", daemon=True)
                    try:
                        thread.start()
                    except RuntimeError as exc:  # no more threads: the next file tries again, what is left waits
                        log.warning("files that the garbage collector finds open stay open for now: %s", exc)
                        return
                    self._thread = thread

    def leave(self, work: Callable[[], object]) -> None:
        self._left.put(work)

    def drain(self, timeout_s: float) -> None:
        if self._thread is not None and threading.current_thread() is not self._thread:
            done = threading.Event()
            self._left.put(done.set)
            done.wait(timeout_s)

    def _run(self) -> None:
        while True:
            try:
                self._left.get()()
            except Exception as exc:
                log.warning("a file that was not closed: %s", exc)


_thread = _Thread()


def start() -> None:
    """Before the first file: a destructor cannot start a thread."""
    _thread.start()


def collects() -> bool:
    """Whether this thread is collecting garbage: nothing may be waited for."""
    return _collecting == threading.get_ident()


def leave(work: Callable[[], object]) -> None:
    """Have it done soon, by another thread: after the collection, whose destructors go on with the same file. That
    thread could hold one of its locks, and wait for one that the collecting thread holds."""
    if collects():
        _found.append(work)
    else:
        _thread.leave(work)


def drain(timeout_s: float = DRAIN_S) -> None:
    """What was left before is done when this returns, or the time is up. Nothing is waited for in a destructor."""
    if not collects():
        _thread.drain(timeout_s)


def _on_collection(phase: str, _info: dict[str, int]) -> None:
    global _collecting
    _collecting = threading.get_ident() if phase == "start" else 0
    if phase == "stop" and _found:
        for work in _found:
            _thread.leave(work)
        _found.clear()


def _in_child() -> None:
    global _thread
    _thread = _Thread()


gc.callbacks.append(_on_collection)
os.register_at_fork(after_in_child=_in_child)
atexit.register(drain, EXIT_DRAIN_S)
