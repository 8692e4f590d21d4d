"""Damage on a real disk: what is found, what is kept, and that nobody writes over it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.engine import block_space, damage
from fireflyfs.storage.engine.interface import ChunkKey, Extent, Update, WouldBlock, Writer
from fireflyfs.storage.engine.record import FLAG_DAMAGED, chunk_key, stamp, undo_key
from fireflyfs.storage.engine.store import Engine, open_engine

MiB = 1 << 20
A = ChunkKey(1, 0)


def change(engine: Engine, key: ChunkKey, kind: UpdateKind, version: int, offset: int = 0, data: bytes = b"") -> None:
    extents = [Extent(offset, memoryview(data), crc32c(data))] if data else []
    engine.apply([Update(key, kind, version, 1, MiB, len(data), extents, Writer(b"c" * 16, 0, version))])
    engine.commit([(key, version)], 1)


def put(engine: Engine, key: ChunkKey, version: int, offset: int, data: bytes) -> None:
    change(engine, key, UpdateKind.WRITE, version, offset, data)


def get(engine: Engine, key: ChunkKey, offset: int = 0, count: int = MiB, *, nowait: bool = False) -> bytes:
    into = memoryview(bytearray(count))
    return bytes(into[: engine.read(key, offset, into, nowait=nowait).length])


def place_of(engine: Engine, key: ChunkKey) -> tuple[int, int]:
    record = engine._chunks.committed(key)
    assert record is not None
    return record.block_place


def is_refused(attempt: Callable[..., object], *args: Any) -> bool:
    with pytest.raises(FfsError) as caught:
        attempt(*args)
    return caught.value.code is Code.CHECKSUM


def flip(path: Path, place: tuple[int, int], at: int) -> None:
    """Rot: one bit of a block."""
    shift, block = place
    with (path / "blocks" / f"{shift}-{block % block_space.STRIPES}").open("r+b") as file:
        file.seek(((block // block_space.STRIPES) << shift) + at)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


def reopened(engine: Engine, path: Path) -> Engine:
    engine.close()
    return open_engine(path, checkpoint_interval_s=0)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_engine(tmp_path, checkpoint_interval_s=0)
    yield engine
    engine.close()


def test_damage_is_the_whole_chunk_once_it_is_quarantined(engine: Engine, tmp_path: Path) -> None:
    put(engine, A, 1, 0, random.Random(1).randbytes(300_000))
    flip(tmp_path, place_of(engine, A), 100_000)
    assert is_refused(engine.verify, A)
    assert len(get(engine, A, 0, 98_304)) == 98_304  # before that, good units are read
    engine.quarantine(A, "rot")
    for offset in (0, 100_000, 300_000):
        assert is_refused(get, engine, A, offset, 10)


def test_nobody_writes_over_damaged_bytes(engine: Engine, tmp_path: Path) -> None:
    """Not while the chunk is damaged, not when it is written anew, not when its file is removed."""
    data = random.Random(2).randbytes(MiB)
    put(engine, A, 1, 0, data)
    put(engine, A, 2, 100_000, b"x" * 50_000)  # a patch
    place = place_of(engine, A)
    engine.quarantine(A, "rot")
    used = MiB + 64 * 1024
    engine = reopened(engine, tmp_path)
    assert engine.space().used_bytes == used
    put(engine, A, 3, 0, bytes(MiB))
    change(engine, A, UpdateKind.REMOVE, 4)
    for _ in range(2):
        engine.checkpoint()
        engine = reopened(engine, tmp_path)
    assert engine.space()[2:] == (used, 0, 0)
    (found,) = engine.quarantined(10)
    assert ((found.block_shift, found.block), found.replaced) == (place, True)
    for index in range(8):
        put(engine, ChunkKey(2, index), 1, 0, bytes(MiB))
        assert place_of(engine, ChunkKey(2, index)) != place
    kept = memoryview(bytearray(MiB))
    assert engine._blocks.read(*place, 0, [kept])
    assert kept == data
    engine.close()


def test_bytes_kept_of_replaced_chunks_are_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "KEPT_MAX", 2)
    for index in range(4):
        put(engine, ChunkKey(1, index), 1, 0, b"old")
        engine.quarantine(ChunkKey(1, index), "rot")
    for index in range(4):
        put(engine, ChunkKey(1, index), 2, 0, b"new")
    engine.sync()
    assert (len(engine.quarantined(10)), engine.space().damaged) == (2, 0)
    assert engine.space().used_bytes == 6 * 4096


def test_logged_bytes_of_a_damaged_chunk_are_kept(engine: Engine, tmp_path: Path) -> None:
    put(engine, A, 1, 0, bytes(MiB))
    put(engine, A, 2, 100_000, b"logged")
    before = place_of(engine, A)
    engine.quarantine(A, "rot")
    engine.checkpoint()  # which folds nothing into it
    content = memoryview(bytearray(6))
    assert engine._blocks.read(*before, 100_000, [content])
    assert content == bytes(6)
    put(engine, A, 3, 0, b"x" * MiB)
    engine.checkpoint()
    engine = reopened(engine, tmp_path)
    assert [raw for _, raw in engine._meta.range(b"d", b"e")] == [b"logged"]
    engine.close()


def test_a_damaged_chunk_that_is_mended_gives_its_blocks_back(engine: Engine) -> None:
    data = random.Random(9).randbytes(300_000)
    put(engine, A, 1, 0, data)
    used = engine.space().used_bytes
    engine.quarantine(A, "rot")
    change(engine, A, UpdateKind.REPLACE, 1, 0, data)
    engine.sync()
    assert (engine.space().used_bytes, engine.quarantined(10)) == (used, [])
    assert get(engine, A) == data


def test_a_power_cut_may_bring_damage_back_and_keeps_the_bytes(engine: Engine, tmp_path: Path) -> None:
    """What took its place did not reach the disk: the chunk is damaged again, and nobody else has its block."""
    put(engine, A, 1, 0, b"a" * 5000)
    engine.quarantine(A, "rot")
    place = place_of(engine, A)
    put(engine, A, 2, 0, b"b" * 6000)
    flip(tmp_path, place_of(engine, A), 100)  # what a lost page looks like
    (raw,) = [raw for _, raw in engine._meta.range(b"q", b"r")]
    damaged = stamp(damage.unpack_quarantined(raw)[1], flags=FLAG_DAMAGED)
    engine = reopened(engine, tmp_path)
    engine._meta.put(undo_key(engine._epochs.current, A), damaged)  # of a commit that no sync has covered
    engine._meta.close()
    engine._blocks.close()
    engine = open_engine(tmp_path, checkpoint_interval_s=0, boot_id="another")
    assert engine.stats()["rolled_back"] == 1
    assert is_refused(get, engine, A)
    assert engine.space().damaged == 1
    assert {(found.block_shift, found.block) for found in engine.quarantined(10)} == {place}
    for version in (1, 3):  # mended, and then damaged and replaced: the earlier record still owns the block
        change(engine, A, UpdateKind.REPLACE, version, 0, b"a" * 5000)
        engine.sync()
        put(engine, ChunkKey(5, version), 1, 0, b"c" * 5000)
        assert place_of(engine, ChunkKey(5, version)) != place
        engine.quarantine(A, "again")
    assert chunk_key(b"q", A) + bytes(8) in dict(engine._meta.range(b"q", b"r"))
    engine.close()


def test_verification_reads_the_disk_and_leaves_the_page_cache_alone(engine: Engine, tmp_path: Path) -> None:
    put(engine, A, 1, 0, random.Random(11).randbytes(400_000))
    put(engine, A, 2, 1000, b"logged")
    put(engine, A, 3, 100_000, b"p" * 30_000)
    engine.sync()
    for file in (tmp_path / "blocks").iterdir():
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for direct in (True, False):  # False: where the file system has no O_DIRECT
        engine._blocks._direct = direct
        assert engine.verify(A) == 400_000
        with pytest.raises(WouldBlock):
            get(engine, A, 200_000, 4096, nowait=True)
    flip(tmp_path, place_of(engine, A), 399_999)
    for direct in (True, False):
        engine._blocks._direct = direct
        assert is_refused(engine.verify, A)
    put(engine, ChunkKey(1, 1), 1, 0, b"")
    assert engine.verify(ChunkKey(1, 1)) == 0
    with pytest.raises(FfsError) as caught:
        engine.verify(ChunkKey(1, 2))
    assert caught.value.code is Code.CHUNK_NOT_FOUND
