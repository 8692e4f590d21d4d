"""Packed answers: whatever a server says, each block is verified where it landed, and no byte goes elsewhere."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from crc32c import crc32c

from fireflyfs.client.kvcache.packed import PackedAnswer
from fireflyfs.common.errors import Code
from fireflyfs.proto.storage_wire import CACHE_RESULT

Result = tuple[int, int, int, int]
SIZE = 4096
MISSING: Result = (int(Code.CHUNK_NOT_FOUND), 0, 0, 0)


class Asked:
    """Rows 10, 11, ... of a batch, and memory for their blocks that shows where nobody has written."""

    def __init__(self, rooms: Sequence[int], parts: int = 1) -> None:
        self.memory = [bytearray(b"." * room) for room in rooms]
        views = [memoryview(each) for each in self.memory]
        cut = [[view[n * len(view) // parts : (n + 1) * len(view) // parts] for n in range(parts)] for view in views]
        self.rows = list(range(10, 10 + len(rooms)))
        room, targets = [0] * 10 + list(rooms), [memoryview(b"")] * 10 + (views if parts == 1 else cut)  # type: ignore[operator]
        self.answer = PackedAnswer(self.rows, room, targets)

    def take(self, results: Sequence[Result], pushed: bytes) -> None:
        body = np.array(results, CACHE_RESULT).tobytes()
        places = self.answer.places(body, len(pushed))
        assert sum(map(len, places)) == len(pushed)
        at = 0
        for place in places:
            place[:] = pushed[at : at + len(place)]
            at += len(place)
        self.answer.landed()


def result(block: bytes, offset: int) -> Result:
    return (0, len(block), crc32c(block), offset)


def blocks(count: int, size: int = SIZE) -> list[bytes]:
    rng = random.Random(5)
    return [rng.randbytes(size) for _ in range(count)]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_all_of_them(parts: int) -> None:
    asked, stored = Asked([SIZE] * 4, parts), blocks(4)
    asked.take([result(block, n * SIZE) for n, block in enumerate(stored)], b"".join(stored))
    assert asked.answer.right == [(row, SIZE) for row in asked.rows]
    assert asked.answer.wrong == asked.answer.others == []
    assert asked.memory == stored


@pytest.mark.parametrize("parts", [1, 2])
def test_misses_and_shorter_blocks(parts: int) -> None:
    asked, stored = Asked([SIZE] * 5, parts), blocks(5)
    stored[3] = stored[3][:1000]
    there = [0, 2, 3]
    results, at = [MISSING] * 5, 0
    for n in there:
        results[n] = result(stored[n], at)
        at += len(stored[n])
    asked.take(results, b"".join(stored[n] for n in there))
    assert asked.answer.right == [(10, SIZE), (12, SIZE), (13, 1000)]
    assert asked.answer.others == [(11, MISSING[0]), (14, MISSING[0])]
    assert asked.memory[0] == stored[0]
    assert asked.memory[2] == stored[2]
    assert asked.memory[3] == stored[3] + b"." * (SIZE - 1000)
    assert asked.memory[1] == asked.memory[4] == b"." * SIZE


def test_none() -> None:
    asked = Asked([SIZE] * 3)
    asked.take([MISSING] * 3, b"")
    assert asked.answer.others == [(row, MISSING[0]) for row in asked.rows]
    assert asked.answer.right == asked.answer.wrong == []


@pytest.mark.parametrize("torn", [0, 1, 2])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_block_that_does_not_match_is_wrong_and_the_others_count(torn: int, parts: int) -> None:
    asked, stored = Asked([SIZE] * 3, parts), blocks(3)
    results = [result(block, n * SIZE) for n, block in enumerate(stored)]
    pushed = bytearray(b"".join(stored))
    pushed[torn * SIZE + 77] ^= 1
    asked.take(results, bytes(pushed))
    assert asked.answer.wrong == [10 + torn]
    assert asked.answer.right == [(row, SIZE) for row in asked.rows if row != 10 + torn]


def test_in_another_order_and_with_gaps() -> None:
    asked, stored = Asked([SIZE] * 3), blocks(3)
    pushed = b"x" * 50 + stored[2] + b"y" * 7 + stored[0] + stored[1] + b"z"
    asked.take([result(stored[n], pushed.index(stored[n])) for n in range(3)], pushed)
    assert sorted(asked.answer.right) == [(row, SIZE) for row in asked.rows]
    assert asked.memory == stored


@pytest.mark.parametrize(
    "offsets", [(0, 0, 0), (0, 1, SIZE), (SIZE, SIZE - 1, 0), (0, 2 * SIZE, 3 * SIZE), (4_000_000_000, 0, SIZE)]
)
def test_places_that_make_no_sense_are_no_blocks(offsets: tuple[int, int, int]) -> None:
    """Whatever is called right is what was stored, and what came is received to its end."""
    asked, stored = Asked([SIZE] * 3), blocks(3)
    asked.take([result(block, offset) for block, offset in zip(stored, offsets, strict=True)], b"".join(stored))
    for row, length in asked.answer.right:
        assert asked.memory[row - 10] == stored[row - 10][:length]
    assert asked.answer.wrong
    assert len(asked.answer.right) + len(asked.answer.wrong) == 3


def test_longer_than_its_room_is_no_block() -> None:
    asked, stored = Asked([SIZE, 100]), blocks(2)
    asked.take([result(stored[0], 0), result(stored[1], SIZE)], b"".join(stored)[: SIZE + 100])
    assert asked.answer.right == [(10, SIZE)]
    assert asked.answer.others == [(11, 0)]
    assert asked.memory[1] == b"." * 100


@pytest.mark.parametrize("body", [b"", b"\0" * 47, b"\0" * 64])
def test_an_answer_of_another_length_says_nothing_of_any(body: bytes) -> None:
    asked = Asked([SIZE] * 3)
    assert sum(map(len, asked.answer.places(body, 3 * SIZE))) == 3 * SIZE
    asked.answer.landed()
    assert asked.answer.others == [(row, 0) for row in asked.rows]
    assert asked.answer.right == asked.answer.wrong == []
    assert all(memory == b"." * SIZE for memory in asked.memory)


def test_blocks_without_room_are_not_there() -> None:
    asked = Asked([0, 0])
    asked.take([(0, 0, 0, 0), (0, 0, 0, 0)], b"")
    assert asked.answer.others == [(10, 0), (11, 0)]
    assert asked.answer.right == asked.answer.wrong == []


@pytest.mark.parametrize("count", [1, 3, 128, 129, 300])
@pytest.mark.parametrize("alike", [True, False])
def test_answers_of_many_rows_in_order(count: int, alike: bool) -> None:
    rng = random.Random(count)
    sizes = [64 if alike else rng.randrange(1, 100) for _ in range(count)]
    stored = [rng.randbytes(size) for size in sizes]
    results = [result(block, sum(sizes[:n])) for n, block in enumerate(stored)]
    asked = Asked(sizes)
    asked.take(results, b"".join(stored))
    assert asked.answer.right == list(zip(asked.rows, sizes, strict=True))
    assert asked.memory == stored
    for field in range(4):  # one number is another one
        told = list(results)
        chosen = rng.randrange(count)
        told[chosen] = tuple(value + (number == field) for number, value in enumerate(told[chosen]))  # type: ignore[assignment]
        asked = Asked(sizes)
        asked.take(told, b"".join(stored))
        assert len(asked.answer.right) < count
        for row, length in asked.answer.right:
            assert asked.memory[row - 10] == stored[row - 10][:length]
