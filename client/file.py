"""Files as Python programs know them. Errors are OSError with the file's name.

`File` is raw: each call is one request. `BufferedFile` is what `FileSystem.open` gives by default: Python's own
buffering on top, with the methods of `File` still there. One that nobody closed is closed when it goes, with a
ResourceWarning; who closes it then, see `left_to_collector`.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from fireflyfs.client import left_to_collector
from fireflyfs.client.handle import READ_AT_ONCE_BYTES_MAX, OpenInode
from fireflyfs.client.scratch import Unfilled
from fireflyfs.client.storage_codec import length_of, view_of
from fireflyfs.common.errors import FfsError
from fireflyfs.common.limits import FILE_BYTES_MAX, MiB
from fireflyfs.common.net.api import Piece, Slice
from fireflyfs.proto import meta_pb2

BUFFER_BYTES = MiB


def as_piece(buffer: Any) -> Piece:
    """Any buffer, or a slice of shared memory, as a link takes it. Raises TypeError for one that is not contiguous."""
    if isinstance(buffer, Slice):
        return buffer
    view = buffer if isinstance(buffer, memoryview) else memoryview(buffer)
    return view if view.format == "B" and view.ndim == 1 and view.contiguous else view.cast("B")


def flags_of(mode: str) -> int:
    """O_* flags of a mode of `open`: "r", "w", "a" or "x", with "+", "b" or "t"."""
    kinds = [letter for letter in mode if letter in "rwax"]
    if len(kinds) != 1 or len(set(mode)) != len(mode) or set(mode) - set("rwax+bt") or {"b", "t"} <= set(mode):
        raise ValueError(f"invalid mode: {mode!r}")
    access = os.O_RDWR if "+" in mode else os.O_RDONLY if kinds[0] == "r" else os.O_WRONLY
    extra = {"r": 0, "w": os.O_CREAT | os.O_TRUNC, "a": os.O_CREAT | os.O_APPEND, "x": os.O_CREAT | os.O_EXCL}
    return access | extra[kinds[0]]


class File(io.RawIOBase):
    """An open file. Safe to use from several threads; the position is shared like a file descriptor's.

    `wrapped`: it belongs to a buffered file, which must write what it holds before this one is closed.
    """

    wrapped = False

    def __init__(self, handle: OpenInode, name: str | bytes, mode: str = "") -> None:
        left_to_collector.start()
        self.handle = handle
        self.name = name
        self.mode = mode
        self._append = bool(handle.flags & os.O_APPEND)
        self._position = handle.length if self._append else 0  # as Python's own files begin
        self._moving = threading.RLock()

    @property
    def inode(self) -> meta_pb2.Inode:
        """Attributes as the metadata service said last."""
        return self.handle.inode

    @property
    def length(self) -> int:
        """Bytes, as this client sees the file."""
        return self.handle.length

    def pread(self, length: int, offset: int) -> bytes:
        """Like os.pread, but short only at the end of the file."""
        with self._errors():
            count = self.handle.room(offset, length)
            if count <= READ_AT_ONCE_BYTES_MAX:
                return self.handle.pread(offset, count)
            whole = Unfilled(count)
            done = self.handle.pread_into(offset, whole.view)
            data = whole.filled()
            return data if done == count else data[:done]  # it was cut meanwhile

    def readinto_at(self, buffer: Any, offset: int) -> int:
        """Fill `buffer` (any writable buffer, or a Slice) from `offset`; how many bytes there were."""
        with self._errors():
            return self.handle.pread_into(offset, as_piece(buffer))

    def pwrite(self, data: Any, offset: int) -> int:
        """Store all of `data` at `offset`."""
        with self._errors():
            return self.handle.pwrite(offset, as_piece(data))

    def pwrite_many(self, extents: Sequence[tuple[Any, int]]) -> int:
        """Store many (data, offset) in one go."""
        with self._errors():
            return self.handle.pwrite_many([(offset, as_piece(data)) for data, offset in extents])

    def copy_from(self, source: File, source_offset: int = 0, offset: int = 0, length: int = FILE_BYTES_MAX) -> int:
        """Copy bytes of another file to `offset` inside the cluster: none pass through here. How many there were."""
        with self._errors():
            return self.handle.copy_from(source.handle, source_offset, offset, length)

    def fsync(self) -> None:
        """What was written survives a power cut when this returns."""
        with self._errors():
            self.handle.fsync()

    def refresh(self) -> meta_pb2.Inode:
        """See what others closed or synced since this file was opened."""
        with self._errors():
            return self.handle.refresh()

    # io.RawIOBase
    def readable(self) -> bool:
        self._check_open()
        return self.handle.readable

    def writable(self) -> bool:
        self._check_open()
        return self.handle.writable

    def seekable(self) -> bool:
        self._check_open()
        return True

    def fileno(self) -> int:
        raise io.UnsupportedOperation("a file of FireflyFS has no descriptor; mount the file system to get one")

    def readinto(self, buffer: Any) -> int:
        self._check_open()
        with self._moving:
            count = self.readinto_at(buffer, self._position)
            self._position += count
            return count

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            return self.readall()
        self._check_open()
        with self._moving:
            data = self.pread(size, self._position)
            self._position += len(data)
            return data

    def readall(self) -> bytes:
        self._check_open()
        with self._moving:
            data = self.pread(max(0, self.handle.length - self._position), self._position)
            self._position += len(data)
            return data

    def write(self, data: Any) -> int:
        self._check_open()
        if left_to_collector.collects():  # out of a buffer that was not flushed
            kept = bytes(view_of(as_piece(data)))
            left_to_collector.leave(lambda: self._write(kept))
            return len(kept)
        return self._write(data)

    def _write(self, data: Any) -> int:
        with self._moving:
            if self._append:
                piece = as_piece(data)
                size = length_of(piece)
                with self._errors():
                    self._position = self.handle.append(piece) + size
                return size
            count = self.pwrite(data, self._position)
            self._position += count
            return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check_open()
        with self._moving:
            base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.handle.length}.get(whence)
            if base is None:
                raise ValueError(f"unsupported whence {whence}")
            if base + offset < 0:
                raise OSError(22, "Invalid argument", self.name)
            self._position = base + offset
            return self._position

    def tell(self) -> int:
        self._check_open()
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self._check_open()
        wanted = self._position if size is None else size
        with self._errors():
            self.handle.truncate(wanted)
        return wanted

    def flush(self) -> None:
        """Make length and time of what was written visible to other clients."""
        if not self.closed and self.handle.writable:
            self._now_or_left(self.handle.flush)

    def close(self) -> None:
        if self.closed:
            return
        try:
            self._now_or_left(self.handle.close)  # tells meta what flush would
        finally:
            super().close()

    def __del__(self) -> None:
        if not self.wrapped:
            if not self.closed:
                self._dealloc_warn(self)
            super().__del__()

    def _dealloc_warn(self, source: object) -> None:
        """As Python's own files have it, whose wrappers call this."""
        warnings.warn(f"unclosed file {source!r}", ResourceWarning, stacklevel=2, source=source)

    def _now_or_left(self, work: Callable[[], object]) -> None:
        def named() -> None:
            with self._errors():
                work()

        if left_to_collector.collects():
            left_to_collector.leave(named)
        else:
            named()

    def __repr__(self) -> str:
        return f"<fireflyfs File {self.name!r} inode {self.handle.file.inode} mode {self.mode!r}>"

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except FfsError as exc:
            raise exc.to_oserror(self.name) from exc


class _Buffered:
    """The methods of `File` on a buffered one: what stands in the buffer is written first."""

    raw: File
    wrapped = False

    def __init__(self, raw: File, *arguments: Any) -> None:
        super().__init__(raw, *arguments)  # type: ignore[call-arg]
        raw.wrapped = True

    def __del__(self) -> None:
        if not self.wrapped:
            super().__del__()  # type: ignore[misc]

    def detach(self) -> File:
        raw: File = super().detach()  # type: ignore[misc]
        raw.wrapped = False
        return raw

    @property
    def handle(self) -> OpenInode:
        return self.raw.handle

    @property
    def inode(self) -> meta_pb2.Inode:
        return self.raw.inode

    @property
    def length(self) -> int:
        self._spill()
        return self.raw.length

    def pread(self, length: int, offset: int) -> bytes:
        self._spill()
        return self.raw.pread(length, offset)

    def readinto_at(self, buffer: Any, offset: int) -> int:
        self._spill()
        return self.raw.readinto_at(buffer, offset)

    def pwrite(self, data: Any, offset: int) -> int:
        self._spill()
        return self.raw.pwrite(data, offset)

    def pwrite_many(self, extents: Sequence[tuple[Any, int]]) -> int:
        self._spill()
        return self.raw.pwrite_many(extents)

    def fsync(self) -> None:
        self._spill()
        self.raw.fsync()

    def refresh(self) -> meta_pb2.Inode:
        self._spill()
        return self.raw.refresh()

    def _spill(self) -> None:
        if self.raw.writable():
            cast(io.BufferedIOBase, self).flush()


class BufferedReader(_Buffered, io.BufferedReader):
    """A file open for reading."""

    raw: File


class BufferedWriter(_Buffered, io.BufferedWriter):
    """A file open for writing."""

    raw: File


class BufferedRandom(_Buffered, io.BufferedRandom):
    """A file open for both."""

    raw: File


BufferedFile = BufferedReader | BufferedWriter | BufferedRandom


class TextFile(io.TextIOWrapper):
    """Text over a buffered file."""

    def __init__(self, buffer: BufferedFile, *arguments: Any, **options: Any) -> None:
        super().__init__(buffer, *arguments, **options)
        buffer.wrapped = True

    def detach(self) -> Any:
        buffer: Any = super().detach()
        buffer.wrapped = False
        return buffer


def buffered(raw: File, buffer_bytes: int = BUFFER_BYTES) -> BufferedFile:
    """Python's buffering over `raw`."""
    if raw.readable() and raw.writable():
        return BufferedRandom(raw, buffer_bytes)
    return BufferedReader(raw, buffer_bytes) if raw.readable() else BufferedWriter(raw, buffer_bytes)
