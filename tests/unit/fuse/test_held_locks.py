"""Locks that a mount lost while it was cut off: who finds out, and until when."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from fireflyfs.client.session import LeaseKeeper, LeaseTerm
from fireflyfs.common.clock import ManualClock, SystemClock
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.lock_spans import Span, with_span, without
from fireflyfs.fuse import held_locks
from fireflyfs.fuse.held_locks import HeldLocks
from fireflyfs.fuse.options import MountOptions
from fireflyfs.fuse.volume import Volume
from fireflyfs.proto import meta_pb2 as m
from fireflyfs.proto import mgmtd_pb2
from fireflyfs.proto.common_pb2 import Caller

END = (1 << 63) - 1
RANGE = int(m.LOCK_RANGE)
ME, OTHER = (RANGE, 1), (RANGE, 2)


class Service:
    """What the metadata service has: (inode, owner) to ranges. `during` runs while an answer is on its way."""

    def __init__(self) -> None:
        self.ranges: dict[tuple[int, int], tuple[Span, ...]] = {}
        self.asked = 0
        self.during: Any = lambda: None

    def await_locks(self, request: m.AwaitLocksRequest) -> m.AwaitLocksReply:
        self.asked += 1
        dropped = [place for place, each in enumerate(request.held) if not self._has(each)]
        during, self.during = self.during, lambda: None
        during()
        return m.AwaitLocksReply(dropped=dropped)

    def _has(self, asked: m.HeldRange) -> bool:
        known = self.ranges.get((asked.inode, asked.owner), ())
        return any(start <= asked.start and asked.end <= end for start, end, _ in known)


class Bench:
    def __init__(self) -> None:
        self.service = Service()
        self.clock = ManualClock()
        self.term = LeaseTerm()
        self.renew()
        self.told: list[int] = []
        meta: Any = self.service
        self.held = HeldLocks(meta, Caller(), self.clock, lambda: self.term.now, self.told.append)

    def renew(self) -> None:
        now_s = self.clock.monotonic_s()
        self.term.renewed(now_s, now_s, 60.0)

    def lock(self, key: tuple[int, int] = ME, start: int = 0, end: int = END, *, inode: int = 5, fh: int = 1) -> None:
        self.held.asking(inode, key, fh, converts=False)
        known = self.service.ranges.get((inode, key[1]), ())
        self.service.ranges[inode, key[1]] = with_span(known, Span(start, end, True))
        self.held.granted(inode, key, start, end)

    def unlock(self, start: int = 0, end: int = END) -> None:
        self.held.unlocking(5, ME, start, end)
        self.service.ranges[5, 1] = without(self.service.ranges.get((5, 1), ()), start, end)

    def fails(self, inode: int = 5, fh: int | None = 1) -> bool:
        try:
            self.held.check(inode, fh)
        except FfsError as exc:
            return exc.code is Code.IO_ERROR
        return False


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_while_the_lease_runs_nobody_is_asked(bench: Bench) -> None:
    bench.lock()
    for _ in range(10):
        bench.clock.advance(50)
        bench.renew()
        assert not bench.fails()
    assert bench.service.asked == 0


def test_a_lost_lock_fails_what_its_owner_does_until_it_is_unlocked(bench: Bench) -> None:
    bench.lock(start=0, end=9)
    bench.lock(start=20, end=29)
    bench.lock(OTHER, 100, 109, fh=2)
    bench.clock.advance(61)
    del bench.service.ranges[5, 1]
    assert bench.fails()
    assert bench.fails(fh=None), "as for bytes that nobody knows the handle of"
    assert not bench.fails(fh=2)
    assert not bench.fails(inode=6)
    bench.renew()
    with pytest.raises(FfsError):
        bench.held.asking(5, ME, 1, converts=False)
    bench.unlock(0, 9)
    assert bench.fails(), "the other range is lost as well"
    bench.unlock()
    assert not bench.fails()
    bench.lock()
    assert not bench.fails()
    bench.held._tell()
    assert bench.told == [5]


def test_closing_ends_it_too(bench: Bench) -> None:
    bench.lock()
    bench.clock.advance(61)
    bench.service.ranges.clear()
    assert bench.fails()
    assert bench.held.forget(5, lambda key, _: key == ME) == [ME]
    assert not bench.fails()
    assert 5 not in bench.held


def test_a_lease_that_was_late_loses_nothing_that_is_still_there(bench: Bench) -> None:
    bench.lock()
    for _ in range(20):  # mgmtd is away, the metadata service is not
        bench.clock.advance(61)
        assert not bench.fails()
        assert not bench.fails()
    assert bench.service.asked == 20
    bench.renew()
    assert not bench.fails()
    bench.clock.advance(10)
    assert not bench.fails()
    bench.clock.advance(10)
    assert not bench.fails()
    assert bench.service.asked == 21


def test_a_lock_had_after_the_break_does_not_hide_that_an_older_one_is_lost(bench: Bench) -> None:
    bench.lock(start=0, end=9)
    bench.clock.advance(61)
    bench.service.ranges.clear()
    bench.renew()
    with pytest.raises(FfsError):
        bench.lock(start=20, end=29)
    bench.lock(OTHER, 20, 29)
    assert not bench.fails(fh=3)


def test_what_is_unlocked_while_the_service_is_asked_is_not_lost(bench: Bench) -> None:
    bench.lock(start=0, end=99)
    bench.clock.advance(61)
    bench.service.ranges.clear()
    bench.service.during = lambda: bench.unlock(50, 99)
    assert bench.fails()
    assert bench.service.asked == 2
    bench.unlock()
    bench.lock(start=0, end=99)
    bench.clock.advance(61)
    bench.service.ranges.clear()
    bench.service.during = bench.unlock
    assert not bench.fails()


def test_watching_finds_out_though_nobody_reads(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_locks, "LOOK_EVERY_S", 0.001)
    bench.lock()
    bench.clock.advance(61)
    bench.service.ranges.clear()
    bench.held._on_lost = lambda inode: (bench.told.append(inode), bench.held.stop())
    bench.held.watch()
    assert bench.told == [5]


def test_ranges_are_sets_of_bytes() -> None:
    rng = random.Random(5)
    for _ in range(300):
        ranges: tuple[Span, ...] = ()
        byte_set: set[int] = set()
        for _ in range(12):
            start = rng.randrange(30)
            end = start + rng.randrange(8)
            if rng.random() < 0.6:
                ranges = with_span(ranges, Span(start, end, True))
                byte_set |= set(range(start, end + 1))
            else:
                ranges = without(ranges, start, end)
                byte_set -= set(range(start, end + 1))
            assert {byte for first, last, _ in ranges for byte in range(first, last + 1)} == byte_set
            assert all(a.end < b.start for a, b in pairwise(ranges))


def test_a_term_is_unbroken_when_it_is_renewed_in_time() -> None:
    term = LeaseTerm()
    term.renewed(0.0, 1.0, 60.0)
    begun = term.now[0]
    term.renewed(58.0, 59.9, 60.0)
    assert term.now == (begun, 118.0)
    term.renewed(117.0, 118.0, 60.0)  # heard of in time, or not
    assert term.now == (begun + 1, 177.0)


def test_a_mount_whose_machine_was_suspended_asks_for_its_locks(backend: Any, suspend: Callable[[float], None]) -> None:
    extended = SimpleNamespace(lease_ms=60_000)
    manager: Any = SimpleNamespace(extend_session=lambda request: extended)
    keeper = LeaseKeeper(manager, "cluster", mgmtd_pb2.ClientSession())
    backend.lease = lambda: keeper.term.now
    volume = Volume(backend, MountOptions(), SystemClock(), lambda _: None)
    held = volume.locks.held
    held.asking(5, ME, 1, converts=False)
    held.granted(5, ME, 0, END)
    backend.locks_dropped = True
    suspend(30)
    held.check(5, 1)  # the lease runs: nobody is asked
    suspend(40)
    with pytest.raises(FfsError):
        held.check(5, 1)
    keeper.close()


def test_a_program_on_a_mount_gets_eio_until_it_unlocks_or_closes(backend: Any, mounts: Any) -> None:
    root = mounts(backend, dirty_age_s=600.0).mountpoint
    fd = os.open(root / "f", os.O_CREAT | os.O_RDWR)
    free = os.open(root / "f", os.O_RDWR)
    os.write(fd, b"before")
    os.fsync(fd)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    os.pwrite(fd, b"late", 0)
    backend.locks_dropped = True
    backend.lease_now = (0, 0.0)
    for act in (lambda: os.pread(fd, 6, 0), lambda: os.pwrite(fd, b"x", 0), lambda: os.fsync(fd)):
        with pytest.raises(OSError, match="Input/output") as info:
            act()
        assert info.value.errno == errno.EIO
    assert bytes(backend.data.files[os.fstat(fd).st_ino]) == b"before"
    assert os.pread(free, 6, 0) == b"before"
    backend.locks_dropped = False
    backend.lease_now = (1, float("inf"))
    with pytest.raises(OSError, match="Input/output"):
        fcntl.lockf(fd, fcntl.LOCK_EX)
    fcntl.lockf(fd, fcntl.LOCK_UN)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    assert os.pwrite(fd, b"after!", 0) == 6
    os.close(fd)
    with pytest.raises(OSError, match="Input/output"):
        os.fsync(free)  # bytes of the file were lost after it was opened
    assert os.pread(free, 6, 0) == b"after!"
    os.close(free)
