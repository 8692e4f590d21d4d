"""`iovec`: a piece of a registered region, and what came of the I/O on it.

A numpy array underneath, because only that gives the buffer protocol to a Python class before 3.12. As with 3FS's
module, the region stays its owner's: nothing here keeps it mapped, and touching a piece after the owner has unmapped it
is touching freed memory. So `SharedMemory.close` works while pieces are still around.
"""

from __future__ import annotations

import ctypes
import uuid
from typing import Any

import numpy as np

from fireflyfs.client.usrbio.mountpoint import MOUNT_POINT_BYTES_MAX


class iovec(np.ndarray[Any, np.dtype[np.uint8]]):
    """iovec(base, id, hf3fs_mount_point, block_size=0, numa=-1): `base` is the writable memory behind link `id`."""

    _root: Any
    _id: bytes
    _start: int
    _mount: str
    _result: int
    _userdata: Any

    def __new__(cls, base: Any, id: str, hf3fs_mount_point: str, block_size: int = 0, numa: int = -1) -> iovec:
        """Raises ValueError for an id that is no UUID, BufferError for memory that cannot be written."""
        try:
            number = uuid.UUID(id).bytes
        except ValueError:
            raise ValueError(f"id '{id}' is not a valid UUID") from None
        if len(hf3fs_mount_point.encode()) > MOUNT_POINT_BYTES_MAX:
            raise OSError(22, "the mount point's name is too long", hf3fs_mount_point)
        address, size = _memory(base)
        root = (ctypes.c_ubyte * size).from_address(address)
        self = np.ndarray.__new__(cls, (size,), np.uint8, _buffer(root))
        self._root, self._id, self._start, self._mount = root, number, 0, hf3fs_mount_point
        self._result, self._userdata = 0, None
        return self

    def _part(self, start: int, size: int) -> iovec:
        part = np.ndarray.__new__(iovec, (size,), np.uint8, _buffer(self._root), start)
        part._root, part._id, part._start, part._mount = self._root, self._id, start, self._mount
        part._result, part._userdata = 0, None
        return part

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, slice):
            raise TypeError("an iovec is sliced, not indexed")
        start, stop, step = key.indices(self.size)
        if step != 1:
            raise ValueError("step not 1 when slicing iovec")
        return self._part(self._start + start, max(0, stop - start))

    def __setitem__(self, key: Any, value: Any) -> None:
        memoryview(_buffer(self))[key] = value

    def slice_by(self, buf: Any) -> iovec:
        """The piece that is just `buf`, which lies inside; else IndexError."""
        address, size = _memory(buf)
        start = address - ctypes.addressof(self._root)
        if start < self._start or start + size > self._start + self.size:
            raise IndexError("given buf is out of range")
        return self._part(start, size)

    @property
    def result(self) -> int:
        """Bytes moved (fewer at the end of the file), or -errno."""
        return self._result

    @property
    def base_off(self) -> int:
        """Where it starts in its region."""
        return self._start

    @property
    def userdata(self) -> Any:
        """What `prepare` was given."""
        return self._userdata

    # An object like any other, where an array would compare its elements.
    def __eq__(self, other: object) -> Any:
        return self is other

    def __ne__(self, other: object) -> Any:
        return self is not other

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<iovec of {self.size} bytes at {self._start}>"


def _buffer(of: Any) -> Any:
    """The same: a buffer, which the types of 3.11 do not know."""
    return of


def _memory(buffer: Any) -> tuple[int, int]:
    """(address, bytes) of writable contiguous memory. Raises BufferError or TypeError."""
    with memoryview(buffer) as view:
        if view.readonly:
            raise BufferError("the memory cannot be written")
        if not view.contiguous:
            raise BufferError("the memory is not contiguous")
        if not view.nbytes:
            raise BufferError("no memory")
        return ctypes.addressof(ctypes.c_ubyte.from_buffer(view)), view.nbytes
