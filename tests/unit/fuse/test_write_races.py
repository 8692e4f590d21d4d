"""Writes beside truncations, closes and syncs of the same file by other threads: what length meta ends up with."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fireflyfs.common.clock import SystemClock
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.net.memory import SharedPool
from fireflyfs.fuse import protocol
from fireflyfs.fuse.inodes import attributes_of
from fireflyfs.fuse.look_ahead import MISSES
from fireflyfs.fuse.operations import attributes, files, names, ranges
from fireflyfs.fuse.options import MountOptions
from fireflyfs.fuse.protocol import SetAttr
from fireflyfs.fuse.request import Request
from fireflyfs.fuse.usrbio.ends import Ends
from fireflyfs.fuse.usrbio.registrations import Registrations
from fireflyfs.fuse.volume import Volume
from fireflyfs.proto import meta_pb2 as m
from fireflyfs.proto.common_pb2 import Caller

OVERTAKEN_S = 0.5  # for what a waiting write should hold up, and does not


class Bench:
    """One file of a volume, and the requests that a kernel would make. `pause_write` stops the next write where its
    bytes go into the books of write-behind."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.volume = Volume(backend, MountOptions(dirty_age_s=600.0), SystemClock(), lambda _: None)
        made = m.OpenRequest(caller=Caller(), at=m.PathAt(dir=1, path=b"f"), flags=os.O_CREAT | os.O_RDWR, mode=0o644)
        self.id: int = backend.meta.open(made).inode.id
        self.go_on = threading.Event()
        self.paused = threading.Event()
        self._threads: list[threading.Thread] = []

    def request(self, body: bytes) -> Request:
        segment = self.volume.segments.take()
        segment.view[: len(body)] = body
        request = Request(segment, self.backend.pool.allocate(4096))
        request.nodeid = self.id
        request.body = segment.view[: len(body)]
        return request

    def answered(self, operation: Callable[[Volume, Request], Any], body: bytes) -> Any:
        request = self.request(body)
        answer = operation(self.volume, request)
        if request.after_reply is not None:
            self.volume.notify(request.after_reply)
        return answer

    def open(self, flags: int = os.O_RDWR) -> int:
        answer = self.answered(files.open_, protocol.OPEN_IN.pack(flags, 0))
        return int(protocol.OPEN_OUT.unpack(answer)[0])

    def write(self, fh: int, offset: int, data: bytes) -> None:
        head = protocol.WRITE_IN.pack(fh, offset, len(data), 0, 0, os.O_RDWR, 0)
        files.write(self.volume, self.request(head + data))

    def truncate(self, length: int) -> None:
        asked = protocol.SETATTR_IN.pack(int(SetAttr.SIZE), 0, 0, length, *[0] * 12)
        self.answered(attributes.setattr_, asked)

    def read(self, fh: int, offset: int, size: int) -> bytes:
        answer = files.read(self.volume, self.request(protocol.READ_IN.pack(fh, offset, size, 0, 0, 0, 0)))
        return b"".join(answer or ())  # type: ignore[arg-type]

    def attributes(self) -> protocol.Attributes:
        inode, _ = attributes._attributes(self.volume, self.request(b""))
        return attributes_of(inode, self.volume.table.get(self.id))

    def length(self) -> int:
        return self.attributes().size

    def allocate(self, fh: int, offset: int, length: int) -> None:
        ranges.fallocate(self.volume, self.request(protocol.FALLOCATE_IN.pack(fh, offset, length, 0, 0)))

    def flush(self, fh: int) -> None:
        files.flush(self.volume, self.request(protocol.FLUSH_IN.pack(fh, 0, 0, 1)))

    def fsync(self, fh: int) -> None:
        files.fsync(self.volume, self.request(protocol.FSYNC_IN.pack(fh, 0, 0)))

    def release(self, fh: int) -> None:
        files.release(self.volume, self.request(protocol.RELEASE_IN.pack(fh, 0, 0, 0)))

    def pause_write(self) -> None:
        hold = self.volume.segments.hold

        def held(segment: Any) -> None:
            self.volume.segments.hold = hold  # type: ignore[method-assign]
            self.paused.set()
            self.go_on.wait()
            hold(segment)

        self.volume.segments.hold = held  # type: ignore[method-assign]

    def beside(self, act: Callable[..., object], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=act, args=arguments)
        self._threads.append(thread)
        thread.start()
        return thread

    def join(self) -> None:
        self.go_on.set()
        for thread in self._threads:
            thread.join(30)

    @property
    def stored(self) -> bytes:
        return bytes(self.backend.data.files.get(self.id, b""))

    @property
    def recorded(self) -> int:
        return int(self.backend.meta.inodes[self.id].length)


@pytest.fixture
def bench(backend: Any) -> Iterator[Bench]:
    bench = Bench(backend)
    yield bench
    bench.join()


def _truncate_by_open(bench: Bench) -> None:
    bench.release(bench.open(os.O_WRONLY | os.O_TRUNC))


@pytest.mark.parametrize("truncate", [_truncate_by_open, lambda bench: bench.truncate(10)], ids=["open", "truncate"])
def test_a_write_comes_before_or_after_a_truncation(bench: Bench, truncate: Callable[[Bench], None]) -> None:
    fh = bench.open()
    bench.write(fh, 0, b"a" * 50)
    bench.pause_write()
    bench.beside(bench.write, fh, 50, b"b" * 50)
    assert bench.paused.wait(30)
    bench.beside(truncate, bench).join(OVERTAKEN_S)
    bench.join()
    bench.flush(fh)
    bench.release(fh)
    assert bench.recorded == len(bench.stored), "no bytes beyond the end, and none that no length covers"


@pytest.mark.parametrize("tell", [Bench.flush, Bench.fsync], ids=["close", "fsync"])
def test_no_length_is_told_of_bytes_that_are_not_stored(bench: Bench, tell: Callable[[Bench, int], None]) -> None:
    fh, other = bench.open(), bench.open()
    bench.write(other, 0, b"a" * 50)
    bench.pause_write()
    bench.beside(bench.write, fh, 50, b"b" * 50)
    assert bench.paused.wait(30)
    bench.beside(tell, bench, other).join(OVERTAKEN_S)
    assert bench.recorded <= len(bench.stored)
    bench.join()
    assert bench.recorded <= len(bench.stored)
    bench.flush(fh)
    assert bench.recorded == len(bench.stored) == 100


@pytest.mark.parametrize("tell", [Bench.flush, Bench.fsync], ids=["close", "fsync"])
def test_what_is_written_between_the_flush_and_the_record(bench: Bench, tell: Callable[[Bench, int], None]) -> None:
    fh = bench.open()
    bench.write(fh, 0, b"a" * 50)
    flush = bench.volume.flush

    def flush_then_another_writes(*arguments: Any) -> None:
        flush(*arguments)
        bench.volume.flush = flush  # type: ignore[method-assign]
        bench.write(fh, 50, b"b" * 50)

    bench.volume.flush = flush_then_another_writes  # type: ignore[method-assign]
    tell(bench, fh)
    assert bench.recorded <= len(bench.stored)
    assert bench.backend.meta.sessions[bench.id] or not bench.volume.write_behind.is_dirty(bench.id)


def test_what_is_written_after_a_truncation_elsewhere_is_seen_here_at_once(bench: Bench) -> None:
    fh = bench.open()
    bench.write(fh, 0, b"a" * 50)
    bench.fsync(fh)
    truncated = m.SetAttrRequest(caller=Caller(), at=m.PathAt(dir=bench.id), length=0)
    bench.backend.meta.set_attr(truncated)
    bench.write(fh, 0, b"b" * 20)
    bench.volume.stat(bench.id, Caller())
    assert bench.length() == 20
    assert bench.read(fh, 0, 100) == b"b" * 20
    bench.backend.meta.set_attr(truncated)
    bench.write(fh, 0, b"c" * 10)
    bench.volume.changed_inode(bench.backend.meta.stat(m.StatRequest(at=m.PathAt(dir=bench.id))).inode)
    assert bench.read(fh, 0, 100) == b"c" * 10
    assert bench.length() == 10


def test_fallocate_takes_nothing_of_what_others_have_not_recorded(bench: Bench) -> None:
    fh = bench.open()
    bench.write(fh, 0, b"a" * 50)
    bench.fsync(fh)
    bench.backend.data.files[bench.id] += b"b" * 150  # acknowledged to a client elsewhere, whose file is still open
    bench.allocate(fh, 0, 100)
    assert (bench.recorded, len(bench.stored)) == (100, 200)
    bench.backend.meta.set_attr(m.SetAttrRequest(caller=Caller(), at=m.PathAt(dir=bench.id), length=0))
    bench.allocate(fh, 0, 150)  # the mount has not heard of the truncation
    assert (bench.recorded, bench.length(), bench.stored) == (150, 150, b"")


class Agent:
    """Of rings: what it wrote, it says in its table."""

    def __init__(self) -> None:
        self.ends = Ends()
        self.free_slots = [0]

    def forget_file(self, token: int) -> bool:
        return False


@pytest.mark.parametrize("died", [False, True], ids=["failed", "died"])
def test_what_rings_stored_without_a_word_of_it_is_in_the_length(bench: Bench, died: bool) -> None:
    """Else it would show when the file is lengthened."""
    fh = bench.open()
    known = Registrations(bench.volume)
    handle = bench.volume.handles.file(fh)
    agent = Agent()
    registration, slot = known.resolve(known.register(handle), agent)
    bench.backend.data.files[bench.id] = bytearray(b"r" * 300)
    if died:
        known.agent_left(registration, agent, died=True)
    else:
        agent.ends.torn(slot, 0)
    assert known.tell_meta(handle.live)
    assert bench.recorded == 300
    assert not known.tell_meta(handle.live)
    known.stop()


@pytest.mark.parametrize("truncate", [_truncate_by_open, lambda bench: bench.truncate(10)], ids=["open", "truncate"])
def test_pages_are_dropped_when_no_read_of_them_can_wait_for_us(
    bench: Bench, truncate: Callable[[Bench], None]
) -> None:
    """The kernel waits for pages that it reads to be read, and reading asks how long the file is: with its lock."""
    fh = bench.open()
    known = Registrations(bench.volume)
    bench.volume.rings = SimpleNamespace(files=known)  # type: ignore[assignment]
    token = known.register(bench.volume.handles.file(fh))
    agent = Agent()
    _, slot = known.resolve(token, agent)
    live = bench.volume.handles.file(fh).live
    bench.backend.data.files[bench.id] = bytearray(b"r" * 300)
    agent.ends.wrote(slot, 300)
    told: list[bool] = []

    def reads() -> None:
        told.append(live.lock.acquire(timeout=1))
        if told[-1]:
            live.lock.release()

    def notify(message: bytes) -> None:
        if message != protocol.encode_inval_inode(bench.id, -1, 0):  # which is of attributes alone
            assert message == protocol.encode_inval_inode(bench.id, 0, 0)
            bench.beside(reads).join(30)

    bench.volume.notify = notify
    truncate(bench)
    assert told == [True]
    known.stop()


def test_a_removal_that_is_refused_leaves_the_link_count(bench: Bench) -> None:
    fh = bench.open()
    bench.backend.meta.open(
        m.OpenRequest(caller=Caller(), at=m.PathAt(dir=1, path=b"new"), flags=os.O_CREAT | os.O_RDWR, mode=0o644)
    )

    def refuse(_: object) -> None:
        raise error(Code.QUOTA_EXCEEDED)

    bench.backend.meta.remove = bench.backend.meta.rename = refuse
    for operation, body in (
        (names.unlink, b"f\0"),
        (names.rename, protocol.RENAME_IN.pack(1) + b"new\0f\0"),
    ):
        request = bench.request(body)
        request.nodeid = 1
        with pytest.raises(FfsError):
            operation(bench.volume, request)
        assert bench.attributes().nlink == 1
    del bench.backend.meta.remove, bench.backend.meta.rename
    request = bench.request(b"f\0")
    request.nodeid = 1
    names.unlink(bench.volume, request)
    assert bench.attributes().nlink == 0
    bench.write(fh, 0, b"kept")
    bench.flush(fh)
    assert bench.stored == b"kept"
    bench.release(fh)


def test_a_server_that_answers_too_late_changes_nothing_that_was_read(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(backend)
    fh = bench.open()
    bench.write(fh, 0, b"right")
    bench.fsync(fh)
    read, late = backend.data.read, [True]

    def hang(file: Any, offset: int, into: Any) -> None:
        """As if the first server asked had not answered in time, and wrote when another's bytes had been verified."""
        read(file, offset, into)
        if late:
            late.clear()
            into.memory.tainted = True
            into.view[:] = b"wrong"

    monkeypatch.setattr(backend.data, "read", hang)
    backend.pool = SharedPool()
    assert bench.read(fh, 0, 5) == b"right"


def test_what_a_failed_copy_left_behind_is_not_beyond_the_end(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(backend)
    fh = bench.open()
    bench.write(fh, 0, b"right")
    bench.fsync(fh)
    copy = backend.data.copy

    def full(source: Any, source_offset: int, into: Any, into_offset: int, length: int) -> None:
        copy(source, source_offset, into, into_offset, length - 2)
        raise FfsError(Code.NO_SPACE)

    monkeypatch.setattr(backend.data, "copy", full)
    asked = protocol.COPY_FILE_RANGE_IN.pack(fh, 0, bench.id, fh, 10, 5, 0)
    with pytest.raises(FfsError):
        ranges.copy_file_range(bench.volume, bench.request(asked))
    assert bench.length() == 13
    bench.flush(fh)
    bench.release(fh)
    assert bench.recorded == 13


def test_a_page_of_names_that_began_before_a_close_does_not_bring_the_old_length_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It arrives when the file is not open any more, and has not been taken out of what was looked up ahead."""
    bench.release(bench.open())  # the look-up below finds a file that was closed before
    list_now, leave = bench.backend.meta.list, bench.volume.table.leave
    listed, left, kept, taken = (threading.Event() for _ in range(4))

    def slow(request: m.ListRequest) -> m.ListReply:
        page = list_now(request)
        listed.set()
        left.wait(10)
        return page

    def leaves(live: Any) -> bool:
        was_last = leave(live)
        left.set()
        taken.wait(10)
        return was_last

    def look_up_many() -> None:
        for _ in range(MISSES):
            bench.volume.ahead.missed(1, b"a")
        kept.set()

    fh = bench.open()
    monkeypatch.setattr(bench.volume.ahead, "_meta", SimpleNamespace(list=slow))
    monkeypatch.setattr(bench.volume.table, "leave", leaves)
    bench.beside(look_up_many)
    assert listed.wait(10)
    bench.write(fh, 0, b"hello")
    bench.flush(fh)
    closing = bench.beside(bench.release, fh)
    assert kept.wait(10)
    found = bench.volume.ahead.take(1, b"f")
    taken.set()
    closing.join(10)
    assert found is None or found[0].length == 5


def _looked_up(bench: Bench) -> int:
    request = bench.request(b"f\0")
    request.nodeid = 1
    answer = names.lookup(bench.volume, request)
    assert isinstance(answer, bytes)
    return int.from_bytes(answer[48:56], "little")  # fuse_entry_out: attr.size


@pytest.mark.parametrize("ask", [_looked_up, Bench.length], ids=["lookup", "getattr"])
@pytest.mark.parametrize("released", [False, True], ids=["closed", "released"])
def test_an_answer_from_before_a_close_is_not_given_after_it(
    bench: Bench, ask: Callable[[Bench], int], released: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may have asked between the last write and the close, when meta did not know the length."""
    fh = bench.open()
    bench.write(fh, 0, b"a" * 50)
    bench.volume.handles.file(fh).live.checked_s -= 3600.0  # attributes that old are asked for
    before = {name: getattr(bench.backend.meta, name) for name in ("lookup", "stat")}

    def overtaken(name: str, request: Any) -> Any:
        reply = before[name](request)
        old = m.InodeReply()
        old.CopyFrom(reply)
        monkeypatch.undo()
        bench.flush(fh)
        if released:
            bench.release(fh)
        return old

    for name in before:
        monkeypatch.setattr(bench.backend.meta, name, lambda request, name=name: overtaken(name, request))
    assert ask(bench) == 50
    assert bench.recorded == 50
