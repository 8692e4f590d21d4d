"""Whole files and ranges: into memory, out of it, to local files and back, and from file to file inside the cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.utils import isfilelike

from fireflyfs.client.file import File
from fireflyfs.client.fsspec.connections import Connected
from fireflyfs.client.range_reads import Range
from fireflyfs.client.storage_codec import part_of, view_of
from fireflyfs.common.limits import MiB
from fireflyfs.common.net.api import Piece, tainted

T = TypeVar("T")

TRANSFER_BYTES = 4 * MiB  # moved at once between a local file and the cluster
COPY_BYTES = 256 * MiB  # copied inside the cluster between two steps of a callback


class Transfers(Connected):
    """Part of `FireflyFileSystem`."""

    auto_mkdir: bool
    _strip_protocol: Callable[[Any], Any]
    expand_path: Callable[..., list[str]]
    lexists: Callable[[str], bool]
    open: Callable[..., Any]
    _intrans: bool

    # Into memory
    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Bytes [start, end), as a slice takes them."""
        (found,) = self.client.read_ranges([Range(self._strip_protocol(path), start, end)])
        if isinstance(found, OSError):
            raise found
        return found

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | Sequence[int | None] | None,
        ends: int | Sequence[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        """All ranges at once: a few requests, whatever their number. `max_gap` changes nothing: none costs extra."""
        if not isinstance(paths, list):
            raise TypeError(f"paths must be a list, not {type(paths).__name__}")
        begins, stops = _each(starts, len(paths)), _each(ends, len(paths))
        if len(begins) != len(paths) or len(stops) != len(paths):
            raise ValueError(f"{len(paths)} paths, {len(begins)} starts, {len(stops)} ends")
        ranges = [
            Range(path, start, end) for path, start, end in zip(self._strip_protocol(paths), begins, stops, strict=True)
        ]
        return _checked(self.client.read_ranges(ranges), on_error)

    def cat(
        self,
        path: Any,
        recursive: bool = False,
        on_error: str = "raise",
        start: int | None = None,
        end: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """The bytes [start, end) of one file; of several paths, or a pattern, a dictionary."""
        paths = self.expand_path(path, recursive=recursive, **kwargs)
        if len(paths) == 1 and not isinstance(path, list) and paths[0] == self._strip_protocol(path):
            return self.cat_file(paths[0], start, end)
        found = self.client.read_ranges([Range(name, start, end) for name in paths])
        if on_error == "omit":
            return {name: data for name, data in zip(paths, found, strict=True) if not isinstance(data, OSError)}
        return dict(zip(paths, _checked(found, on_error), strict=True))

    # From memory
    def pipe_file(self, path: str, value: Any, mode: str = "overwrite", **_: Any) -> None:
        """Make the file hold exactly `value`, any buffer. `mode="create"` raises FileExistsError if it is there."""
        with self._open_new(self._strip_protocol(path), mode) as file:
            file.write(value)

    # Local files
    def get_file(
        self, rpath: str, lpath: Any = None, callback: Any = DEFAULT_CALLBACK, outfile: Any = None, **_: Any
    ) -> None:
        """To a local path or an open file. A directory is only made."""
        rpath = self._strip_protocol(rpath)
        if outfile is None and isfilelike(lpath):
            outfile = lpath
        try:
            source = self.client.open_file(rpath)
        except IsADirectoryError:
            if outfile is not None:
                raise
            os.makedirs(lpath, exist_ok=True)
            return
        with source:
            if outfile is not None:
                self._copy_out(source, outfile, callback)
                return
            os.makedirs(os.path.dirname(os.path.abspath(lpath)), exist_ok=True)
            with open(lpath, "wb", buffering=0) as local:
                self._copy_out(source, local, callback)

    def put_file(
        self, lpath: Any, rpath: str, callback: Any = DEFAULT_CALLBACK, mode: str = "overwrite", **_: Any
    ) -> None:
        """A local file. A directory is only made. `mode="create"` raises FileExistsError if there is one."""
        rpath = self._strip_protocol(rpath)
        if os.path.isdir(lpath):
            self.client.makedirs(rpath, exist_ok=True)
            return
        with open(lpath, "rb", buffering=0) as local:
            size = os.fstat(local.fileno()).st_size
            callback.set_size(size)
            with (
                self._open_new(rpath, mode) as target,
                self.client.context.scratch.take(min(TRANSFER_BYTES, max(size, 1))) as piece,
            ):
                view = view_of(piece)
                while count := local.readinto(view):
                    target.write(part_of(piece, 0, count))
                    callback.relative_update(count)

    # Inside the cluster
    def cp_file(self, path1: str, path2: str, callback: Any = DEFAULT_CALLBACK, **_: Any) -> None:
        """Chunk by chunk from storage to storage. A directory is only made."""
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        try:
            source = self.client.open_file(path1)
        except IsADirectoryError:
            self.client.makedirs(path2, exist_ok=True)
            return
        flags = os.O_WRONLY | os.O_CREAT
        with (
            source,
            self._making_parents(path2, lambda: self.client.open_file(path2, flags)) as target,
        ):
            if source.inode.id == target.inode.id:
                raise ValueError(f"{path1} and {path2} are one file")
            if target.length:  # not O_TRUNC, which would also cut a source that both names lead to
                target.truncate(0)
            callback.set_size(source.length)
            at = 0
            while count := target.copy_from(source, at, at, COPY_BYTES):
                at += count
                callback.relative_update(count)

    def _open_new(self, path: str, mode: str) -> File:
        """To write all of a file, without a buffer; part of the transaction, if there is one."""
        if self._intrans:
            file: File = self.open(path, "xb" if mode == "create" else "wb", block_size=0)
            return file
        flags = os.O_WRONLY | os.O_CREAT | (os.O_EXCL if mode == "create" else os.O_TRUNC)
        return self._making_parents(path, lambda: self.client.open_file(path, flags))

    def _copy_out(self, source: File, local: Any, callback: Any) -> None:
        callback.set_size(source.length)
        late = True
        while late:
            with self.client.context.scratch.take(min(TRANSFER_BYTES, max(source.length, 1))) as piece:
                late = _copy_through(piece, source, local, callback)

    def _making_parents(self, path: str, do: Callable[[], T], source: str = "") -> T:
        """`do` what makes `path`, and once more with its directories made if they were missing.

        `source`: what must be there for that.
        """
        try:
            return do()
        except FileNotFoundError:
            if not self.auto_mkdir or (source and not self.lexists(source)):
                raise
        self.client.makedirs(os.path.dirname(path), exist_ok=True)  # another thread may have made it meanwhile
        return do()


def _each(bounds: Any, count: int) -> list[int | None]:
    return list(bounds) if isinstance(bounds, (list, tuple)) or hasattr(bounds, "__len__") else [bounds] * count


def _checked(found: list[bytes | OSError], on_error: str) -> list[Any]:
    if on_error != "return":
        for one in found:
            if isinstance(one, OSError):
                raise one
    return found


def _copy_through(piece: Piece, source: File, local: Any, callback: Any) -> bool:
    """Copy to the end. Or until a server that did not answer may still write to `piece`: True, go on in another."""
    view = view_of(piece)
    while count := source.readinto(piece):
        if tainted(piece):
            source.seek(-count, os.SEEK_CUR)
            return True
        done = 0
        while done < count:
            done += local.write(view[done:count])
        callback.relative_update(count)
    return False
