"""Overwrites of whole 4 KiB parts, whose units need not be read again: the checksums stay those of the bytes."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from crc32c import crc32c

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.engine import block_space
from fireflyfs.storage.engine.crc import unit_crcs
from fireflyfs.storage.engine.deltas import DeltaRef, Deltas, patch_id
from fireflyfs.storage.engine.interface import ChunkKey, Extent, Update, Writer
from fireflyfs.storage.engine.store import Engine, open_engine

KiB = 1024
MiB = 1 << 20
A = ChunkKey(1, 0)


def overwrite(engine: Engine, version: int, pieces: list[tuple[int, bytes]], size: int, verb: str = "both") -> None:
    extents = [Extent(at, memoryview(data), crc32c(data)) for at, data in pieces]
    update = Update(A, UpdateKind.WRITE, version, 1, size, 0, extents, Writer(b"c" * 16, 0, version))
    if verb == "at once":
        engine.apply_committed([update], 1)
        return
    engine.apply([update])
    if verb != "pending only":
        engine.commit([(A, version)], 1)


def check(engine: Engine, content: bytes) -> None:
    record = engine._chunks.committed(A)
    assert record is not None
    assert record.crc == crc32c(content)
    assert list(record.crcs) == unit_crcs(memoryview(content), 1 << record.unit_shift)
    into = memoryview(bytearray(len(content)))
    assert engine.read(A, 0, into).length == len(content)
    assert into == content


@pytest.mark.parametrize("size", [128 * KiB, 256 * KiB, MiB])
@pytest.mark.parametrize("seed", range(6))
def test_checksums_stay_those_of_the_bytes(tmp_path: Path, seed: int, size: int) -> None:
    """Aligned pieces and others, one and many, over each other and over the end; given up, folded, copied, reopened."""
    roll = random.Random(seed)
    engine = open_engine(tmp_path, checkpoint_interval_s=0)
    content = bytearray(roll.randbytes(roll.choice([40_000, 64 * KiB, 100_001, 120_000])))
    version = 1
    overwrite(engine, version, [(0, bytes(content))], size)
    for step in range(400):
        version += 1
        pieces = []
        aligned = roll.random() < 0.8
        for _ in range(roll.choice([1, 1, 1, 2, 5])):
            if aligned:
                at = 4 * KiB * roll.randrange(len(content) // (4 * KiB))
                length = min(4 * KiB * roll.choice([1, 1, 1, 2, 5]), len(content) - at)
            else:
                at = roll.randrange(len(content))
                length = min(roll.randint(1, 6000), size - at)
            pieces.append((at, roll.randbytes(length)))
        if roll.random() < 0.1:  # given up: the next one takes its number
            overwrite(engine, version, [(at, roll.randbytes(len(data))) for at, data in pieces], size, "pending only")
        overwrite(engine, version, pieces, size, roll.choice(["both", "at once"]))
        for at, data in pieces:
            content += bytes(max(0, at + len(data) - len(content)))
            content[at : at + len(data)] = data
        if step % 16 == 0:
            check(engine, content)
        if roll.random() < 0.03:
            engine.checkpoint()
        if roll.random() < 0.01:
            engine.close()
            engine = open_engine(tmp_path, checkpoint_interval_s=0)
    check(engine, content)
    engine.close()


def test_a_part_that_is_known_is_overwritten_without_a_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(tmp_path, checkpoint_interval_s=0)
    roll = random.Random(1)
    content = bytearray(roll.randbytes(MiB))
    overwrite(engine, 1, [(0, bytes(content))], MiB)
    version = 2
    for place in (0, 20, 255):  # one in each of three units: the others in it are known then, too
        content[place * 4 * KiB : (place + 1) * 4 * KiB] = data = roll.randbytes(4 * KiB)
        overwrite(engine, version, [(place * 4 * KiB, data)], MiB)
        version += 1
    reads = []
    read = engine._blocks.read
    monkeypatch.setattr(engine._blocks, "read", lambda *args, **more: reads.append(args) or read(*args, **more))
    for place in (3, 1, 21, 20, 254, 0, 0):
        content[place * 4 * KiB : (place + 1) * 4 * KiB] = data = roll.randbytes(4 * KiB)
        overwrite(engine, version, [(place * 4 * KiB, data)], MiB)
        version += 1
    assert not reads
    overwrite(engine, version, [(40 * 4 * KiB, data)], MiB)
    content[40 * 4 * KiB : 41 * 4 * KiB] = data
    assert len(reads) == 1
    check(engine, content)
    engine.close()


def test_what_rots_beside_a_part_is_not_vouched_for(tmp_path: Path) -> None:
    engine = open_engine(tmp_path, checkpoint_interval_s=0)
    overwrite(engine, 1, [(0, bytes(MiB))], MiB)
    overwrite(engine, 2, [(0, b"a" * 4 * KiB)], MiB)
    record = engine._chunks.committed(A)
    assert record is not None
    with (tmp_path / "blocks" / f"{record.block_shift}-{record.block % block_space.STRIPES}").open("r+b") as file:
        file.seek(((record.block // block_space.STRIPES) << record.block_shift) + 5000)
        file.write(b"!")
        file.seek(((record.block // block_space.STRIPES) << record.block_shift) + 9000)
        file.flush()
        os.fsync(file.fileno())
    overwrite(engine, 3, [(8 * KiB, b"b" * 4 * KiB)], MiB)
    into = memoryview(bytearray(4 * KiB))
    for place in range(4):  # of that unit, nothing is given out until it is mended
        with pytest.raises(FfsError) as caught:
            engine.read(A, place * 4 * KiB, into)
        assert caught.value.code is Code.CHECKSUM
    # The rotten part itself may be overwritten: then the unit is whole again.
    overwrite(engine, 4, [(4 * KiB, b"c" * 4 * KiB)], MiB)
    check(engine, b"a" * 4 * KiB + b"c" * 4 * KiB + b"b" * 4 * KiB + bytes(MiB - 12 * KiB))
    engine.close()


def test_deltas_come_and_go_with_their_sums() -> None:
    roll = random.Random(2)
    deltas = Deltas.of(())
    for number in range(200):
        begin = 1000 * roll.randrange(20)
        end = begin + 1000 * roll.randint(1, 4)
        hidden = deltas.within(begin, end)
        assert hidden == [ref for ref in deltas if begin <= ref.offset and ref.offset + ref.length <= end]
        name = patch_id(12, number) if roll.random() < 0.3 else number
        expected = (*(ref for ref in deltas if ref not in hidden), DeltaRef(begin, end - begin, name))
        deltas = deltas.changed(hidden, expected[-1:])
        again = Deltas.of(expected)
        for same in (again, Deltas.unpack(deltas.packed)):
            assert deltas == same
            assert (deltas.logged_bytes, deltas.patched_bytes) == (same.logged_bytes, same.patched_bytes)
            assert deltas.touching(begin, end) == same.touching(begin, end) != []
