"""Blocks of the KV cache in the stored engine: the record with a key, reads by key, and what observers are told."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from crc32c import crc32c

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.engine import block_space
from fireflyfs.storage.engine.interface import CacheName, ChunkKey, Extent, NamedBlock, Update, Writer
from fireflyfs.storage.engine.record import COMMITTED, chunk_key, content_of, name_of, pack, unpack
from fireflyfs.storage.engine.store import Engine, open_engine

NAME = CacheName(b"the key of the block", 0)
KEY = ChunkKey(9, 0xFEDCBA9876543210)
NOW_S = 1_700_000_000


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_engine(tmp_path, checkpoint_interval_s=0)
    yield engine
    engine.close()


def put_of(data: bytes, version: int = 1, name: CacheName | None = NAME, cuts: tuple[int, ...] = ()) -> Update:
    """The update that stores `data`, in extents that are cut there."""
    ends = [*cuts, len(data)]
    parts = [(begin, data[begin:end]) for begin, end in zip([0, *cuts], ends, strict=True)]
    extents = [Extent(at, memoryview(part), crc32c(part)) for at, part in parts]
    return Update(KEY, UpdateKind.PUT, version, 1, 1 << 16, 0, extents, Writer(b"c" * 16, 1, version), name=name)


def read(engine: Engine, key: bytes = NAME.key, room: int = 1 << 16, now_s: int = NOW_S) -> bytes | Code:
    into = memoryview(bytearray(room))
    try:
        found = engine.read_block(KEY, key, [into], now_s)
    except FfsError as exc:
        return exc.code
    if found.length:
        assert crc32c(into[: found.length]) == found.crc32c
    return bytes(into[: found.length])


class Told:
    """A `BlockObserver` that keeps what it is told."""

    def __init__(self) -> None:
        self.blocks: dict[ChunkKey, NamedBlock] = {}
        self.lost: list[ChunkKey] = []

    def stored(self, block: NamedBlock) -> None:
        self.blocks[block.key] = block

    def gone(self, key: ChunkKey) -> None:
        del self.blocks[key]

    def damaged(self, key: ChunkKey) -> None:
        self.lost.append(key)
        self.blocks.pop(key, None)


def test_a_block_is_what_its_key_says_and_survives_a_restart(engine: Engine, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(50_000)
    engine.apply_committed([put_of(data, cuts=(1, 20_000))], 1)
    assert read(engine) == data
    assert read(engine, b"another key with that index") is Code.CHUNK_NOT_FOUND
    assert read(engine, room=49_999) == b""
    engine.apply([put_of(data[:5000], 2)])
    assert read(engine) == data  # a pending version is not there yet
    engine.commit([(KEY, 2)], 1)
    engine.close()
    again = open_engine(tmp_path, checkpoint_interval_s=0)
    assert read(again) == data[:5000]
    state = again.stat(KEY)
    assert state is not None
    assert state.committed is not None
    assert state.committed.name == NAME
    assert again.last_chunk(9, 0, 0) is None  # it says nothing of a file's length
    again.close()


def test_a_block_lands_in_pieces(engine: Engine) -> None:
    data = random.Random(2).randbytes(30_000)
    engine.apply_committed([put_of(data)], 1)
    pieces = [memoryview(bytearray(size)) for size in (1, 4096, 20_000, 10_000, 7)]
    assert engine.read_block(KEY, NAME.key, pieces, NOW_S).length == 30_000
    assert b"".join(bytes(piece) for piece in pieces)[:30_000] == data


def test_an_expired_block_is_not_there(engine: Engine) -> None:
    engine.apply_committed([put_of(bytes(4096), name=CacheName(NAME.key, NOW_S))], 1)
    assert read(engine, now_s=NOW_S - 1) == bytes(4096)
    assert read(engine, now_s=NOW_S) is Code.CHUNK_NOT_FOUND


def test_a_record_with_a_key_is_stored_as_documented(engine: Engine) -> None:
    engine.apply_committed([put_of(bytes(range(256)) * 20, name=CacheName(NAME.key, 77))], 1)
    raw = engine._meta.get(chunk_key(COMMITTED, KEY))
    assert raw is not None
    assert raw[0] == 2
    assert raw[1] & 4
    assert raw[-4 - 5 - len(NAME.key) : -4] == NAME.key + (77).to_bytes(4, "little") + bytes([len(NAME.key)])
    assert name_of(raw) == (NAME.key, 77)
    assert content_of(raw) == (5120, crc32c(bytes(range(256)) * 20))
    record = unpack(bytes(bytearray(raw)))
    assert record.name == (NAME.key, 77)
    assert pack(record) == raw
    assert pack(record._replace(name=None))[0] == 1
    for newer in (3, 255):
        with pytest.raises(FfsError) as caught:
            unpack(bytes([newer]) + raw[1:])
        assert caught.value.code is Code.VERSION_MISMATCH
    with pytest.raises(FfsError) as caught:
        unpack(raw[:-10] + b"\xff" + raw[-9:])
    assert caught.value.code is Code.CHECKSUM


def test_an_update_that_is_no_put_makes_a_files_chunk(engine: Engine) -> None:
    told = Told()
    assert engine.observe(told)
    engine.apply_committed([put_of(bytes(8192))], 1)
    extents = [Extent(100, memoryview(b"file"), crc32c(b"file"))]
    engine.apply_committed([Update(KEY, UpdateKind.WRITE, 2, 1, 1 << 16, 0, extents, Writer(b"c" * 16, 1, 2))], 1)
    assert read(engine) is Code.CHUNK_NOT_FOUND
    assert not told.blocks
    for wrong in (put_of(b"", 3), put_of(bytes(4096), 3, name=None), put_of(bytes(4096), 3, cuts=(10, 5))):
        with pytest.raises(FfsError) as caught:
            engine.apply([wrong])
        assert caught.value.code is Code.INVALID


def test_observers_are_told_of_all_that_is_committed(engine: Engine, tmp_path: Path) -> None:
    told = Told()
    engine.observe(told)
    first = random.Random(3).randbytes(5000)
    engine.apply([put_of(first)])
    assert not told.blocks
    engine.commit([(KEY, 1)], 1)
    block = told.blocks[KEY]
    assert (block.name, block.length, block.crc32c) == (NAME, 5000, crc32c(first))
    into = memoryview(bytearray(5000))
    gap = (block.place[0] + 1, 0)  # a size of which there is no block
    assert engine.read_places([(block.place, [into]), (gap, [into]), (block.place, [into])], 0) == 1
    assert engine.read_places([(block.place, [into])] * 3, 1) == 3
    assert bytes(into) == first
    assert engine.blocks_of_cache(None, 100) == ([block], None)
    # Rot that nobody can mend: it is lost, and is told so.
    record = unpack(engine._meta.get(chunk_key(COMMITTED, KEY)) or b"")
    file = tmp_path / "blocks" / f"{record.block_shift}-{record.block % block_space.STRIPES}"
    with file.open("r+b") as opened:
        opened.seek((record.block // block_space.STRIPES << record.block_shift) + 2000)
        opened.write(b"rot")
    assert read(engine) is Code.CHECKSUM
    engine.quarantine(KEY, "rotten")
    assert told.lost == [KEY]
    assert read(engine) is Code.CHECKSUM
    assert [found.damaged for found in engine.blocks_of_cache(None, 100)[0]] == [True]
    engine.apply_committed([put_of(first, 2)], 1)  # a put ends damage
    assert read(engine) == first
    remove = Update(KEY, UpdateKind.REMOVE, 3, 1, 1 << 16, 0, [], Writer(b"c" * 16, 1, 3))
    engine.apply_committed([remove], 1)
    assert not told.blocks


def test_blocks_are_listed_page_by_page_beside_files(engine: Engine) -> None:
    for number in range(40):
        key = ChunkKey(9, number)
        named = number % 4 == 0
        data = memoryview(bytes(4096))
        update = Update(
            key,
            UpdateKind.PUT if named else UpdateKind.WRITE,
            1,
            1,
            1 << 16,
            0,
            [Extent(0, data, crc32c(data))],
            Writer(b"c" * 16, 1, number + 1),
            name=CacheName(b"key %08d" % number, 0) if named else None,
        )
        engine.apply_committed([update], 1)
    found: list[int] = []
    after: ChunkKey | None = None
    while True:
        blocks, after = engine.blocks_of_cache(after, 7)
        found += [block.key.chunk_index for block in blocks]
        if after is None:
            break
    assert found == list(range(0, 40, 4))
