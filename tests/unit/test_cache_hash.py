"""The hashes of KV-cache keys: stored on disks, so the same for ever."""

from __future__ import annotations

import random

import pytest

from fireflyfs.common.cache_hash import Keys, hash_key
from fireflyfs.common.errors import Code, FfsError

VECTORS = [
    (b"12345678", (0xCC792C05B347B70A, 0xCDAAF408)),
    (b"a key of 17 bytes", (0x26AEBB6284332121, 0xF985DBDB)),
    (b"\0" * 64, (0x122C8D7FC344BF9D, 0x9AF3578F)),
    (bytes(range(33)), (0xFB54D33F0AE97BF4, 0x626874BE)),
]


@pytest.mark.parametrize(("key", "hashes"), VECTORS)
def test_the_stored_format_does_not_change(key: bytes, hashes: tuple[int, int]) -> None:
    assert hash_key(key) == hashes


def test_a_batch_gives_what_each_key_gives() -> None:
    chance = random.Random(1)
    for lengths in (range(8, 65), [32] * 50, [8], [64, 8]):
        keys = [chance.randbytes(length) for length in lengths] + [b"\0" * length for length in set(lengths)]
        batch = Keys(keys)
        pairs = zip(batch.index.tolist(), batch.check.tolist(), strict=True)
        assert list(pairs) == [hash_key(key) for key in keys]
    assert len(Keys([]).index) == 0


def test_keys_that_differ_in_zeros_at_their_end_are_others() -> None:
    keys = [b"12345678" + b"\0" * count for count in range(57)]
    batch = Keys(keys)
    assert len(set(batch.index.tolist())) == len(set(batch.check.tolist())) == 57


def test_keys_spread_evenly() -> None:
    batch = Keys([number.to_bytes(8, "big") for number in range(6000)])
    for bits in (batch.index % 6, batch.index >> 61, batch.check >> 29):
        counts = [(bits == value).sum() for value in set(bits.tolist())]
        assert max(counts) < 1.25 * min(counts)


@pytest.mark.parametrize("key", [b"", b"1234567", b"k" * 65])
def test_keys_out_of_bounds_are_refused(key: bytes) -> None:
    with pytest.raises(FfsError) as caught:
        Keys([b"12345678", key])
    assert caught.value.code is Code.INVALID
