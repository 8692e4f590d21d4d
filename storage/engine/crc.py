"""CRC32C arithmetic: combining, extending by zeros, and patching checksums without touching the data again.

A CRC is linear over GF(2): appending n bytes to a message maps the CRC of what stood before by a fixed 32 x 32 bit
matrix, M(n), and M(a + b) = M(a) M(b). `shift(crc, n)` applies M(n). For each power of two up to the largest chunk the
matrix is kept as four tables of 256 words, so one shift costs four look-ups for each bit set in n (0.4 us a bit).

    crc(A + B)                    = shift(crc(A), len(B)) ^ crc(B)
    crc of a message whose part P changes to Q, with n bytes after it
                                  = crc(old) ^ shift(crc(P) ^ crc(Q), n)

The matrices are those of zlib's crc32_combine, for the reflected polynomial 0x82F63B78.
"""

from __future__ import annotations

from collections.abc import Sequence

from crc32c import crc32c

SHIFT_BITS = 27  # tables for 2**0 .. 2**26 bytes: chunks of 64 MiB
_POLYNOMIAL = 0x82F63B78
_Tables = tuple[list[int], list[int], list[int], list[int]]

__all__ = ["combine", "combine_units", "crc32c", "patch_units", "shift", "unit_crcs", "zeros_crc"]


def _times(matrix: Sequence[int], vector: int) -> int:
    result = 0
    bit = 0
    while vector:
        if vector & 1:
            result ^= matrix[bit]
        vector >>= 1
        bit += 1
    return result


def _tables_of(matrix: Sequence[int]) -> _Tables:
    """Four tables so that M v = t0[v & 255] ^ t1[v >> 8 & 255] ^ t2[v >> 16 & 255] ^ t3[v >> 24]."""
    tables: list[list[int]] = []
    for byte in range(4):
        table = [0] * 256
        for bit in range(8):
            column = matrix[8 * byte + bit]
            for low in range(1 << bit):
                table[(1 << bit) | low] = table[low] ^ column
        tables.append(table)
    return tables[0], tables[1], tables[2], tables[3]


def _build() -> list[_Tables]:
    one_bit = [_POLYNOMIAL] + [1 << (n - 1) for n in range(1, 32)]
    matrix = one_bit
    for _ in range(3):  # 1, 2, 4, 8 bits
        matrix = [_times(matrix, column) for column in matrix]
    built = []
    for _ in range(SHIFT_BITS):
        built.append(_tables_of(matrix))
        matrix = [_times(matrix, column) for column in matrix]
    return built


_SHIFT: list[_Tables] = _build()


def shift(crc: int, count: int) -> int:
    """M(count) applied to crc; count in bytes, below 2**27."""
    while count:
        lowest = count & -count
        t0, t1, t2, t3 = _SHIFT[lowest.bit_length() - 1]
        crc = t0[crc & 255] ^ t1[crc >> 8 & 255] ^ t2[crc >> 16 & 255] ^ t3[crc >> 24]
        count ^= lowest
    return crc


def combine(first: int, second: int, second_length: int) -> int:
    """CRC of A + B from those of A and B; exact for empty parts too (whose CRC is 0)."""
    return shift(first, second_length) ^ second


def patch_units(whole: int, old: Sequence[int], new: Sequence[int], unit: int, last: int, bytes_after: int) -> int:
    """CRC of a message after consecutive parts of it, followed by bytes_after more, changed their CRCs from old to new.

    Each part has `unit` bytes, a power of two, but the last one, which has `last`.
    """
    t0, t1, t2, t3 = _SHIFT[unit.bit_length() - 1]
    change = 0
    for before, after in zip(old[:-1], new[:-1], strict=True):
        change = t0[change & 255] ^ t1[change >> 8 & 255] ^ t2[change >> 16 & 255] ^ t3[change >> 24] ^ before ^ after
    return whole ^ shift(shift(change, last) ^ old[-1] ^ new[-1], bytes_after)


def zeros_crc(count: int) -> int:
    """CRC of count zero bytes."""
    return shift(0xFFFFFFFF, count) ^ 0xFFFFFFFF


def combine_units(crcs: Sequence[int], unit: int, length: int) -> int:
    """CRC of `length` bytes from those of its units, `unit` (a power of two) bytes each; the last may be shorter."""
    if not crcs:
        return 0
    t0, t1, t2, t3 = _SHIFT[unit.bit_length() - 1]
    tail = length - unit * (len(crcs) - 1)
    whole = crcs[0]
    if len(crcs) == 1:
        return whole
    for index in range(1, len(crcs) - 1):
        whole = t0[whole & 255] ^ t1[whole >> 8 & 255] ^ t2[whole >> 16 & 255] ^ t3[whole >> 24] ^ crcs[index]
    return shift(whole, tail) ^ crcs[-1]


def unit_crcs(data: memoryview, unit: int) -> list[int]:
    """CRC of each unit of data; the last may be shorter."""
    return [crc32c(data[start : start + unit]) for start in range(0, len(data), unit)]
