"""How a copy is cut into pieces and requests."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fireflyfs.client.storage_ranges import copy_pieces, plan_copy
from fireflyfs.client.striping import FileLayout
from fireflyfs.common.ids import InodeId
from fireflyfs.common.limits import COPY_BYTES_MAX, COPY_PIECES_MAX

sizes = st.sampled_from([1 << 16, 1 << 18, 1 << 20, 1 << 26])


@given(sizes, sizes, st.integers(0, 1 << 40), st.integers(0, 1 << 40), st.integers(1, 200 << 20))
def test_every_byte_is_copied_once_from_and_to_where_it_belongs(
    source_size: int, into_size: int, source_offset: int, into_offset: int, length: int
) -> None:
    length = min(length, 3000 * min(source_size, into_size))
    source = FileLayout(InodeId(1), source_size, (1, 2, 3))
    into = FileLayout(InodeId(2), into_size, (4, 5))
    done = 0
    for piece in copy_pieces(source, source_offset, into, into_offset, length):
        assert piece.source.index * source_size + piece.source_offset == source_offset + done
        assert piece.target.index * into_size + piece.target_offset == into_offset + done
        assert piece.source_offset + piece.length <= source_size
        assert piece.target_offset + piece.length <= into_size
        assert piece.source_chain == source.chain_of(piece.source.index)
        assert 0 < piece.length <= COPY_BYTES_MAX
        done += piece.length
    assert done == length


@given(sizes, sizes, st.integers(0, 1 << 30), st.integers(1, 400 << 20))
def test_requests_keep_their_bounds_and_name_one_chain(
    source_size: int, into_size: int, offset: int, length: int
) -> None:
    length = min(length, 3000 * min(source_size, into_size))
    source = FileLayout(InodeId(1), source_size, (1, 2, 3))
    into = FileLayout(InodeId(2), into_size, (4, 5))
    planned = list(plan_copy(into, copy_pieces(source, offset, into, offset + 77, length)))
    assert sum(piece.length for copy in planned for piece in copy.pieces) == length
    for copy in planned:
        assert 0 < len(copy.pieces) <= COPY_PIECES_MAX
        assert sum(piece.length for piece in copy.pieces) <= COPY_BYTES_MAX
        assert {into.chain_of(piece.target.index) for piece in copy.pieces} == {copy.chain_id}
