"""A library in C for what the KV cache does for each block of a batch (c/blocks.c), where it was built with the
package.

`blocks` is None without it, and with FFS_NATIVE=0: Python does the same then, block by block.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

ENVIRONMENT: Final = "FFS_NATIVE"
ABI: Final = 1
FILE: Final = Path(__file__).with_name("libffs_blocks.so")


class Index(ctypes.Structure):
    """`struct index`: where the arrays of a BlockTable lie."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("places", "index", "space", "expires", "size", "crc", "block")),
        *((name, ctypes.c_void_p) for name in ("shift", "key_length", "keys", "frequency")),
        *((name, ctypes.c_uint64) for name in ("places_mask", "slots", "key_bytes")),
    ]


class Tally(ctypes.Structure):
    """`struct tally`."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("end", "hits", "hit_bytes", "slow")]


class Blocks:
    """The functions. All but `read` keep the interpreter's lock, which costs more to give and take than they do."""

    def __init__(self, path: Path) -> None:
        """Raises OSError and AttributeError for a library that is not this one."""
        pointer, u32, u64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
        quick, slow = ctypes.PyDLL(str(path)), ctypes.CDLL(str(path))
        if quick.ffs_abi() != ABI:
            raise OSError(f"{path} is of another release")
        self.arrange = quick.ffs_arrange
        self.arrange.argtypes = [*[pointer] * 3, u32, pointer, u32, u32, *[pointer] * 3]
        self.arrange.restype = None
        self.split = quick.ffs_split
        self.split.argtypes, self.split.restype = [ctypes.c_char_p, u32, pointer], ctypes.c_int64
        self.locate = quick.ffs_locate
        self.locate.argtypes = [pointer, u32, ctypes.c_char_p, u32, u32, u32, pointer]
        self.locate.restype = None
        self.read = slow.ffs_read
        self.read.argtypes = [pointer, ctypes.c_char_p, u32, u32, pointer, pointer, u64, pointer]
        self.read.restype = ctypes.c_int32


def _load() -> Blocks | None:
    if os.environ.get(ENVIRONMENT, "").strip() == "0" or sys.byteorder != "little":
        return None
    try:
        return Blocks(FILE)
    except (OSError, AttributeError):
        return None


def address_of(memory: bytearray | memoryview | npt.NDArray[Any]) -> int:
    """Where writable memory without gaps lies, for as long as its owner keeps it; 0 where it has no bytes."""
    buffer: Any = memory
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer)) if len(memory) else 0


blocks: Blocks | None = _load()
