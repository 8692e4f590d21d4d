"""What a write stores, so that every byte that is read can be attributed to one write.

A file is an array of cells of 512 bytes, which begin at a shift of the file's own: no cell is aligned to anything that
the system below knows. Each cell holds the number of the write that wrote it, its own place, and a filler that both
determine. A cell of zeros was never written (value 0); anything else is damaged (value DAMAGED).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

CELL_BYTES = 512
DAMAGED = -1
_WORDS = CELL_BYTES // 8
_MAGIC = 0x46465343454C4C21
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FILLER = np.arange(_WORDS, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)

Words = npt.NDArray[np.uint64]


def shift_of(file: int) -> int:
    """Where the first cell of file number `file` begins, in bytes."""
    return (file * 177) % CELL_BYTES


def offset_of(file: int, cell: int) -> int:
    """Where a cell begins in its file, in bytes."""
    return shift_of(file) + cell * CELL_BYTES


def cells_in(length: int) -> int:
    """How many whole cells a file of `length` bytes has, whatever its shift."""
    return (length - CELL_BYTES) // CELL_BYTES


def straddles(file: int, cell: int, chunk_bytes: int) -> bool:
    """Whether a cell lies in two chunks: what is written at once there is not stored at once."""
    begin = offset_of(file, cell)
    return begin // chunk_bytes != (begin + CELL_BYTES - 1) // chunk_bytes


def chunk_of(file: int, cell: int, chunk_bytes: int) -> int:
    """The chunk in which a cell begins."""
    return offset_of(file, cell) // chunk_bytes


def encode(file: int, first: int, count: int, value: int) -> bytes:
    """The bytes of cells `first` to `first + count` as write number `value` stores them."""
    return _words(file, first, np.full(count, value, np.uint64)).tobytes()


def decode(file: int, first: int, data: bytes | memoryview) -> list[tuple[int, int]]:
    """What whole cells hold, as runs of (value, count)."""
    words = np.frombuffer(data, np.uint64).reshape(-1, _WORDS)
    values = words[:, 1].astype(np.int64)
    zero = ~words.any(axis=1)
    right = (words == _words(file, first, words[:, 1])).all(axis=1)
    values[zero] = 0
    values[~zero & ~right] = DAMAGED
    edges = np.flatnonzero(np.diff(values)) + 1
    starts = [0, *edges.tolist()]
    ends = [*edges.tolist(), len(values)]
    return [(int(values[start]), end - start) for start, end in zip(starts, ends, strict=True) if end > start]


def _words(file: int, first: int, values: Words) -> Words:
    count = len(values)
    places = np.arange(first, first + count, dtype=np.uint64) | np.uint64(file << 24)
    words: Words = (values[:, None] * _STEP) ^ (places[:, None] * np.uint64(0x94D049BB133111EB)) ^ _FILLER
    words[:, 0] = _MAGIC
    words[:, 1] = values
    words[:, 2] = places
    return words
