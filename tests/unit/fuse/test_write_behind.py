"""The books of waiting bytes, against a plain bytearray."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fireflyfs.common.clock import ManualClock
from fireflyfs.common.errors import Code, error
from fireflyfs.fuse import write_behind
from fireflyfs.fuse.segments import SegmentPool
from fireflyfs.fuse.write_behind import WriteBehind


class Store:
    """What was sent, one bytearray for each file."""

    def __init__(self):
        self.files = {}
        self.batches = []
        self.fail = []
        self.entered = 0
        self.gate = threading.Event()
        self.gate.set()

    def send(self, key, pieces):
        self.entered += 1
        self.gate.wait()
        if self.fail:
            raise error(self.fail.pop(0))
        data = self.files.setdefault(key, bytearray())
        self.batches.append((key, [(offset, len(view_of(piece))) for offset, piece in pieces]))
        for offset, piece in pieces:
            view = view_of(piece)
            data.extend(bytes(max(0, offset + len(view) - len(data))))
            data[offset : offset + len(view)] = view


def view_of(piece):
    return piece if isinstance(piece, memoryview) else piece.view


class Bench:
    def __init__(self, plain_pool, segment_bytes=1 << 16, **bounds):
        self.store = Store()
        self.clock = ManualClock()
        self.segments = SegmentPool(plain_pool, segment_bytes=segment_bytes, segments_max=1000)
        self.behind = WriteBehind(self.store.send, self.segments, self.clock, **bounds)

    def write(self, offset, data, key=1):
        segment = self.segments.take()
        segment.view[7 : 7 + len(data)] = data
        relieve = self.behind.write(key, offset, segment, 7, len(data))
        if relieve is not None:
            relieve()
        self.segments.drop(segment)


@pytest.fixture
def bench(backend):
    return Bench(backend.pool)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30), st.booleans()), max_size=25))
def test_any_order_of_writes_and_flushes_gives_the_same_file(plain_pool_type, steps):
    bench = Bench(plain_pool_type(), segment_bytes=128)
    model = bytearray()
    for number, (offset, length, flush) in enumerate(steps):
        data = bytes([number + 1]) * length
        model.extend(bytes(max(0, offset + length - len(model))))
        model[offset : offset + length] = data
        bench.write(offset, data)
        for probe in range(0, 90, 7):
            if bench.behind.overlaps(1, probe, probe + 3) is False and not flush:
                stored = bench.store.files.get(1, b"")[probe : probe + 3]
                assert bytes(model[probe : probe + 3]).rstrip(b"\0") == bytes(stored).rstrip(b"\0")
        if flush:
            bench.behind.flush(1)
            assert bench.store.files[1] == model
            assert bench.behind.dirty_bytes == 0
    bench.behind.flush(1)
    assert bench.store.files.get(1, bytearray()) == model
    assert bench.behind.dirty_bytes == 0
    segment = bench.segments.take()  # every other user is gone again
    assert segment.users == 1


def test_neighbours_are_joined(bench):
    for i in range(100):
        bench.write(i * 10, bytes([i]) * 10)
    bench.write(5000, b"far")
    bench.behind.flush(1)
    assert bench.store.batches == [(1, [(0, 1000), (5000, 3)])]


def test_a_lost_flush_is_told_once_to_each_who_asks(bench):
    bench.store.fail = [Code.NO_SPACE]
    bench.write(0, b"x")
    bench.behind.flush(1)
    for _ in range(2):
        lost, seen = bench.behind.error_since(1, 0)
        assert lost is not None
        assert lost.code is Code.NO_SPACE
        assert bench.behind.error_since(1, seen) == (None, seen)
    assert bench.behind.errors(1) == seen
    assert bench.behind.dirty_bytes == 0
    assert bench.behind.flush_errors == 1


def test_old_bytes_go_by_themselves(bench):
    bench.write(0, b"x")
    bench.behind.want_old()
    bench.clock.advance(0.6)
    bench.behind.want_old()
    bench.behind.stop_background(1)
    bench.behind.run_background()
    assert bench.store.files[1] == b"x"


def test_bytes_under_way_still_count_for_reads(bench):
    bench.store.gate.clear()
    bench.write(0, b"x" * 10)
    flusher = threading.Thread(target=bench.behind.flush, args=(1,))
    flusher.start()
    try:
        assert bench.behind.overlaps(1, 5, 6)
        assert bench.behind.is_dirty(1)
        bench.behind.forget(1)  # refused: something is under way
        assert bench.behind.is_dirty(1)
    finally:
        bench.store.gate.set()
        flusher.join()
    assert not bench.behind.overlaps(1, 5, 6)


def test_bounds_make_the_writer_flush(backend):
    bench = Bench(backend.pool, file_bytes_max=1000, dirty_bytes_max=1500)
    for i in range(10):
        bench.write(i * 100, bytes(100))
    assert bench.behind.dirty_bytes == 0
    bench.write(0, bytes(800), key=1)
    bench.write(0, bytes(700), key=2)
    assert bench.behind.dirty_bytes == 700  # the file with most bytes went


def _background(bench, key=1):
    thread = threading.Thread(target=bench.behind.flush, args=(key,))
    thread.start()
    return thread


def _wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_flushes_of_other_bytes_are_under_way_together(bench):
    bench.store.gate.clear()
    flushers = []
    for number in range(write_behind.FLUSHES_MAX + 1):
        bench.write(number * 10, bytes([number]) * 10)
        flushers.append(_background(bench))
        _wait_for(lambda number=number: bench.store.entered == min(number + 1, write_behind.FLUSHES_MAX))
    assert bench.behind.overlaps(1, 0, 1)
    assert bench.behind.overlaps(1, 35, 36)
    bench.store.gate.set()
    for flusher in flushers:
        flusher.join()
    assert bench.store.files[1] == b"".join(bytes([number]) * 10 for number in range(write_behind.FLUSHES_MAX + 1))
    assert bench.behind.dirty_bytes == 0


def test_bytes_over_those_under_way_wait_for_them(bench):
    bench.store.gate.clear()
    bench.write(0, b"old" * 10)
    first = _background(bench)
    _wait_for(lambda: bench.store.entered == 1)
    bench.write(29, b"new")
    second = _background(bench)
    time.sleep(0.05)
    assert bench.store.entered == 1
    bench.store.gate.set()
    first.join()
    second.join()
    assert bench.store.files[1] == b"old" * 9 + b"olnew"


def test_a_flush_waits_for_what_was_under_way(bench):
    bench.store.gate.clear()
    bench.write(0, b"x")
    first = _background(bench)
    _wait_for(lambda: bench.store.entered == 1)
    second = _background(bench)  # nothing waits, but something is under way: fsync must not return
    second.join(0.05)
    assert second.is_alive()
    bench.store.gate.set()
    first.join()
    second.join()
