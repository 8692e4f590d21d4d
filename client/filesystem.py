"""A FireflyFS as Python's `os` would show it: `FileSystem.connect(...)`, then methods named as in `os` and `shutil`.

Paths start at the root, with or without a leading '/'; symbolic links resolve inside the file system. Errors are
OSError subclasses with the path, as from `os`. Safe to use from several threads; not across a fork.
"""

from __future__ import annotations

import builtins
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Any, AnyStr, overload

import numpy as np
import numpy.typing as npt

from fireflyfs.client import batch, range_reads
from fireflyfs.client.file import BUFFER_BYTES, BufferedFile, File, TextFile, buffered, flags_of
from fireflyfs.client.handle import open_inode
from fireflyfs.client.paths import DirEntry, StrPath, encode, path_at, stat_result, statvfs_result
from fireflyfs.client.session import ClientContext
from fireflyfs.client.xattrs import ExtendedAttributes, named
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.limits import LIST_ENTRIES_MAX
from fireflyfs.common.net.api import Memory
from fireflyfs.proto import meta_pb2
from fireflyfs.proto.common_pb2 import NODE_TYPE_CLIENT, Layout


class FileSystem(ExtendedAttributes):
    """One cluster's namespace, as one user sees it."""

    def __init__(self, context: ClientContext, *, umask: int = 0o022, own_context: bool = False) -> None:
        self.context = context
        self.umask = umask
        self._meta = context.meta
        self._own_context = own_context

    @staticmethod
    def connect(
        mgmtd: str | Sequence[str], *, umask: int | None = None, connect_timeout_s: float = 30.0, **options: Any
    ) -> FileSystem:
        """`mgmtd`: "host:port,host:port" or a list. Runs as this process's user, with its umask unless one is given.

        Raises OSError when no cluster manager answers in time. `options` go to `ClientContext.connect`; among them
        `link`: how bytes travel, auto, rdma, tcp or shm.
        """
        addresses = mgmtd.split(",") if isinstance(mgmtd, str) else list(mgmtd)
        if umask is None:
            umask = os.umask(0o077)
            os.umask(umask)
        with named(None):
            context = ClientContext.connect(addresses, NODE_TYPE_CLIENT, connect_timeout_s=connect_timeout_s, **options)
        return FileSystem(context, umask=umask, own_context=True)

    def close(self) -> None:
        """Close the connection. Files that are still open lose what they have not told yet: close them before."""
        if self._own_context:
            self.context.close()

    def __enter__(self) -> FileSystem:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Files
    def open_file(
        self,
        path: StrPath,
        flags: int = os.O_RDONLY,
        mode: int = 0o666,
        *,
        layout: Layout | None = None,
        hold: bool = True,
        follow: bool = True,
    ) -> File:
        """Open with O_* flags. `layout`: of a file that this creates. `hold`: see `handle.open_inode`."""
        with named(path):
            at = path_at(path, follow=follow and not flags & os.O_NOFOLLOW)
            handle = open_inode(self.context, at, flags, mode, umask=self.umask, layout=layout, hold=hold)
        return File(handle, os.fspath(path))

    def open(
        self,
        path: StrPath,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        layout: Layout | None = None,
        hold: bool = True,
    ) -> Any:
        """Like the builtin `open`. `buffering=0` (binary) gives a raw `File`, for large or random reads and writes."""
        flags = flags_of(mode)
        text = "b" not in mode
        if text and buffering == 0:
            raise ValueError("can't have unbuffered text I/O")
        if not text and (encoding or errors or newline):
            raise ValueError("binary mode takes no encoding, errors or newline")
        raw = self.open_file(path, flags, layout=layout, hold=hold)
        raw.mode = mode
        if buffering == 0:
            return raw
        file = buffered(raw, buffering if buffering > 1 else BUFFER_BYTES)
        if not text:
            return file
        wrapped = TextFile(file, encoding or "utf-8", errors, newline, line_buffering=buffering == 1)
        wrapped.mode = mode  # type: ignore[misc]
        return wrapped

    def read_bytes(self, path: StrPath) -> bytes:
        """All of a file."""
        with self.open_file(path) as file:
            return file.readall()

    def write_bytes(self, path: StrPath, data: Any, *, layout: Layout | None = None) -> int:
        """Make the file hold exactly `data`."""
        with self.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, layout=layout) as file:
            return file.write(data)

    def allocate(self, length: int) -> Memory:
        """Memory that storage servers of this host reach directly: pass its slices where buffers are taken."""
        with named(None):
            return self.context.pool.allocate(length)

    # Batches: see client/batch.py
    def read_batch(self, requests: Sequence[tuple[File | BufferedFile, int, Any]]) -> list[int]:
        """Many (file, offset, buffer) at once; how many bytes each got. Raises the first error."""
        return batch.read_batch(self.context, requests)

    def write_batch(self, requests: Sequence[tuple[File | BufferedFile, int, Any]]) -> list[int]:
        """Many (file, offset, data) at once. Raises the first error; others may be stored then."""
        return batch.write_batch(self.context, requests)

    def read_blocks(
        self, file: File | BufferedFile, offsets: npt.ArrayLike, length: int, into: Any
    ) -> npt.NDArray[np.int64]:
        """Blocks of one length from many offsets of one file, one after the other into one buffer."""
        return batch.read_blocks(self.context, file, offsets, length, into)

    def read_files(self, paths: Sequence[StrPath]) -> list[bytes | OSError]:
        """Whole small files at once: the bytes of each, or why not. Takes no more round trips than one file."""
        return range_reads.read_files(self.context, paths)

    def read_ranges(self, ranges: Sequence[range_reads.Range]) -> list[bytes | OSError]:
        """Ranges (path, start, end) of many files at once, each cut like `data[start:end]`: the bytes, or why not."""
        return range_reads.read_ranges(self.context, ranges)

    # Attributes
    def inode(self, path: StrPath, *, follow_symlinks: bool = True) -> meta_pb2.Inode:
        """All that is recorded of a file: attributes, layout, chains."""
        with named(path):
            return self._meta.stat(meta_pb2.StatRequest(at=path_at(path, follow=follow_symlinks))).inode

    def stat(self, path: StrPath, *, follow_symlinks: bool = True) -> os.stat_result:
        inode = self.inode(path, follow_symlinks=follow_symlinks)
        return stat_result(inode, self.context.inodes.length_of(inode))

    def lstat(self, path: StrPath) -> os.stat_result:
        return self.stat(path, follow_symlinks=False)

    def stat_batch(self, paths: Sequence[StrPath], *, follow_symlinks: bool = True) -> list[os.stat_result | OSError]:
        """Many at once, each its attributes or why not."""
        length_of = self.context.inodes.length_of
        found = self.inode_batch(paths, follow_symlinks=follow_symlinks)
        return [one if isinstance(one, OSError) else stat_result(one, length_of(one)) for one in found]

    def inode_batch(self, paths: Sequence[StrPath], *, follow_symlinks: bool = True) -> list[meta_pb2.Inode | OSError]:
        """As `inode`, of many at once, each or why not."""
        return batch.inodes(self.context, paths, follow_symlinks)

    def exists(self, path: StrPath) -> bool:
        try:
            self.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def isdir(self, path: StrPath) -> bool:
        return self._is(path, stat.S_ISDIR)

    def isfile(self, path: StrPath) -> bool:
        return self._is(path, stat.S_ISREG)

    def islink(self, path: StrPath) -> bool:
        try:
            return stat.S_ISLNK(self.lstat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def getsize(self, path: StrPath) -> int:
        return self.stat(path).st_size

    def access(self, path: StrPath, mode: int) -> bool:
        """Whether this user may: os.R_OK, W_OK, X_OK or F_OK."""
        try:
            self._meta.access(meta_pb2.AccessRequest(at=path_at(path), mask=mode))
        except FfsError as exc:
            if exc.code in (Code.ACCESS_DENIED, Code.NOT_PERMITTED, Code.NO_ENTRY, Code.NOT_DIRECTORY, Code.READ_ONLY):
                return False
            raise exc.to_oserror(os.fspath(path)) from exc
        return True

    def chmod(self, path: StrPath, mode: int, *, follow_symlinks: bool = True) -> None:
        self._set(path, follow_symlinks, mode=mode & 0o7777)

    def chown(self, path: StrPath, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        """-1 leaves one as it is."""
        owner = {name: value for name, value in (("uid", uid), ("gid", gid)) if value != -1}
        self._set(path, follow_symlinks, **owner)

    def utime(
        self,
        path: StrPath,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        if times is not None and ns is not None:
            raise ValueError("utime: you may specify either 'times' or 'ns' but not both")
        if times is not None:
            ns = (int(times[0] * 1e9), int(times[1] * 1e9))
        if ns is None:
            self._set(path, follow_symlinks, atime_now=True, mtime_now=True)
        else:
            self._set(path, follow_symlinks, atime_ns=ns[0], mtime_ns=ns[1])

    def truncate(self, path: StrPath, length: int) -> None:
        """Through an open file, so that the length is right where this client still has unreported writes."""
        with self.open_file(path, os.O_WRONLY) as file:
            file.truncate(length)

    def set_layout(self, path: StrPath, layout: Layout) -> None:
        """Of a directory: for what is created in it from now on; of an empty file: its own."""
        self._set(path, True, layout=layout)

    def statvfs(self, path: StrPath = "/") -> os.statvfs_result:
        with named(path):
            inode = self.inode(path).id  # of a directory with a quota that is what is left of it
            return statvfs_result(self._meta.stat_fs(meta_pb2.StatFsRequest(inode=inode)))

    # Names
    def listdir(self, path: StrPath = "/") -> list[Any]:
        """Names: bytes for a bytes path, else str."""
        as_bytes = isinstance(os.fspath(path), bytes)
        return [e.name if as_bytes else os.fsdecode(e.name) for e in self._entries(path, attributes=False)]

    @overload
    def scandir(self, path: AnyStr) -> Iterator[DirEntry[AnyStr]]: ...
    @overload
    def scandir(self, path: os.PathLike[AnyStr]) -> Iterator[DirEntry[AnyStr]]: ...
    @overload
    def scandir(self) -> Iterator[DirEntry[str]]: ...

    def scandir(self, path: Any = "/") -> Iterator[DirEntry[Any]]:
        """Entries with attributes, page by page; the order is by name."""
        base = os.fspath(path)
        for entry in self._entries(path, attributes=True):
            name = entry.name if isinstance(base, bytes) else os.fsdecode(entry.name)
            yield DirEntry(name, os.path.join(base, name), entry, self.stat, self.context.inodes.length_of)

    def mkdir(self, path: StrPath, mode: int = 0o777, *, layout: Layout | None = None) -> None:
        self._make(path, mode, parents=False, layout=layout)

    def makedirs(
        self, path: StrPath, mode: int = 0o777, exist_ok: bool = False, *, layout: Layout | None = None
    ) -> None:
        """With missing parents, in one request."""
        if not exist_ok and self.exists(path):
            raise FfsError(Code.EXISTS).to_oserror(os.fspath(path))
        self._make(path, mode, parents=True, layout=layout)

    def mknod(self, path: StrPath, mode: int = 0o600, device: int = 0) -> None:
        kind = mode if stat.S_IFMT(mode) else mode | stat.S_IFREG
        with named(path):
            self._meta.make_node(
                meta_pb2.MakeNodeRequest(at=path_at(path, follow=False), mode=kind, umask=self.umask, rdev=device)
            )

    def unlink(self, path: StrPath) -> None:
        self._remove(path, meta_pb2.REMOVE_UNLINK)

    remove = unlink

    def rmdir(self, path: StrPath) -> None:
        self._remove(path, meta_pb2.REMOVE_RMDIR)

    def rmtree(self, path: StrPath) -> None:
        """A directory with all that is in it, in one request; the space comes back in the background."""
        self._remove(path, meta_pb2.REMOVE_RECURSIVE)

    def rename(self, old: StrPath, new: StrPath, *, flags: int = 0) -> None:
        """Replaces `new` atomically. `flags`: RENAME_NOREPLACE (1), RENAME_EXCHANGE (2)."""
        with named(old):
            self._meta.rename(
                meta_pb2.RenameRequest(old=path_at(old, follow=False), new=path_at(new, follow=False), flags=flags)
            )

    replace = rename

    def link(self, src: StrPath, dst: StrPath, *, follow_symlinks: bool = False) -> None:
        with named(dst):
            self._meta.link(
                meta_pb2.LinkRequest(old=path_at(src, follow=follow_symlinks), new=path_at(dst, follow=False))
            )

    def symlink(self, target: StrPath, path: StrPath) -> None:
        with named(path):
            self._meta.symlink(meta_pb2.SymlinkRequest(at=path_at(path, follow=False), target=encode(target)))

    def readlink(self, path: StrPath) -> Any:
        """bytes for a bytes path, else str."""
        with named(path):
            target = self._meta.readlink(meta_pb2.ReadlinkRequest(at=path_at(path, follow=False))).target
        return target if isinstance(os.fspath(path), bytes) else os.fsdecode(target)

    def realpath(self, path: StrPath) -> Any:
        """The path without symbolic links. bytes for a bytes path, else str."""
        with named(path):
            real = self._meta.real_path(meta_pb2.RealPathRequest(at=path_at(path))).path
        return real if isinstance(os.fspath(path), bytes) else os.fsdecode(real)

    def walk(
        self, top: str, topdown: bool = True, onerror: Any = None, followlinks: bool = False
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        """Like os.walk, one request for each directory."""
        try:
            entries = builtins.list(self.scandir(top))
        except OSError as exc:
            if onerror is not None:
                onerror(exc)
            return
        dirs: list[str] = []
        files: list[str] = []
        for entry in entries:
            try:
                is_dir = entry.is_dir()
            except OSError:  # a link that leads to itself, through a file, or where one may not go
                is_dir = False
            (dirs if is_dir else files).append(entry.name)
        links = {entry.name for entry in entries if entry.is_symlink()}
        if topdown:
            yield top, dirs, files
        for name in dirs:
            if followlinks or name not in links:
                yield from self.walk(os.path.join(top, name), topdown, onerror, followlinks)
        if not topdown:
            yield top, dirs, files

    def _entries(self, path: StrPath, *, attributes: bool) -> Iterator[meta_pb2.DirEntry]:
        after = b""
        while True:
            with named(path):
                request = meta_pb2.ListRequest(
                    at=path_at(path), after=after, limit=LIST_ENTRIES_MAX, attributes=attributes
                )
                reply = self._meta.list(request)
            yield from (entry for entry in reply.entries if entry.name not in (b".", b".."))
            if not reply.more or not reply.entries:
                return
            after = reply.entries[-1].name

    def _make(self, path: StrPath, mode: int, *, parents: bool, layout: Layout | None) -> None:
        with named(path):
            self._meta.make_node(
                meta_pb2.MakeNodeRequest(
                    at=path_at(path, follow=parents),
                    mode=stat.S_IFDIR | (mode & 0o7777),
                    umask=self.umask,
                    parents=parents,
                    layout=layout,
                )
            )

    def _remove(self, path: StrPath, kind: meta_pb2.RemoveKind) -> None:
        with named(path):
            self._meta.remove(meta_pb2.RemoveRequest(at=path_at(path, follow=False), kind=kind))

    def _set(self, path: StrPath, follow: bool, **fields: Any) -> None:
        with named(path):
            reply = self._meta.set_attr(meta_pb2.SetAttrRequest(at=path_at(path, follow=follow), **fields))
            state = self.context.inodes.get(reply.inode.id)
            if state is not None:
                state.learn(reply.inode)

    def _is(self, path: StrPath, kind: Any) -> bool:
        try:
            return bool(kind(self.stat(path).st_mode))
        except (FileNotFoundError, NotADirectoryError):
            return False
