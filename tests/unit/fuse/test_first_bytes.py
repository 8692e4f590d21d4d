"""Small files that are read with their open: what is read is what close-to-open promises, and no older."""

from __future__ import annotations

import fcntl
import os
import threading

import pytest

from fireflyfs.fuse import first_bytes
from fireflyfs.fuse.first_bytes import FIRST_BYTES_MAX

pytestmark = pytest.mark.e2e  # on a real kernel mount


@pytest.fixture
def two(backend, mounts):
    """A file of some bytes, made on the first mount, and the second, where it has not been seen yet."""
    writer, reader = mounts(backend), mounts(backend)
    (writer.mountpoint / "f").write_bytes(b"before")
    return writer, reader


def early(mount) -> int:
    return mount.statistics().get("reads_early", 0)


def test_a_small_file_is_read_with_its_open_and_once(two, backend):
    _, reader = two
    with open(reader.mountpoint / "f", "rb") as file:
        assert file.read() == b"before"
    assert early(reader) == 1
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
    assert early(reader) >= 1
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
    assert early(reader) == 0


def test_what_was_truncated_here_since_the_open_is_read(two):
    _, reader = two
    with open(reader.mountpoint / "f", "rb", buffering=0) as file:
        os.truncate(reader.mountpoint / "f", 2)
        assert file.read() == b"be"
        os.truncate(reader.mountpoint / "f", 6)
        assert os.pread(file.fileno(), 10, 0) == b"be\0\0\0\0"
    assert early(reader) == 0


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
    assert early(reader) == 0


def test_a_file_that_changed_between_look_up_and_open_is_read_as_it_is_now(two, backend):
    writer, reader = two
    os.stat(reader.mountpoint / "f")
    (writer.mountpoint / "f").write_bytes(b"and longer")
    assert (reader.mountpoint / "f").read_bytes() == b"and longer"
    assert len(backend.data.early) == 1
    assert early(reader) == 0


def test_where_it_cannot_be_read_early_it_is_read_later(two, backend, monkeypatch):
    _, reader = two
    monkeypatch.setattr(backend.data, "begin_first", lambda file, into: lambda: False)
    assert (reader.mountpoint / "f").read_bytes() == b"before"
    assert early(reader) == 0


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


def test_nothing_is_read_early_where_attributes_are_not_kept(backend, mounts):
    root = mounts(backend, attr_timeout_s=0.0).mountpoint
    (root / "f").write_bytes(b"x")
    assert (root / "f").read_bytes() == b"x"
    assert backend.data.early == []


def test_opens_that_read_nothing_put_an_end_to_it_for_a_while(backend, mounts):
    writer, reader = mounts(backend), mounts(backend)
    for number in range(40):
        (writer.mountpoint / f"f{number}").write_bytes(b"x")
    for number in range(40):
        os.close(os.open(reader.mountpoint / f"f{number}", os.O_RDONLY))
        wait_for_release(reader)
    assert 8 <= len(backend.data.early) < 20


def test_files_that_stay_open_and_unread_hold_few_bytes(backend, mounts, monkeypatch):
    monkeypatch.setattr(first_bytes, "KEPT_MAX", 4)
    writer, reader = mounts(backend), mounts(backend)
    for number in range(8):
        (writer.mountpoint / f"f{number}").write_bytes(b"%d" % number)
    opened = [open(reader.mountpoint / f"f{number}", "rb") for number in range(8)]  # noqa: SIM115
    assert len(backend.data.early) == 8
    for number, file in enumerate(opened):
        assert file.read() == b"%d" % number
        file.close()
    assert early(reader) == 4


def wait_for_release(mount) -> None:
    """The kernel tells of it after close has returned."""
    while mount.statistics()["handles"]:
        threading.Event().wait(0.001)
