"""`ffs://` for fsspec: names, attributes and bytes of a cluster, without a mount.

Blocking, on the client library: batched blocking requests are the fastest shape of a Python client. Listings and
attributes are not cached: what another client closed is seen at once. Errors are OSError subclasses, as from `os`.
"""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path

from fireflyfs.client.fsspec import connections, details, urls
from fireflyfs.client.fsspec.details import Info
from fireflyfs.client.fsspec.files import BLOCK_BYTES, BLOCK_BYTES_MAX, CachedReader, FsspecFile, open_file
from fireflyfs.client.fsspec.many import ManyFiles

_OF_FSSPEC = ("use_listings_cache", "listings_expiry_time", "max_paths", "asynchronous", "loop")
_NOWHERE = (FileNotFoundError, NotADirectoryError)


class FireflyFileSystem(ManyFiles, AbstractFileSystem):  # type: ignore[misc]
    """One cluster for fsspec. Instances are cheap; all of a process share one connection to a cluster.

    `mgmtd`: "host:port,..." or a list. Without it FFS_MGMTD counts, or the local cluster in `root` (FFS_ROOT), as for
    the command line. `auto_mkdir`: writing a file makes missing directories, as object stores' users expect.
    `block_size`: what a file reads ahead and collects for writing. Unknown options raise TypeError.
    """

    protocol = urls.SCHEME
    root_marker = "/"
    blocksize = BLOCK_BYTES

    def __init__(
        self,
        mgmtd: str | Sequence[str] | None = None,
        *,
        root: str | os.PathLike[str] = "",
        cluster_id: str = "",
        shared_memory: bool = True,
        umask: int | None = None,
        connect_timeout_s: float = 30.0,
        auto_mkdir: bool = True,
        block_size: int = BLOCK_BYTES,
        **storage_options: Any,
    ) -> None:
        if unknown := sorted(set(storage_options) - set(_OF_FSSPEC)):
            raise TypeError(f"ffs:// has no storage option {', '.join(unknown)}")
        super().__init__(**storage_options)
        text = mgmtd if isinstance(mgmtd, str) else ",".join(mgmtd or ())
        self._where = connections.Where(
            mgmtd=urls.addresses(text) if text else (),
            root=os.fspath(root),
            cluster_id=cluster_id,
            shared_memory=shared_memory,
            umask=umask,
            connect_timeout_s=connect_timeout_s,
        )
        self.auto_mkdir = auto_mkdir
        self.blocksize = _checked(block_size)

    @property
    def fsid(self) -> str:
        return f"{urls.SCHEME}-{self.client.context.mgmtd.cluster_id}"

    # URLs
    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return urls.split(stringify_path(path))[1]

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        managers, _ = urls.split(stringify_path(path))
        return {"mgmtd": ",".join(managers)} if managers else {}

    def unstrip_protocol(self, name: str) -> str:
        """The URL of a path, with the cluster's managers: it can be opened by others."""
        return urls.join(self._where.mgmtd, self._strip_protocol(name))

    @classmethod
    def _parent(cls, path: str) -> str:
        return os.path.dirname(str(cls._strip_protocol(path)))

    # Attributes
    def info(self, path: str, **_: Any) -> Info:
        """Of what a link leads to, under the link's name. Type "other" is a device, pipe, or link to nowhere."""
        path = self._strip_protocol(path)
        inode = self.client.inode(path, follow_symlinks=False)
        return self._resolved([details.info_of(path, inode, self.client.context.inodes.length_of(inode))])[0]

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """Entries in the order of their names; attributes come with the listing, not one by one."""
        path = self._strip_protocol(path)
        try:
            entries = list(self.client.scandir(path) if detail else self.client.listdir(path))
        except NotADirectoryError:
            info = self.info(path)
            return [info] if detail else [path]
        if not detail:
            return [os.path.join(path, name) for name in entries]
        length_of = self.client.context.inodes.length_of
        return self._resolved(
            [details.info_of(e.path, e.attributes, length_of(e.attributes)) for e in entries if e.attributes]
        )

    def _resolved(self, infos: list[Info]) -> list[Info]:
        """With links followed: one request for what they all lead to."""
        links = [number for number, info in enumerate(infos) if stat.S_ISLNK(info["mode"])]
        if not links:
            return infos
        targets = self.client.inode_batch([infos[number]["name"] for number in links])
        for number, target in zip(links, targets, strict=True):
            name = infos[number]["name"]
            with contextlib.suppress(*_NOWHERE):  # the link went meanwhile: shown as it was listed
                length = 0 if isinstance(target, OSError) else self.client.context.inodes.length_of(target)
                found = None if isinstance(target, OSError) else details.info_of(name, target, length)
                infos[number] = details.link_of(infos[number], self.client.readlink(name), found)
        return infos

    def walk(
        self, path: str, maxdepth: int | None = None, topdown: bool = True, on_error: Any = "omit", **kwargs: Any
    ) -> Iterator[tuple[str, Any, Any]]:
        """As fsspec has it; one request for each page of a directory. Links to directories are not entered."""
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        path = self._strip_protocol(path)
        detail = kwargs.pop("detail", False)
        try:
            listing = self.ls(path)
        except OSError as exc:
            if on_error == "raise":
                raise
            if callable(on_error):
                on_error(exc)
            return
        inside = [info for info in listing if info["name"] != path]  # a file lists itself
        dirs = {os.path.basename(info["name"]): info for info in inside if info["type"] == "directory"}
        files = {os.path.basename(info["name"]): info for info in listing if info["type"] != "directory"}
        shown: tuple[str, Any, Any] = (path, dirs, files) if detail else (path, list(dirs), list(files))
        if topdown:
            yield shown
        if maxdepth is None or maxdepth > 1:
            below = None if maxdepth is None else maxdepth - 1
            for name in list(shown[1]):  # the caller may have taken some out
                info = dirs.get(name)
                if info is not None and not info["islink"]:
                    yield from self.walk(
                        info["name"], maxdepth=below, topdown=topdown, on_error=on_error, detail=detail, **kwargs
                    )
        if not topdown:
            yield shown

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs: Any
    ) -> Any:
        path = self._strip_protocol(path)
        found: dict[str, Info] = super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=True, **kwargs)
        if list(found.values()) == [{}]:  # fsspec knows nothing of a path that is a file itself
            found = {path: self.info(path)}
        return found if detail else list(found)

    def du(
        self, path: str, total: bool = True, maxdepth: int | None = None, withdirs: bool = False, **kwargs: Any
    ) -> Any:
        """Bytes of the files below: what their lengths are, not what replicas take. No request for each file."""
        found = self.find(path, maxdepth=maxdepth, withdirs=withdirs, detail=True, **kwargs)
        sizes = {name: info["size"] for name, info in found.items()}
        return sum(sizes.values()) if total else sizes

    def exists(self, path: str, **_: Any) -> bool:
        """Raises OSError when the cluster cannot tell: "no" is never a guess."""
        return self.client.exists(self._strip_protocol(path))

    def lexists(self, path: str, **_: Any) -> bool:
        """Also true of a link that leads nowhere."""
        try:
            self.client.lstat(self._strip_protocol(path))
        except _NOWHERE:
            return False
        return True

    def isdir(self, path: str) -> bool:
        return self.client.isdir(self._strip_protocol(path))

    def isfile(self, path: str) -> bool:
        return self.client.isfile(self._strip_protocol(path))

    def islink(self, path: str) -> bool:
        return self.client.islink(self._strip_protocol(path))

    def created(self, path: str) -> datetime:
        return datetime.fromtimestamp(self.info(path)["created"], UTC)

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(self.info(path)["mtime"], UTC)

    def ukey(self, path: str) -> str:
        """Another one when the file has other bytes."""
        return details.fingerprint(self.info(path))

    def checksum(self, path: str) -> int:
        return int(self.ukey(path), 16)

    def chmod(self, path: str, mode: int) -> None:
        self.client.chmod(self._strip_protocol(path), mode)

    # Names
    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        path = self._strip_protocol(path)
        if create_parents:
            self.client.makedirs(path)
        else:
            self.client.mkdir(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self.client.makedirs(self._strip_protocol(path), exist_ok=exist_ok)

    def rmdir(self, path: str) -> None:
        self.client.rmdir(self._strip_protocol(path))

    def rm_file(self, path: str) -> None:
        self.client.unlink(self._strip_protocol(path))

    _rm = rm_file

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """A tree goes in one request, whatever its size. Without `recursive` a directory raises IsADirectoryError."""
        if recursive and maxdepth is not None:
            super().rm(path, recursive=True, maxdepth=maxdepth)
            return
        trees: set[str] = set()
        for one in self.expand_path(path):  # sorted: what holds others comes before them
            if not trees.isdisjoint(urls.above(one)):
                continue
            if recursive and self.isdir(one) and not self.islink(one):
                self.client.rmtree(one)
                trees.add(one)
            else:
                self.client.unlink(one)

    def mv(self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **_: Any) -> None:
        """Each file or tree moves in one step, for everybody at once; a file takes the place of another one.

        Into `path2`, if that is a directory or ends with '/'. A tree moves whole, `recursive` or not.
        """
        if isinstance(path1, list) and isinstance(path2, list):
            pairs = list(zip(self._strip_protocol(path1), self._strip_protocol(path2), strict=True))
        else:
            sources = self.expand_path(path1)
            into = stringify_path(path2).endswith("/") or len(sources) > 1 or self.isdir(path2)
            target = self._strip_protocol(path2)
            pairs = [(one, os.path.join(target, os.path.basename(one)) if into else target) for one in sources]
        for old, new in pairs:
            if old != new:
                self._making_parents(new, partial(self.client.rename, old, new), source=old)

    def link(self, src: str, dst: str, **_: Any) -> None:
        """A hard link."""
        self.client.link(self._strip_protocol(src), self._strip_protocol(dst))

    def symlink(self, src: str, dst: str, **_: Any) -> None:
        """`dst` leads to `src`, which is kept as it is written unless it is a URL of ours."""
        url = stringify_path(src).startswith(f"{urls.SCHEME}://")
        self.client.symlink(self._strip_protocol(src) if url else src, self._strip_protocol(dst))

    def readlink(self, path: str) -> str:
        return str(self.client.readlink(self._strip_protocol(path)))

    # Files
    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_type: str | None = None,
        cache_options: dict[str, Any] | None = None,
        **_: Any,
    ) -> FsspecFile | CachedReader:
        """`block_size` 0 is without a buffer: each call is a request. In a transaction see `files.open_file`.

        `cache_type`: one of fsspec's caches, "parts" for instance, in place of our own reading ahead.
        """
        path = self._strip_protocol(path)
        size = self.blocksize if block_size is None else _checked(block_size)
        if cache_type is not None and mode == "rb":
            return CachedReader(
                self, path, mode, size or BLOCK_BYTES, cache_type=cache_type, cache_options=cache_options
            )
        if autocommit or mode in ("r", "rb"):
            return self._making_parents(path, lambda: open_file(self, path, mode, size))
        if "a" in mode or "+" in mode:
            raise ValueError(f"{path}: a transaction writes whole files, so there is no mode {mode!r} in it")
        if "x" in mode and self.lexists(path):  # and again, without a gap, when the transaction ends
            raise FileExistsError(17, os.strerror(17), path)
        temporary = os.path.join(os.path.dirname(path), f".ffs-{uuid.uuid4().hex}.tmp")
        return self._making_parents(path, lambda: open_file(self, path, mode, size, temporary))

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        """An empty file; or, without `truncate`, a newer time of what is there, made if it is not."""
        path = self._strip_protocol(path)
        if truncate:
            self._making_parents(path, lambda: self.client.write_bytes(path, b""))
            return
        try:
            self.client.utime(path)
        except FileNotFoundError:
            self._making_parents(path, lambda: self.client.open_file(path, os.O_WRONLY | os.O_CREAT).close())


def _checked(block_size: int | str | None) -> int:
    size = BLOCK_BYTES if block_size in (None, "default") else int(block_size or 0)
    if not 0 <= size <= BLOCK_BYTES_MAX:
        raise ValueError(f"a block size of {size} bytes: 0 to {BLOCK_BYTES_MAX} are possible")
    return size
