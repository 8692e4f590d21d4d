"""Paths and attributes between Python's own types and the messages. Pure."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import AnyStr, Generic

from fireflyfs.common.errors import Code, error
from fireflyfs.common.ids import ROOT_INODE
from fireflyfs.common.limits import PATH_BYTES_MAX
from fireflyfs.proto import meta_pb2

StrPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_SECOND_NS = 1_000_000_000
BLOCK_BYTES = 512  # the unit of st_blocks, whatever the chunk size


def encode(path: StrPath) -> bytes:
    """The path as the file system knows it. Raises INVALID, NO_ENTRY (empty) or NAME_TOO_LONG."""
    raw = os.fsencode(path)
    if not raw:
        raise error(Code.NO_ENTRY, "empty path")
    if b"\0" in raw:
        raise error(Code.INVALID, "a path cannot hold a NUL byte")
    if len(raw) > PATH_BYTES_MAX:
        raise error(Code.NAME_TOO_LONG, f"a path of {len(raw)} bytes")
    return raw


def path_at(path: StrPath, *, follow: bool = True) -> meta_pb2.PathAt:
    """From the root: a relative path starts there too."""
    return meta_pb2.PathAt(dir=ROOT_INODE, path=encode(path), follow=follow)


def stat_result(inode: meta_pb2.Inode, length: int | None = None) -> os.stat_result:
    """As os.stat gives it. `length`: what this client wrote may be more than meta knows."""
    size = inode.length if length is None else length
    atime_ns, mtime_ns, ctime_ns, mode = inode.atime_ns, inode.mtime_ns, inode.ctime_ns, inode.mode
    # All in one sequence: with the further fields in a dictionary it takes twice as long.
    return os.stat_result(
        (
            mode, inode.id, 0, inode.nlink, inode.uid, inode.gid, size,
            atime_ns // _SECOND_NS, mtime_ns // _SECOND_NS, ctime_ns // _SECOND_NS,
            atime_ns / 1e9, mtime_ns / 1e9, ctime_ns / 1e9,
            atime_ns, mtime_ns, ctime_ns,
            inode.layout.chunk_size or 4096,
            -(-size // BLOCK_BYTES) if stat.S_ISREG(mode) else 0,
            inode.rdev,
        )
    )  # fmt: skip


def statvfs_result(reply: meta_pb2.StatFsReply) -> os.statvfs_result:
    """As os.statvfs gives it."""
    block = reply.block_bytes or 4096
    free = reply.free_bytes // block
    # Where no quota limits them, inodes are limited by nothing but their ids.
    spare = reply.free_files if reply.HasField("free_files") else (1 << 48) - min(reply.files, 1 << 48)
    return os.statvfs_result(
        (block, block, reply.capacity_bytes // block, free, free, reply.files + spare, spare, spare, 0, 255)
    )


class DirEntry(Generic[AnyStr]):
    """What os.scandir gives: a name with its attributes already there."""

    __slots__ = ("_attributes", "_follow", "_inode", "_length_of", "_mode", "name", "path")

    def __init__(
        self,
        name: AnyStr,
        path: AnyStr,
        entry: meta_pb2.DirEntry,
        follow: object,
        length_of: Callable[[meta_pb2.Inode], int] | None = None,
    ) -> None:
        self.name: AnyStr = name
        self.path: AnyStr = path
        self._inode = entry.inode
        self._mode = entry.mode
        self._attributes = entry.attributes if entry.HasField("attributes") else None
        self._follow = follow  # FileSystem.stat
        self._length_of = length_of  # with what this client wrote and meta does not know yet

    def inode(self) -> int:
        return self._inode

    @property
    def attributes(self) -> meta_pb2.Inode | None:
        """All that is recorded of the entry itself, as the listing brought it."""
        return self._attributes

    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self._mode)

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._is(stat.S_ISDIR, follow_symlinks)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self._is(stat.S_ISREG, follow_symlinks)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Without another request, except for what a symbolic link leads to."""
        if self._attributes is not None and not (follow_symlinks and self.is_symlink()):
            return stat_result(self._attributes, self._length_of(self._attributes) if self._length_of else None)
        result: os.stat_result = self._follow(self.path, follow_symlinks=follow_symlinks)  # type: ignore[operator]
        return result

    def __fspath__(self) -> AnyStr:
        return self.path

    def __repr__(self) -> str:
        return f"<fireflyfs DirEntry {self.name!r}>"

    def _is(self, kind: object, follow: bool) -> bool:
        if follow and self.is_symlink():
            try:
                mode = self.stat().st_mode
            except FileNotFoundError:
                return False
        else:
            mode = self._mode
        return bool(kind(mode))  # type: ignore[operator]
