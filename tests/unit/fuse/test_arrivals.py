"""Which descriptor a request is taken from: who looks again, and who sleeps. A FIFO stands for the kernel's queue."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fireflyfs.common.net.busy_poll import CREDIT_MAX
from fireflyfs.fuse import arrivals, device
from fireflyfs.fuse.arrivals import Arrivals, AtWork

LONG_S = 5.0


class Queue:
    """`put` gives a request to whoever asks next; `may_look`: the user may open the device."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self.may_look = True
        self._in = os.open(path, os.O_RDWR)

    def put(self) -> None:
        os.write(self._in, b"x")

    def sleeping(self, session_fd: int) -> int:
        return os.open(self.path, os.O_RDWR)

    def looking(self, session_fd: int) -> int | None:
        return os.open(self.path, os.O_RDWR | os.O_NONBLOCK) if self.may_look else None

    def close(self) -> None:
        os.close(self._in)


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    queue = Queue(tmp_path / "queue")
    monkeypatch.setattr(device, "clone", queue.sleeping)
    monkeypatch.setattr(device, "clone_nonblocking", queue.looking)
    monkeypatch.setattr(arrivals, "TAKEN_S", LONG_S)  # the machine that runs the tests is busy
    yield queue
    queue.close()


def take(thread: Arrivals) -> bool:
    """Whether the next request came to who looked."""
    assert thread.next(memoryview(bytearray(1))) == 1
    return not os.get_blocking(thread.fd)


def test_who_works_alone_looks_for_the_next_request(queue: Queue) -> None:
    thread = Arrivals(-1, AtWork(LONG_S))
    for _ in range(3):
        queue.put()
        assert take(thread)
        thread.done()
    later = threading.Timer(0.05, queue.put)
    later.start()
    assert take(thread)
    later.join()
    thread.close()


def test_nobody_looks_while_another_thread_is_at_work_or_looks(queue: Queue) -> None:
    at_work = AtWork(LONG_S)
    busy, thread = Arrivals(-1, at_work), Arrivals(-1, at_work)
    queue.put()
    assert take(busy)
    queue.put()
    assert not take(thread)
    thread.done()
    busy.done()
    at_work.looking = True
    queue.put()
    assert not take(thread)
    busy.close()
    thread.close()


def test_who_looks_goes_to_sleep_when_another_thread_gets_a_request(queue: Queue) -> None:
    at_work = AtWork(LONG_S)
    thread, other = Arrivals(-1, at_work), Arrivals(-1, at_work)
    took: list[bool] = []
    looks = threading.Thread(target=lambda: took.append(take(thread)))
    looks.start()
    while not at_work.looking:
        pass
    at_work.threads.add(other)
    while at_work.looking:
        pass
    queue.put()
    looks.join()
    assert took == [False]
    thread.close()
    other.close()


def test_looking_in_vain_is_given_up_for_a_while(queue: Queue) -> None:
    at_work = AtWork(1e-6)
    thread = Arrivals(-1, at_work)
    for _ in range(CREDIT_MAX):
        assert at_work.worthwhile
        later = threading.Timer(0.02, queue.put)
        later.start()
        assert not take(thread)
        thread.done()
        later.join()
    assert not at_work.worthwhile
    queue.put()
    assert not take(thread)
    thread.close()


@pytest.mark.parametrize("wait_s", [0.0, LONG_S])
def test_who_may_not_look_sleeps(queue: Queue, wait_s: float) -> None:
    queue.may_look = not wait_s
    thread = Arrivals(-1, AtWork(wait_s))
    queue.put()
    assert not take(thread)
    thread.close()


def test_descriptors_are_closed_also_when_there_is_no_second_one(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(session_fd: int) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    before = len(os.listdir("/proc/self/fd"))
    Arrivals(-1, AtWork(LONG_S)).close()
    monkeypatch.setattr(device, "clone", fails)
    with pytest.raises(OSError, match="too many open files"):
        Arrivals(-1, AtWork(LONG_S))
    assert len(os.listdir("/proc/self/fd")) == before
