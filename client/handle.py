"""One open inode: bytes at offsets, length, truncation, fsync, close. No paths, no position. Errors are FfsError."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Sequence
from typing import Protocol

from fireflyfs.client.inode_state import InodeState, InodeTable
from fireflyfs.client.late_closes import LateCloses
from fireflyfs.client.meta_client import MetaClient
from fireflyfs.client.scratch import Scratch, Unfilled
from fireflyfs.client.storage_client import StorageClient, WriteSpan
from fireflyfs.client.storage_codec import length_of, part_of, view_of
from fireflyfs.client.striping import FileLayout
from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import Code, FfsError, Reaction, error
from fireflyfs.common.ids import new_session_id
from fireflyfs.common.limits import FILE_BYTES_MAX, MiB
from fireflyfs.common.net.api import Piece, tainted
from fireflyfs.proto import meta_pb2
from fireflyfs.proto.common_pb2 import Caller, Layout

READ_AT_ONCE_BYTES_MAX = 64 * MiB  # of one pread that returns bytes


class HandleContext(Protocol):
    """What an open inode needs of its client; `ClientContext` has it."""

    @property
    def meta(self) -> MetaClient: ...
    @property
    def storage(self) -> StorageClient: ...
    @property
    def inodes(self) -> InodeTable: ...
    @property
    def late_closes(self) -> LateCloses: ...
    @property
    def scratch(self) -> Scratch: ...
    @property
    def clock(self) -> Clock: ...


class OpenInode:
    """Made by `open_inode`. Safe to use from several threads; `close` waits for nobody."""

    def __init__(
        self, context: HandleContext, state: InodeState, flags: int, session: bytes, caller: Caller | None = None
    ) -> None:
        self._context = context
        self._storage = context.storage
        self._state = state
        self._session = session
        self._caller = caller
        self._closing = threading.Lock()
        self._closed = False
        access = flags & os.O_ACCMODE
        self.flags = flags
        self.readable = access != os.O_WRONLY
        self.writable = access != os.O_RDONLY

    @property
    def inode(self) -> meta_pb2.Inode:
        """Attributes as meta said last."""
        return self._state.inode

    @property
    def file(self) -> FileLayout:
        return self._state.file

    @property
    def length(self) -> int:
        """Bytes of the file as this client sees it. Asks meta when that is not known here."""
        self._settle()
        return self._state.length

    @property
    def closed(self) -> bool:
        return self._closed

    def room(self, offset: int, wanted: int) -> int:
        """How many of `wanted` bytes at `offset` the file has."""
        if offset < 0:
            raise error(Code.INVALID, "negative offset")
        return max(0, min(wanted, self.length - offset))

    def check_readable(self) -> None:
        if self._closed or not self.readable:
            raise error(Code.BAD_HANDLE, "the file is closed" if self._closed else "the file is open for writing only")

    def check_writable(self) -> None:
        if self._closed or not self.writable:
            raise error(Code.BAD_HANDLE, "the file is closed" if self._closed else "the file is open for reading only")

    def pread_into(self, offset: int, into: Piece) -> int:
        """Fill `into` from `offset` on; how many bytes there were. 0 at the end of the file."""
        self.check_readable()
        wanted = length_of(into)
        count = self.room(offset, wanted)
        if count:
            self._storage.read_into(self._state.file, offset, into if count == wanted else part_of(into, 0, count))
        return count

    def pread(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes at `offset`: fewer only at the end of the file, or above READ_AT_ONCE_BYTES_MAX."""
        self.check_readable()
        count = self.room(offset, min(length, READ_AT_ONCE_BYTES_MAX))
        if not count:
            return b""
        if self._context.scratch.shares(count):
            with self._context.scratch.take(count) as piece:
                self._storage.read_into(self._state.file, offset, piece)
                data = bytes(view_of(piece))
                if not tainted(piece):
                    return data
        whole = Unfilled(count)
        self._storage.read_into(self._state.file, offset, whole.view)
        return whole.filled()

    def pwrite(self, offset: int, data: Piece) -> int:
        """Store all of `data` at `offset`: on every replica when this returns."""
        return self.pwrite_many([(offset, data)])

    def pwrite_many(self, extents: Sequence[tuple[int, Piece]]) -> int:
        """Store many pieces in one go, each chunk updated once. On an error any of them may have been stored."""
        self.check_writable()
        file = self._state.file
        end = 0
        total = 0
        for offset, data in extents:
            size = length_of(data)
            if offset < 0:
                raise error(Code.INVALID, "negative offset")
            if offset + size > FILE_BYTES_MAX:
                raise error(Code.TOO_BIG, "beyond what a file can hold")
            if size:
                end = max(end, offset + size)
                total += size
        if not total:
            return 0
        self.ensure_room(end)
        version = self._state.truncate_version
        try:
            failed = self._storage.write([WriteSpan(file, offset, data) for offset, data in extents if length_of(data)])
            if failed:
                raise next(iter(failed.values()))
        except BaseException:
            self.torn()
            raise
        self.wrote(end, version)
        return total

    def ensure_room(self, end: int) -> None:
        """Before bytes up to `end` are written. Raises QUOTA_EXCEEDED when quotas do not let the file get so long."""
        state, clock = self._state, self._context.clock
        if end <= state.length or state.limit.allows(end, clock.monotonic_s()):
            return
        self._sync(durable=False, wanted_end=end)  # what was written so far counts from now on, and the rest is free
        if end > state.length and not state.limit.allows(end, clock.monotonic_s()):
            raise error(Code.QUOTA_EXCEEDED)

    def append(self, data: Piece) -> int:
        """Store all of `data` behind the end of the file, whoever else appends; where it was placed."""
        self.check_writable()
        size = length_of(data)
        if not size:
            return self._state.length
        with self._state.appending:
            hint, _ = self._state.report()
            request = meta_pb2.AppendRequest(
                inode=self._state.file.inode, session=self._session, size=size, hint=hint, caller=self._caller
            )
            reply = self._context.meta.append(request)
            self._state.learn(reply.inode)
            self._state.limit.learn(reply.inode, self._context.clock.monotonic_s())
            self.pwrite(reply.offset, data)
        return reply.offset

    def copy_from(self, source: OpenInode, source_offset: int, offset: int, length: int) -> int:
        """Copy from another file inside the cluster, chunk by chunk; how many bytes. Ranges must not overlap.

        `length` ends at the source's end. Holes stay holes. On an error any part may have been copied.
        """
        self.check_writable()
        source.check_readable()
        count = source.room(source_offset, length)
        if offset < 0:
            raise error(Code.INVALID, "negative offset")
        if offset + count > FILE_BYTES_MAX:
            raise error(Code.TOO_BIG, "beyond what a file can hold")
        if count:
            self.ensure_room(offset + count)
            version = self._state.truncate_version
            try:
                self._storage.ranges.copy(source.file, source_offset, self._state.file, offset, count)
            except BaseException:
                self.torn()
                raise
            self.wrote(offset + count, version)
        return count

    @property
    def truncate_version(self) -> int:
        """For `wrote`: as known before the bytes are sent."""
        return self._state.truncate_version

    def wrote(self, end: int, truncate_version: int) -> None:
        """Bytes up to `end` were stored."""
        self._state.wrote(end, self._context.clock.unix_ns(), truncate_version)

    def torn(self) -> None:
        """A write failed, and parts of it may be stored: no length that is told may leave them beyond the end."""
        self._state.torn(self._context.clock.unix_ns())

    def refresh(self) -> meta_pb2.Inode:
        """Ask meta for the newest attributes: what others closed or synced is seen afterwards."""
        request = meta_pb2.StatRequest(at=self._at(), caller=self._caller)
        self._state.learn(self._context.meta.stat(request).inode)
        self._settle()
        return self._state.inode

    def truncate(self, length: int) -> None:
        """Make the file exactly `length` bytes long, for everyone when this returns."""
        self.check_writable()
        if not 0 <= length <= FILE_BYTES_MAX:
            raise error(Code.INVALID if length < 0 else Code.TOO_BIG, f"no file can have {length} bytes")
        self.flush()  # meta must know our length, or it would take a shrink for a growth
        request = meta_pb2.SetAttrRequest(at=self._at(), length=length, session=self._session, caller=self._caller)
        inode = self._context.meta.set_attr(request).inode
        self._state.learn(inode)
        self._state.limit.learn(inode, self._context.clock.monotonic_s())

    def flush(self) -> None:
        """Tell meta the length and time of our writes, so that everyone sees them. Close has said it, or will."""
        if self._state.dirty and not self._closed:
            self._sync(durable=False)

    def fsync(self) -> None:
        """What was written survives a power cut of every machine when this returns."""
        if self._closed:
            raise error(Code.BAD_HANDLE, "the file is closed")
        self._storage.sync(self._state.file.chain_set)  # also what others wrote, whatever this was opened for
        self._sync(durable=True)

    def close(self) -> None:
        """Tell meta, and give the session back. The handle is closed even when this raises; twice is no error.

        Where meta is away for too long it raises, and meta is told later.
        """
        with self._closing:
            if self._closed:
                return
            self._closed = True
        hint, mtime = self._state.report() if self.writable else (None, None)
        if not self._session and hint is None and mtime is None:
            return
        request = meta_pb2.CloseRequest(
            inode=self._state.file.inode, session=self._session, hint=hint, mtime=mtime, caller=self._caller
        )

        def tell() -> None:
            self._state.reported(hint, mtime, self._context.meta.close(request).inode)

        try:
            tell()
        except FfsError as exc:
            if exc.reaction is not Reaction.GIVE_UP:
                self._context.late_closes.add(tell)
            raise

    def _settle(self) -> None:
        """After a truncation elsewhere: have storage say which of our writes are left."""
        if self._state.unsure and not self._closed:
            self.flush()

    def _sync(self, *, durable: bool, wanted_end: int = 0) -> None:
        hint, mtime = self._state.report()
        request = meta_pb2.SyncRequest(
            inode=self._state.file.inode,
            hint=hint,
            mtime=mtime,
            durable=durable,
            wanted_end=wanted_end,
            caller=self._caller,
        )
        inode = self._context.meta.sync(request).inode
        self._state.reported(hint, mtime, inode)
        self._state.limit.learn(inode, self._context.clock.monotonic_s())

    def _at(self) -> meta_pb2.PathAt:
        return meta_pb2.PathAt(dir=self._state.file.inode)


def open_inode(
    context: HandleContext,
    at: meta_pb2.PathAt,
    flags: int,
    mode: int = 0o666,
    *,
    umask: int = 0,
    layout: Layout | None = None,
    hold: bool = True,
    caller: Caller | None = None,
) -> OpenInode:
    """Open or create what `at` names; `flags` are O_* bits, `umask` counts where the directory has no default ACL.

    `hold`: the file keeps its bytes while it is open here, even if it is removed. Without it opening for reading costs
    the metadata service no transaction, and reading a file that someone removes meanwhile may give zeros. A directory
    raises IS_DIRECTORY, as the builtin `open` does.
    """
    session = new_session_id() if hold or flags & os.O_ACCMODE != os.O_RDONLY else b""
    request = meta_pb2.OpenRequest(
        at=at,
        flags=flags,
        mode=0o100000 | (mode & 0o7777),
        umask=umask,
        session=session,
        layout=layout,
        caller=caller,
    )
    reply = context.meta.open(request)
    if stat.S_ISDIR(reply.inode.mode):  # may be opened, as POSIX has it, but holds no bytes
        if session:
            ended = meta_pb2.EndedSession(inode=reply.inode.id, session=session)
            context.meta.end_sessions(meta_pb2.EndSessionsRequest(caller=caller, sessions=[ended]))
        raise error(Code.IS_DIRECTORY)
    state = context.inodes.learn(reply.inode)
    if flags & os.O_ACCMODE != os.O_RDONLY:
        state.limit.learn(reply.inode, context.clock.monotonic_s())
    return OpenInode(context, state, flags, session, caller)
