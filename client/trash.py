"""What was removed and can be restored, where the metadata servers keep it (`trash_keep_s`)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.paths import StrPath, path_at
from fireflyfs.common.errors import FfsError
from fireflyfs.proto import meta_pb2

EMPTY_AT_ONCE = 30  # as many as a metadata server takes in one request


@dataclass(frozen=True)
class Trashed:
    """One thing in the trash: a file, or a directory with all that was in it."""

    inode: int
    removed_ns: int  # since the epoch
    name: str
    directory: str  # that it was in, as that is named now; empty: gone, or not found out
    uid: int  # who removed it
    mode: int
    length: int

    @property
    def path(self) -> str:
        return os.path.join(self.directory or "?", self.name)


class Trash:
    """The trash of one user; root's holds everybody's. Raises OSError."""

    def __init__(self, fs: FileSystem) -> None:
        self._meta = fs.context.meta

    def list(self) -> Iterator[Trashed]:
        """Oldest first, page by page."""
        reply = meta_pb2.ListTrashReply(more=True)
        while reply.more:
            try:
                reply = self._meta.list_trash(meta_pb2.ListTrashRequest(after=reply.after))
            except FfsError as exc:
                raise exc.to_oserror(None) from exc
            for entry in reply.entries:
                yield Trashed(
                    entry.ref.inode,
                    entry.ref.removed_ns,
                    os.fsdecode(entry.name),
                    os.fsdecode(entry.directory),
                    entry.uid,
                    entry.mode,
                    entry.length,
                )

    def restore(self, entry: Trashed, to: StrPath | None = None) -> None:
        """Give it back its name, or the name `to`. FileExistsError when that is taken."""
        request = meta_pb2.RestoreTrashRequest(ref=_ref(entry))
        if to is not None:
            request.to.CopyFrom(path_at(to, follow=False))
        try:
            self._meta.restore_trash(request)
        except FfsError as exc:
            raise exc.to_oserror(os.fspath(to) if to is not None else entry.path) from exc

    def empty(self, entries: Iterable[Trashed]) -> int:
        """Give these up for good; how many. Their space comes back in the background."""
        refs = [_ref(entry) for entry in entries]
        for start in range(0, len(refs), EMPTY_AT_ONCE):
            request = meta_pb2.EmptyTrashRequest(refs=refs[start : start + EMPTY_AT_ONCE])
            try:
                self._meta.empty_trash(request)
            except FfsError as exc:
                raise exc.to_oserror(None) from exc
        return len(refs)


def _ref(entry: Trashed) -> meta_pb2.TrashRef:
    return meta_pb2.TrashRef(removed_ns=entry.removed_ns, inode=entry.inode)
