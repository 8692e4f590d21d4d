"""What the mount needs from the client library, and nothing more: names go to `meta`, bytes to `data`.

`ClientContext` is wrapped into it by `fuse.context`; tests put a file system in memory behind the same doors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from fireflyfs.client.storage_client import ReadSpan
from fireflyfs.client.storage_ranges import DataRange
from fireflyfs.client.striping import FileLayout
from fireflyfs.common.clock import Clock
from fireflyfs.common.net.api import MemoryPool, Piece
from fireflyfs.proto import meta_pb2 as m


class MetaCalls(Protocol):
    """One method for each rpc of `proto/meta.proto`. Raise FfsError; a mutation's request id is kept if it is set."""

    def stat(self, request: m.StatRequest, /) -> m.InodeReply: ...
    def lookup(self, request: m.LookupRequest, /) -> m.InodeReply: ...
    def open(self, request: m.OpenRequest, /) -> m.OpenReply: ...
    def close(self, request: m.CloseRequest, /) -> m.InodeReply: ...
    def end_sessions(self, request: m.EndSessionsRequest, /) -> m.EndSessionsReply: ...
    def sync(self, request: m.SyncRequest, /) -> m.InodeReply: ...
    def make_node(self, request: m.MakeNodeRequest, /) -> m.InodeReply: ...
    def symlink(self, request: m.SymlinkRequest, /) -> m.InodeReply: ...
    def link(self, request: m.LinkRequest, /) -> m.InodeReply: ...
    def readlink(self, request: m.ReadlinkRequest, /) -> m.ReadlinkReply: ...
    def remove(self, request: m.RemoveRequest, /) -> m.RemoveReply: ...
    def rename(self, request: m.RenameRequest, /) -> m.RenameReply: ...
    def list(self, request: m.ListRequest, /) -> m.ListReply: ...
    def set_attr(self, request: m.SetAttrRequest, /) -> m.InodeReply: ...
    def stat_fs(self, request: m.StatFsRequest, /) -> m.StatFsReply: ...
    def access(self, request: m.AccessRequest, /) -> m.InodeReply: ...
    def get_xattr(self, request: m.GetXattrRequest, /) -> m.GetXattrReply: ...
    def list_xattr(self, request: m.ListXattrRequest, /) -> m.ListXattrReply: ...
    def set_xattr(self, request: m.SetXattrRequest, /) -> m.InodeReply: ...
    def remove_xattr(self, request: m.RemoveXattrRequest, /) -> m.InodeReply: ...
    def append(self, request: m.AppendRequest, /) -> m.AppendReply: ...
    def get_lock(self, request: m.GetLockRequest, /) -> m.GetLockReply: ...
    def set_lock(self, request: m.SetLockRequest, /) -> m.SetLockReply: ...
    def await_locks(self, request: m.AwaitLocksRequest, /) -> m.AwaitLocksReply: ...
    def cancel_lock(self, request: m.CancelLockRequest, /) -> m.CancelLockReply: ...
    def delegate(self, request: m.DelegateRequest, /) -> m.DelegateReply: ...
    def await_recalls(self, request: m.AwaitRecallsRequest, /) -> m.AwaitRecallsReply: ...


class DataCalls(Protocol):
    """Bytes of one inode. Safe to use from several threads; raise FfsError."""

    def read(self, file: FileLayout, offset: int, into: Piece) -> None:
        """Fill all of `into`: holes and what lies behind the last chunk as zeros."""

    def begin_first(self, file: FileLayout, into: Piece) -> Callable[[], bool] | None:
        """Begin to fill `into` with the file's first bytes, all in one chunk. What is returned waits, and must be
        called; False: they cannot be had so. None: nor can it be tried."""

    def read_once(self, spans: Sequence[ReadSpan]) -> Sequence[int]:
        """Fill small spans in one attempt. Returns the places of those that are not filled, as their servers are away,
        say: `read` waits for them."""

    def write(
        self, file: FileLayout, extents: Sequence[tuple[int, Piece]], still: Callable[[], None] = lambda: None
    ) -> None:
        """Store (offset, bytes) pieces that do not overlap. On an error any of them may have been stored.

        `still` is called before anything is sent again, and raises when it should not be.
        """

    def ranges(self, file: FileLayout, start: int, end: int, *, few: bool = False) -> Iterator[DataRange]:
        """Where storage has bytes of [start, end), in order; `few`: only the first ones are wanted."""

    def punch(self, file: FileLayout, offset: int, length: int) -> None:
        """The range reads as zeros; whole chunks of it are given back."""

    def copy(self, source: FileLayout, source_offset: int, into: FileLayout, into_offset: int, length: int) -> None:
        """Copy between files, or between ranges of one that do not overlap, within the cluster."""

    def sync(self, file: FileLayout) -> None:
        """What was written to the file's chains before survives a power cut afterwards."""


class Backend(Protocol):
    """Everything the mount stands on."""

    @property
    def meta(self) -> MetaCalls: ...
    @property
    def data(self) -> DataCalls: ...
    @property
    def pool(self) -> MemoryPool: ...
    @property
    def client_id(self) -> bytes: ...
    @property
    def waits(self) -> int:
        """How often a call was begun anew because servers were away."""

    def traffic(self) -> list[dict[str, str | int]]:
        """What went over the connections to each server, by link."""

    def lease(self) -> tuple[int, float]:
        """(how often the client's lease was begun anew, until when it surely runs, by `lease_clock`)."""

    @property
    def lease_clock(self) -> Clock:
        """What is measured by that others measure, too: it goes on while this machine is suspended."""

    def give_up(self) -> None:
        """The mount ends: calls that wait for servers may fail now."""
