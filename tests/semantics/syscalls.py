"""System calls that Python has no function for, or not all of."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
S_TO_NS = 10**9


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def linkat(old: Any, new: Any, flags: int = 0, *, old_fd: int = AT_FDCWD) -> None:
    _checked(_libc.linkat(old_fd, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def renameat2(old: Any, new: Any, flags: int) -> None:
    _checked(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags)))


def utimensat(path: Any, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """Each time as (seconds, nanoseconds, or UTIME_NOW or UTIME_OMIT instead of them)."""
    times = (ctypes.c_long * 4)(*atime, *mtime)
    _checked(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags))


def chmod_nofollow(path: Any, mode: int) -> None:
    _checked(_libc.fchmodat(AT_FDCWD, os.fsencode(path), mode, AT_SYMLINK_NOFOLLOW))


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_ulong),
        ("off", ctypes.c_long),
        ("reclen", ctypes.c_ushort),
        ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.POINTER(_Dirent)
_libc.readdir.argtypes = (ctypes.c_void_p,)
_libc.telldir.restype = ctypes.c_long
_libc.telldir.argtypes = (ctypes.c_void_p,)
_libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)
_libc.rewinddir.argtypes = (ctypes.c_void_p,)
_libc.closedir.argtypes = (ctypes.c_void_p,)


class Directory:
    """opendir(3) and what goes with it."""

    def __init__(self, path: Any) -> None:
        self._stream = _libc.opendir(os.fsencode(path))
        if not self._stream:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def read(self) -> bytes | None:
        """The next name, or None at the end."""
        entry = _libc.readdir(self._stream)
        return bytes(entry.contents.name) if entry else None

    def names(self) -> Iterator[bytes]:
        while (name := self.read()) is not None:
            if name not in (b".", b".."):
                yield name

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)
