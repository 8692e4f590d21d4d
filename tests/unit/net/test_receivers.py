"""Threads that take answers beside the caller's; connections are played."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

import pytest

from fireflyfs.common.net.receivers import LANDING_BYTES_MIN, Receivers

PATIENCE_S = 10.0


class Played:
    """A connection whose answers come when all of `awaited` are being received, or never."""

    def __init__(self, landing_bytes: int = LANDING_BYTES_MIN, body: Callable[[], None] = lambda: None) -> None:
        self.landing_bytes = landing_bytes
        self.body = body
        self.by: list[str] = []  # threads that received
        self.ended = threading.Event()

    def receive(self) -> None:
        self.by.append(threading.current_thread().name)
        self.body()

    def interrupt(self) -> None:
        self.ended.set()


@pytest.fixture
def receivers() -> Receivers:
    return Receivers(2)


def test_large_answers_are_taken_at_once(receivers: Receivers) -> None:
    together = threading.Barrier(3, timeout=PATIENCE_S)
    connections = [Played(body=lambda: together.wait() and None) for _ in range(3)]
    for _ in range(20):
        receivers.receive(connections)
    assert [len(connection.by) for connection in connections] == [20] * 3
    assert len({name for connection in connections for name in connection.by}) >= 2
    receivers.close()


@pytest.mark.parametrize("sizes", [[LANDING_BYTES_MIN], [LANDING_BYTES_MIN, 0, 100], [LANDING_BYTES_MIN - 1] * 5])
def test_small_answers_wake_nobody(receivers: Receivers, sizes: list[int]) -> None:
    connections = [Played(size) for size in sizes]
    receivers.receive(connections)
    assert [connection.by for connection in connections] == [[threading.current_thread().name]] * len(sizes)


def test_more_connections_than_threads(receivers: Receivers) -> None:
    connections = [Played() for _ in range(50)]
    receivers.receive(connections)
    assert all(len(connection.by) == 1 for connection in connections)
    receivers.close()


def test_callers_do_not_wait_for_one_another(receivers: Receivers) -> None:
    """Both threads are busy with somebody's slow answers: others take theirs by themselves."""
    go = threading.Event()
    slow = [Played(body=lambda: go.wait(PATIENCE_S) and None) for _ in range(3)]
    other = threading.Thread(target=receivers.receive, args=(slow,))
    other.start()
    while sum(len(connection.by) for connection in slow) < 3:
        time.sleep(0.001)
    quick = [Played() for _ in range(3)]
    receivers.receive(quick)
    assert [connection.by for connection in quick] == [[threading.current_thread().name]] * 3
    go.set()
    other.join(PATIENCE_S)
    assert not other.is_alive()
    receivers.close()


def test_what_a_thread_meets_is_raised_to_the_caller(receivers: Receivers) -> None:
    together = threading.Barrier(3, timeout=PATIENCE_S)

    def fail() -> None:
        together.wait()
        if threading.current_thread() is not threading.main_thread():
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        receivers.receive([Played(body=fail) for _ in range(3)])
    receivers.receive([Played() for _ in range(3)])  # the threads are as good as before
    receivers.close()


def test_an_interrupted_caller_waits_until_nobody_writes_to_its_memory(receivers: Receivers) -> None:
    together = threading.Barrier(3, timeout=PATIENCE_S)
    busy = [0]
    connections: list[Played] = []

    def work() -> None:
        together.wait()
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        busy[0] += 1
        mine = next(each for each in connections if each.by == [threading.current_thread().name])
        assert mine.ended.wait(PATIENCE_S)
        time.sleep(0.05)
        busy[0] -= 1

    connections += [Played(body=work) for _ in range(3)]
    left = Played()
    with pytest.raises(KeyboardInterrupt):
        receivers.receive([*connections, left])
    assert busy == [0]
    assert left.ended.is_set()
    receivers.close()


def test_threads_end_with_who_has_them() -> None:
    receivers = Receivers(2)
    together = threading.Barrier(3, timeout=PATIENCE_S)
    before = set(threading.enumerate())
    receivers.receive([Played(body=lambda: together.wait() and None) for _ in range(3)])
    ours = set(threading.enumerate()) - before
    assert len(ours) == 2
    del receivers
    gc.collect()
    for thread in ours:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
