"""Bytes that are read into before anybody has them."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from fireflyfs.client.scratch import Scratch, Unfilled
from fireflyfs.common.net.api import Slice
from fireflyfs.common.net.memory import PrivateMemory, PrivatePool


class ScarcePool(PrivatePool):
    """Has no descriptors left while `none_left`."""

    __slots__ = ("none_left",)

    def allocate(self, length: int) -> PrivateMemory:
        if self.none_left:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().allocate(length)


@pytest.mark.parametrize("length", [0, 1, 5, 1 << 20])
def test_bytes_are_filled_in_place(length: int) -> None:
    whole = Unfilled(length)
    whole.view[:] = b"x" * length
    place = np.frombuffer(whole.view, np.uint8).ctypes.data
    data = whole.filled()
    assert type(data) is bytes
    assert data == b"x" * length
    with pytest.raises(ValueError, match="released"):
        len(whole.view)
    if length > 1:
        assert np.frombuffer(data, np.uint8).ctypes.data == place, "it is the same memory: nothing was copied"


def test_a_part_that_somebody_holds_changes_nothing_afterwards() -> None:
    whole = Unfilled(10)
    part = whole.view[:5]
    part[:] = b"12345"
    data = whole.filled()
    part[:] = b"late!"
    assert data == b"12345" + bytes(5)


def test_it_begins_as_zeros_that_nobody_shares() -> None:
    whole, other = Unfilled(1), Unfilled(1)
    whole.view[0] = 7
    assert (whole.filled(), other.filled(), bytes(1)) == (b"\x07", b"\0", b"\0")


def test_memory_that_cannot_be_had_now_is_private_and_can_be_had_later() -> None:
    pool = ScarcePool()
    scratch = Scratch(pool, block_bytes=4096, blocks_max=2)
    pool.none_left = True
    for _ in range(5):
        with scratch.take(10) as piece:
            assert not isinstance(piece, Slice)
    pool.none_left = False
    with scratch.take(10) as piece:
        assert isinstance(piece, Slice)
