"""The two hashes of a KV-cache key: the chunk's index, and 32 bits more by which an index in memory tells keys apart.

Part of the stored format (docs/format/chunk_store.md): it never changes. A key is 8 to 64 bytes, read as little-endian
64-bit words, the last one padded with zeros. With all arithmetic modulo 2**64, C = 0x9E3779B97F4A7C15, D =
0xC2B2AE3D27D4EB4F, E = 0x165667B19E3779F9:

    h = length * C
    for each word: h = (h ^ word) * C; h ^= h >> 32
    index = mix(h) with mix(x): x ^= x >> 29; x *= D; x ^= x >> 32
    check = the upper 32 bits of mix(h * E + length)

Not made against somebody who chooses keys to collide: such keys overwrite each other, because the whole key is stored
with the block and compared, so that nobody is ever given the block of another key.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import CACHE_KEY_BYTES_MAX, CACHE_KEY_BYTES_MIN

_C, _D, _E = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_MASK = (1 << 64) - 1
_CU, _DU, _EU = np.uint64(_C), np.uint64(_D), np.uint64(_E)
_29, _32 = np.uint64(29), np.uint64(32)


class Keys:
    """A batch of keys in one array, and their hashes, computed when they are first asked for."""

    __slots__ = ("_index", "_state", "length", "table")

    def __init__(self, keys: Sequence[bytes]) -> None:
        """Raises INVALID for a key out of bounds, or that is no bytes."""
        if set(map(type, keys)) != {bytes}:
            keys = list(map(_as_bytes, keys))
        lengths = list(map(len, keys))
        if lengths and not CACHE_KEY_BYTES_MIN <= min(lengths) <= max(lengths) <= CACHE_KEY_BYTES_MAX:
            raise error(
                Code.INVALID,
                f"keys of {min(lengths)} to {max(lengths)} bytes, not {CACHE_KEY_BYTES_MIN} to {CACHE_KEY_BYTES_MAX}",
            )
        self.length: npt.NDArray[np.uint64] = np.array(lengths, np.uint64)
        self.table: npt.NDArray[np.bytes_] = np.array(keys, "S64")  # padded with zeros
        self._state: npt.NDArray[np.uint64] | None = None
        self._index: npt.NDArray[np.uint64] | None = None

    @property
    def index(self) -> npt.NDArray[np.uint64]:
        if self._index is None:
            self._index = _mixed(self._states())
        return self._index

    @property
    def check(self) -> npt.NDArray[np.uint32]:
        return (_mixed(self._states() * _EU + self.length) >> _32).astype(np.uint32)

    def _states(self) -> npt.NDArray[np.uint64]:
        if self._state is None:
            self._state = _state_of(self.table, self.length)
        return self._state


def _as_bytes(key: object) -> bytes:
    """What is spelt like bytes is taken; numpy would hash a str by what it happens to encode to."""
    if not isinstance(key, bytes | bytearray | memoryview):
        raise error(Code.INVALID, f"a key is bytes, not {type(key).__name__}")
    return bytes(key)


def _state_of(table: npt.NDArray[np.bytes_], size: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    count = len(size)
    if not count:
        return np.empty(0, np.uint64)
    words = table.view("<u8").reshape(count, CACHE_KEY_BYTES_MAX // 8)
    shortest, longest = -(-int(size.min()) // 8), -(-int(size.max()) // 8)
    state = size * _CU
    for number in range(longest):
        step = (state ^ words[:, number]) * _CU
        step ^= step >> _32
        state = step if number < shortest else np.where(size > np.uint64(8 * number), step, state)
    return state


def _mixed(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    mixed = state ^ (state >> _29)
    mixed *= _DU
    mixed ^= mixed >> _32
    return mixed


def hash_key(key: bytes) -> tuple[int, int]:
    """(index, check) of one key, of any length."""
    state = len(key) * _C & _MASK
    for at in range(0, len(key), 8):
        state = (state ^ int.from_bytes(key[at : at + 8], "little")) * _C & _MASK
        state ^= state >> 32
    return _mix(state), _mix((state * _E + len(key)) & _MASK) >> 32


def _mix(state: int) -> int:
    state ^= state >> 29
    state = state * _D & _MASK
    return state ^ state >> 32
