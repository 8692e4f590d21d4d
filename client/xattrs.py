"""Extended attributes in the library, with the names and arguments of `os`: a part of `FileSystem`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from fireflyfs.client.paths import StrPath, path_at
from fireflyfs.client.session import ClientContext
from fireflyfs.common.errors import FfsError
from fireflyfs.proto import meta_pb2


@contextmanager
def named(path: StrPath | None) -> Iterator[None]:
    """FfsError becomes OSError with the path."""
    try:
        yield
    except FfsError as exc:
        name = None if path is None else os.fspath(path)
        raise exc.to_oserror(name) from exc


class ExtendedAttributes:
    """Needs `context`. ACLs are the attributes system.posix_acl_access and system.posix_acl_default, as acl(5) has
    them in memory; setting one sets the mode's bits, and chmod sets its mask."""

    context: ClientContext

    def getxattr(self, path: StrPath, attribute: str | bytes, *, follow_symlinks: bool = True) -> bytes:
        """Raises OSError: ENODATA without such an attribute, ENOTSUP for a namespace that does not exist."""
        request = meta_pb2.GetXattrRequest(name=os.fsencode(attribute))
        with named(path):
            request.at.CopyFrom(path_at(path, follow=follow_symlinks))
            return self.context.meta.get_xattr(request).value

    def listxattr(self, path: StrPath, *, follow_symlinks: bool = True) -> list[str]:
        """Names; those of the trusted namespace only for root."""
        with named(path):
            request = meta_pb2.ListXattrRequest(at=path_at(path, follow=follow_symlinks))
            return [os.fsdecode(name) for name in self.context.meta.list_xattr(request).names]

    def setxattr(
        self, path: StrPath, attribute: str | bytes, value: bytes, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None:
        """`flags`: os.XATTR_CREATE, os.XATTR_REPLACE. The bounds are those of Linux, and all attributes of one file
        together have 256 KiB (ENOSPC)."""
        request = meta_pb2.SetXattrRequest(name=os.fsencode(attribute), value=bytes(value), flags=flags)
        with named(path):
            request.at.CopyFrom(path_at(path, follow=follow_symlinks))
            self._learn(self.context.meta.set_xattr(request).inode)

    def removexattr(self, path: StrPath, attribute: str | bytes, *, follow_symlinks: bool = True) -> None:
        """Raises OSError with ENODATA when there is no such attribute."""
        request = meta_pb2.RemoveXattrRequest(name=os.fsencode(attribute))
        with named(path):
            request.at.CopyFrom(path_at(path, follow=follow_symlinks))
            self._learn(self.context.meta.remove_xattr(request).inode)

    def _learn(self, inode: meta_pb2.Inode) -> None:
        state = self.context.inodes.get(inode.id)
        if state is not None:
            state.learn(inode)
