"""ioctls of a file on the mount: 3FS's (type 'h'), and ours from 64 on. Numbers as <asm-generic/ioctl.h> makes them."""

from __future__ import annotations

import struct
from typing import Final

MAGIC: Final = 0x8F3F5FFF
VERSION: Final = 1
_WRITE, _READ = 1, 2


def _number(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | ord("h") << 8 | number


GET_MOUNT_NAME: Final = _number(_READ, 0, 32)
GET_PATH_OFFSET: Final = _number(_READ, 1, 4)
GET_MAGIC: Final = _number(_READ, 2, 4)
GET_VERSION: Final = _number(_READ, 3, 4)
RECURSIVE_REMOVE: Final = _number(0, 10, 0)
FSYNC: Final = _number(0, 11, 0)
# Ours: the file's token for submissions, and its end.
REGISTER: Final = _number(_READ, 64, 8)
DEREGISTER: Final = _number(_WRITE, 65, 8)
TOKEN: Final = struct.Struct("<Q")
WORD: Final = struct.Struct("<I")
