"""futex(2) on a word in shared memory, between processes. The interpreter's lock is free while it waits."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from typing import Final

_NUMBERS: Final = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238, "loongarch64": 98}
_NUMBER: Final = _NUMBERS.get(platform.machine(), -1)
_WAIT: Final = 0
_WAKE: Final = 1
_ALL: Final = 0x7FFFFFFF
_syscall: Final = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p]


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


def wait(address: int, value: int, timeout_s: float) -> None:
    """Sleep while the word is `value`, at most `timeout_s`; may return early. OSError EFAULT: the memory is gone."""
    seconds = int(timeout_s)
    time = _Timespec(seconds, int((timeout_s - seconds) * 1e9))
    if _syscall(_NUMBER, address, _WAIT, value, ctypes.addressof(time)) < 0:
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT):
            raise OSError(number, f"futex: {os.strerror(number)}")


def wake(address: int) -> None:
    """Wake all who wait. Memory that is gone has nobody waiting."""
    _syscall(_NUMBER, address, _WAKE, _ALL, None)
