"""A mount through libfuse (the package mfusepy) instead of our own protocol loop.

For hosts whose kernel is spoken to through libfuse only, and as the comparison in `bench/`. Thin: each callback is a
call of the client library, by path or by open file; nothing is cached but what the kernel caches. It lacks what
libfuse's path interface cannot say: locks between mounts, holes, O_TMPFILE. A file that is removed while it is open
gets a hidden name (`.fuse_hidden...`) until it is closed, as libfuse does it.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mfusepy

from fireflyfs.client.file import File
from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.session import ClientContext
from fireflyfs.common.errors import Code, error
from fireflyfs.fuse.callers import Callers
from fireflyfs.fuse.options import MountOptions
from fireflyfs.proto.common_pb2 import Caller

USERS_MAX = 256
HANDLES_MAX = 1 << 16
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
_TIMES = ("st_atime", "st_mtime", "st_ctime")
_FIELDS = ("st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_rdev", "st_blocks", "st_blksize")


class Operations(mfusepy.Operations):  # type: ignore[misc]
    """What libfuse calls, in several threads at once; raises OSError. `ready` is called when the mount can be used."""

    use_ns = True

    def __init__(self, context: ClientContext, ready: Callable[[], None] = lambda: None) -> None:
        self._context = context
        self._callers = Callers(context.client_id, context.clock)
        self._ready = ready
        self._lock = threading.Lock()
        self._users: OrderedDict[tuple[int, int, tuple[int, ...]], FileSystem] = OrderedDict()
        self._files: dict[int, File] = {}
        self._numbers = itertools.count(1)

        self.mounted = False

    def init(self, path: str) -> None:
        self.mounted = True
        self._ready()

    def _fs(self) -> FileSystem:
        """The file system as whoever made the call that is being answered sees it."""
        caller: Caller = self._callers.caller(*mfusepy.fuse_get_context())
        key = (caller.uid, caller.gid, tuple(caller.gids))
        with self._lock:
            found = self._users.get(key)
            if found is None:
                found = self._users[key] = FileSystem(self._context.acting_for(caller), umask=0)
                if len(self._users) > USERS_MAX:
                    self._users.popitem(last=False)
            self._users.move_to_end(key)
        return found

    # Names

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        file = self._files.get(fh) if fh else None
        if file is not None:
            file.handle.flush()  # what is written counts at once
        info = self._fs().lstat(path)
        return {name: getattr(info, name) for name in _FIELDS} | {name: getattr(info, name + "_ns") for name in _TIMES}

    def readdir(self, path: str, fh: int) -> Iterator[tuple[str, dict[str, int], int]]:
        yield ".", {"st_mode": stat.S_IFDIR}, 0
        yield "..", {"st_mode": stat.S_IFDIR}, 0
        for entry in self._fs().scandir(path):
            info = entry.stat(follow_symlinks=False)
            yield entry.name, {"st_mode": info.st_mode, "st_ino": info.st_ino}, 0

    def readlink(self, path: str) -> str:
        return str(self._fs().readlink(path))

    def mknod(self, path: str, mode: int, dev: int) -> int:
        self._fs().mknod(path, mode, dev)
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        self._fs().mkdir(path, mode)
        return 0

    def unlink(self, path: str) -> int:
        self._fs().unlink(path)
        return 0

    def rmdir(self, path: str) -> int:
        self._fs().rmdir(path)
        return 0

    def symlink(self, target: str, source: str) -> int:
        self._fs().symlink(source, target)
        return 0

    def link(self, target: str, source: str) -> int:
        self._fs().link(source, target)
        return 0

    def rename(self, old: str, new: str, flags: int = 0) -> int:
        self._fs().rename(old, new, flags=flags)
        return 0

    # Attributes

    def chmod(self, path: str, mode: int) -> int:
        self._fs().chmod(path, mode, follow_symlinks=False)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        self._fs().chown(path, uid, gid, follow_symlinks=False)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        fs = self._fs()
        if times is None or times == (UTIME_NOW, UTIME_NOW):
            fs.utime(path, follow_symlinks=False)
            return 0
        before = fs.lstat(path)
        now_ns = self._context.clock.unix_ns()
        kept = (before.st_atime_ns, before.st_mtime_ns)
        wanted = [{UTIME_NOW: now_ns, UTIME_OMIT: old}.get(new, new) for new, old in zip(times, kept, strict=True)]
        fs.utime(path, ns=(wanted[0], wanted[1]), follow_symlinks=False)
        return 0

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        file = self._files.get(fh) if fh else None
        if file is not None:
            file.truncate(length)
        else:
            self._fs().truncate(path, length)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        found = self._fs().statvfs(path)
        values = {name: getattr(found, name) for name in dir(found) if name.startswith("f_")}
        return {name: value for name, value in values.items() if value is not None}

    # Open files

    def _keep(self, file: File) -> int:
        with self._lock:
            if len(self._files) >= HANDLES_MAX:
                file.close()
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            number = next(self._numbers)
            self._files[number] = file
        return number

    def open(self, path: str, flags: int) -> int:
        return self._keep(self._fs().open_file(path, flags & (os.O_ACCMODE | os.O_APPEND | os.O_TRUNC)))

    def create(self, path: str, mode: int, fi: int | None = None) -> int:
        flags = (fi or os.O_WRONLY) & (os.O_ACCMODE | os.O_APPEND | os.O_EXCL)
        return self._keep(self._fs().open_file(path, flags | os.O_CREAT, mode))

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return self._files[fh].pread(size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return self._files[fh].pwrite(data, offset)

    def flush(self, path: str, fh: int) -> int:
        self._files[fh].handle.flush()
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._files[fh].fsync()
        return 0

    def release(self, path: str, fh: int) -> int:
        with self._lock:
            file = self._files.pop(fh)
        file.close()
        return 0


class _Fuse(mfusepy.FUSE):  # type: ignore[misc]
    """mfusepy drops the flags of a rename, which would replace what must not be replaced."""

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
        names = [name.decode(self.encoding, self.errors) for name in (old, new)]
        return int(self.operations.rename(*names, flags) or 0)


def run(context: ClientContext, mountpoint: Path, options: MountOptions, ready: Callable[[], None]) -> None:
    """Mount, call `ready`, and serve until the mount is gone. Raises OSError when it cannot be made."""
    operations = Operations(context, ready)
    try:
        _Fuse(
            operations,
            str(mountpoint),
            foreground=True,
            allow_other=options.allow_other,
            default_permissions=True,
            fsname=options.source,
            subtype="fireflyfs",
            attr_timeout=options.attr_timeout_s,
            entry_timeout=options.entry_timeout_s,
            max_threads=options.threads_max,
            use_ino=True,
        )
    except RuntimeError as exc:  # libfuse's exit code: it is not 0 either when a signal ends it
        if operations.mounted:
            return
        raise error(Code.IO_ERROR, f"libfuse could not mount {mountpoint}: exit code {exc}").to_oserror(None) from exc
