"""Canonical CBOR (RFC 8949, section 4.2.1) of what block hashes are made from, encoding only.

Integers, bytes, str, None, bool, float, lists and tuples, and dicts of them. Anything else is a TypeError.
"""

from __future__ import annotations

import math
import struct

import numpy as np
import numpy.typing as npt

UNSIGNED, NEGATIVE, BYTES, TEXT, ARRAY, MAP = range(6)  # major types


def encode_head(major: int, value: int) -> bytes:
    """A major type with its argument in the fewest bytes."""
    if value < 24:
        return bytes((major << 5 | value,))
    if value < 1 << 8:
        return bytes((major << 5 | 24, value))
    if value < 1 << 16:
        return struct.pack(">BH", major << 5 | 25, value)
    if value < 1 << 32:
        return struct.pack(">BI", major << 5 | 26, value)
    if value < 1 << 64:
        return struct.pack(">BQ", major << 5 | 27, value)
    raise ValueError(f"{value} does not fit 64 bits")


def encode_canonical(value: object) -> bytes:
    """One value; keys of maps are sorted by length, then by their bytes."""
    if value is None:
        return b"\xf6"
    if isinstance(value, bool):
        return b"\xf5" if value else b"\xf4"
    if isinstance(value, int):
        return encode_head(UNSIGNED, value) if value >= 0 else encode_head(NEGATIVE, -1 - value)
    if isinstance(value, bytes | bytearray | memoryview):
        return encode_head(BYTES, len(value)) + value
    if isinstance(value, str):
        text = value.encode()
        return encode_head(TEXT, len(text)) + text
    if isinstance(value, list | tuple):
        return encode_head(ARRAY, len(value)) + b"".join(map(encode_canonical, value))
    if isinstance(value, dict):
        items = sorted(((encode_canonical(key), encode_canonical(item)) for key, item in value.items()), key=_map_order)
        return encode_head(MAP, len(items)) + b"".join(key + item for key, item in items)
    if isinstance(value, float):
        return _encode_float(value)
    raise TypeError(f"no CBOR for {type(value).__name__}")


def _map_order(item: tuple[bytes, bytes]) -> tuple[int, bytes]:
    return len(item[0]), item[0]


def _encode_float(value: float) -> bytes:
    """The shortest of 2, 4 and 8 bytes that is the same number."""
    if math.isnan(value):
        return b"\xf9\x7e\x00"
    for head, shape in ((b"\xf9", ">e"), (b"\xfa", ">f")):
        try:
            packed = struct.pack(shape, value)
        except OverflowError:
            continue
        if struct.unpack(shape, packed)[0] == value:
            return head + packed
    return b"\xfb" + struct.pack(">d", value)


def encode_unsigned_many(values: npt.NDArray[np.int64]) -> tuple[bytes, npt.NDArray[np.int64]]:
    """Each of many non-negative integers, one behind the other; and where each one's bytes end."""
    if len(values) == 0:
        return b"", np.empty(0, np.int64)
    unsigned = values.astype(np.uint64)
    sizes = np.select(
        [unsigned < 24, unsigned < 1 << 8, unsigned < 1 << 16, unsigned < 1 << 32], [1, 2, 3, 5], default=9
    ).astype(np.int64)
    rows = np.zeros((len(values), 9), np.uint8)  # the first byte, then the value from the right
    rows[:, 1:] = unsigned.astype(">u8").view(np.uint8).reshape(-1, 8)
    first = 9 - sizes  # where the head goes: just before the argument's bytes
    heads = np.select([sizes == 1, sizes == 2, sizes == 3, sizes == 5], [0, 24, 25, 26], default=27)
    index = np.arange(len(values))
    rows[index, first] = np.where(sizes == 1, unsigned, heads.astype(np.uint64)).astype(np.uint8)
    keep = np.arange(9) >= first[:, None]
    return rows[keep].tobytes(), np.cumsum(sizes)
