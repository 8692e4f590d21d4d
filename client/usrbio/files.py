"""Files that submissions may name, and 3FS's calls on files. One table for the process, as file descriptors are."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import threading
from collections.abc import Sequence
from typing import Final, NamedTuple

from fireflyfs.client.usrbio import ioctls

PUNCH_RANGES_MAX: Final = 1000
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Registered(NamedTuple):
    """`dup` keeps the file open until it is deregistered, whatever becomes of the descriptor that was named. `owner` is
    the process that registered it; its forked children may name it too."""

    token: int
    dup: int
    readable: bool
    writable: bool
    owner: int


_lock = threading.Lock()
_files: dict[int, Registered] = {}


def is_ours(fd: int) -> bool:
    """Whether the descriptor is of a file or directory on a mount that serves rings."""
    answer = bytearray(4)
    try:
        fcntl.ioctl(fd, ioctls.GET_MAGIC, answer)
    except OSError:
        return False
    return bool(ioctls.WORD.unpack(answer)[0] == ioctls.MAGIC)


def register_fd(fd: int, flags: int = 0) -> None:
    """Let submissions name the file. OSError EBADF: not ours, EINVAL: registered already (deregister it first)."""
    del flags  # none is defined
    with _lock:
        if fd in _files:
            raise OSError(errno.EINVAL, f"descriptor {fd} is registered already")
        if not is_ours(fd):
            raise OSError(errno.EBADF, f"descriptor {fd} is of no file on a mount that serves rings")
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        dup = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
        try:
            answer = bytearray(ioctls.TOKEN.size)
            fcntl.ioctl(dup, ioctls.REGISTER, answer)
        except BaseException:
            os.close(dup)
            raise
        (token,) = ioctls.TOKEN.unpack(answer)
        _files[fd] = Registered(token, dup, access != os.O_WRONLY, access != os.O_RDONLY, os.getpid())


def deregister_fd(fd: int) -> None:
    """Submissions may not name it any more; unknown descriptors are no error."""
    with _lock:
        known = _files.pop(fd, None)
    if known is not None:
        if known.owner == os.getpid():  # a forked child's is its parent's too
            with contextlib.suppress(OSError):  # the mount may be gone
                fcntl.ioctl(known.dup, ioctls.DEREGISTER, ioctls.TOKEN.pack(known.token))
        os.close(known.dup)


def registered(fd: int) -> Registered | None:
    return _files.get(fd)


def force_fsync(fd: int) -> int:
    """Have the file's length be what was written, for every stat from now on. 0, or -1 as ioctl(2)."""
    try:
        return fcntl.ioctl(fd, ioctls.FSYNC)
    except OSError:
        return -1


def hardlink(target: str, link_name: str) -> None:
    os.link(target, link_name)


def punch_hole(file: int | str, start: Sequence[int], end: Sequence[int], flags: int = 0) -> None:
    """The ranges [start[i], end[i]) read as zeros afterwards, and whole chunks of them are given back."""
    del flags  # none is defined
    if len(start) != len(end) or len(start) > PUNCH_RANGES_MAX:
        raise RuntimeError("size not equal")
    fd = file if isinstance(file, int) else os.open(file, os.O_RDWR)
    try:
        for begin, stop in zip(start, end, strict=True):
            if not 0 <= begin < stop:
                raise OSError(errno.EINVAL, f"no range: {begin} to {stop}")
            if _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, begin, stop - begin) < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        if fd is not file:
            os.close(fd)
