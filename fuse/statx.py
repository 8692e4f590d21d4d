"""FUSE_STATX (protocol 7.39, Linux 6.6): asked when a program wants to know when a file was made.

Everything else in it is what GETATTR answers, so the answer is made of that one's.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from fireflyfs.fuse import protocol

BASIC_STATS: Final = 0x7FF  # STATX_BASIC_STATS: all that fuse_attr has
BTIME: Final = 0x800  # STATX_BTIME

STATX_IN = struct.Struct("=IIQII")  # getattr_flags, reserved, fh, sx_flags, sx_mask
# attr_valid, attr_valid_nsec, flags, spare[2]; then fuse_statx: mask, blksize, attributes, nlink, uid, gid, mode,
# spare, ino, size, blocks, attributes_mask, atime, btime, ctime and mtime (seconds, nanoseconds and four bytes each),
# rdev_major, rdev_minor, dev_major, dev_minor, spare2[14]
STATX_OUT = struct.Struct("=QII16xIIQIIIHHQQQQQI4xQI4xQI4xQI4x4I112x")


def encode_statx(attr_out: bytes, btime_ns: int | None = None) -> bytes:
    """fuse_statx_out of a fuse_attr_out, and of the time when the inode was made where it is known."""
    (
        valid_s, valid_ns, _, ino, size, blocks, atime_s, mtime_s, ctime_s, atime_ns, mtime_ns, ctime_ns, mode, nlink,
        uid, gid, rdev, blksize, _,
    ) = protocol.ATTR_OUT.unpack(attr_out)  # fmt: skip
    btime_s, btime_left_ns = divmod(btime_ns or 0, 1_000_000_000)
    return STATX_OUT.pack(
        valid_s, valid_ns, 0, BASIC_STATS if btime_ns is None else BASIC_STATS | BTIME, blksize, 0, nlink, uid, gid,
        mode, 0, ino, size, blocks, 0, atime_s, atime_ns, btime_s & 0xFFFFFFFFFFFFFFFF, btime_left_ns, ctime_s,
        ctime_ns, mtime_s, mtime_ns, os.major(rdev), os.minor(rdev), 0, 0,
    )  # fmt: skip
