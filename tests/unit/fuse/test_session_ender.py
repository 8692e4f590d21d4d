"""Sessions are ended many at a time, none is forgotten, and what meta refuses ends nobody's thread."""

from __future__ import annotations

import os
import threading
import time

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import SESSIONS_ENDED_MAX
from fireflyfs.fuse import session_ender
from fireflyfs.fuse.session_ender import SessionEnder


def test_all_are_told_in_bounded_batches():
    told = []
    ender = SessionEnder(told.append)
    for number in range(3 * SESSIONS_ENDED_MAX + 1):
        ender.add(number, [b"%d" % number])
    ender.tell_all()
    assert [len(batch) for batch in told] == [SESSIONS_ENDED_MAX] * 3 + [1]
    assert [inode for batch in told for inode, _ in batch] == list(range(3 * SESSIONS_ENDED_MAX + 1))
    ender.tell_all()
    assert len(told) == 4


def test_the_thread_tells_and_stops_with_nothing_left():
    told = []
    ender = SessionEnder(told.append)
    thread = threading.Thread(target=ender.run)
    thread.start()
    ender.add(1, [b"a", b"b"])
    deadline = time.monotonic() + 10
    while not told:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    ender.add(2, [b"c"])
    ender.stop()
    thread.join()
    assert [each for batch in told for each in batch] == [(1, b"a"), (1, b"b"), (2, b"c")]


def test_who_ends_too_many_tells_them(monkeypatch):
    monkeypatch.setattr(session_ender, "WAITING_MAX", 5)
    told = []
    ender = SessionEnder(told.append)
    for number in range(5):
        assert not told
        ender.add(number, [b"s"])
    assert len(told[0]) == 5


def test_a_refusal_is_logged_and_the_others_are_told(caplog):
    told = []

    def tell(batch):
        if not told:
            told.append(batch)
            raise error(Code.IO_ERROR, "no")
        told.append(batch)

    ender = SessionEnder(tell)
    for number in range(SESSIONS_ENDED_MAX + 1):
        ender.add(number, [b"s"])
    ender.tell_all()
    assert len(told) == 2
    assert "were not ended" in caplog.text


def test_files_made_and_closed_unwritten_cost_no_close(backend, mounts):
    mount = mounts(backend)
    for number in range(50):
        os.close(os.open(mount.mountpoint / f"f{number}", os.O_CREAT | os.O_WRONLY))
    deadline = time.monotonic() + 10
    while any(backend.meta.sessions.values()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not [name for name, _ in backend.meta.calls if name == "close"]
