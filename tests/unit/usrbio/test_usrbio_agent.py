"""The agent's parts by themselves: a ring that another agent left, what it knows of files and regions, its buffers."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fireflyfs.client.striping import FileLayout
from fireflyfs.client.usrbio import layout
from fireflyfs.client.usrbio.layout import RingLayout, RingOptions
from fireflyfs.common.errors import Code, error
from fireflyfs.common.ids import InodeId
from fireflyfs.common.net.memory import SharedPool
from fireflyfs.fuse.usrbio import ring_threads
from fireflyfs.fuse.usrbio.ends import Ends
from fireflyfs.fuse.usrbio.known import Known, KnownFile, Region
from fireflyfs.fuse.usrbio.messages import Message
from fireflyfs.fuse.usrbio.ring_threads import RingThreads
from fireflyfs.fuse.usrbio.served_ring import ServedRing
from fireflyfs.fuse.usrbio.stages import STAGE_BYTES, Pair, Stages
from fireflyfs.fuse.usrbio.transfer import Io, Transfer

ENTRIES = 8
WHERE = RingLayout.of(ENTRIES)
TOKEN = 77


@pytest.fixture
def memory() -> Iterator[int]:
    """A ring of ENTRIES as an application makes it."""
    fd = os.memfd_create("ring")
    os.ftruncate(fd, WHERE.nbytes)
    os.pwrite(fd, layout.pack_header(RingOptions(ENTRIES)), 0)
    yield fd
    os.close(fd)


def publish(fd: int, position: int, entry: bytes = b"") -> None:
    slot = position % ENTRIES
    os.pwrite(fd, entry, WHERE.sqes + slot * layout.SQE.size)
    os.pwrite(fd, (position + 1).to_bytes(8, "little"), WHERE.sq_seq + slot * layout.SEQ_BYTES)


def result_of(fd: int, position: int) -> int | None:
    slot = position % ENTRIES
    word = os.pread(fd, 8, WHERE.cq_seq + slot * layout.SEQ_BYTES)
    if int.from_bytes(word, "little") != position + 1:
        return None
    return int.from_bytes(os.pread(fd, 8, WHERE.results + slot * 8), "little", signed=True)


def test_an_agent_that_died_within_a_completion(memory: int) -> None:
    """The words say that they are complete, the header does not yet; the application has used the slots again."""
    for position in range(5):
        publish(memory, position)
    first = ServedRing(os.dup(memory))
    assert first.available() == 5
    first.take(5)
    first.complete(np.full(2, 10, np.int64))
    before = os.pread(memory, layout.AGENT.size, layout.CQ_DOORBELL_AT)
    first.complete(np.full(3, 11, np.int64))
    first.close()
    os.pwrite(memory, before, layout.CQ_DOORBELL_AT)
    for position in range(5, 5 + ENTRIES):  # it took all five: their slots are its own again
        publish(memory, position)
    heir = ServedRing(os.dup(memory))
    assert heir.available() == ENTRIES
    heir.take(ENTRIES)
    heir.complete(np.full(ENTRIES, 12, np.int64))
    assert [result_of(memory, position) for position in range(5, 5 + ENTRIES)] == [12] * ENTRIES
    heir.close()


@pytest.mark.parametrize("completed", [(1 << 64) - 2, (1 << 64) - 1, 1 << 63])
def test_a_count_that_no_ring_gets_to(memory: int, completed: int) -> None:
    os.pwrite(memory, layout.AGENT.pack(0, 0, completed), layout.CQ_DOORBELL_AT)
    with pytest.raises(OSError, match="completions"):
        ServedRing(memory)


# What an agent knows


class MountEnd:
    """Answers as a mount does. `stall`: the next answer is under way until `go`; `refuse`: errno instead of a
    length."""

    def __init__(self, region: int = -1) -> None:
        self.region = region
        self.length = 1 << 20
        self.refuse = 0
        self.asked: list[str] = []
        self.forgotten: list[int] = []
        self.stalled = threading.Event()
        self.go = threading.Event()
        self.stall = False

    def __call__(self, question: Message) -> tuple[Message, int]:
        self.asked.append(question["ask"])
        if self.stall:
            self.stall = False
            self.stalled.set()
            assert self.go.wait(30)
        if question["ask"] == "region":
            return {"nbytes": os.fstat(self.region).st_size}, os.dup(self.region)
        if question["ask"] == "length":
            if self.refuse:
                raise OSError(self.refuse, "no")
            return {"length": self.length, "fresh_s": 60.0}, -1
        return {
            "inode": 7, "chunk_size": 1 << 20, "chains": [1], "readable": True, "writable": True, "slot": 3,
            "length": 0,
        }, -1  # fmt: skip


@pytest.fixture
def region() -> Iterator[int]:
    fd = os.memfd_create("region")
    os.ftruncate(fd, 1 << 20)
    yield fd
    os.close(fd)


def in_a_thread(do: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    came: list[Any] = []

    def body() -> None:
        try:
            came.append(do())
        except OSError as exc:
            came.append(exc.errno)

    thread = threading.Thread(target=body)
    thread.start()
    return thread, came


def test_a_file_that_is_closed_while_an_agent_asks_for_it() -> None:
    """Its slot is another file's by the time that the answer comes, so nothing is done with it."""
    mount = MountEnd()
    known = Known(mount, Ends(), mount.forgotten.append)
    mount.stall = True
    thread, came = in_a_thread(lambda: known.enter(TOKEN))
    assert mount.stalled.wait(30)
    known.forget_file(TOKEN)
    assert mount.forgotten == []  # it is not done with it: the mount keeps the slot
    mount.go.set()
    thread.join(30)
    assert came == [errno.EBADF]
    assert mount.forgotten == [TOKEN]


def test_a_file_that_is_closed_while_batches_use_it() -> None:
    mount = MountEnd()
    known = Known(mount, Ends(), mount.forgotten.append)
    first, second = known.enter(TOKEN), known.enter(TOKEN)
    assert first is second
    known.forget_file(TOKEN)
    with pytest.raises(OSError, match="closed"):
        known.enter(TOKEN)
    known.leave(first)
    assert mount.forgotten == []
    known.leave(second)
    assert mount.forgotten == [TOKEN]
    known.forget_file(TOKEN + 1)  # one that nobody has: the mount waits for the answer all the same
    assert mount.forgotten == [TOKEN, TOKEN + 1]


def test_a_region_that_is_taken_back_while_an_agent_asks_for_it(region: int) -> None:
    """It is not kept mapped, and what is registered under its name afterwards is found."""
    mount = MountEnd(region)
    known = Known(mount, Ends(), mount.forgotten.append)
    mount.stall = True
    thread, came = in_a_thread(lambda: known.region(b"r" * 16))
    assert mount.stalled.wait(30)
    known.forget_region(b"r" * 16)
    mount.go.set()
    thread.join(30)
    os.ftruncate(region, 1 << 21)
    assert came[0].size == 1 << 20
    assert known.region(b"r" * 16).size == 1 << 21
    assert known.region(b"r" * 16) is known.region(b"r" * 16)


# Rings


class Storage:
    """Holds nothing: every byte of every file is its `fill`. `taint`: requests whose number is in it left a server
    behind that may still write."""

    def __init__(self) -> None:
        self.taint: set[int] = set()
        self.memories: list[Any] = []

    def read_rows(self, ios: Any, pieces: list[Any]) -> dict[int, Any]:
        for piece in pieces:
            piece.memory.view[piece.offset : piece.offset + piece.length] = b"s" * piece.length
        self.memories.append(pieces[0].memory)
        if len(self.memories) - 1 in self.taint:
            pieces[0].memory.tainted = True
        return {}

    def read_into(self, file: Any, offset: int, into: Any) -> None:
        self.read_rows(None, [into])

    def read(self, spans: list[Any]) -> dict[int, Any]:
        return self.read_rows(None, [span.into for span in spans])


def test_what_a_failed_write_may_have_stored_is_told(region: int) -> None:
    """Of two files in one batch, the one of which a part failed: how far it goes, only storage knows."""
    ends = Ends()
    answer = {"inode": 7, "chunk_size": 1 << 20, "chains": [1], "readable": True, "writable": True, "length": 0}
    good, bad = (KnownFile(TOKEN + slot, {**answer, "slot": slot}, ends) for slot in (1, 2))
    storage: Any = SimpleNamespace(write=lambda _spans: {2: error(Code.NO_SPACE, "full")})
    ios = [Io(file, offset, Region(region, 1 << 20), 0, 4096) for file, offset in ((good, 0), (bad, 0), (bad, 1 << 21))]
    results = np.full(3, 4096, np.int64)
    pair = Pair(SharedPool())
    Transfer(storage, pair, ios, results, lambda _: None).write()
    pair.close()
    assert results.tolist() == [4096, 4096, -errno.ENOSPC]
    assert ends.look(1, (0, 0)) == ((1, 0), 4096)
    assert ends.look(2, (0, 0)) == ((2, 1), 4096)
    bad.torn()  # and nothing is said of writes that the mount has looked at
    assert ends.look(2, (2, 1)) == ((3, 2), 0)


def submit(memory: int, position: int, file_offset: int, length: int) -> None:
    publish(memory, position, layout.SQE.pack(b"r" * 16, position * 4096, TOKEN, file_offset, length, 0))


@pytest.fixture
def serve(memory: int) -> Iterator[Callable[[MountEnd], RingThreads]]:
    made: list[tuple[RingThreads, Stages]] = []

    def make(mount: MountEnd) -> RingThreads:
        stages = Stages(SharedPool())
        known = Known(mount, Ends(), mount.forgotten.append)
        threads = RingThreads(ServedRing(os.dup(memory)), Storage(), known, stages)  # type: ignore[arg-type]
        made.append((threads, stages))
        threads.start()
        return threads

    yield make
    for threads, stages in made:
        threads.stop()
        threads.join(30)
        stages.close()


def results(memory: int, positions: range) -> list[int | None]:
    for _ in range(3000):
        found = [result_of(memory, position) for position in positions]
        if None not in found:
            break
        threading.Event().wait(0.01)
    return found


def test_a_length_that_the_mount_cannot_say(memory: int, region: int, serve: Callable[[MountEnd], RingThreads]) -> None:
    """A file that was closed meanwhile, or a metadata server that is away: these reads fail, and the ring goes on."""
    mount = MountEnd(region)
    mount.refuse = errno.EHOSTDOWN
    for position in range(3):
        submit(memory, position, position * 4096, 4096)
    serve(mount)
    assert results(memory, range(3)) == [-errno.EHOSTDOWN] * 3
    mount.refuse = 0
    submit(memory, 3, 0, 4096)
    submit(memory, 4, 0, 4096)
    assert results(memory, range(3, 5)) == [4096] * 2


def test_the_mount_is_asked_once_for_what_lies_behind_the_end(
    memory: int, region: int, serve: Callable[[MountEnd], RingThreads]
) -> None:
    mount = MountEnd(region)
    mount.length = 100
    for position in range(6):
        submit(memory, position, 50 * position, 4096)
    serve(mount)
    assert results(memory, range(6)) == [100, 50, 0, 0, 0, 0]
    assert mount.asked.count("length") <= 2  # by the fast path too


@pytest.mark.parametrize("small", [False, True])
def test_reads_of_one_batch_are_read_by_several_threads(
    memory: int, region: int, serve: Callable[[MountEnd], RingThreads], monkeypatch: pytest.MonkeyPatch, small: bool
) -> None:
    """Large ones anywhere, small ones by halves where there are processors for it."""
    second = threading.Event()  # a read while the first one goes on: only these two wait, for shares complete in order
    counts: list[int] = []

    def read_rows(storage: Storage, ios: Any, pieces: list[Any]) -> dict[int, Any]:
        counts.append(len(pieces))
        if len(counts) > 1:
            second.set()
        assert second.wait(30)
        return {}

    monkeypatch.setattr(Storage, "read_rows", read_rows)
    if small:
        monkeypatch.setattr(ring_threads, "READ_SHARE_COUNT", 2)
        monkeypatch.setattr(ring_threads, "many_processors", lambda: True)
    else:
        monkeypatch.setattr(ring_threads, "READ_SHARE_BYTES", 2 * 4096)
    for position in range(ENTRIES):
        submit(memory, position, position * 4096, 4096)
    serve(MountEnd(region))
    assert results(memory, range(ENTRIES)) == [4096] * ENTRIES
    assert sorted(counts) == ([2, 2, 4] if small else [2] * (ENTRIES // 2))


@pytest.mark.parametrize("threads_left", [1, 0])
def test_threads_that_cannot_be_started(
    memory: int,
    region: int,
    serve: Callable[[MountEnd], RingThreads],
    monkeypatch: pytest.MonkeyPatch,
    threads_left: int,
) -> None:
    """One serves the ring alone; where there is none, whoever waits is told."""
    real, left = threading.Thread.start, [threads_left]

    def start(thread: threading.Thread) -> None:
        if thread.name == "ring":
            if not left[0]:
                raise RuntimeError("can't start new thread")
            left[0] -= 1
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    submit(memory, 0, 0, 4096)
    serve(MountEnd(region))
    if threads_left:
        assert results(memory, range(1)) == [4096]
    else:
        state = os.pread(memory, 4, layout.STATE_AT)
        assert int.from_bytes(state, "little") == errno.EAGAIN


def test_a_buffer_that_a_lost_server_may_write_to(region: int) -> None:
    """Other bytes do not pass through it any more, also within a batch."""
    pool, storage = SharedPool(), Storage()
    storage.taint = {0}
    pair = Pair(pool)
    big = os.memfd_create("big")
    os.ftruncate(big, 4 * STAGE_BYTES)
    file = SimpleNamespace(layout=FileLayout(InodeId(7), STAGE_BYTES, (1,)), token=TOKEN)
    ios = [Io(file, at, Region(big, 4 * STAGE_BYTES), at, STAGE_BYTES) for at in range(0, 4 * STAGE_BYTES, STAGE_BYTES)]  # type: ignore[arg-type]
    done = np.full(4, STAGE_BYTES, np.int64)
    Transfer(storage, pair, ios, done, lambda count: None).read()  # type: ignore[arg-type]
    assert done.tolist() == [STAGE_BYTES] * 4
    assert os.pread(big, 4 * STAGE_BYTES, 0) == b"s" * (4 * STAGE_BYTES)
    assert storage.memories[2] is not storage.memories[0]
    assert storage.memories[3] is storage.memories[1]
    pair.close()
    os.close(big)
