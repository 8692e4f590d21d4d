"""What every chunk engine does, the stored one and the simulator's: one body for all.

`ENGINES` maps a name to an opener of (path) -> engine. The model is a dictionary of bytes.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.engine.interface import ChunkEngine, ChunkKey, Done, Extent, Update, WouldBlock, Writer
from fireflyfs.storage.engine.store import open_engine
from simulator.engine import SimEngine

KiB = 1024
CHUNK = 256 * KiB
Opener = Callable[[Path], ChunkEngine]
ENGINES: dict[str, Opener] = {
    "store": lambda path: open_engine(path, checkpoint_interval_s=0),
    "simulated": lambda path: SIMULATED.setdefault(path, SimEngine()),
}
SIMULATED: dict[Path, SimEngine] = {}  # they outlive their process as a directory does


def extent(offset: int, data: bytes) -> Extent:
    return Extent(offset, memoryview(data), crc32c(data))


def write(key: ChunkKey, version: int, *extents: Extent, chunk_size: int = CHUNK, sequence: int = 7) -> Update:
    writer = Writer(b"c" * 16, 3, sequence)
    return Update(key, UpdateKind.WRITE, version, 1, chunk_size, 0, extents, writer)


def change(key: ChunkKey, kind: UpdateKind, version: int, length: int = 0, data: bytes = b"") -> Update:
    extents = [extent(0, data)] if data else []
    return Update(key, kind, version, 1, CHUNK, length, extents, Writer(b"c" * 16, 3, 8))


def done(engine: ChunkEngine, *updates: Update, chain_version: int = 1) -> None:
    engine.apply(updates)
    engine.commit([(update.key, update.version) for update in updates], chain_version)


def content(engine: ChunkEngine, key: ChunkKey, offset: int = 0, count: int = CHUNK, *, pending: bool = False) -> bytes:
    into = memoryview(bytearray(count))
    result = engine.read(key, offset, into, pending=pending)
    assert result.crc32c == crc32c(into[: result.length])
    return bytes(into[: result.length])


@pytest.fixture(params=sorted(ENGINES))
def opener(request: pytest.FixtureRequest) -> Opener:
    return ENGINES[request.param]


@pytest.fixture
def engine(opener: Opener, tmp_path: Path) -> Iterator[ChunkEngine]:
    engine = opener(tmp_path)
    yield engine
    engine.close()


A = ChunkKey(1, 0)
B = ChunkKey(1, 1)


def test_a_pending_version_is_beside_the_committed_one(engine: ChunkEngine) -> None:
    done(engine, write(A, 1, extent(0, b"one")))
    (version,) = engine.apply([write(A, 2, extent(0, b"two!"))])
    assert (version.version, version.length, version.crc32c) == (2, 4, crc32c(b"two!"))
    assert content(engine, A) == b"one"
    assert content(engine, A, pending=True) == b"two!"
    assert engine.read(A, 0, memoryview(bytearray(3))).pending
    state = engine.stat(A)
    assert state is not None
    assert state.committed is not None
    assert state.pending is not None
    assert (state.committed.version, state.pending.version) == (1, 2)
    engine.commit([(A, 2)], 9)
    state = engine.stat(A)
    assert state is not None
    assert state.committed is not None
    assert state.pending is None
    assert (state.committed.version, state.committed.chain_version) == (2, 9)
    assert state.committed.writer == Writer(b"c" * 16, 3, 7)
    assert not engine.read(A, 0, memoryview(bytearray(3))).pending


def test_a_pending_version_is_replaced_and_commits_are_idempotent(engine: ChunkEngine) -> None:
    done(engine, write(A, 1, extent(0, b"a" * 5000)))
    for tail in (b"b" * 9000, b"c" * 100, b"d" * 70000):
        engine.apply([write(A, 2, extent(5000, tail))])
        assert content(engine, A, pending=True) == b"a" * 5000 + tail
        assert content(engine, A) == b"a" * 5000
    with pytest.raises(FfsError) as caught:
        engine.commit([(A, 3)], 1)
    assert caught.value.code == Code.INVALID
    engine.commit([(A, 2)], 1)
    engine.commit([(A, 2)], 4)
    state = engine.stat(A)
    assert state is not None
    assert state.committed is not None
    assert state.committed.chain_version == 4
    assert content(engine, A) == b"a" * 5000 + b"d" * 70000


def test_gaps_read_as_zeros_and_reads_are_short_at_the_end(engine: ChunkEngine) -> None:
    done(engine, write(A, 1, extent(10, b"x")))
    assert content(engine, A) == bytes(10) + b"x"
    done(engine, write(A, 2, extent(100_000, b"y")))
    assert content(engine, A, 99_990) == bytes(10) + b"y"
    assert content(engine, A, 100_001) == b""
    assert content(engine, A, 200_000) == b""


def test_remove_and_truncate(engine: ChunkEngine) -> None:
    data = random.Random(1).randbytes(CHUNK)
    done(engine, write(A, 1, extent(0, data)))
    done(engine, change(A, UpdateKind.TRUNCATE, 2, 200_001))
    assert content(engine, A) == data[:200_001]
    done(engine, write(A, 3, extent(200_001, b"z")))
    assert content(engine, A) == data[:200_001] + b"z"
    done(engine, change(A, UpdateKind.TRUNCATE, 4, CHUNK))
    assert len(content(engine, A)) == 200_002
    done(engine, change(A, UpdateKind.TRUNCATE, 5, 5))
    assert content(engine, A) == data[:5]
    done(engine, change(A, UpdateKind.TRUNCATE, 6, 0))
    assert content(engine, A) == b""
    (version,) = engine.apply([change(A, UpdateKind.REMOVE, 7)])
    assert version.removed
    assert content(engine, A) == b""
    engine.commit([(A, 7)], 1)
    engine.commit([(A, 7)], 1)
    assert engine.stat(A) is None
    with pytest.raises(FfsError) as caught:
        content(engine, A)
    assert caught.value.code == Code.CHUNK_NOT_FOUND
    done(engine, change(A, UpdateKind.TRUNCATE, 1, 10))
    assert engine.stat(A) is None
    assert engine.space().chunks == 0


def test_replace_sets_content_and_version(engine: ChunkEngine) -> None:
    done(engine, write(A, 9, extent(0, b"long content")))
    done(engine, change(A, UpdateKind.REPLACE, 4, 5, b"short"))
    assert content(engine, A) == b"short"
    state = engine.stat(A)
    assert state is not None
    assert state.committed is not None
    assert state.committed.version == 4


def test_listing(engine: ChunkEngine) -> None:
    keys = [ChunkKey(inode, index) for inode in (1, 2, 1 << 63) for index in (0, 1, 7, (1 << 64) - 1)]
    for key in keys:
        done(engine, write(key, 1, extent(0, b"x" * (key.chunk_index % 5 + 1))))
    engine.apply([write(ChunkKey(2, 5), 1, extent(0, b"new"))])
    every = sorted([*keys, ChunkKey(2, 5)])
    assert [state.key for state in engine.scan(None, 100)] == every
    listed: list[ChunkKey] = []
    while page := engine.scan(listed[-1] if listed else None, 2):
        listed += [state.key for state in page]
    assert listed == every
    assert [state.key.chunk_index for state in engine.scan_inode(2, 1, 8, 10)] == [1, 5, 7]
    assert [state.key.chunk_index for state in engine.scan_inode(2, 0, 0, 2)] == [0, 1]
    assert [state.key for state in engine.pending(10)] == [ChunkKey(2, 5)]
    engine.apply([write(ChunkKey(inode, 9), 1, extent(0, b"new")) for inode in (1, 3)])
    engine.commit([(ChunkKey(1, 9), 1)], 1)
    assert [state.key for state in engine.pending(1)] == [ChunkKey(2, 5)]
    assert [state.key for state in engine.pending(2, ChunkKey(1, 9))] == [ChunkKey(2, 5), ChunkKey(3, 9)]
    assert [state.key for state in engine.pending(2, ChunkKey(2, 5))] == [ChunkKey(3, 9)]
    last = engine.last_chunk(2, 0, 100)
    assert last is not None
    assert (last.chunk_index, last.length, last.chunks) == (7, 3, 3)
    assert engine.last_chunk(2, 2, 7) is None
    assert engine.last_chunk(3, 0, 0) is None


def test_bounds_are_checked(engine: ChunkEngine) -> None:
    for update in (
        write(A, 1, extent(CHUNK, b"x")),
        write(A, 0, extent(0, b"x")),
        write(A, 1, extent(0, b"x"), chunk_size=3 * KiB),
        change(A, UpdateKind.REPLACE, 1, 6, b"short"),
    ):
        with pytest.raises(FfsError) as caught:
            engine.apply([update])
        assert caught.value.code == Code.INVALID
    with pytest.raises(FfsError) as caught:
        engine.apply([write(A, 1, extent(0, b"x")), write(A, 1, extent(0, b"y"))])
    assert caught.value.code == Code.INVALID
    assert engine.stat(A) is None


def refused(attempt: Callable[..., object], *args: Any, **choices: Any) -> bool:
    """Whether the call is refused with CHECKSUM."""
    with pytest.raises(FfsError) as caught:
        attempt(*args, **choices)
    return caught.value.code is Code.CHECKSUM


def test_a_quarantined_chunk_is_damaged_and_no_hole(opener: Opener, tmp_path: Path) -> None:
    engine = opener(tmp_path)
    done(engine, write(A, 3, extent(0, b"rotten")))
    assert engine.verify(A) == 6
    engine.quarantine(ChunkKey(9, 9), "nothing is there")
    for _ in range(2):
        engine.quarantine(A, "scrubber")
        assert refused(content, engine, A)
        assert refused(content, engine, A, 100)
        assert refused(engine.read, A, 0, memoryview(bytearray(3)), nowait=True)
        assert refused(engine.verify, A)
        state = engine.stat(A)
        assert state is not None
        assert state.committed is not None
        assert (state.committed.version, state.committed.length, state.committed.damaged) == (3, 6, True)
        assert state.committed.crc32c == crc32c(b"rotten")
        assert [each.key for each in engine.scan(None, 10)] == [A]
        last = engine.last_chunk(1, 0, 0)
        assert last is not None
        assert (last.chunk_index, last.length) == (0, 6)
        assert (engine.space().chunks, engine.space().damaged) == (1, 1)
        (found,) = engine.quarantined(10)
        assert (found.key, found.reason, found.version, found.length) == (A, "scrubber", 3, 6)
        assert not found.replaced
        engine.close()
        engine = opener(tmp_path)
    engine.close()


def test_updates_that_build_on_lost_bytes_are_refused(engine: ChunkEngine) -> None:
    done(engine, write(A, 1, extent(0, b"rotten")))
    engine.quarantine(A, "scrubber")
    for update in (
        write(A, 2, extent(1, b"x")),
        write(A, 2, extent(6, b"appended")),
        write(A, 2, extent(0, b"rot"), extent(4, b"en")),
        write(A, 2),
        change(A, UpdateKind.TRUNCATE, 2, 3),
    ):
        assert refused(engine.apply, [update])
        assert engine.pending(1) == []


@pytest.mark.parametrize(
    ("update", "after"),
    [
        (change(A, UpdateKind.REPLACE, 1, 6, b"rotten"), b"rotten"),
        (change(A, UpdateKind.REPLACE, 4, 3, b"new"), b"new"),
        (write(A, 2, extent(0, b"written over")), b"written over"),
        (write(A, 2, extent(3, b"TEN"), extent(0, b"ROT")), b"ROTTEN"),
        (change(A, UpdateKind.TRUNCATE, 2), b""),
        (change(A, UpdateKind.REMOVE, 2), None),
    ],
    ids=["repaired", "replaced", "overwritten", "overwritten in pieces", "emptied", "removed"],
)
def test_what_ends_damage(engine: ChunkEngine, update: Update, after: bytes | None) -> None:
    done(engine, write(A, 1, extent(0, b"rotten")))
    engine.quarantine(A, "scrubber")
    (version,) = engine.apply([update])
    assert not version.damaged
    assert refused(content, engine, A)  # until it is committed
    engine.commit([(A, update.version)], 1)
    assert engine.space().damaged == 0
    if after is None:
        assert engine.stat(A) is None
    else:
        assert content(engine, A) == after
        assert engine.verify(A) == len(after)
    # Bytes that are back, in the very same version, are no loss that a person could want to look at.
    kept = [found.replaced for found in engine.quarantined(10)]
    assert kept == ([] if after == b"rotten" else [True])


def test_a_pending_version_outlives_the_damage_of_the_committed_one(engine: ChunkEngine) -> None:
    done(engine, write(A, 1, extent(0, b"rotten")))
    engine.apply([change(A, UpdateKind.REPLACE, 2, 4, b"next")])
    engine.quarantine(A, "scrubber")
    assert content(engine, A, pending=True) == b"next"
    assert refused(content, engine, A)
    engine.commit([(A, 2)], 1)
    assert content(engine, A) == b"next"
    assert engine.space().damaged == 0


def test_damage_is_handed_on_without_bytes(opener: Opener, tmp_path: Path) -> None:
    engine = opener(tmp_path)
    done(engine, write(A, 7, extent(0, b"old")))
    lost = Update(A, UpdateKind.DAMAGED, 5, 1, CHUNK, 4, [], Writer(b"c" * 16, 3, 8), crc32c(b"lost"))
    (version,) = engine.apply([lost])
    assert (version.version, version.length, version.crc32c, version.damaged) == (5, 4, crc32c(b"lost"), True)
    assert refused(content, engine, A, pending=True)
    assert content(engine, A) == b"old"
    engine.commit([(A, 5)], 1)
    engine.close()
    engine = opener(tmp_path)
    assert refused(content, engine, A)
    assert [(found.key, found.version, found.replaced) for found in engine.quarantined(10)] == [(A, 5, False)]
    assert engine.space().damaged == 1
    done(engine, change(A, UpdateKind.REPLACE, 5, 4, b"lost"))
    assert content(engine, A) == b"lost"
    assert engine.quarantined(10) == []  # there were no bytes to keep
    engine.close()


KEYS = [ChunkKey(5, index) for index in range(4)]


def by(channel: int, sequence: int) -> Writer:
    return Writer(b"c" * 16, channel, sequence)


def test_a_commit_remembers_its_request(opener: Opener, tmp_path: Path) -> None:
    engine = opener(tmp_path)
    for sequence, key in ((1, KEYS[0]), (2, KEYS[0]), (2, KEYS[1])):
        version = 1 if key == KEYS[1] else sequence
        done(engine, write(key, version, extent(0, bytes([sequence]) * 10), sequence=sequence), chain_version=5)
    quiet = write(KEYS[2], 1, extent(0, b"resync"), sequence=9)
    engine.apply([quiet])
    engine.commit([(KEYS[2], 1)], 5, remember=False)
    engine.close()
    engine = opener(tmp_path)
    (only,) = engine.done(None, 10)
    assert only.writer == by(3, 2)
    assert {(chunk.key, chunk.version, chunk.chain_version, chunk.length) for chunk in only.chunks} == {
        (KEYS[0], 2, 5, 10),
        (KEYS[1], 1, 5, 10),
    }
    assert {chunk.crc32c for chunk in only.chunks} == {crc32c(b"\2" * 10)}
    # An older request of the channel changes nothing of that.
    done(engine, write(KEYS[3], 1, extent(0, b"late"), sequence=1))
    assert engine.done(None, 10) == [only]
    engine.close()


def test_what_another_replica_remembers_is_adopted_unless_older(opener: Opener, tmp_path: Path) -> None:
    engine = opener(tmp_path)
    done(engine, write(KEYS[0], 4, extent(0, b"mine"), sequence=7))
    (mine,) = engine.done(None, 10)
    chunk = mine.chunks[0]._replace(key=KEYS[1], version=9)
    engine.adopt([Done(by(3, 6), (chunk,)), Done(by(4, 1), (chunk,)), Done(by(2, 8), ())])
    assert engine.done(None, 10) == [Done(by(2, 8), ()), mine, Done(by(4, 1), (chunk,))]
    engine.adopt([Done(by(3, 7), (chunk,)), Done(by(4, 2), ())])
    engine.close()
    engine = opener(tmp_path)
    found = engine.done(None, 2)
    assert [row.writer for row in found] == [by(2, 8), by(3, 7)]
    assert {row.key for row in found[1].chunks} == {KEYS[0], KEYS[1]}
    assert engine.done(found[-1].writer, 2) == [Done(by(4, 2), ())]
    engine.close()


def test_a_disk_has_an_identity(opener: Opener, tmp_path: Path) -> None:
    engine = opener(tmp_path)
    first = engine.disk_id
    assert first
    assert not engine.lost_power
    engine.close()
    engine = opener(tmp_path)
    assert engine.disk_id == first
    assert not engine.lost_power, "it was closed, and opened again"


def test_applied_and_committed_at_once(opener: Opener, tmp_path: Path) -> None:
    """Nothing is pending afterwards, a version that was pending is gone, and requests are known as after a commit."""
    engine = opener(tmp_path)
    done(engine, write(A, 1, extent(0, b"first"), sequence=1))
    engine.apply([write(A, 2, extent(0, b"given up"), sequence=2)])
    updates = [write(A, 2, extent(0, b"SECOND"), sequence=3), write(B, 1, extent(3, b"new"), sequence=3)]
    versions = engine.apply_committed(updates, 6)
    assert [(version.version, version.length) for version in versions] == [(2, 6), (1, 6)]
    for _ in range(2):
        assert content(engine, A) == b"SECOND"
        assert content(engine, B) == b"\0\0\0new"
        assert engine.pending(10) == []
        states = [engine.stat(key) for key in (A, B)]
        assert [state and state.committed and state.committed.chain_version for state in states] == [6, 6]
        (known,) = engine.done(None, 10)
        assert known.writer.sequence == 3
        assert {chunk.key for chunk in known.chunks} == {A, B}
        engine.close()
        engine = opener(tmp_path)
    engine.apply_committed([change(A, UpdateKind.REMOVE, 3)], 6, remember=False)
    assert engine.stat(A) is None
    assert engine.done(None, 10)[0].writer.sequence == 3
    with pytest.raises(FfsError) as caught:
        engine.apply_committed([write(A, 3, extent(0, b"x")), write(B, 0, extent(0, b"x"))], 6)
    assert caught.value.code is Code.INVALID
    state = engine.stat(A)
    assert state is None or state.committed is None
    assert content(engine, B) == b"\0\0\0new"
    engine.close()


class EngineMachine(RuleBasedStateMachine):
    """Random updates, commits, checkpoints and reopenings against a dictionary of bytes."""

    opener: Opener
    keys = st.sampled_from([ChunkKey(1, 0), ChunkKey(1, 1), ChunkKey(2, 0)])
    spots = st.one_of(st.integers(0, CHUNK), st.sampled_from([0, 4096, 8192, 16384, 65536, 131072]))
    sizes = st.one_of(st.integers(0, 40), st.integers(0, CHUNK), st.sampled_from([1, 512, 4096, 8192, 16384, 65536]))

    @initialize()
    def start(self) -> None:
        self.path = Path(tempfile.mkdtemp())
        self.engine = self.opener(self.path)
        self.committed: dict[ChunkKey, bytes] = {}
        self.versions: dict[ChunkKey, int] = {}
        self.pending: dict[ChunkKey, bytes | None] = {}
        self.random = random.Random(5)

    def _apply(self, key: ChunkKey, update: Update, after: bytes | None, at_once: bool = False) -> None:
        """`at_once`: half of the time it is committed in the same step."""
        at_once = at_once and self.random.random() < 0.5
        store = (lambda updates, nowait: self.engine.apply_committed(updates, 1, nowait=nowait)) if at_once else None
        try:
            (version,) = (store or self.engine.apply)([update], nowait=self.random.random() < 0.5)
        except WouldBlock:
            (version,) = (store or self.engine.apply)([update], nowait=False)
        assert version.removed == (after is None)
        assert version.length == len(after or b"")
        assert version.crc32c == crc32c(after or b"")
        self.pending[key] = after
        if at_once:
            self._committed(key)

    @rule(key=keys, pieces=st.lists(st.tuples(spots, sizes), min_size=1, max_size=4), at_end=st.booleans())
    def write(self, key: ChunkKey, pieces: list[tuple[int, int]], at_end: bool) -> None:
        """Anywhere: mostly copies."""
        self._write(key, pieces, at_end)

    @rule(key=keys, spots=st.lists(st.floats(0, 1), min_size=1, max_size=3), size=st.integers(1, 40_000))
    def overwrite(self, key: ChunkKey, spots: list[float], size: int) -> None:
        """A few bytes inside the chunk, and sometimes over its end: deltas."""
        length = len(self.committed.get(key, b""))
        if length > 2 * size:
            self._write(key, [(int(spot * (length - 1)), size) for spot in spots], False, at_once=True)
            self.commit(key)

    @rule(key=keys, size=st.integers(1, 20_000))
    def append(self, key: ChunkKey, size: int) -> None:
        """At the end: in place while the block has room."""
        self._write(key, [(0, size)], True)
        self.commit(key)

    def _write(self, key: ChunkKey, pieces: list[tuple[int, int]], at_end: bool, at_once: bool = False) -> None:
        base = self.committed.get(key, b"")
        extents = []
        after = bytearray(base)
        for spot, size in pieces:
            at = min(len(base) if at_end else spot, CHUNK)
            data = self.random.randbytes(min(size, CHUNK - at))
            extents.append(extent(at, data))
            if data:
                after += bytes(max(0, at - len(after)))
                after[at : at + len(data)] = data
        self._apply(key, write(key, self.versions.get(key, 0) + 1, *extents), bytes(after), at_once)

    @rule(key=keys, length=spots)
    def truncate(self, key: ChunkKey, length: int) -> None:
        base = self.committed.get(key)
        update = change(key, UpdateKind.TRUNCATE, self.versions.get(key, 0) + 1, length)
        self._apply(key, update, None if base is None else base[:length])

    @rule(key=keys)
    def remove(self, key: ChunkKey) -> None:
        self._apply(key, change(key, UpdateKind.REMOVE, self.versions.get(key, 0) + 1), None, True)

    @rule(key=keys, size=sizes)
    def replace(self, key: ChunkKey, size: int) -> None:
        data = self.random.randbytes(size)
        self._apply(key, change(key, UpdateKind.REPLACE, self.versions.get(key, 0) + 1, size, data), data, True)

    @rule(key=keys)
    def commit_it(self, key: ChunkKey) -> None:
        self.commit(key)

    def commit(self, key: ChunkKey) -> None:
        if key not in self.pending:
            return
        version = self.versions.get(key, 0) + 1
        try:
            self.engine.commit([(key, version)], 1, nowait=self.random.random() < 0.5)
        except WouldBlock:
            self.engine.commit([(key, version)], 1)
        self._committed(key)

    def _committed(self, key: ChunkKey) -> None:
        after = self.pending.pop(key)
        if after is None:
            self.committed.pop(key, None)
            self.versions.pop(key, None)
        else:
            self.committed[key] = after
            self.versions[key] = self.versions.get(key, 0) + 1

    @rule(key=keys, size=sizes, mended=st.booleans(), reopened=st.booleans())
    def damage(self, key: ChunkKey, size: int, mended: bool, reopened: bool) -> None:
        """The bytes are lost, and then the very same ones come back, or others take their place."""
        if key not in self.committed or key in self.pending:
            return
        self.engine.quarantine(key, "rot")
        if reopened:
            self.reopen()
        assert refused(content, self.engine, key)
        assert self.engine.space().damaged == 1
        version = self.versions[key] + (not mended)
        data = self.committed[key] if mended else self.random.randbytes(size)
        done(self.engine, change(key, UpdateKind.REPLACE, version, len(data), data))
        self.committed[key], self.versions[key] = data, version

    @rule()
    def sync(self) -> None:
        self.engine.sync()

    @rule()
    def checkpoint(self) -> None:
        checkpoint = getattr(self.engine, "checkpoint", self.engine.sync)
        checkpoint()

    @rule()
    def reopen(self) -> None:
        self.engine.close()
        self.engine = self.opener(self.path)

    @rule(key=keys, offset=spots, count=sizes)
    def read(self, key: ChunkKey, offset: int, count: int) -> None:
        if key in self.committed:
            assert content(self.engine, key, offset, count) == self.committed[key][offset : offset + count]
        pending = self.pending.get(key)
        if pending is not None:
            assert content(self.engine, key, offset, count, pending=True) == pending[offset : offset + count]

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "engine"):
            return
        for key, data in self.committed.items():
            assert content(self.engine, key) == data
        states = self.engine.scan(None, 100)
        assert {state.key for state in states if state.committed} == set(self.committed)
        assert {state.key for state in self.engine.pending(100)} == set(self.pending)
        space = self.engine.space()
        assert space.chunks == len(self.committed)
        assert space.used_bytes >= sum(map(len, self.committed.values()))

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.close()
            shutil.rmtree(self.path)


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_against_a_model(name: str) -> None:
    machine = type("Machine", (EngineMachine,), {"opener": staticmethod(ENGINES[name])})
    machine.TestCase.settings = settings(
        max_examples=40, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
    )
    machine.TestCase("runTest").runTest()
