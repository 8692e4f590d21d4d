"""Rows of a look-up, gone through by the library in C and without it: the same, whatever a client says."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c

from fireflyfs.common.cache_hash import Keys
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.proto.storage_wire import CACHE_BLOCK, UpdateKind
from fireflyfs.storage.core.block_rows import MISS, SLOW, TOO_LARGE, BlockRows
from fireflyfs.storage.core.cache_index import CacheIndex
from fireflyfs.storage.engine.interface import CacheName, ChunkKey, Extent, NamedBlock, Update, Writer
from fireflyfs.storage.engine.store import create_target, open_engine

pytestmark = pytest.mark.usefixtures("way")
INODE = 77
NOW_S = 1_700_000_000


def table_of(keys: Sequence[bytes], rooms: Sequence[int], chains: Sequence[tuple[int, int]] = ()) -> Any:
    hashed = Keys(keys)
    table = np.zeros(len(keys), CACHE_BLOCK)
    table["index"], table["key_length"], table["key"] = hashed.index, hashed.length, hashed.table.view("V64")
    table["pieces"] = rooms
    if chains:
        table["chain_id"], table["chain_version"] = zip(*chains, strict=True)
    return table


class Stored:
    """An engine with blocks, as tests choose them, and its index."""

    def __init__(self, path: Path) -> None:
        create_target(path, "test", 1)
        self.engine = open_engine(path, checkpoint_interval_s=0)
        self.index = CacheIndex()
        self.data: dict[bytes, bytes] = {}
        self.engine.observe(self)

    def stored(self, block: NamedBlock) -> None:
        self.index.store(block, 0)

    def gone(self, key: ChunkKey) -> None:
        self.index.drop(key)

    def damaged(self, key: ChunkKey) -> None:
        self.index.note_damage(key)

    def put(self, key: bytes, data: bytes) -> None:
        self.data[key] = data
        place = ChunkKey(INODE, int(Keys([key]).index[0]))
        size = 1 << max(12, (len(data) - 1).bit_length())
        extents = [Extent(0, memoryview(data), crc32c(data))]
        writer = Writer(b"w" * 16, 1, len(self.data))
        update = Update(place, UpdateKind.PUT, 1, 1, size, 0, extents, writer, name=CacheName(key, 0))
        self.engine.apply_committed([update], 1)

    def get(self, table: Any, memory: memoryview, at: int = 0) -> tuple[BlockRows, Any]:
        rows = BlockRows(table.tobytes())
        self.index.locate_rows(INODE, rows, 0, rows.count, NOW_S)
        return rows, self.engine.read_rows(rows, 0, rows.count, memory, at)


@pytest.fixture
def stored(tmp_path: Path) -> Any:
    made = Stored(tmp_path / "1")
    yield made
    made.engine.close()


@pytest.mark.parametrize("seed", range(4))
def test_each_row_gets_its_block_one_behind_the_other(stored: Stored, seed: int) -> None:
    chance = random.Random(seed)
    sizes = [4096, 4096, 4096, 5000, 8192, 12, 70_000]
    keys = [chance.randbytes(chance.choice([8, 16, 31, 32, 64])) for _ in range(600)]
    for key in keys[:500]:
        stored.put(key, chance.randbytes(chance.choice(sizes)))
    asked = keys if seed % 2 else chance.sample(keys, 600) + keys[:20]  # as they were put, and otherwise
    rooms = [chance.choice([4096, 8192, 100_000]) for _ in asked]
    memory = memoryview(bytearray(b"." * sum(rooms)))
    rows, tally = stored.get(table_of(asked, rooms), memory, 11)
    at, hits, hit_bytes = 11, 0, 0
    for key, room, result in zip(asked, rooms, rows.results(0, len(asked)), strict=True):
        data = stored.data.get(key)
        if data is None:
            assert result == MISS
        elif len(data) > room:
            assert result == TOO_LARGE
        else:
            assert result == (0, len(data), crc32c(data), at)
            assert memory[at : at + len(data)] == data
            at, hits, hit_bytes = at + len(data), hits + 1, hit_bytes + len(data)
    assert tally == (at, hits, hit_bytes, 0)
    assert bytes(memory[at:]).strip(b".") == bytes(memory[:11]).strip(b".") == b""
    assert rows.answer() == np.array(rows.results(0, len(asked)), "<u4").tobytes()


def test_what_must_be_waited_for_leaves_zeros_in_a_place_of_its_own(stored: Stored) -> None:
    keys = [b"key of block %06d" % number for number in range(40)]
    for number, key in enumerate(keys):
        stored.put(key, bytes([number + 1]) * (4096 if number % 3 else 8192))
    blocks = stored.engine._blocks
    cut = blocks._fds[12, 0]
    os.ftruncate(cut, os.fstat(cut).st_size // 64)  # half of the blocks there end too soon
    memory = memoryview(bytearray(b"\xee" * (40 * 8192)))
    rows, tally = stored.get(table_of(keys, [8192] * 40), memory)
    results = rows.results(0, 40)
    slow = [result for result in results if result[0] == SLOW]
    assert 1 <= len(slow) == tally.slow < 20
    for number, (key, (status, length, crc, at)) in enumerate(zip(keys, results, strict=True)):
        assert (length, crc) == (len(stored.data[key]), crc32c(stored.data[key]))
        assert memory[at : at + length] == (bytes(length) if status == SLOW else stored.data[key]), number
    assert tally.hits == 40 - len(slow)
    assert tally.hit_bytes == sum(map(len, stored.data.values())) - sum(result[1] for result in slow)
    assert [result[3] for result in results] == [sum(r[1] for r in results[:n]) for n in range(40)]


def test_memory_that_ends_too_soon_stays_as_it_is(stored: Stored) -> None:
    keys = [b"key of block %06d" % number for number in range(5)]
    for key in keys:
        stored.put(key, bytes(4096))
    memory = memoryview(bytearray(b"." * (5 * 4096 - 1)))
    for rooms in ([4096] * 5, [1 << 31] * 5):
        with pytest.raises(FfsError) as caught:
            stored.get(table_of(keys, rooms), memory)
        assert caught.value.code is Code.PROTOCOL
    with pytest.raises(FfsError):
        stored.get(table_of(keys, [4096] * 5), memory[:0])
    assert bytes(memory).strip(b".") == b""
    rows, tally = stored.get(table_of(keys[:0], []), memory)
    assert (rows.answer(), tally) == (b"", (0, 0, 0, 0))


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_taken_apart_by_chain(seed: int) -> None:
    chance = random.Random(seed)
    keys = [chance.randbytes(chance.randint(8, 64)) for _ in range(200)]
    rooms = [chance.randrange(1 << 32) for _ in keys]
    chains = [(chance.choice([1, 2, 1 << 31]), chance.choice([1, 0xFFFFFFFF])) for _ in keys]
    table = table_of(keys, rooms, chains)
    rows = BlockRows(table.tobytes())
    assert rows.room == sum(rooms)
    assert rows.rooms(3, 50) == rooms[3:50]
    assert rows.wanted(7, 9) == [(7, int(table["index"][7]), keys[7]), (8, int(table["index"][8]), keys[8])]
    runs = list(rows.runs())
    assert [chain for chain, begin, end in runs for _ in range(begin, end)] == chains
    assert all(one[0] != other[0] and one[2] == other[1] for one, other in itertools.pairwise(runs))
    for wrong in (0, 7, 65, 0xFFFFFFFF):
        table["key_length"][chance.randrange(200)] = wrong
        with pytest.raises(FfsError) as caught:
            BlockRows(table.tobytes())
        assert caught.value.code is Code.PROTOCOL
        table["key_length"] = Keys(keys).length


def test_a_namespace_that_nobody_knows_has_nothing() -> None:
    index = CacheIndex()
    rows = BlockRows(table_of([b"some key"], [4096]).tobytes())
    index.locate_rows(INODE, rows, 0, 1, NOW_S)
    assert rows.located(0, 1) == []
