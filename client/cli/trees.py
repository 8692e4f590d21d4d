"""Copies trees between two file systems that show the same methods: the local one and FireflyFS.

Kept: file types, modes, times, symbolic links, hard links inside the tree, holes; owners when root copies; extended
attributes and ACLs when they are asked for. A file that cannot be copied is reported and the rest goes on.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from fireflyfs.common.limits import MiB

PIECE_BYTES = 8 * MiB  # read and written at once; spans chunks, so that several servers work on it
WAITING_MAX = 256  # files handed out and not yet copied
SKIP_ZEROS_BYTES = 64 << 10  # holes are looked for in units of this
XATTRS_OF_OWNERS = ("user.", "system.posix_acl_")
_ZEROS = bytes(SKIP_ZEROS_BYTES)


class OpenFile(Protocol):
    """What a copy needs of an open file."""

    def readinto_at(self, buffer: Any, offset: int) -> int: ...
    def pwrite(self, data: Any, offset: int) -> int: ...
    def truncate(self, size: int | None = None) -> int: ...
    def fsync(self) -> None: ...
    def close(self) -> None: ...


class Tree(Protocol):
    """What a copy needs of a file system; named as in `os`. FileSystem has these methods."""

    def lstat(self, path: str) -> os.stat_result: ...
    def stat(self, path: str) -> os.stat_result: ...
    def scandir(self, path: str) -> Iterator[Any]: ...
    def mkdir(self, path: str, mode: int = 0o777) -> None: ...
    def unlink(self, path: str) -> None: ...
    def symlink(self, target: str, path: str) -> None: ...
    def link(self, src: str, dst: str) -> None: ...
    def readlink(self, path: str) -> str: ...
    def chmod(self, path: str, mode: int) -> None: ...
    def chown(self, path: str, uid: int, gid: int, *, follow_symlinks: bool = True) -> None: ...
    def utime(self, path: str, times: None = None, *, ns: tuple[int, int], follow_symlinks: bool = True) -> None: ...
    def open_file(self, path: str, flags: int = os.O_RDONLY, mode: int = 0o666) -> Any: ...
    def listxattr(self, path: str, *, follow_symlinks: bool = True) -> list[str]: ...
    def getxattr(self, path: str, attribute: str, *, follow_symlinks: bool = True) -> bytes: ...
    def setxattr(
        self, path: str, attribute: str, value: bytes, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None: ...


@dataclass(slots=True)
class Progress:
    """What has been copied. `on_bytes` and `on_problem` are called from the copying threads."""

    files: int = 0
    bytes: int = 0
    problems: list[tuple[str, Exception]] = field(default_factory=list)
    on_bytes: Callable[[int], None] = lambda _: None
    on_problem: Callable[[str, Exception], None] = lambda *_: None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Copier:
    """One copy from `source` to `target`, `threads` files at a time."""

    def __init__(
        self,
        source: Tree,
        target: Tree,
        progress: Progress,
        *,
        threads: int = 4,
        durable: bool = False,
        xattrs: bool = False,
    ) -> None:
        self._source = source
        self._target = target
        self._progress = progress
        self._durable = durable
        self._xattrs = xattrs
        self._keep_owner = os.geteuid() == 0
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="copy")
        self._room = threading.BoundedSemaphore(WAITING_MAX)
        self._buffers = threading.local()
        self._links: dict[tuple[int, int], Future[str]] = {}  # only files with more than one name

    def copy(self, source: str, target: str) -> None:
        """Copy `source` (a file or a tree) to be `target`. Problems are in the progress, not raised."""
        directories: list[tuple[str, str, os.stat_result]] = []
        try:
            self._walk(source, target, directories)
        finally:
            self._pool.shutdown(wait=True)
        # Deepest first, and after all files: making entries changes a directory's times, and may need its write bit.
        for one, other, info in reversed(directories):
            self._guarded(other, self._attributes, one, other, info)

    def _walk(self, source: str, target: str, directories: list[tuple[str, str, os.stat_result]]) -> None:
        stack = [(source, target)]
        while stack:
            one, other = stack.pop()
            try:
                info = self._source.lstat(one)
                if not stat.S_ISDIR(info.st_mode):
                    self._submit(one, other, info)
                    continue
                self._make_directory(other)
                directories.append((one, other, info))
                children = []
                for entry in self._source.scandir(one):
                    path = os.path.join(other, entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        children.append((entry.path, path))
                    else:
                        self._submit(entry.path, path, entry.stat(follow_symlinks=False))
                stack += reversed(children)
            except OSError as exc:
                self._problem(one, exc)

    def _make_directory(self, path: str) -> None:
        try:
            self._target.mkdir(path, 0o700)
        except FileExistsError:
            if not stat.S_ISDIR(self._target.stat(path).st_mode):
                raise

    def _submit(self, source: str, target: str, info: os.stat_result) -> None:
        self._room.acquire()
        run = self._pool.submit(self._guarded, source, self._copy_one, source, target, info)
        run.add_done_callback(lambda _: self._room.release())

    def _guarded(self, path: str, function: Callable[..., None], *args: Any) -> None:
        try:
            function(*args)
        except Exception as exc:  # this file's problem: the others are still copied
            self._problem(path, exc)

    def _problem(self, path: str, exc: Exception) -> None:
        with self._progress.lock:
            self._progress.problems.append((path, exc))
        self._progress.on_problem(path, exc)

    def _copy_one(self, source: str, target: str, info: os.stat_result) -> None:
        if stat.S_ISLNK(info.st_mode):
            self._replace(target, lambda: self._target.symlink(self._source.readlink(source), target))
            self._attributes(source, target, info)
        elif stat.S_ISREG(info.st_mode):
            self._copy_regular(source, target, info)
        else:
            raise OSError(0, "neither file, directory nor symbolic link: left out", source)
        with self._progress.lock:
            self._progress.files += 1

    def _copy_regular(self, source: str, target: str, info: os.stat_result) -> None:
        if info.st_nlink < 2:
            self._copy_bytes(source, target, info)
            return
        # The first name of a file copies it, the others wait for that and become links to it.
        mine: Future[str] = Future()
        with self._progress.lock:
            first = self._links.setdefault((info.st_dev, info.st_ino), mine)
        if first is not mine:
            copied = first.result()
            self._replace(target, lambda: self._target.link(copied, target))
            return
        try:
            self._copy_bytes(source, target, info)
            mine.set_result(target)
        except BaseException as exc:
            mine.set_exception(exc)
            raise

    def _replace(self, target: str, make: Callable[[], None]) -> None:
        try:
            make()
        except FileExistsError:
            self._target.unlink(target)
            make()

    def _copy_bytes(self, source: str, target: str, info: os.stat_result) -> None:
        reader = self._source.open_file(source, os.O_RDONLY)
        try:
            writer = self._target.open_file(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                self._pump(reader, writer, info)
                if self._durable:
                    writer.fsync()
            finally:
                writer.close()
        finally:
            reader.close()
        self._attributes(source, target, info)

    def _pump(self, reader: OpenFile, writer: OpenFile, info: os.stat_result) -> None:
        buffer = self._buffer()
        # Only the local system says in st_blocks whether a file has holes.
        sparse = info.st_blocks * 512 < info.st_size or not isinstance(self._source, LocalTree)
        offset = written = 0
        while count := reader.readinto_at(buffer, offset):
            for start, end in data_ranges(buffer, count) if sparse else ((0, count),):
                while start < end:
                    start += writer.pwrite(buffer[start:end], offset + start)
                written = offset + end
            offset += count
            with self._progress.lock:
                self._progress.bytes += count
            self._progress.on_bytes(count)
        if written < offset:
            writer.truncate(offset)

    def _buffer(self) -> memoryview:
        buffer: memoryview | None = getattr(self._buffers, "buffer", None)
        if buffer is None:
            buffer = self._buffers.buffer = memoryview(bytearray(PIECE_BYTES))
        return buffer

    def _attributes(self, source: str, path: str, info: os.stat_result) -> None:
        # The owner first: chown drops the set-user-id bits that chmod then sets, and capabilities. Extended attributes
        # before the mode, which may not let us write, and which sets the mask of an ACL to what it was.
        if self._keep_owner:
            self._target.chown(path, info.st_uid, info.st_gid, follow_symlinks=False)
        failed = list(self._copy_xattrs(source, path)) if self._xattrs else []
        if not stat.S_ISLNK(info.st_mode):
            self._target.chmod(path, stat.S_IMODE(info.st_mode))
        self._target.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)
        if failed:
            raise failed[0]

    def _copy_xattrs(self, source: str, path: str) -> Iterator[OSError]:
        """What kept one from being copied; the others are there. Who is not root leaves out what only root may set."""
        try:
            names = self._source.listxattr(source, follow_symlinks=False)
        except OSError as exc:
            if exc.errno != errno.ENOTSUP:  # a file system that has none
                yield exc
            return
        for name in names:
            if not self._keep_owner and not name.startswith(XATTRS_OF_OWNERS):
                continue
            try:
                value = self._source.getxattr(source, name, follow_symlinks=False)
                self._target.setxattr(path, name, value, follow_symlinks=False)
            except OSError as exc:
                yield OSError(exc.errno, f"{name}: {exc.strerror}", path)


def data_ranges(buffer: memoryview, count: int) -> Iterable[tuple[int, int]]:
    """Ranges of the first `count` bytes that are not all zeros, in units of SKIP_ZEROS_BYTES."""
    start: int | None = None
    for place in range(0, count, SKIP_ZEROS_BYTES):
        unit = buffer[place : min(place + SKIP_ZEROS_BYTES, count)]
        if bytes(unit) == _ZEROS[: len(unit)]:
            if start is not None:
                yield start, place
                start = None
        elif start is None:
            start = place
    if start is not None:
        yield start, count


class LocalFile:
    """A local open file with the positional methods of the library's."""

    def __init__(self, path: str, flags: int, mode: int) -> None:
        self._fd = os.open(path, flags | os.O_CLOEXEC, mode)

    def readinto_at(self, buffer: Any, offset: int) -> int:
        return os.preadv(self._fd, [buffer], offset)

    def pwrite(self, data: Any, offset: int) -> int:
        return os.pwrite(self._fd, data, offset)

    def truncate(self, size: int | None = None) -> int:
        os.ftruncate(self._fd, size or 0)
        return size or 0

    def fsync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class LocalTree:
    """The local file system as a Tree."""

    lstat = staticmethod(os.lstat)
    stat = staticmethod(os.stat)
    mkdir = staticmethod(os.mkdir)
    unlink = staticmethod(os.unlink)
    symlink = staticmethod(os.symlink)
    link = staticmethod(os.link)
    readlink = staticmethod(os.readlink)
    chmod = staticmethod(os.chmod)
    chown = staticmethod(os.chown)
    utime = staticmethod(os.utime)
    listxattr = staticmethod(os.listxattr)
    getxattr = staticmethod(os.getxattr)
    setxattr = staticmethod(os.setxattr)

    def scandir(self, path: str) -> Iterator[Any]:
        with os.scandir(path) as entries:
            yield from entries

    def open_file(self, path: str, flags: int = os.O_RDONLY, mode: int = 0o666) -> LocalFile:
        return LocalFile(path, flags, mode)
