"""What the stored engine does beyond the contract that every engine keeps: damage, space, threads, space given back."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

from fireflyfs.common.clock import ManualClock
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.engine import block_space, fold
from fireflyfs.storage.engine.interface import ChunkKey, Extent, Update, WouldBlock, Writer
from fireflyfs.storage.engine.metadata import new_batch
from fireflyfs.storage.engine.record import META, chunk_key
from fireflyfs.storage.engine.store import Engine, open_engine

MiB = 1 << 20
A = ChunkKey(1, 0)


def put(engine: Engine, key: ChunkKey, version: int, offset: int, data: bytes, *, commit: bool = True) -> None:
    extents = [Extent(offset, memoryview(data), crc32c(data))]
    engine.apply([Update(key, UpdateKind.WRITE, version, 1, MiB, 0, extents, Writer(b"c" * 16, 0, version))])
    if commit:
        engine.commit([(key, version)], 1)


def get(engine: Engine, key: ChunkKey, offset: int = 0, count: int = MiB, *, nowait: bool = False) -> bytes:
    into = memoryview(bytearray(count))
    result = engine.read(key, offset, into, nowait=nowait)
    assert crc32c(into[: result.length]) == result.crc32c
    return bytes(into[: result.length])


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_engine(tmp_path, checkpoint_interval_s=0)
    yield engine
    engine.close()


def flip(path: Path, engine: Engine, key: ChunkKey, at: int) -> None:
    """Rot: one bit of a chunk's block."""
    record = engine._chunks.committed(key)
    assert record is not None
    with (path / "blocks" / f"{record.block_shift}-{record.block % block_space.STRIPES}").open("r+b") as file:
        file.seek(((record.block // block_space.STRIPES) << record.block_shift) + at)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


def test_rot_is_never_delivered(engine: Engine, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(300_000)
    put(engine, A, 1, 0, data)
    flip(tmp_path, engine, A, 100_000)
    for offset, count in ((0, MiB), (99_000, 2_000), (98_304, 16_384), (110_000, 10)):
        into = memoryview(bytearray(b"!" * count))
        with pytest.raises(FfsError) as caught:
            engine.read(A, offset, into)
        assert caught.value.code == Code.CHECKSUM
        assert bytes(into) == bytes(count)
    assert get(engine, A, 0, 98_304) == data[:98_304]
    assert get(engine, A, 200_000, 5) == data[200_000:200_005]
    # What would have to build on the damaged unit refuses, and changes nothing.
    with pytest.raises(FfsError) as caught:
        put(engine, A, 2, 100_500, b"small")
    assert caught.value.code == Code.CHECKSUM
    assert engine.pending(1) == []
    put(engine, A, 2, 300_000, b"appended")
    assert get(engine, A, 299_999) == data[-1:] + b"appended"


def test_every_byte_of_a_chunk_is_covered(engine: Engine, tmp_path: Path) -> None:
    put(engine, A, 1, 0, bytes(20_000))
    for at in (0, 4095, 4096, 16_383, 16_384, 19_999):
        flip(tmp_path, engine, A, at)
        with pytest.raises(FfsError):
            get(engine, A)
        flip(tmp_path, engine, A, at)
    assert get(engine, A) == bytes(20_000)


def test_small_overwrites_do_not_rewrite_the_chunk(engine: Engine) -> None:
    content = bytearray(random.Random(2).randbytes(MiB))
    put(engine, A, 1, 0, bytes(content))
    before = engine.stats()["staged_block_bytes"]
    roll = random.Random(3)
    for version in range(2, 42):
        at = roll.randrange(0, MiB - 4096)
        content[at : at + 4096] = data = roll.randbytes(4096)
        put(engine, A, version, at, data)
        assert get(engine, A, at - at % 4096, 8192) == content[at - at % 4096 :][:8192]
        if version % 10 == 0:
            engine.checkpoint()
    assert engine.stats()["staged_block_bytes"] == before
    assert engine.stats()["delta_bytes_folded"] == 39 * 4096
    assert get(engine, A) == content


def test_larger_overwrites_become_patches_until_they_are_folded(engine: Engine) -> None:
    content = bytearray(random.Random(4).randbytes(MiB))
    put(engine, A, 1, 0, bytes(content))
    used = engine.space().used_bytes
    roll = random.Random(5)
    for version, size in enumerate((64 * 1024, 20_000, 100_001, 64 * 1024), start=2):
        at = roll.randrange(0, MiB - size)
        content[at : at + size] = data = roll.randbytes(size)
        put(engine, A, version, at, data)
        assert get(engine, A) == content
    before = engine.stats()
    assert (before["staged_patch"], before["staged_copy"]) == (4, 1)
    assert engine.space().used_bytes == used + (64 + 32 + 128 + 64) * 1024
    engine.checkpoint()  # folds, and holds the patches until that is durable
    assert engine.stats()["patch_bytes_waiting"] == 0
    assert get(engine, A) == content
    engine.checkpoint()
    assert engine.space().used_bytes == used
    assert get(engine, A) == content


def test_patches_of_twice_the_chunk_are_enough(engine: Engine) -> None:
    put(engine, A, 1, 0, bytes(MiB))
    for version in range(2, 14):  # each laps over the one before, so that none is covered
        put(engine, A, version, (version - 2) * 64 * 1024, b"x" * 256 * 1024)
    assert (engine.stats()["staged_patch"], engine.stats()["staged_copy"]) == (11, 2)
    assert get(engine, A) == b"x" * (11 * 64 + 256) * 1024 + bytes(MiB - (11 * 64 + 256) * 1024)


def test_a_patch_that_is_overwritten_whole_is_given_up(engine: Engine) -> None:
    content = bytearray(random.Random(6).randbytes(MiB))
    put(engine, A, 1, 0, bytes(content))
    used = engine.space().used_bytes
    roll = random.Random(7)
    version = 1
    for _ in range(4):
        for place in roll.sample(range(16), 16):
            version += 1
            at = place * 64 * 1024
            content[at : at + 64 * 1024] = data = roll.randbytes(64 * 1024)
            put(engine, A, version, at, data)
        put(engine, A, version + 1, at + 5000, data[5000:9000])  # a piece for the log, given up the same way
        version += 1
    assert get(engine, A) == content
    assert (engine.stats()["staged_patch"], engine.stats()["staged_copy"]) == (64, 1)
    engine.sync()
    assert engine.space().used_bytes == used + MiB
    assert engine.stats()["held"] == 0
    assert engine.stats()["delta_bytes_waiting"] == 4000
    engine.checkpoint()
    engine.checkpoint()
    assert engine.stats()["delta_bytes_folded"] == MiB + 4000
    assert engine.space().used_bytes == used
    assert get(engine, A) == content


def test_what_was_left_alone_is_folded_and_what_changes_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    engine = open_engine(tmp_path, checkpoint_interval_s=0, clock=clock)
    keys = [ChunkKey(1, index) for index in range(8)]
    for key in keys:
        put(engine, key, 1, 0, bytes(MiB))
        put(engine, key, 2, 0, b"y" * 20_000)
    engine._tick()
    assert engine.stats()["patch_bytes_waiting"] == 8 * 20_000
    clock.advance(fold.QUIET_S)
    put(engine, keys[0], 3, 50_000, b"z" * 20_000)
    engine._tick()
    assert engine.stats()["patch_bytes_waiting"] == 2 * 20_000
    for key in keys:
        put(engine, key, 4, 100_000, b"y" * 20_000)
    monkeypatch.setattr(fold, "PATCHED_BYTES_DUE", 160_000)
    assert not engine._folder.due  # all of it changed just now
    engine._tick()
    assert engine.stats()["patch_bytes_waiting"] == 10 * 20_000
    with monkeypatch.context() as patched:
        patched.setattr(fold, "PATCHED_BYTES_MAX", 200_000)
        assert engine._folder.due  # but there is no time
    clock.advance(fold.HOT_S)
    assert engine._folder.due
    engine._tick()  # those left alone for longest make room
    assert engine.stats()["patch_bytes_waiting"] == 4 * 20_000
    monkeypatch.setattr(fold, "PATCHED_BYTES_DUE", 1 << 30)
    monkeypatch.setattr(fold, "WAITING_CHUNKS_DUE", 4)
    engine._tick()
    assert engine.stats()["patch_bytes_waiting"] == 2 * 20_000
    assert get(engine, keys[0], 0, 20_000) == b"y" * 20_000
    assert get(engine, keys[0], 50_000, 20_000) == b"z" * 20_000
    engine.close()


def test_a_full_target_folds_its_patches_before_it_says_no(tmp_path: Path) -> None:
    engine = open_engine(tmp_path, capacity_bytes=16 * MiB, checkpoint_interval_s=0)
    content = {}
    for index in range(7):  # 7 MiB, and as much beside them
        key = ChunkKey(1, index)
        put(engine, key, 1, 0, bytes(MiB))
        for place in range(16):
            put(engine, key, 2 + place, place * 65_536, bytes([place + 1]) * 65_536)
        content[key] = b"".join(bytes([place + 1]) * 65_536 for place in range(16))
    assert engine.stats()["patch_bytes_waiting"] == 7 * MiB
    for index in range(7, 16):
        key = ChunkKey(1, index)
        put(engine, key, 1, 0, bytes([index]) * MiB)
        content[key] = bytes([index]) * MiB
    with pytest.raises(FfsError) as caught:
        put(engine, ChunkKey(1, 16), 1, 0, bytes(MiB))
    assert caught.value.code is Code.NO_SPACE
    for key, expected in content.items():
        assert get(engine, key) == expected
    engine.close()


def test_rot_in_a_patch_is_never_delivered(engine: Engine, tmp_path: Path) -> None:
    put(engine, A, 1, 0, bytes(MiB))
    put(engine, A, 2, 100_000, b"x" * 50_000)
    record = engine._chunks.committed(A)
    assert record is not None
    shift, block = next(iter(record.deltas)).place or (0, 0)
    with open(tmp_path / "blocks" / f"{shift}-{block % 4}", "r+b") as file:
        file.seek(((block // 4) << shift) + 777)
        file.write(b"y")
    assert get(engine, A, 0, 16_384) == bytes(16_384)
    with pytest.raises(FfsError) as caught:
        get(engine, A, 100_000, 4096)
    assert caught.value.code is Code.CHECKSUM
    with pytest.raises(FfsError) as caught:
        engine.verify(A)
    assert caught.value.code is Code.CHECKSUM


@pytest.mark.parametrize("format_number", [1, 2, 3])
def test_a_store_of_an_older_format_is_opened_and_becomes_the_newest(
    engine: Engine, tmp_path: Path, format_number: int
) -> None:
    put(engine, A, 1, 0, b"old" * 1000)
    put(engine, ChunkKey(1, 1), 1, 0, b"rot" * 1000)
    # Until format 2 a quarantined chunk had no committed record any more.
    name = chunk_key(b"c", ChunkKey(1, 1))
    batch = new_batch()
    batch.put(chunk_key(b"q", ChunkKey(1, 1)) + (5).to_bytes(8, "big"), b"\3\0rot" + (engine._meta.get(name) or b""))
    batch.delete(name)
    batch.put(META + b"format", bytes([format_number, 0, 0, 0]))
    engine._meta.write(batch)
    engine.close()
    engine = open_engine(tmp_path, checkpoint_interval_s=0)
    assert get(engine, A) == b"old" * 1000
    assert engine._meta.get(META + b"format") == b"\x04\0\0\0"
    (found,) = engine.quarantined(10)
    assert (found.key, found.reason, found.replaced) == (ChunkKey(1, 1), "rot", True)
    assert engine.space().used_bytes == 2 * 4096
    engine.close()


def test_nowait_reads_what_is_cached(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    put(engine, A, 1, 0, b"cached" * 1000)
    assert get(engine, A, nowait=True) == b"cached" * 1000

    def cold(fd: int, parts: list[memoryview], at: int, flags: int = 0) -> int:
        assert flags == os.RWF_NOWAIT
        raise BlockingIOError(errno.EAGAIN, "not cached")

    monkeypatch.setattr(os, "preadv", cold)
    with pytest.raises(WouldBlock):
        get(engine, A, nowait=True)
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at, flags=0: 10)
    with pytest.raises(WouldBlock):
        get(engine, A, nowait=True)


def test_capacity_bounds_the_target_and_leaves_old_data_alone(tmp_path: Path) -> None:
    engine = open_engine(tmp_path, capacity_bytes=4 * MiB, checkpoint_interval_s=0)
    data = random.Random(4).randbytes(MiB)
    for index in range(4):
        put(engine, ChunkKey(1, index), 1, 0, data)
    for key, version in ((ChunkKey(1, 4), 1), (ChunkKey(1, 0), 2)):
        with pytest.raises(FfsError) as caught:
            put(engine, key, version, 0, data[::-1])
        assert caught.value.code == Code.NO_SPACE
    assert engine.pending(10) == []
    assert engine.space()[:4] == (4 * MiB, 0, 4 * MiB, 4)
    for index in range(4):
        assert get(engine, ChunkKey(1, index)) == data
    remove = Update(ChunkKey(1, 3), UpdateKind.REMOVE, 2, 1, MiB, 0, [], Writer(b"c" * 16, 0, 9))
    engine.apply([remove])
    engine.commit([(remove.key, 2)], 1)
    # The removed chunk's block is still held for a power cut; the engine makes it free when it is needed.
    put(engine, ChunkKey(1, 0), 2, 0, data[::-1])
    assert get(engine, ChunkKey(1, 0)) == data[::-1]
    engine.close()


def test_freed_space_goes_back_to_the_file_system(tmp_path: Path) -> None:
    engine = open_engine(tmp_path, kept_bytes=0, checkpoint_interval_s=0)
    for index in range(8):
        put(engine, ChunkKey(1, index), 1, 0, b"x" * MiB)
        put(engine, ChunkKey(2, index), 1, 0, b"y" * 4000)
    engine.sync()

    def on_disk() -> int:
        return sum(file.stat().st_blocks * 512 for file in (tmp_path / "blocks").iterdir())

    assert on_disk() >= 8 * MiB
    for inode in (1, 2):
        for index in range(8):
            update = Update(ChunkKey(inode, index), UpdateKind.REMOVE, 2, 1, MiB, 0, [], Writer(b"c" * 16, 0, 9))
            engine.apply([update])
            engine.commit([(update.key, 2)], 1)
    engine.checkpoint()
    assert engine.space().used_bytes == 0
    assert on_disk() == 0
    engine.close()


def test_an_io_error_takes_the_target_out_of_service(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    put(engine, A, 1, 0, b"good")
    with monkeypatch.context() as broken:

        def fail(*_: object) -> int:
            raise OSError(errno.EIO, "Input/output error")

        broken.setattr(os, "fdatasync", fail)
        with pytest.raises(FfsError) as caught:
            engine.sync()
        assert caught.value.code == Code.DISK_FAILED
    # The kernel may have dropped the dirty pages: a sync that works now would promise what is not there.
    for attempt in (engine.sync, lambda: put(engine, A, 2, 0, b"more")):
        with pytest.raises(FfsError) as caught:
            attempt()
        assert caught.value.code == Code.DISK_FAILED
    assert get(engine, A) == b"good"


def test_one_process_at_a_time(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(FfsError) as caught:
        open_engine(tmp_path)
    assert caught.value.code == Code.BUSY


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    engine = open_engine(tmp_path, checkpoint_interval_s=0)
    engine._meta.put(META + b"format", b"\x07\0\0\0")
    engine.close()
    with pytest.raises(FfsError) as caught:
        open_engine(tmp_path)
    assert caught.value.code == Code.VERSION_MISMATCH


def test_syncs_share_rounds(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go = threading.Event(), threading.Event()
    real = engine._blocks.sync

    def slow() -> int:
        entered.set()
        go.wait(10)
        return real()

    monkeypatch.setattr(engine._blocks, "sync", slow)
    put(engine, A, 1, 0, b"x")
    first = threading.Thread(target=engine.sync)
    first.start()
    entered.wait(10)
    put(engine, A, 2, 0, b"y")
    others = [threading.Thread(target=engine.sync) for _ in range(8)]
    for thread in others:
        thread.start()
    go.set()
    for thread in [first, *others]:
        thread.join(10)
    assert engine.stats()["sync_rounds"] <= 3
    assert engine._epochs.durable >= engine._epochs.current - 1


def test_commits_of_several_threads_are_all_counted(engine: Engine) -> None:
    """Each comes to the gate while another is in it."""
    keys = [ChunkKey(7, n) for n in range(4)]
    for key in keys:
        put(engine, key, 1, 0, b"x", commit=False)
    threads = [threading.Thread(target=engine.commit, args=([(key, 1)], 1)) for key in keys]
    with engine._epochs.gate:
        for thread in threads:
            thread.start()
        time.sleep(0.1)  # they are at the gate, or they come one after the other
    for thread in threads:
        thread.join(10)
    assert engine.space().chunks == len(keys)
    assert engine.stats()["commits"] == len(keys)


def test_nowait_never_waits_and_changes_nothing_then(engine: Engine) -> None:
    data = random.Random(3).randbytes(MiB)
    put(engine, A, 1, 0, data)
    engine.sync()  # so much at once leaves the page cache when it is on the disk: what is read afterwards stays
    large = Extent(0, memoryview(data), crc32c(data))
    small = Extent(5, memoryview(b"small"), crc32c(b"small"))

    def update(version: int, extent: Extent) -> Update:
        return Update(A, UpdateKind.WRITE, version, 1, MiB, 0, [extent], Writer(b"c" * 16, 0, version))

    with pytest.raises(WouldBlock):  # a copy of much
        engine.apply([update(2, large)], nowait=True)
    with engine._locks.of(A):  # a thread folds the chunk
        with pytest.raises(WouldBlock):
            engine.apply([update(2, small)], nowait=True)
        with pytest.raises(WouldBlock):
            engine.commit([(A, 2)], 1, nowait=True)
    assert engine.pending(10) == []
    assert get(engine, A) == data
    engine.apply([update(2, small)], nowait=True)
    engine.commit([(A, 2)], 1, nowait=True)
    assert get(engine, A) == data[:5] + b"small" + data[10:]


def test_a_chunk_that_small_overwrites_copied_stays_cached(engine: Engine) -> None:
    """The next small overwrites read what they lie over: from the disk they would have to wait for it."""
    data = bytearray(random.Random(7).randbytes(MiB))
    put(engine, A, 1, 0, bytes(data))
    engine.sync()
    get(engine, A)  # into the cache
    copies = engine.stats()["staged_copy"]
    version = 1
    while engine.stats()["staged_copy"] == copies:
        assert version < 10_000
        version += 1
        at = version % 256 * 4096
        data[at : at + 100] = small = version.to_bytes(4, "big") * 25
        extent = Extent(at, memoryview(small), crc32c(small))
        engine.apply(
            [Update(A, UpdateKind.WRITE, version, 1, MiB, 0, [extent], Writer(b"c" * 16, 0, version))], nowait=True
        )
        engine.commit([(A, version)], 1, nowait=True)
    engine.sync()  # pages that are not to stay would be gone now
    assert get(engine, A, nowait=True) == bytes(data)


def test_threads_read_while_others_write(tmp_path: Path, workload: Callable[..., Any]) -> None:
    """Each version has one fill byte: a reader that gets two of them saw a torn version."""
    engine = open_engine(tmp_path, checkpoint_interval_s=0.001, kept_bytes=0)
    keys = [ChunkKey(1, index) for index in range(3)]
    stop = threading.Event()
    failures: list[object] = []

    def writer(key: ChunkKey) -> None:
        roll = random.Random(key.chunk_index)
        try:
            for version in range(1, 150):
                length = 40_000
                if version > 1 and roll.random() < 0.6:  # every unit gets its mark: deltas
                    marks = [(at, bytes([version]) * 8) for at in range(0, length, 4096)]
                else:
                    marks = [(0, bytes([version]) * length)]
                extents = [Extent(at, memoryview(data), crc32c(data)) for at, data in marks]
                engine.apply([Update(key, UpdateKind.WRITE, version, 1, MiB, 0, extents, Writer(b"c" * 16, 0, 1))])
                engine.commit([(key, version)], 1)
        except BaseException as exc:
            failures.append(exc)

    def reader() -> None:
        into = memoryview(bytearray(40_000))
        roll = random.Random(9)
        try:
            while not stop.is_set():
                key = roll.choice(keys)
                try:
                    result = engine.read(key, 0, into)
                except FfsError as exc:
                    if exc.code != Code.CHUNK_NOT_FOUND:
                        raise
                    continue
                marks = {into[at] for at in range(0, 40_000, 4096)}
                assert marks == {result.version}, (marks, result)
        except BaseException as exc:
            failures.append(exc)

    writers = [threading.Thread(target=writer, args=(key,)) for key in keys]
    readers = [threading.Thread(target=reader) for _ in range(3)]
    for thread in writers + readers:
        thread.start()
    for thread in writers:
        thread.join(60)
    stop.set()
    for thread in readers:
        thread.join(60)
    assert failures == []
    engine.close()
