"""Where a file's bytes live: chunk `i` on chain `chains[i % len(chains)]`, byte `o` in chunk `o // chunk_size`.

Pure. Two shapes of the same mapping: one range at a time (`chunk_pieces`), and a whole batch in numpy (`place`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fireflyfs.common import limits
from fireflyfs.common.errors import Code, error
from fireflyfs.common.ids import InodeId
from fireflyfs.proto.common_pb2 import Layout
from fireflyfs.proto.storage_wire import READ_IO


class ChunkPiece(NamedTuple):
    """Bytes [offset, offset + length) of chunk `chunk`; `start`: where they stand in the range that was split."""

    chunk: int
    offset: int
    length: int
    start: int


@dataclass(frozen=True)
class FileLayout:
    """What is needed to find a file's bytes; fixed for the life of the inode."""

    inode: InodeId
    chunk_size: int
    chains: tuple[int, ...]

    @staticmethod
    def of(inode: int, layout: Layout) -> FileLayout:
        """From an inode's layout. Raises INVALID for one that cannot hold data (a directory's has no chains)."""
        size = layout.chunk_size
        if not limits.CHUNK_BYTES_MIN <= size <= limits.CHUNK_BYTES_MAX or size & (size - 1):
            raise error(Code.INVALID, f"inode {inode} has chunk size {size}, not a power of two within bounds")
        if not layout.chains:
            raise error(Code.INVALID, f"inode {inode} has no chains: it is not a regular file")
        return FileLayout(InodeId(inode), size, tuple(layout.chains))

    def chain_of(self, index: int) -> int:
        """The chain of chunk `index`."""
        return self.chains[index % len(self.chains)]

    @cached_property
    def chain_array(self) -> npt.NDArray[np.uint32]:
        return np.array(self.chains, dtype=np.uint32)

    @cached_property
    def chain_set(self) -> tuple[int, ...]:
        """The chains, each once, in order."""
        return tuple(dict.fromkeys(self.chains))


def chunk_pieces(offset: int, length: int, chunk_size: int) -> Iterator[ChunkPiece]:
    """The range [offset, offset + length) cut at chunk borders, in order. An empty range has no pieces."""
    if offset < 0 or length < 0 or offset + length > limits.FILE_BYTES_MAX:
        raise error(Code.INVALID, f"range of {length} bytes at {offset} is outside what a file can hold")
    start = 0
    while start < length:
        index, inside = divmod(offset + start, chunk_size)
        take = min(chunk_size - inside, length - start)
        yield ChunkPiece(index, inside, take, start)
        start += take


def place(file: FileLayout, offsets: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.void] | None:
    """READ_IO for each of many reads of `length` bytes, or None when one of them crosses a chunk border.

    `chain_version` stays 0: it is filled when the request is made.
    """
    if not 0 < length <= file.chunk_size or (len(offsets) and int(offsets.min()) < 0):
        return None
    shift = file.chunk_size.bit_length() - 1
    index = offsets >> shift
    inside = offsets & (file.chunk_size - 1)
    if len(offsets) and int(inside.max()) + length > file.chunk_size:
        return None
    ios = np.zeros(len(offsets), READ_IO)
    ios["inode"] = file.inode
    ios["index"] = index
    if len(file.chains) == 1:
        ios["chain_id"] = file.chains[0]
    else:
        ios["chain_id"] = file.chain_array[index % len(file.chains)]
    ios["offset"] = inside
    ios["length"] = length
    return ios
