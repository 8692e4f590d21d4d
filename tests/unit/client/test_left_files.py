"""Files that nobody closed: with their last reference, by the garbage collector, in a child."""

from __future__ import annotations

import gc
import io
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from fireflyfs.client import left_to_collector
from fireflyfs.client.file import File, TextFile, buffered
from fireflyfs.client.inode_state import InodeState

if TYPE_CHECKING:
    from conftest import FakeCluster, FakeContext


def raw(client: FakeContext) -> Any:
    file = client.file(b"/a")
    file.write(b"text")
    return file


def of_buffer(client: FakeContext) -> Any:
    file = buffered(client.file(b"/a"))
    file.write(b"text")
    return file


def of_text(client: FakeContext) -> Any:
    file = TextFile(of_buffer(client))
    file.seek(0, io.SEEK_END)
    file.write("more")
    return file


def of_others(client: FakeContext) -> Any:
    """As fsspec's users have it."""
    return io.TextIOWrapper(of_buffer(client), write_through=True)


KINDS = pytest.mark.parametrize("make", [raw, of_buffer, of_text, of_others], ids=lambda make: make.__name__)


def in_a_cycle(file: Any) -> InodeState:
    """The file is garbage from here on."""
    cycle = [file]
    cycle.append(cycle)
    while not isinstance(file, File):
        file = file.buffer if isinstance(file, io.TextIOWrapper) else file.raw
    state: InodeState = file.handle._state
    return state


def stored(cluster: FakeCluster) -> bytes:
    inode = cluster.names[b"/a"]
    return bytes(cluster.chunks[inode.id, 0])[: inode.length]


@KINDS
def test_one_that_goes_with_its_last_reference_is_closed_at_once(
    make: Callable[[FakeContext], Any], cluster: FakeCluster, client: FakeContext
) -> None:
    with pytest.warns(ResourceWarning, match="unclosed file <"):
        make(client)
    assert stored(cluster) == (b"textmore" if make is of_text else b"text")
    assert not cluster.sessions


@KINDS
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_one_that_is_collected_while_its_locks_are_held(
    make: Callable[[FakeContext], Any], cluster: FakeCluster, client: FakeContext
) -> None:
    """The collector runs where the library allocates memory, also while it holds a lock that a close needs."""
    gc.collect()
    gc.disable()
    try:
        state = in_a_cycle(make(client))

        def collect() -> None:
            with state._lock:
                gc.collect()

        thread = threading.Thread(target=collect, daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
    finally:
        gc.enable()
    left_to_collector.drain()
    assert stored(cluster) == (b"textmore" if make is of_text else b"text")
    assert not cluster.sessions


def test_what_is_left_waits_for_the_end_of_the_collection() -> None:
    """Destructors of the same file go on: a thread with one of its locks, which waits for another, would stop them."""
    begun = threading.Event()
    seen: list[bool] = []

    class Left:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            left_to_collector.leave(begun.set)
            seen.append(begun.wait(0.2))

    left_to_collector.start()
    Left()
    gc.collect()
    left_to_collector.drain()
    assert seen == [False]
    assert begun.is_set()


def test_what_fails_is_told_and_keeps_no_other(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError(5, "no answer", "/a")

    done = threading.Event()
    left_to_collector.start()
    left_to_collector.leave(fail)
    left_to_collector.leave(done.set)
    left_to_collector.drain()
    assert done.is_set()
    assert "a file that was not closed: [Errno 5] no answer: '/a'" in caplog.text


def test_what_is_left_before_there_can_be_a_thread_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_thread: object) -> None:
        raise RuntimeError("can't start new thread")

    mine = left_to_collector._Thread()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", full)
        mine.start()
    done = threading.Event()
    mine.leave(done.set)
    mine.drain(0.0)
    assert not done.is_set()
    mine.start()
    assert done.wait(10)


def test_a_child_has_a_thread_of_its_own(client: FakeContext) -> None:
    client.file(b"/a").close()  # the parent's runs
    child = os.fork()
    if child == 0:
        code = 1
        try:
            done = threading.Event()
            left_to_collector.start()
            left_to_collector.leave(done.set)
            code = 0 if done.wait(10) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
