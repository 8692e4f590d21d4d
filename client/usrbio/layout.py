"""The memory of a ring, byte for byte: docs/format/usrbio_ring.md. The C library has the same in c/hf3fs_usrbio.c.

All numbers are little-endian. Position `p` (0, 1, 2 ...) of either queue stands in slot `p % entries`. A slot's word
in `sq_seq` or `cq_seq` becomes `p + 1` after everything else of the slot was written: who finds it there may read the
rest.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

MAGIC: Final = b"FFSIORNG"
VERSION: Final = 1
HEADER_BYTES: Final = 256
PAGE_BYTES: Final = 4096
ENTRIES_MAX: Final = 65_536

# magic, version, header bytes, entries, for_read, io_depth, priority, timeout_ms, unused, flags, bytes of the ring
HEADER: Final = struct.Struct("<8sIIIIiiiIQQ")
SQ_DOORBELL_AT: Final = 64  # u32, the application adds 1 at each submit; both doorbells are futexes
CQ_DOORBELL_AT: Final = 128  # u32, the agent adds 1 after completions, and when it gives the ring up
STATE_AT: Final = 132
# From CQ_DOORBELL_AT on, the agent's: doorbell, state (0, or the errno that the ring was given up with), completed
AGENT: Final = struct.Struct("<IIQ")

# region id, offset in the region, file token, offset in the file, length, the application's own word
SQE: Final = struct.Struct("<16sQQQQQ8x")
SQE_DTYPE: Final = np.dtype(
    {
        "names": ["region", "region_offset", "file", "file_offset", "length", "userdata"],
        "formats": ["V16", "<u8", "<u8", "<u8", "<u8", "<u8"],
        "offsets": [0, 16, 24, 32, 40, 48],
        "itemsize": 64,
    }
)
SEQ_BYTES: Final = 8
RESULT_BYTES: Final = 8  # i64: bytes moved, or -errno

ALLOW_READ_UNCOMMITTED: Final = 1  # flags
FORBID_READ_HOLES: Final = 2


@dataclass(frozen=True, slots=True)
class RingLayout:
    """Where the arrays of a ring of `entries` stand, in bytes from its start."""

    entries: int
    sq_seq: int
    cq_seq: int
    sqes: int
    results: int
    nbytes: int

    @staticmethod
    def of(entries: int) -> RingLayout:
        """Raises OSError EINVAL for a number of entries that no ring has."""
        if not 1 <= entries <= ENTRIES_MAX:
            raise OSError(errno.EINVAL, f"a ring has 1 to {ENTRIES_MAX} entries, not {entries}")
        sq_seq = HEADER_BYTES
        cq_seq = sq_seq + entries * SEQ_BYTES
        results = cq_seq + entries * SEQ_BYTES
        sqes = -(-(results + entries * RESULT_BYTES) // SQE.size) * SQE.size
        end = sqes + entries * SQE.size
        return RingLayout(entries, sq_seq, cq_seq, sqes, results, -(-end // PAGE_BYTES) * PAGE_BYTES)


@dataclass(frozen=True, slots=True)
class RingOptions:
    """What the application asked for. `priority`: -1 high, 0 normal, 1 low. `io_depth`: see core/batching.py."""

    entries: int
    for_read: bool = True
    io_depth: int = 0
    priority: int = 0
    timeout_ms: int = 0
    flags: int = 0


def pack_header(options: RingOptions) -> bytes:
    """The first bytes of a new ring; the rest of it is zeros."""
    return HEADER.pack(
        MAGIC,
        VERSION,
        HEADER_BYTES,
        options.entries,
        int(options.for_read),
        options.io_depth,
        options.priority,
        options.timeout_ms,
        0,
        options.flags,
        RingLayout.of(options.entries).nbytes,
    )


def parse_header(head: bytes, nbytes: int) -> RingOptions:
    """What a ring in `nbytes` of memory says of itself. Raises OSError: EINVAL, or
    EPROTONOSUPPORT with both numbers."""
    if len(head) < HEADER.size:
        raise OSError(errno.EINVAL, f"a ring of {len(head)} bytes")
    magic, version, header_bytes, entries, for_read, io_depth, priority, timeout_ms, _, flags, size = HEADER.unpack(
        head[: HEADER.size]
    )
    if magic != MAGIC:
        raise OSError(errno.EINVAL, "the memory holds no ring")
    if version != VERSION:
        raise OSError(errno.EPROTONOSUPPORT, f"the ring has version {version}, this release serves {VERSION}")
    layout = RingLayout.of(entries)
    if header_bytes != HEADER_BYTES or size != layout.nbytes or nbytes < size:
        raise OSError(errno.EINVAL, f"a ring of {entries} entries has {layout.nbytes} bytes, not {size} of {nbytes}")
    if not -1 <= priority <= 1 or abs(io_depth) > entries or timeout_ms < 0 or for_read > 1:
        raise OSError(errno.EINVAL, "the ring's header makes no sense")
    return RingOptions(entries, bool(for_read), io_depth, priority, timeout_ms, flags)
