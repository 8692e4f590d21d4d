"""The client library behind the mount's doors, made patient: a mount waits for its servers as long as it lives.

The library repeats each request until its deadline; here it starts over, with the same request id, until the servers
are back or the mount ends. Programs see a stall, as with a disk that is slow, and no error.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from fireflyfs.client.meta_client import MetaClient
from fireflyfs.client.session import ClientContext
from fireflyfs.client.storage_client import ReadSpan, StorageClient, WriteSpan
from fireflyfs.client.storage_ranges import DataRange
from fireflyfs.client.striping import FileLayout
from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import Code, FfsError, Reaction
from fireflyfs.common.limits import RANGE_CHUNKS_MAX
from fireflyfs.common.net.api import MemoryPool, Piece
from fireflyfs.common.net.blocking import BlockingPool
from fireflyfs.fuse.backend import DataCalls, MetaCalls
from fireflyfs.proto import meta_pb2 as m

log = logging.getLogger(__name__)

Q = TypeVar("Q")
R = TypeVar("R")

PAUSE_S: Final = 0.5  # after the library has given up
FIRST_READ_S: Final = 0.3  # for bytes that nobody has asked for yet
FEW_CHUNKS: Final = 16  # of each chain, asked for where the first data is wanted


class Patience:
    """Repeats what fails because servers are away. `give_up` lets everyone who waits go with an error."""

    def __init__(self) -> None:
        self._given_up = threading.Event()
        self.waits = 0

    def give_up(self) -> None:
        self._given_up.set()

    def again(self, exc: FfsError, what: str) -> None:
        """After a failure: wait a moment, or raise `exc` where asking again is useless."""
        if exc.reaction is Reaction.GIVE_UP or exc.code is Code.CHECKSUM:
            raise exc
        log.warning("%s: %s; still trying", what, exc)
        self.waits += 1
        if self._given_up.wait(PAUSE_S):
            raise exc


class PatientMeta:
    """`MetaCalls` on a MetaClient. A request object that comes again keeps its request id: it is done once."""

    def __init__(self, meta: MetaClient, patience: Patience) -> None:
        self._meta = meta
        self._patience = patience

    def _call(self, method: Callable[[Q], R], request: Q) -> R:
        while True:
            try:
                return method(request)
            except FfsError as exc:
                self._patience.again(exc, method.__name__)

    def stat(self, request: m.StatRequest, /) -> m.InodeReply:
        return self._call(self._meta.stat, request)

    def lookup(self, request: m.LookupRequest, /) -> m.InodeReply:
        return self._call(self._meta.lookup, request)

    def open(self, request: m.OpenRequest, /) -> m.OpenReply:
        return self._call(self._meta.open, request)

    def close(self, request: m.CloseRequest, /) -> m.InodeReply:
        return self._call(self._meta.close, request)

    def end_sessions(self, request: m.EndSessionsRequest, /) -> m.EndSessionsReply:
        return self._call(self._meta.end_sessions, request)

    def sync(self, request: m.SyncRequest, /) -> m.InodeReply:
        return self._call(self._meta.sync, request)

    def make_node(self, request: m.MakeNodeRequest, /) -> m.InodeReply:
        return self._call(self._meta.make_node, request)

    def symlink(self, request: m.SymlinkRequest, /) -> m.InodeReply:
        return self._call(self._meta.symlink, request)

    def link(self, request: m.LinkRequest, /) -> m.InodeReply:
        return self._call(self._meta.link, request)

    def readlink(self, request: m.ReadlinkRequest, /) -> m.ReadlinkReply:
        return self._call(self._meta.readlink, request)

    def remove(self, request: m.RemoveRequest, /) -> m.RemoveReply:
        return self._call(self._meta.remove, request)

    def rename(self, request: m.RenameRequest, /) -> m.RenameReply:
        return self._call(self._meta.rename, request)

    def list(self, request: m.ListRequest, /) -> m.ListReply:
        return self._call(self._meta.list, request)

    def set_attr(self, request: m.SetAttrRequest, /) -> m.InodeReply:
        return self._call(self._meta.set_attr, request)

    def stat_fs(self, request: m.StatFsRequest, /) -> m.StatFsReply:
        return self._call(self._meta.stat_fs, request)

    def access(self, request: m.AccessRequest, /) -> m.InodeReply:
        return self._call(self._meta.access, request)

    def get_xattr(self, request: m.GetXattrRequest, /) -> m.GetXattrReply:
        return self._call(self._meta.get_xattr, request)

    def list_xattr(self, request: m.ListXattrRequest, /) -> m.ListXattrReply:
        return self._call(self._meta.list_xattr, request)

    def set_xattr(self, request: m.SetXattrRequest, /) -> m.InodeReply:
        return self._call(self._meta.set_xattr, request)

    def remove_xattr(self, request: m.RemoveXattrRequest, /) -> m.InodeReply:
        return self._call(self._meta.remove_xattr, request)

    def append(self, request: m.AppendRequest, /) -> m.AppendReply:
        return self._call(self._meta.append, request)

    def get_lock(self, request: m.GetLockRequest, /) -> m.GetLockReply:
        return self._call(self._meta.get_lock, request)

    def set_lock(self, request: m.SetLockRequest, /) -> m.SetLockReply:
        return self._call(self._meta.set_lock, request)

    def await_locks(self, request: m.AwaitLocksRequest, /) -> m.AwaitLocksReply:
        return self._call(self._meta.await_locks, request)

    def cancel_lock(self, request: m.CancelLockRequest, /) -> m.CancelLockReply:
        return self._call(self._meta.cancel_lock, request)

    def delegate(self, request: m.DelegateRequest, /) -> m.DelegateReply:
        return self._call(self._meta.delegate, request)

    def await_recalls(self, request: m.AwaitRecallsRequest, /) -> m.AwaitRecallsReply:
        return self._call(self._meta.await_recalls, request)


class PatientData:
    """`DataCalls` on a StorageClient."""

    def __init__(self, storage: StorageClient, patience: Patience) -> None:
        self._storage = storage
        self._patience = patience

    def read(self, file: FileLayout, offset: int, into: Piece) -> None:
        while True:
            try:
                self._storage.read_into(file, offset, into)
                return
            except FfsError as exc:
                self._patience.again(exc, "read")

    def begin_first(self, file: FileLayout, into: Piece) -> Callable[[], bool] | None:
        return self._storage.begin_first(file, into, FIRST_READ_S)

    def read_once(self, spans: Sequence[ReadSpan]) -> Sequence[int]:
        return self._storage.read_once(spans)

    def write(
        self, file: FileLayout, extents: Sequence[tuple[int, Piece]], still: Callable[[], None] = lambda: None
    ) -> None:
        spans = [WriteSpan(file, offset, piece) for offset, piece in extents]
        while True:
            failed = self._storage.write(spans, still)
            if not failed:
                return
            for exc in failed.values():
                if exc.reaction is Reaction.GIVE_UP:
                    raise exc
            first = next(iter(failed.values()))
            spans = [spans[place] for place in failed]
            self._patience.again(first, "write")
            still()

    def ranges(self, file: FileLayout, start: int, end: int, *, few: bool = False) -> Iterator[DataRange]:
        page = FEW_CHUNKS if few else RANGE_CHUNKS_MAX
        while True:
            try:
                for found in self._storage.ranges.data(file, start, end, page=page):
                    yield found
                    start = found.end
                return
            except FfsError as exc:
                self._patience.again(exc, "list chunks")

    def punch(self, file: FileLayout, offset: int, length: int) -> None:
        while True:
            try:
                self._storage.ranges.punch(file, offset, length)
                return
            except FfsError as exc:
                self._patience.again(exc, "punch")

    def copy(self, source: FileLayout, source_offset: int, into: FileLayout, into_offset: int, length: int) -> None:
        while True:
            try:
                self._storage.ranges.copy(source, source_offset, into, into_offset, length)
                return
            except FfsError as exc:
                self._patience.again(exc, "copy")

    def sync(self, file: FileLayout) -> None:
        while True:
            try:
                self._storage.sync(file.chain_set)
                return
            except FfsError as exc:
                self._patience.again(exc, "sync")


class ContextBackend:
    """`Backend` of a client context, which stays the caller's."""

    def __init__(self, context: ClientContext) -> None:
        patience = Patience()
        self._patience = patience
        self.meta: MetaCalls = PatientMeta(context.meta, patience)
        self.data: DataCalls = PatientData(context.storage, patience)
        self.pool: MemoryPool = context.pool
        self.client_id: bytes = context.client_id
        self.lease = context.lease
        self.lease_clock: Clock = context.lease_clock
        self._link = context.link

    @property
    def waits(self) -> int:
        return self._patience.waits

    def traffic(self) -> list[dict[str, str | int]]:
        link = self._link
        return [traffic.row() for traffic in link.traffic()] if isinstance(link, BlockingPool) else []

    def give_up(self) -> None:
        """The mount ends: nobody waits for servers any more."""
        self._patience.give_up()


def backend_of(context: ClientContext) -> ContextBackend:
    """What `Mount` stands on."""
    return ContextBackend(context)
