"""Open files as fsspec's users expect them: Python's own buffering, with `fs`, `path`, `size`, `commit` and `discard`.

Reading is adaptive: who reads on where he stopped gets a window that doubles up to `block_size`, in memory that servers
of this host fill directly; who jumps about gets what he asks for, in units of RANDOM_BYTES. Reads of a window or more
land in the caller's memory. Writing collects `block_size` bytes, which go to all their chains at once.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from fsspec.spec import AbstractBufferedFile

from fireflyfs.client.file import BufferedRandom, BufferedReader, BufferedWriter, File, as_piece, flags_of
from fireflyfs.client.fsspec.connections import WINDOW_BYTES
from fireflyfs.client.handle import OpenInode, open_inode
from fireflyfs.client.paths import path_at
from fireflyfs.client.scratch import Scratch
from fireflyfs.client.storage_codec import length_of, part_of, view_of
from fireflyfs.client.xattrs import named
from fireflyfs.common.limits import KiB, MiB
from fireflyfs.common.net.api import Piece, tainted

if TYPE_CHECKING:
    from fireflyfs.client.fsspec.filesystem import FireflyFileSystem

BLOCK_BYTES = 4 * MiB
BLOCK_BYTES_MAX = 256 * MiB
RANDOM_BYTES = 128 * KiB  # the least that a buffered file reads
RENAME_NOREPLACE = 1


class _FsspecFile:
    """What fsspec adds to a file."""

    fs: FireflyFileSystem
    path: str
    blocksize: int
    autocommit: bool = True
    temporary: str = ""  # where a transaction writes until it ends
    exclusive: bool = False

    def belong(self, fs: FireflyFileSystem, path: str, block_size: int, temporary: str, exclusive: bool) -> None:
        self.fs, self.path, self.blocksize = fs, path, block_size
        self.temporary, self.exclusive, self.autocommit = temporary, exclusive, not temporary

    @property
    def size(self) -> int:
        return int(self.length)  # type: ignore[attr-defined]

    @property
    def full_name(self) -> str:
        return str(self.fs.unstrip_protocol(self.path))

    def info(self) -> dict[str, Any]:
        """As the file system says; of what is still written by a transaction there is none."""
        return self.fs.info(self.path)

    def commit(self) -> None:
        """Give the file its name, in place of what has it. Raises FileExistsError if it was opened with "x"."""
        if self.autocommit:
            raise RuntimeError("only a file of a transaction can be committed")
        self.close()  # type: ignore[attr-defined]
        self.fs.client.rename(self.temporary, self.path, flags=RENAME_NOREPLACE if self.exclusive else 0)

    def discard(self) -> None:
        """Forget what was written."""
        if self.autocommit:
            raise RuntimeError("only a file of a transaction can be discarded")
        with contextlib.suppress(OSError):
            self.close()  # type: ignore[attr-defined]
        with contextlib.suppress(FileNotFoundError):
            self.fs.client.unlink(self.temporary)

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        """A file that is read is opened again where it is unpickled, at the same position."""
        if self.writable() or self.closed:  # type: ignore[attr-defined]
            raise TypeError(f"cannot pickle {self.path}: only an open file that is read can be opened again elsewhere")
        return _reopen, (self.fs, self.path, self.blocksize, self.tell())  # type: ignore[attr-defined]


class RawFile(_FsspecFile, File):
    """Without a buffer: each call is one request."""


class _Window(File):
    """Beneath a buffered reader: reads ahead of who reads in order."""

    def __init__(self, handle: OpenInode, name: str, mode: str, blocks: Scratch, window_bytes: int) -> None:
        super().__init__(handle, name, mode)
        self._blocks = blocks
        self._window_bytes = window_bytes
        self._held: AbstractContextManager[Piece] | None = None
        self._window: Piece = memoryview(b"")
        self._start = self._end = 0  # of the file's bytes in the window
        self._next = 0  # where a reader in order goes on
        self._ahead = RANDOM_BYTES

    def readinto(self, buffer: Any) -> int:
        self._check_open()
        into = as_piece(buffer)
        wanted = length_of(into)
        with self._moving:
            at = self._position
            if not self._start <= at < self._end:
                self._ahead = min(2 * self._ahead, self._window_bytes) if at == self._next else RANDOM_BYTES
                if wanted >= self._ahead or not self._fill(at):
                    count = self.readinto_at(into, at)
                    self._position = self._next = at + count
                    return count
            count = min(wanted, self._end - at)
            begin = at - self._start
            view_of(into)[:count] = view_of(self._window)[begin : begin + count]
            self._position = self._next = at + count
            return count

    def _fill(self, at: int) -> bool:
        """Have bytes from `at` on in the window. False at the end of the file, or when they must not be kept."""
        if length_of(self._window) < self._ahead:
            self._drop()
            self._held = self._blocks.take(max(self._ahead, WINDOW_BYTES))
            self._window = self._held.__enter__()
        self._start = self._end = at  # nothing, should reading fail
        count = self.readinto_at(part_of(self._window, 0, self._ahead), at)
        if tainted(self._window):
            self._drop()
            return False
        self._end = at + count
        return count > 0

    def _drop(self) -> None:
        self._start = self._end = 0
        self._window = memoryview(b"")
        held, self._held = self._held, None
        if held is not None:
            held.__exit__(None, None, None)

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._now_or_left(self._drop_held)

    def _drop_held(self) -> None:
        with self._moving:
            self._drop()


class Reader(_FsspecFile, BufferedReader):
    """A file open for reading."""


class Writer(_FsspecFile, BufferedWriter):
    """A file open for writing."""


class ReadWriter(_FsspecFile, BufferedRandom):
    """A file open for both."""


class CachedReader(AbstractBufferedFile):  # type: ignore[misc]
    """A file read through one of fsspec's caches, for callers that choose one (`cache_type`)."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self.fs.cat_file(self.path, start, end))


FsspecFile = RawFile | Reader | Writer | ReadWriter


def open_file(
    fs: FireflyFileSystem, path: str, mode: str, block_size: int, temporary: str = "", *, hold: bool = True
) -> FsspecFile:
    """Open with a binary mode of `open`; `block_size` 0 is without a buffer. Raises OSError.

    `temporary`: the name that the bytes stand under until `commit`; its directory must be that of `path`.
    """
    client = fs.client
    flags = flags_of(mode)
    place = temporary or path
    with named(place):
        handle = open_inode(
            client.context, path_at(place), flags | (os.O_EXCL if temporary else 0), umask=client.umask, hold=hold
        )
    file: FsspecFile
    if not block_size:
        file = RawFile(handle, place, mode)
    elif not handle.writable:
        file = Reader(_Window(handle, place, mode, fs.windows, max(block_size, RANDOM_BYTES)), RANDOM_BYTES)
    else:
        raw = File(handle, place, mode)
        file = ReadWriter(raw, block_size) if handle.readable else Writer(raw, block_size)
    file.belong(fs, path, block_size, temporary, exclusive="x" in mode)
    return file


def _reopen(fs: FireflyFileSystem, path: str, block_size: int, position: int) -> FsspecFile:
    file = open_file(fs, path, "rb", block_size)
    file.seek(position)
    return file
