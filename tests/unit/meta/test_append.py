"""Places of appends: never the same bytes to two clients, never more than a session keeps."""

from __future__ import annotations

import os
from typing import Any

import pytest

from fireflyfs.common.errors import Code
from fireflyfs.common.limits import FILE_BYTES_MAX
from fireflyfs.meta.core.records import Session
from fireflyfs.proto import common_pb2, meta_pb2

ONE, TWO = b"1" * 16, b"2" * 16


class Appenders:
    def __init__(self, meta: Any) -> None:
        self.meta = meta
        self.inode = meta.create(b"f").id
        self.requests = 0

    def _send(self, name: str, client: bytes, request: Any) -> Any:
        self.requests += 1
        request.caller.CopyFrom(common_pb2.Caller(client_id=client))
        if not request.mutation.request_id:
            request.mutation.request_id = b"append" + self.requests.to_bytes(10, "big")
        answer = getattr(self.meta.handlers, name)(request)
        return self.meta.wait(answer) if hasattr(answer, "__await__") else answer

    def append(self, client: bytes, size: int, hint: tuple[int, int] | None = None, **fields: Any) -> int:
        request = meta_pb2.AppendRequest(inode=self.inode, session=client, size=size, **fields)
        if hint is not None:
            request.hint.length, request.hint.truncate_version = hint
        return self._send("append", client, request).offset

    def close(self, client: bytes, end: int, version: int = 0) -> None:
        hint = meta_pb2.LengthHint(length=end, truncate_version=version)
        self._send("close", client, meta_pb2.CloseRequest(inode=self.inode, session=client, hint=hint))

    def open(self, client: bytes) -> None:
        request = meta_pb2.OpenRequest(at=meta_pb2.PathAt(dir=self.inode), flags=os.O_WRONLY, session=client)
        self._send("open", client, request)

    def truncate(self, length: int) -> int:
        request = meta_pb2.SetAttrRequest(at=meta_pb2.PathAt(dir=self.inode), length=length)
        return self._send("set_attr", ONE, request).inode.truncate_version


@pytest.fixture
def both(meta: Any) -> Appenders:
    return Appenders(meta)


def test_what_others_were_given_counts_and_the_length_stays(both: Appenders) -> None:
    assert both.append(ONE, 10) == 0
    assert both.append(TWO, 5) == 10
    assert both.append(ONE, 1, hint=(10, 0)) == 15
    assert both.append(TWO, 1, hint=(15, 0)) == 16
    assert both.meta.stat(b"f").length == 0
    both.close(ONE, 16)
    assert both.meta.stat(b"f").length == 16
    assert both.append(TWO, 3, hint=(17, 0)) == 17


def test_a_client_counts_what_it_wrote_itself_by_its_hint(both: Appenders) -> None:
    assert both.append(ONE, 10) == 0
    assert both.append(ONE, 10) == 0, "the first was not written: its place is free"
    assert both.append(ONE, 10, hint=(10, 0)) == 10


def test_a_place_goes_with_its_session(both: Appenders) -> None:
    assert both.append(ONE, 1000) == 0
    both.close(ONE, 0)  # it wrote nothing
    assert both.append(TWO, 5) == 0


def test_opening_again_keeps_what_was_given(both: Appenders) -> None:
    """A mount has one session for all its descriptors of a file."""
    both.open(ONE)
    assert both.append(ONE, 10) == 0
    both.open(ONE)
    assert both.append(TWO, 5) == 10


def test_after_a_truncation_only_the_length_counts(both: Appenders) -> None:
    both.append(ONE, 100)
    both.append(TWO, 100)
    both.close(TWO, 200)
    version = both.truncate(50)
    assert both.append(TWO, 10) == 50
    assert both.append(ONE, 10, hint=(60, version)) == 60


def test_once_and_across_a_restart(both: Appenders) -> None:
    again = meta_pb2.Mutation(request_id=b"r" * 16, retry=True)
    assert both.append(ONE, 10, mutation=again) == 0
    assert both.append(TWO, 10) == 10
    both.meta = both.meta.restarted()
    assert both.append(ONE, 10, mutation=again) == 0
    assert both.append(ONE, 10, hint=(10, 0)) == 20


def test_refused(both: Appenders) -> None:
    assert both.meta.code(lambda: both.append(ONE, FILE_BYTES_MAX + 1)) is Code.TOO_BIG
    assert both.meta.code(lambda: both.append(b"short", 1)) is Code.INVALID
    both.inode = 1
    assert both.meta.code(lambda: both.append(ONE, 1)) is Code.INVALID
    both.inode = 99
    assert both.meta.code(lambda: both.append(ONE, 1)) is Code.STALE_HANDLE


def test_sessions_of_older_releases_are_read() -> None:
    plain = Session(ONE, True, 77)
    assert len(plain.pack()) == 26
    assert Session.unpack(plain.pack()) == plain
    appending = Session(ONE, True, 77, 1 << 40, 3)
    assert len(appending.pack()) == 42
    assert Session.unpack(appending.pack()) == appending
