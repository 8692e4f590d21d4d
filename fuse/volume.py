"""The mounted file system's state, shared by all operations: live inodes, handles, write-behind, caches.

Locks, in the order they are taken: a live inode's lock, then the books of write-behind, then those of the tables.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.ids import new_session_id
from fireflyfs.common.net.api import Piece
from fireflyfs.fuse import protocol
from fireflyfs.fuse.backend import Backend
from fireflyfs.fuse.callers import Callers
from fireflyfs.fuse.change_log import ChangeLog
from fireflyfs.fuse.delegations import Delegations
from fireflyfs.fuse.first_bytes import FirstBytes
from fireflyfs.fuse.held_locks import HeldLocks
from fireflyfs.fuse.inodes import ChangedDirectories, FileHandle, Handles, InodeTable, LiveInode, attributes_of
from fireflyfs.fuse.locks import LockClient
from fireflyfs.fuse.look_ahead import LookAhead
from fireflyfs.fuse.options import MountOptions
from fireflyfs.fuse.request import Request
from fireflyfs.fuse.segments import SegmentPool
from fireflyfs.fuse.session_ender import Ended, SessionEnder
from fireflyfs.fuse.statistics import Statistics
from fireflyfs.fuse.told import RemovedInodes, XattrKnowledge
from fireflyfs.fuse.write_behind import WriteBehind
from fireflyfs.proto import meta_pb2 as m
from fireflyfs.proto.common_pb2 import Caller

if TYPE_CHECKING:
    from fireflyfs.fuse.usrbio.host import RingHost

log = logging.getLogger(__name__)

_NO_TIME = protocol.Valid.of(0.0)
Notify = Callable[..., bool]
O_RDONLY = 0
O_WRONLY = 1


class Volume:
    """One mounted file system. Safe to use from all service threads."""

    def __init__(self, backend: Backend, options: MountOptions, clock: Clock, notify: Notify) -> None:
        self.backend = backend
        self.meta = backend.meta
        self.data = backend.data
        self.options = options
        self.clock = clock
        self._notify = notify
        self.table = InodeTable()
        self.handles = Handles(options.handles_max)
        self.changes = ChangeLog()
        self.changed = ChangedDirectories(options.attr_timeout_s)
        self.removed = RemovedInodes()
        self.xattrs = XattrKnowledge(options.attr_timeout_s)
        self.setxattr_in = protocol.SETXATTR_IN
        self.kernel_says_who_keeps_set_id = True  # FUSE_HANDLE_KILLPRIV_V2
        self.callers = Callers(backend.client_id, clock)
        self.segments = SegmentPool(backend.pool)
        self.write_behind = WriteBehind(
            self._store, self.segments, clock, dirty_bytes_max=options.dirty_bytes_max, age_s=options.dirty_age_s
        )
        self.session_ender = SessionEnder(self._end_sessions)
        held = HeldLocks(backend.meta, self.callers.root, backend.lease_clock, backend.lease, self._locks_lost)
        self.locks = LockClient(backend.meta, self.callers.root, held)
        self.first = FirstBytes(
            backend.data,
            backend.pool,
            self.table,
            self.changes,
            clock,
            notify,
            valid_s=0.0 if options.relatime else options.attr_timeout_s,
        )
        self.ahead = LookAhead(
            backend.meta,
            self.callers.root,
            self.table,
            self.changes,
            clock,
            min(options.entry_timeout_s, options.attr_timeout_s),
            self.first.listed,
        )
        self.names = Delegations(backend.meta, self.callers.root, backend.lease_clock)
        self.entry_valid = protocol.Valid.of(options.entry_timeout_s)
        self.attr_valid = protocol.Valid.of(options.attr_timeout_s)
        self.negative_valid = protocol.Valid.of(options.negative_timeout_s)
        self.counts: Counter[str] = Counter()
        self.mountpoint = Path("/")
        self.rings: RingHost | None = None  # where applications' rings are served
        # Whether an earlier READ of an inode than the one with this number has not been answered yet.
        self.reads_before: Callable[[int, int], bool] = lambda nodeid, unique: False
        self.interrupted: Callable[[int], None] = lambda unique: None  # the caller of a request has had a signal
        self.times = Statistics()
        self.began_s = clock.monotonic_s()

    def caller(self, request: Request) -> Caller:
        return self.callers.caller(request.uid, request.gid, request.pid)

    def notify(self, message: bytes) -> None:
        """Have the kernel forget something."""
        self.first.drop()
        self._notify(message)

    def told(self, inode: m.Inode) -> None:
        """The kernel is given these attributes."""
        self.ahead.drop(inode.id)
        self.table.told(inode)
        self.first.told(inode)
        self.xattrs.learn(inode, self.clock.monotonic_s())

    def forget(self, nodeid: int) -> None:
        """The kernel does not know the inode any more."""
        self.table.forget(nodeid)
        self.xattrs.forget(nodeid)
        self.removed.forget(nodeid)

    def entry(self, inode: m.Inode) -> bytes:
        """fuse_entry_out of an inode that meta just described."""
        self.told(inode)
        attributes = attributes_of(inode, self.table.get(inode.id))
        return protocol.encode_entry(attributes, self.entry_valid, self._attr_valid_of(inode))

    def entry_ahead(self, inode: m.Inode, asked_s: float) -> bytes:
        """The same of one that meta described a moment ago, and that may be trusted for the rest of its time."""
        self.table.told(inode)
        self.first.told(inode)
        self.xattrs.learn(inode, asked_s)
        since_s = self.clock.monotonic_s() - asked_s
        entry_valid = protocol.Valid.of(max(0.0, self.options.entry_timeout_s - since_s))
        attr_valid = protocol.Valid.of(max(0.0, self.options.attr_timeout_s - since_s))
        return protocol.encode_entry(attributes_of(inode, None), entry_valid, attr_valid)

    def attr(self, inode: m.Inode) -> bytes:
        """fuse_attr_out of the same."""
        self.told(inode)
        return protocol.encode_attr(attributes_of(inode, self.table.get(inode.id)), self._attr_valid_of(inode))

    def _attr_valid_of(self, inode: m.Inode) -> protocol.Valid:
        if self.rings is not None and self.rings.files.may_be_written(inode.id):
            return _NO_TIME
        return self.attr_valid

    def changed_directory(self, directory: m.Inode) -> None:
        """A name was made or removed in it here."""
        now = self.clock.monotonic_s()
        self.changed.learn(directory, now)
        if directory.id:
            self.ahead.forget(directory.id)
            self.xattrs.learn(directory, now)

    def changed_inode(self, inode: m.Inode) -> None:
        """A name of it was made or removed here. One without a name may still be open in the kernel."""
        self.ahead.forget(inode.id)
        self.moved_inode(inode)

    def moved_inode(self, inode: m.Inode) -> None:
        """The same of one whose new name look-ahead knows."""
        if not inode.id:
            return
        if not inode.nlink:
            self.removed.add(inode)
        self.table.pages_stay(inode)
        now = self.clock.monotonic_s()
        self.xattrs.learn(inode, now)
        live = self.table.get(inode.id)
        if live is not None:
            with live.lock:
                live.learn(inode, now)

    def stat(self, nodeid: int, caller: Caller) -> m.Inode:
        """Ask meta; a live inode learns the answer."""
        asked = m.StatRequest(caller=caller, at=m.PathAt(dir=nodeid))
        inode = self.changes.newest(lambda: self.meta.stat(asked).inode)
        live = self.table.get(nodeid)
        if live is not None:
            with live.lock:
                live.learn(inode, self.clock.monotonic_s())
                if self.settle(live):
                    return live.inode
        return inode

    def settle(self, live: LiveInode) -> bool:
        """Before it is said how long a file is: whether a truncation elsewhere has made that unsure. Then storage is
        asked, through meta, so that programs find what they wrote since. Called under `live.lock`."""
        if not live.unsure:
            return False
        self.write_behind.flush(live.id)  # what of it is lost is told to who syncs or closes
        self.record(live, keep=True)
        return True

    def _store(self, nodeid: int, pieces: Sequence[tuple[int, Piece]]) -> None:
        live = self.table.get(nodeid)
        if live is None:  # closed while its last bytes wait: RELEASE flushes before it leaves, so this is a bug
            raise AssertionError(f"inode {nodeid} is dirty and not live")
        still = partial(self.locks.held.check, nodeid)  # what was written under a lock that is lost must not come late
        still()
        self.data.write(live.file, pieces, still)

    def _locks_lost(self, nodeid: int) -> None:
        """Its pages go: the kernel would have them read without asking us."""
        self.table.pages_unknown(nodeid)
        self.notify(protocol.encode_inval_inode(nodeid, 0, 0))

    def flush(self, live: LiveInode, handle: FileHandle | None = None) -> None:
        """Store what waits of a file. Raises the error of any flush since the last time that this handle, or who has
        none, was told: bytes are lost then."""
        self.write_behind.flush(live.id)
        with live.lock:
            lost, live.errors_seen = self.write_behind.error_since(live.id, live.errors_seen)
            if lost is not None:  # a length that covers lost bytes must not be recorded; storage knows what is there
                live.written_end = -1
        if handle is not None:
            lost, handle.errors_seen = self.write_behind.error_since(live.id, handle.errors_seen)
        if lost is not None:
            raise lost

    def before_truncation(self, live: LiveInode, request: Request) -> None:
        """Before `request` sets the length, and under the lock until that is done: called under `live.lock`."""
        self.write_behind.flush(live.id)  # bytes under way must not come after the truncation
        if self.rings is not None and self.rings.files.tell_meta(live):  # or meta would take a shrinking for growth
            request.after_reply = protocol.encode_inval_inode(live.id, 0, 0)  # reads of pages may wait for the lock

    def truncated(self, live: LiveInode) -> None:
        """The length was set, later than any write before. Called under `live.lock`."""
        live.written_end = -1
        live.mtime_ns = 0
        if self.rings is not None:
            self.rings.files.shortened(live)

    def ensure_session(self, live: LiveInode) -> bytes:
        """The session that keeps the file's data if someone removes it. Called under `live.lock`."""
        if not live.sessions:
            session = new_session_id()
            # As root: permission was checked when the file was opened, and may be gone since.
            request = m.OpenRequest(caller=self.callers.root, at=m.PathAt(dir=live.id), flags=O_WRONLY, session=session)
            self.meta.open(request)
            live.sessions.append(session)
        return live.sessions[0]

    def append_offset(self, live: LiveInode, size: int) -> int:
        """Where `size` bytes appended now go: behind all that anybody appended. Called under `live.lock`."""
        while True:
            request = m.AppendRequest(
                caller=self.callers.root, inode=live.id, session=self.ensure_session(live), size=size, hint=live.hint()
            )
            reply = self.meta.append(request)
            live.limit.learn(reply.inode, self.clock.monotonic_s())
            truncated = reply.inode.truncate_version > live.inode.truncate_version and live.mtime_ns != 0
            live.learn(reply.inode, self.clock.monotonic_s())
            if not truncated:
                return max(reply.offset, live.length)
            # Elsewhere, while appended bytes wait here: they go where they were to go, and these behind them.
            self.write_behind.flush(live.id)

    def ensure_room(self, live: LiveInode, end: int) -> None:
        """Before bytes up to `end` are written. Raises QUOTA_EXCEEDED when quotas do not let the file get so long.

        Called under `live.lock`. Bytes that wait are stored and recorded before meta is asked for more room.
        """
        if end <= live.length or live.limit.allows(end, self.clock.monotonic_s()):
            return
        if live.limit.is_old(self.clock.monotonic_s()):  # as where there are no quotas: one question, nothing is stored
            asked = m.SyncRequest(caller=self.callers.root, inode=live.id, wanted_end=end)
            live.limit.learn(self.meta.sync(asked).inode, self.clock.monotonic_s())
            if live.limit.allows(end, self.clock.monotonic_s()):
                return
        self.flush(live)
        self.record(live, keep=True, wanted_end=end)
        if end > live.length and not live.limit.allows(end, self.clock.monotonic_s()):
            raise error(Code.QUOTA_EXCEEDED)

    def _end_sessions(self, ended: Sequence[Ended]) -> None:
        sessions = [m.EndedSession(inode=inode, session=session) for inode, session in ended]
        self.meta.end_sessions(m.EndSessionsRequest(caller=self.callers.root, sessions=sessions))

    def record(
        self,
        live: LiveInode,
        handle: FileHandle | None = None,
        *,
        durable: bool = False,
        last: bool = False,
        keep: bool = False,
        wanted_end: int = 0,
    ) -> None:
        """Tell meta the length and time of what was stored; with `wanted_end`, ask whether the file may grow to there.

        Unless others still write here, or `keep` says so, the session ends with it: one round trip, and RELEASE has
        nothing left to do. What others have written here since the caller flushed is stored first, and raises as
        `flush` does: no length may be told of bytes that are still under way, and no session end before they are there.
        """
        with live.lock:
            if self.write_behind.is_dirty(live.id):
                self.flush(live, handle)
            hint = live.hint()
            if not (hint or live.mtime_ns or live.atime_ns or durable or wanted_end or (last and live.sessions)):
                return
            now = self.clock.monotonic_s()
            mtime = m.Timestamp(ns=live.mtime_ns) if live.mtime_ns else None
            atime = m.Timestamp(ns=live.atime_ns) if live.atime_ns else None
            if last and not (hint or live.mtime_ns or live.atime_ns or durable):
                self.session_ender.add(live.id, live.sessions)
                live.sessions.clear()
                return
            stays = live.inode.nlink > 0 and not live.leaving
            end_session = live.sessions and (last or (not keep and live.writers <= 1 and stays))
            inode: m.Inode | None = None
            if durable or not end_session:
                inode = self.meta.sync(
                    m.SyncRequest(
                        caller=self.callers.root,
                        inode=live.id,
                        hint=hint,
                        mtime=mtime,
                        atime=atime,
                        durable=durable,
                        privileges_taken=True,  # at each write: operations/privileges.py
                        wanted_end=wanted_end,
                    )
                ).inode
                live.limit.learn(inode, now)
                hint = mtime = atime = None
            if end_session:
                for session in live.sessions:
                    reply = self.meta.close(
                        m.CloseRequest(
                            caller=self.callers.root,
                            inode=live.id,
                            session=session,
                            hint=hint,
                            mtime=mtime,
                            atime=atime,
                            privileges_taken=True,
                        )
                    )
                    inode = reply.inode
                    hint = mtime = atime = None
                live.sessions.clear()
            live.written_end = -1
            live.mtime_ns = live.atime_ns = 0
            live.unsure = False
            if inode is not None and inode.id:
                live.learn(inode, now)
                self.changes.note(inode.id)
                self._pages_after_write(live, inode)

    def _pages_after_write(self, live: LiveInode, inode: m.Inode) -> None:
        """A file that was made here has exactly our bytes, which the kernel has too; others may have been changed
        elsewhere between our open and now, and the next open drops their pages."""
        if live.created_here:
            self.table.pages_are(inode)
        else:
            self.table.pages_unknown(inode.id)

    def release(self, live: LiveInode, *, writes: bool) -> None:
        """One open file fewer. The last one stores, records and forgets; what fails then is only logged."""
        with live.lock:
            if writes:
                live.writers -= 1
            if live.handles == 1 or (writes and live.writers == 0):
                try:
                    self.flush(live)
                except FfsError as exc:
                    log.error("inode %d: closed with bytes lost: %s", live.id, exc)
                try:
                    self.record(live, last=live.handles == 1)
                except FfsError as exc:
                    log.error("inode %d: its close was not recorded: %s", live.id, exc)
            self.ahead.forget(live.id)  # while it still is live: nobody finds what was read before this close
            if self.table.leave(live):
                self.write_behind.forget(live.id)

    @contextmanager
    def removing(self, parent: int, name: bytes) -> Iterator[None]:
        """While a name goes, or fails to: if its inode is open here, it has a session, so that its data stays."""
        live = self._live_of(parent, name)
        if live is None:
            yield
            return
        try:
            with live.lock:
                self.ensure_session(live)
                live.leaving += 1  # keeps `record` from ending it
            try:
                yield
            finally:
                with live.lock:
                    live.leaving -= 1
        finally:
            self.release(live, writes=False)

    def _live_of(self, parent: int, name: bytes) -> LiveInode | None:
        """What is open here under a name, with one handle more."""
        if not len(self.table):
            return None
        try:
            inode = self.meta.lookup(m.LookupRequest(caller=self.callers.root, parent=parent, name=name)).inode
        except FfsError:
            return None  # the removal itself will say what is wrong
        return self.table.hold(inode.id)

    def statistics(self) -> dict[str, int]:
        """Counts since the start, for logs and the status command."""
        return {
            "live_inodes": len(self.table),
            "handles": len(self.handles),
            "dirty_bytes": self.write_behind.dirty_bytes,
            "flushes": self.write_behind.flushes,
            "flushed_bytes": self.write_behind.flushed_bytes,
            "flush_errors": self.write_behind.flush_errors,
            "segments": self.segments.made,
            "server_waits": self.backend.waits,
            "names_delegated": len(self.names),
            **self.counts,
        }
