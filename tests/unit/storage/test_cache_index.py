"""The index of a target's blocks and the order of eviction: against plain models, within their bounds."""

from __future__ import annotations

import random
from collections import OrderedDict

import numpy as np
import pytest

from fireflyfs.common.cache_hash import Keys, hash_key
from fireflyfs.proto.storage_wire import CACHE_BLOCK
from fireflyfs.storage.core.block_rows import BlockRows
from fireflyfs.storage.core.cache_index import STEPS_MAX, CacheIndex
from fireflyfs.storage.engine.interface import CacheName, ChunkKey, NamedBlock

pytestmark = pytest.mark.usefixtures("way")
NOW_S = 1_700_000_000


def name_of(number: int, length: int = 32) -> bytes:
    return number.to_bytes(8, "little") + bytes(length - 8)


def block_of(inode: int, number: int, size: int = 4096, expires_s: int = 0, length: int = 32) -> tuple[NamedBlock, int]:
    name = name_of(number, length)
    index, check = hash_key(name)
    place = (12, number)
    return NamedBlock(ChunkKey(inode, index), CacheName(name, expires_s), size, number * 7, place), check


def present(index: CacheIndex, inode: int, numbers: list[int], now_s: int = NOW_S) -> list[bool]:
    keys = Keys([name_of(number) for number in numbers])
    return [bool(each) for each in index.present(inode, keys.index, keys.check, now_s)]


def located(index: CacheIndex, inode: int, keys: list[bytes], now_s: int = NOW_S) -> dict[int, tuple[int, int, int]]:
    """Row to (size, checksum, block)."""
    hashed = Keys(keys)
    table = np.zeros(len(keys), CACHE_BLOCK)
    table["index"], table["key_length"], table["key"] = hashed.index, hashed.length, hashed.table.view("V64")
    rows = BlockRows(table.tobytes())
    index.locate_rows(inode, rows, 0, len(keys), now_s)
    return {row: (size, crc, place[1]) for row, size, crc, place in rows.located(0, len(keys))}


@pytest.mark.parametrize("seed", range(3))
def test_the_index_is_what_a_dictionary_is(seed: int) -> None:
    chance = random.Random(seed)
    index = CacheIndex()
    model: dict[tuple[int, int], int] = {}
    names = {hash_key(name_of(number))[0]: number for number in range(2500)}
    for step in range(15_000):
        inode, number = chance.choice((5, 6)), chance.randrange(2500)
        block, check = block_of(inode, number, chance.randrange(4096, 70_000))
        action = chance.random()
        if action < 0.55:
            index.store(block, check)
            model[inode, number] = block.length
        elif action < 0.8:
            assert index.drop(block.key) is ((inode, number) in model)
            model.pop((inode, number), None)
        elif action < 0.85:
            for victim in index.evict(inode, 60_000, 3):
                place = (victim.inode, names[victim.chunk_index])
                assert place in model
                if chance.random() < 0.5:
                    index.keep(victim)
                else:
                    index.drop(victim)
                    del model[place]
        assert len(index) == len(model)
        if step % 3000 == 0:
            assert index.bytes == sum(model.values())
            for space in (5, 6):
                numbers = chance.sample(range(2600), chance.choice((20, 300)))
                assert present(index, space, numbers) == [(space, number) in model for number in numbers]
                found = located(index, space, [name_of(number) for number in numbers])
                assert found == {
                    row: (model[space, number], number * 7, number)
                    for row, number in enumerate(numbers)
                    if (space, number) in model
                }
    assert index.stats(5).blocks == sum(inode == 5 for inode, _ in model)


def test_memory_for_each_block_is_bounded() -> None:
    index = CacheIndex()
    for number in range(20_000):
        index.store(*block_of(1, number))
    assert index.memory_bytes / len(index) <= 230
    for number in range(20_000):
        index.drop(block_of(1, number)[0].key)
    before = index.memory_bytes
    for number in range(20_000, 40_000):
        index.store(*block_of(1, number))
    assert index.memory_bytes == before


def test_another_key_with_the_same_index_is_not_there() -> None:
    index = CacheIndex()
    block, check = block_of(1, 7)
    index.store(block, check)
    keys = Keys([name_of(7), name_of(8), name_of(7, 33)])
    same = np.full(3, keys.index[0])
    wanted = [(row, int(same[row]), name) for row, name in enumerate((name_of(7), name_of(8), name_of(7, 33)))]
    assert [row for row, *_ in index.locate(1, wanted, NOW_S)] == [0]
    assert [bool(each) for each in index.present(1, same, keys.check, NOW_S)] == [True, False, False]


def test_keys_of_all_lengths_are_kept_whole() -> None:
    index = CacheIndex()
    blocks = [block_of(1, length, length=length) for length in range(8, 65)]
    for block, check in blocks:
        index.store(block, check)
    keys = [block.name.key for block, _ in blocks]
    assert {row: found[2] for row, found in located(index, 1, keys).items()} == dict(enumerate(range(8, 65)))
    assert not located(index, 1, [key[:-1] + b"\1" for key in keys])
    assert not located(index, 2, keys)


def test_expired_blocks_are_not_there_and_go_first_of_all() -> None:
    index = CacheIndex()
    for number in range(10):
        index.store(*block_of(1, number, expires_s=NOW_S + number))
    assert present(index, 1, list(range(10)), NOW_S + 4) == [False] * 5 + [True] * 5
    victims = index.expired(NOW_S + 4, 3)
    assert len(victims) == 3
    assert len(index.expired(NOW_S + 4, 10)) == 2
    assert not index.expired(NOW_S + 4, 10)  # they are on their way
    index.keep(victims[0])
    stats = index.stats(1)
    assert (stats.expired, stats.evictions) == (4, 0)
    assert index.expired(NOW_S + 4, 10) == victims[:1]
    for victim in victims:
        index.drop(victim)
    assert len(index) == 7


def test_all_blocks_are_looked_at_for_expired_ones_only_when_there_may_be_some() -> None:
    """It is asked every second, on the event loop, and takes tens of milliseconds where there are millions."""
    chance = random.Random(3)
    index = CacheIndex()
    for number in range(50):
        index.store(*block_of(1, number))
    assert index.expires_from_unix_s > 1 << 60
    alive: dict[ChunkKey, int] = {}
    now_s = NOW_S
    for step in range(3000):
        now_s += chance.choice((0, 0, 1))
        block, check = block_of(1, 100 + step, expires_s=now_s + chance.randrange(1, 200))
        index.store(block, check)
        alive[block.key] = block.name.expires_unix_s
        earliest = min(alive.values())
        assert index.expires_from_unix_s <= earliest
        victims = index.expired(now_s, 5)
        assert len(victims) == min(5, sum(expires <= now_s for expires in alive.values()))
        for victim in victims:
            assert alive[victim] <= now_s
            if chance.random() < 0.3:
                index.keep(victim)
            else:
                index.drop(victim)
                del alive[victim]
        if len(victims) < 5 and alive and min(alive.values()) > now_s:
            assert index.expires_from_unix_s > now_s  # nothing is looked at until then


def test_to_choose_victims_takes_a_bounded_time_however_many_blocks_were_asked_for() -> None:
    index = CacheIndex()
    blocks = [block_of(1, number) for number in range(20_000)]
    for block, check in blocks:
        index.store(block, check)
    for _ in range(3):
        assert all(present(index, 1, list(range(20_000))))
    steps = 0
    while len(index):
        victims = index.evict(1, 4096 * 256, 256)
        assert len(victims) == 256 or len(victims) == len(index)
        taken = index.eviction_steps(1) - steps
        steps += taken
        assert taken <= STEPS_MAX
        for victim in victims:
            index.drop(victim)
    assert steps > 3 * STEPS_MAX  # they do go round, a part at a time


def test_capacity_is_counted_in_bytes_and_damage_is_no_block() -> None:
    index = CacheIndex()
    index.set_capacity(1, 40_000)
    for number in range(20):
        index.store(*block_of(1, number))
    assert index.over_capacity() == [1]
    assert index.over_bytes(1) == 20 * 4096 - 40_000
    victims = index.evict(1, index.over_bytes(1), 100)
    assert len(victims) == 11
    assert not index.over_capacity()
    assert len(index) == 20  # found until they are gone
    for victim in victims:
        index.drop(victim)
    index.note_damage(block_of(1, 19)[0].key)
    stats = index.stats(1)
    assert (stats.blocks, stats.bytes, stats.evictions, stats.damaged) == (8, 8 * 4096, 11, 1)


def hit_rate(index: CacheIndex, accesses: list[int], capacity: int) -> float:
    """Of a cache of `capacity` blocks that is filled on every miss."""
    hits = 0
    index.set_capacity(1, capacity * 4096)
    for number in accesses:
        if present(index, 1, [number])[0]:
            hits += 1
            continue
        index.store(*block_of(1, number))
        for victim in index.evict(1, index.over_bytes(1), 10):
            index.drop(victim)
    return hits / len(accesses)


def lru_hit_rate(accesses: list[int], capacity: int) -> float:
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for number in accesses:
        if number in kept:
            hits += 1
            kept.move_to_end(number)
            continue
        kept[number] = None
        if len(kept) > capacity:
            kept.popitem(last=False)
    return hits / len(accesses)


def test_a_flood_does_not_wash_away_what_is_used() -> None:
    """Popular blocks beside blocks that nobody asks for again: where recency alone does badly."""
    chance = random.Random(4)
    fresh = iter(range(10_000, 100_000))
    accesses = [
        min(int(chance.paretovariate(0.7)), 3000) if chance.random() < 0.5 else next(fresh) for _ in range(9000)
    ]
    ours, lru = hit_rate(CacheIndex(), accesses, 150), lru_hit_rate(accesses, 150)
    assert ours > lru * 1.04
    # Where everything is asked for in turns recency is right, and little is lost against it.
    turns = [number % 100 for number in range(3000)]
    assert hit_rate(CacheIndex(), turns, 150) > 0.95
