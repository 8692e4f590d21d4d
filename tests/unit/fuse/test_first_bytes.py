"""Small files that are read with their open: what is read is what close-to-open promises, and no older."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from types import SimpleNamespace

import pytest

from fireflyfs.client.striping import FileLayout
from fireflyfs.common.clock import SystemClock
from fireflyfs.common.errors import Code, error
from fireflyfs.fuse import first_bytes
from fireflyfs.fuse.change_log import ChangeLog
from fireflyfs.fuse.first_bytes import FIRST_BYTES_MAX, TOGETHER_MAX, FirstBytes
from fireflyfs.fuse.inodes import InodeTable
from fireflyfs.fuse.request import Request
from fireflyfs.fuse.segments import SegmentPool
from fireflyfs.proto import meta_pb2 as m

pytestmark = pytest.mark.e2e  # on a real kernel mount


@pytest.fixture
def two(backend, mounts):
    """A file of some bytes, made on the first mount, and the second, where it has not been seen yet."""
    writer, reader = mounts(backend), mounts(backend)
    (writer.mountpoint / "f").write_bytes(b"before")
    return writer, reader


def given(mount) -> int:
    return mount.statistics().get("files_given", 0)


def test_a_small_file_is_read_with_its_open_and_once(two, backend):
    _, reader = two
    with open(reader.mountpoint / "f", "rb") as file:
        assert file.read() == b"before"
    assert given(reader) == 1
    assert len(backend.data.early) == 1
    with open(reader.mountpoint / "f", "rb") as file:  # the kernel has it
        assert file.read() == b"before"
    assert len(backend.data.early) == 1


def test_pieces_of_it_come_from_there(two, backend):
    writer, reader = two
    content = os.urandom(FIRST_BYTES_MAX)
    (writer.mountpoint / "g").write_bytes(content)
    (writer.mountpoint / "h").write_bytes(content + b"x")
    with open(reader.mountpoint / "g", "rb", buffering=0) as file:
        assert b"".join(os.pread(file.fileno(), 4096, offset) for offset in range(0, len(content), 4096)) == content
        assert os.pread(file.fileno(), 10, len(content)) == b""
    assert given(reader) >= 1
    before = len(backend.data.early)
    assert (reader.mountpoint / "h").read_bytes() == content + b"x"
    assert len(backend.data.early) == before  # too long


def test_what_was_written_here_since_the_open_is_read(two, backend):
    _, reader = two
    with open(reader.mountpoint / "f", "rb", buffering=0) as file, open(reader.mountpoint / "f", "r+b") as other:
        other.write(b"after!")
        other.flush()
        assert file.read() == b"after!"
    assert len(backend.data.early) == 1
    assert given(reader) == 1


def test_what_was_truncated_here_since_the_open_is_read(two):
    _, reader = two
    with open(reader.mountpoint / "f", "rb", buffering=0) as file:
        os.truncate(reader.mountpoint / "f", 2)
        assert file.read() == b"be"
        os.truncate(reader.mountpoint / "f", 6)
        assert os.pread(file.fileno(), 10, 0) == b"be\0\0\0\0"
    assert given(reader) == 1


def test_who_has_a_lock_reads_what_was_written_under_it_elsewhere(two, backend):
    writer, reader = two
    with open(reader.mountpoint / "f", "rb", buffering=0) as file:
        with open(writer.mountpoint / "f", "r+b", buffering=0) as other:
            fcntl.lockf(other, fcntl.LOCK_EX)
            other.write(b"after!")
            fcntl.lockf(other, fcntl.LOCK_UN)
        fcntl.lockf(file, fcntl.LOCK_SH)
        assert file.read() == b"after!"
    assert len(backend.data.early) == 1
    assert given(reader) == 1


def test_a_file_that_changed_between_look_up_and_open_is_read_as_it_is_now(two, backend):
    writer, reader = two
    os.stat(reader.mountpoint / "f")
    (writer.mountpoint / "f").write_bytes(b"and longer")
    assert (reader.mountpoint / "f").read_bytes() == b"and longer"
    assert len(backend.data.early) == 1
    assert given(reader) == 0


def test_where_it_cannot_be_read_early_it_is_read_later(two, backend, monkeypatch):
    _, reader = two
    monkeypatch.setattr(backend.data, "begin_first", lambda file, into: lambda: False)
    assert (reader.mountpoint / "f").read_bytes() == b"before"
    assert given(reader) == 0


def test_an_open_that_fails_ends_the_read_too(two, backend, monkeypatch):
    _, reader = two
    ended = []
    monkeypatch.setattr(backend.data, "begin_first", lambda file, into: lambda: not ended.append(file.inode))
    os.stat(reader.mountpoint / "f")
    os.chmod(two[0].mountpoint / "f", 0o600)
    backend.meta.open, opens = lambda request: (_ for _ in ()).throw(OSError(5, "no")), backend.meta.open
    try:
        with pytest.raises(OSError, match="Input/output"):
            os.open(reader.mountpoint / "f", os.O_RDONLY)
    finally:
        backend.meta.open = opens
    assert len(ended) == 1
    assert (reader.mountpoint / "f").read_bytes() == b"before"


@pytest.mark.parametrize("how", [os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_DIRECT, os.O_RDONLY | os.O_TRUNC])
def test_who_does_not_just_read_reads_nothing_early(two, backend, how):
    _, reader = two
    os.close(os.open(reader.mountpoint / "f", how))
    assert backend.data.early == []


@pytest.mark.parametrize("options", [{"attr_timeout_s": 0.0}, {"relatime": True}], ids=str)
def test_nothing_is_read_early_where_attributes_are_not_kept_or_reads_are_to_be_seen(backend, mounts, options):
    root = mounts(backend, **options).mountpoint
    (root / "f").write_bytes(b"x")
    assert (root / "f").read_bytes() == b"x"
    assert backend.data.early == []


# Files that are opened one after the other: those that follow are read with one that is.


@pytest.fixture
def many(backend, mounts):
    """Forty files, made on the first mount and listed with their attributes on the second."""
    writer, reader = mounts(backend), mounts(backend)
    for number in range(40):
        (writer.mountpoint / f"{number:02}").write_bytes(b"%d" % number)
    with os.scandir(reader.mountpoint) as entries:
        assert len([entry.stat() for entry in entries]) == 40
    return writer, reader


def read(mount, numbers) -> list[bytes]:
    return [(mount.mountpoint / f"{number:02}").read_bytes() for number in numbers]


def test_files_that_are_opened_in_turn_are_read_together(many, backend):
    _, reader = many
    reader.volume.first._valid_s = 60.0  # however slow this machine is
    assert read(reader, range(40)) == [b"%d" % number for number in range(40)]
    assert given(reader) == 40
    assert max(backend.data.together) == TOGETHER_MAX
    assert sum(backend.data.together) + len(backend.data.early) == 40  # each once


def test_a_file_that_was_changed_elsewhere_since_it_was_read_ahead(many, backend):
    writer, reader = many
    read(reader, range(12))
    ahead = sum(backend.data.together) + len(backend.data.early)
    assert ahead > 12
    (writer.mountpoint / "12").write_bytes(b"else")
    assert read(reader, range(12, 40)) == [b"else", *(b"%d" % number for number in range(13, 40))]


def test_a_file_that_was_changed_here_since_it_was_read_ahead(many):
    _, reader = many
    read(reader, range(12))
    (reader.mountpoint / "12").write_bytes(b"here")
    assert read(reader, range(12, 14)) == [b"here", b"13"]


def test_a_file_that_was_replaced_since_it_was_read_ahead(many):
    writer, reader = many
    read(reader, range(12))
    (writer.mountpoint / "new").write_bytes(b"new!")
    os.rename(writer.mountpoint / "new", writer.mountpoint / "12")
    assert read(reader, [12]) in ([b"12"], [b"new!"])  # a name may be old for entry_timeout
    deadline = time.monotonic() + 5
    while read(reader, [12]) != [b"new!"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_was_read_ahead_is_too_old_after_a_while(many, backend):
    _, reader = many
    reader.volume.first._valid_s = 0.05
    read(reader, range(12))
    before = sum(backend.data.together) + len(backend.data.early)
    time.sleep(0.1)
    assert read(reader, range(12, 20)) == [b"%d" % number for number in range(12, 20)]
    assert sum(backend.data.together) + len(backend.data.early) >= before + 8


def test_few_are_read_ahead_where_they_are_not_opened(many, backend):
    _, reader = many
    read(reader, range(0, 40, 2))
    assert sum(backend.data.together) + len(backend.data.early) <= 2 * 20


def test_storage_that_is_away_or_answers_nothing_ends_no_row(many, backend):
    _, reader = many
    read(reader, range(6))
    backend.data.fail_once.append(error(Code.UNAVAILABLE))
    assert read(reader, range(6, 40)) == [b"%d" % number for number in range(6, 40)]
    assert backend.data.fail_once == []


def test_bytes_of_few_files_are_kept(many, monkeypatch):
    monkeypatch.setattr(first_bytes, "KEPT_MAX", 3)
    _, reader = many
    read(reader, range(20))
    assert 0 < len(reader.volume.first._kept) <= 3
    assert read(reader, range(20, 40)) == [b"%d" % number for number in range(20, 40)]


def test_few_files_are_known(backend, mounts, monkeypatch):
    monkeypatch.setattr(first_bytes, "KNOWN_MAX", 16)
    root = mounts(backend).mountpoint
    for number in range(40):
        (root / f"{number:02}").write_bytes(b"x")
    reader = mounts(backend)
    sum(1 for entry in os.scandir(reader.mountpoint) if entry.stat())
    assert len(reader.volume.first._known) <= 16
    assert read(reader, range(40)) == [b"x"] * 40


# What the kernel has from elsewhere is newer than bytes that were read with an open, or may be.


@pytest.fixture
def opening(backend):
    """An open under way of a file that meta says is as it was told: what might come between the two, and whether the
    kernel is given the bytes then."""
    pool = backend.pool
    table, changes, stored = InodeTable(), ChangeLog(), []

    def store(message: bytes, data: memoryview) -> bool:
        stored.append(bytes(data))
        return True

    first = FirstBytes(backend.data, pool, table, changes, SystemClock(), store, valid_s=1.0)
    inode = m.Inode(id=7, length=6, mtime_ns=1, layout={"chunk_size": 65536, "chains": [1]})
    table.told(inode)
    first.told(inode)
    backend.data.write(FileLayout.of(7, inode.layout), [(0, b"before")])
    landing = pool.allocate(4096)
    request = Request(SegmentPool(pool).take(), landing)
    request.nodeid = 7
    early = first.begin(request)
    early.finish()
    live = table.enter(inode, 0.0)

    def give(said: m.Inode = inode) -> list[bytes]:
        assert first.give(early, live, said) == bool(stored)
        return stored

    other = Request(SegmentPool(pool).take(), landing)
    other.nodeid = 8
    yield SimpleNamespace(
        first=first, table=table, changes=changes, inode=inode, give=give, other=other,
        give_now=lambda: first.give(early, live, inode),
    )  # fmt: skip
    landing.close()


def test_bytes_are_given_where_nothing_came_between(opening):
    assert opening.give() == [b"before"]


def test_the_kernel_was_told_to_drop_pages_meanwhile(opening):
    opening.first.drop()
    assert opening.give() == []


def test_a_change_was_made_here_meanwhile(opening):
    opening.changes.note(7)
    assert opening.give() == []


def test_it_was_opened_here_by_another_meanwhile(opening):
    opening.table.enter(opening.inode, 0.0)
    assert opening.give() == []


def test_the_kernel_has_pages_from_another_open(opening):
    opening.table.opened(opening.inode)
    assert opening.give() == []


@pytest.mark.parametrize("field", ["mtime_ns", "length", "truncate_version", "ctime_ns"])
def test_meta_says_that_it_is_another_one_by_now(opening, field):
    said = m.Inode()
    said.CopyFrom(opening.inode)
    setattr(said, field, 5)
    opening.table.told(said)
    assert opening.give(said) == []


def test_nobody_waits_while_the_kernel_takes_its_time(opening):
    """It may have to wait for a page."""
    taking, taken = threading.Event(), threading.Event()
    opening.first._store = lambda *_: taking.set() or taken.wait(30)
    giver = threading.Thread(target=opening.give_now)
    giver.start()
    assert taking.wait(30)
    opening.first.told(opening.inode)
    assert opening.first.begin(opening.other) is None
    taken.set()
    giver.join()
