"""The mapping from file ranges to chunks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fireflyfs.client.striping import FileLayout, chunk_pieces, place
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.ids import InodeId
from fireflyfs.proto.common_pb2 import Layout

SIZE = 1 << 16


@given(st.integers(0, 1 << 45), st.integers(0, 10 * SIZE))
def test_pieces_cover_the_range_once(offset: int, length: int) -> None:
    at = offset
    for piece in chunk_pieces(offset, length, SIZE):
        assert piece.chunk * SIZE + piece.offset == at
        assert piece.start == at - offset
        assert 0 < piece.length <= SIZE - piece.offset
        at += piece.length
    assert at == offset + length


def test_ranges_outside_a_file_are_refused() -> None:
    for offset, length in ((-1, 1), (1 << 63, 1), ((1 << 63) - 2, 5)):
        with pytest.raises(FfsError) as caught:
            list(chunk_pieces(offset, length, SIZE))
        assert caught.value.code is Code.INVALID


def test_batch_placement_agrees_with_the_single_one() -> None:
    file = FileLayout(InodeId(7), SIZE, (5, 9, 11))
    offsets = np.array([0, 4096, SIZE, 5 * SIZE + 8192, 1 << 40], np.int64)
    ios = place(file, offsets, 4096)
    assert ios is not None
    for offset, io in zip(offsets.tolist(), ios, strict=True):
        [piece] = chunk_pieces(offset, 4096, SIZE)
        assert (io["index"], io["offset"], io["length"]) == (piece.chunk, piece.offset, 4096)
        assert io["chain_id"] == file.chain_of(piece.chunk)
        assert io["inode"] == 7
    assert place(file, np.array([SIZE - 1], np.int64), 4096) is None
    assert place(file, np.array([-1], np.int64), 4096) is None


def test_layouts_that_hold_no_data_are_refused() -> None:
    for layout in (Layout(chunk_size=SIZE), Layout(chunk_size=SIZE + 1, chains=[1]), Layout(chunk_size=16, chains=[1])):
        with pytest.raises(FfsError):
            FileLayout.of(3, layout)
    assert FileLayout.of(3, Layout(chunk_size=SIZE, chains=[4, 5, 4])).chain_set == (4, 5)
