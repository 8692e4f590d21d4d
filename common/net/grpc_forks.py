"""Forks of a process that uses gRPC.

gRPC does not survive a fork while a thread is in it, not even in a child that connects anew: the child fails in gRPC's
event engine, or hangs. So before this process forks, its blocking calls are ended as if their servers were lost, all
channels are closed, and further calls wait until the fork is over. With the last channel gRPC ends its own threads,
which is waited for too: one of them may hold a lock that nobody would give back in the child.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

LEAVE_S: Final = 5.0  # the fork waits so long for calls that were told to end; then it goes on whatever comes of it
END_S: Final = 0.5  # and so long for gRPC's threads, which stay where others in this process have channels
LOOK_S: Final = 0.001
_TASKS: Final = Path("/proc/self/task")
_THREADS: Final = (b"grpc", b"event_engine", b"lifeguard")  # how the names of gRPC's threads begin


class HasChannel(Protocol):
    """What calls by gRPC."""

    def drop_channel(self) -> bool:
        """Close the channel, which ends the calls on it; the next call makes a new one. False: there is none."""


class Forks:
    """Of one process. Safe to use from several threads."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._calls = 0
        self._forks = 0  # threads that are about to fork
        self._clients: weakref.WeakSet[HasChannel] = weakref.WeakSet()

    def add(self, client: HasChannel) -> None:
        with self._turn:
            self._clients.add(client)

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Around each call, from before it looks for its channel."""
        with self._turn:
            while self._forks:
                self._turn.wait()
            self._calls += 1
        try:
            yield
        finally:
            with self._turn:
                self._calls -= 1
                self._turn.notify_all()

    def before(self) -> None:
        with self._turn:
            self._forks += 1
            clients = list(self._clients)
        dropped = [client.drop_channel() for client in clients]
        with self._turn:
            self._turn.wait_for(lambda: not self._calls, LEAVE_S)
        if any(dropped):
            end_s = time.monotonic() + END_S
            while _grpc_runs() and time.monotonic() < end_s:
                time.sleep(LOOK_S)

    def after_in_parent(self) -> None:
        with self._turn:
            self._forks -= 1
            self._turn.notify_all()

    def after_in_child(self) -> None:
        """Nobody else lives here: whoever was in a call, or held the lock, was left behind."""
        self._turn = threading.Condition()
        self._calls = self._forks = 0


def _grpc_runs() -> bool:
    """Whether a thread of gRPC's own is there."""
    for task in _TASKS.iterdir():
        with contextlib.suppress(OSError):  # it ended meanwhile
            if (task / "comm").read_bytes().startswith(_THREADS):
                return True
    return False


forks: Final = Forks()
os.register_at_fork(before=forks.before, after_in_parent=forks.after_in_parent, after_in_child=forks.after_in_child)
