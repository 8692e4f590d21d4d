"""Opening the shared memory of applications, which may do anything to the path of it in a namespace of their own.

A file system there may never answer, so opening is done in threads of its own, up to a deadline and a bound for each
user: a user whose file systems hang waits for himself alone. What is returned is a file of a tmpfs, and no call on it
waits for anybody.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import threading
from collections import Counter
from typing import Final

OPEN_S: Final = 2.0
ROOM_S: Final = 0.1  # to wait while others of the user are opened: one takes less than a millisecond
OPENED_AT_ONCE: Final = 64  # of these as many as there are by root, whose containers may be many
OPENED_AT_ONCE_OF_USER: Final = 4
_TMPFS_MAGIC: Final = 0x01021994
_STATFS_BYTES: Final = 256  # of struct statfs, and more; it begins with the type, a long
_MEMORY: Final = re.compile(rb"/dev/shm/([^/\0]+)\Z")
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def open_memory(target: bytes, pid: int, uid: int, groups: list[int]) -> int:
    """A descriptor of the shared memory that `target` names where process `pid` is, which may be a container.

    OSError: EINVAL for anything but memory in /dev/shm, EACCES where the user may not read and write it, EAGAIN where a
    lease keeps it. May take for ever where the process has mounted a file system of its own.
    """
    named = _MEMORY.match(target)
    if named is None or named[1] in (b".", b".."):
        raise OSError(errno.EINVAL, f"{target!r} is no shared memory: /dev/shm/NAME is")
    try:
        found = _find(b"/proc/%d/root" % pid, named[1])
    except PermissionError:  # a mount of an ordinary user, who sees what others have in the same place
        found = _find(b"/", named[1])
    try:
        state = os.fstat(found)
        if not stat.S_ISREG(state.st_mode) or _type_of_file_system(found) != _TMPFS_MAGIC:
            raise OSError(errno.EINVAL, f"{target!r} is no memory")
        shift = 6 if uid == state.st_uid else 3 if state.st_gid in groups else 0
        if uid and state.st_mode >> shift & 0o6 != 0o6:
            raise OSError(errno.EACCES, f"user {uid} may not read and write {target!r}")
        return os.open(f"/proc/self/fd/{found}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(found)


def _find(root: bytes, name: bytes) -> int:
    """The file's path, opened name by name: a symbolic link would be followed from this process's root."""
    at = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for each, kind in ((b"dev", os.O_DIRECTORY), (b"shm", os.O_DIRECTORY), (name, 0)):
        above = at
        try:
            at = os.open(each, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC | kind, dir_fd=above)
        finally:
            os.close(above)
    return at


def _type_of_file_system(fd: int) -> int:
    found = ctypes.create_string_buffer(_STATFS_BYTES)
    if _LIBC.fstatfs(fd, found):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return ctypes.c_long.from_buffer(found).value


class _Opening:
    """One that is under way. `given_up`: who opens it closes it again."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.given_up = False
        self.fd = -1
        self.error: OSError | None = OSError(errno.EIO, "cannot be opened")


class MemoryOpener:
    """Safe to use from several threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._under_way: Counter[int] = Counter()  # by user
        self._hanging: Counter[int] = Counter()  # of these, those that were given up

    def open(self, target: bytes, pid: int, uid: int, groups: list[int]) -> int:
        """As `open_memory`, and OSError ETIMEDOUT where that hangs, EAGAIN where too much hangs already."""
        self._enter(uid)
        opening = _Opening()
        try:
            arguments = (opening, target, pid, uid, groups)
            threading.Thread(target=self._run, args=arguments, name="usrbio-open", daemon=True).start()
        except RuntimeError as exc:
            self._left(uid, opening)
            raise OSError(errno.EAGAIN, str(exc)) from exc
        if not opening.done.wait(OPEN_S):
            with self._changed:
                if not opening.done.is_set():
                    opening.given_up = True
                    self._hanging[uid] += 1
                    raise OSError(errno.ETIMEDOUT, f"{target!r} of process {pid} cannot be opened in {OPEN_S:g} s")
        if opening.error is not None:
            raise opening.error
        return opening.fd

    def _run(self, opening: _Opening, target: bytes, pid: int, uid: int, groups: list[int]) -> None:
        try:
            opening.fd = open_memory(target, pid, uid, groups)
            opening.error = None
        except OSError as exc:
            opening.error = exc
        finally:
            self._left(uid, opening)

    def _enter(self, uid: int) -> None:
        most = OPENED_AT_ONCE if not uid else OPENED_AT_ONCE_OF_USER

        def room() -> bool:
            return self._under_way[uid] < most and self._under_way.total() < OPENED_AT_ONCE

        with self._changed:
            if self._hanging[uid] >= most or not self._changed.wait_for(room, ROOM_S):
                raise OSError(errno.EAGAIN, f"shared memory of user {uid} is being opened and does not answer")
            self._under_way[uid] += 1

    def _left(self, uid: int, opening: _Opening) -> None:
        with self._changed:
            for counted, fewer in ((self._under_way, 1), (self._hanging, int(opening.given_up))):
                counted[uid] -= fewer
                if not counted[uid]:
                    del counted[uid]
            if opening.given_up and opening.fd >= 0:
                os.close(opening.fd)
            opening.done.set()
            self._changed.notify_all()
