"""OPEN, CREATE, READ, WRITE, FLUSH, RELEASE, FSYNC."""

from __future__ import annotations

import os
import stat
import time
from typing import NamedTuple

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.ids import new_session_id
from fireflyfs.common.limits import FILE_BYTES_MAX
from fireflyfs.common.net.api import tainted
from fireflyfs.fuse import protocol
from fireflyfs.fuse.first_bytes import Early
from fireflyfs.fuse.inodes import FileHandle, LiveInode
from fireflyfs.fuse.operations.privileges import SET_ID_BITS, drop_privileges
from fireflyfs.fuse.protocol import Opcode, OpenReply
from fireflyfs.fuse.request import Reply, Request
from fireflyfs.fuse.volume import Volume
from fireflyfs.proto import meta_pb2 as m

EARLIER_READS_S = 1.0
ARRIVAL_S = 0.002
FMODE_EXEC = 0x20  # the kernel opens a program to run it
_OPEN_FLAGS = os.O_ACCMODE | os.O_TRUNC | os.O_APPEND
_KEEP_CACHE, _NOFLUSH, _DIRECT_IO = int(OpenReply.KEEP_CACHE), int(OpenReply.NOFLUSH), int(OpenReply.DIRECT_IO)
_NOT_EARLY = os.O_TRUNC | os.O_DIRECT | os.O_APPEND
_CREATE_FLAGS = _OPEN_FLAGS | os.O_CREAT | os.O_EXCL


def open_(volume: Volume, request: Request) -> Reply:
    """Close-to-open: meta is asked at every open, and the kernel keeps its pages only if nothing has changed."""
    flags, _ = protocol.OPEN_IN.unpack_from(request.body)
    writes = flags & os.O_ACCMODE != os.O_RDONLY
    # A program that may be run need not be readable; the kernel has checked the x bit.
    caller = volume.callers.root if flags & FMODE_EXEC else volume.caller(request)
    asked = m.OpenRequest(caller=caller, at=m.PathAt(dir=request.nodeid), flags=flags & _OPEN_FLAGS)
    live = volume.table.hold(request.nodeid)
    try:
        if live is None:
            early = None if writes or flags & _NOT_EARLY else _read_early(volume, request)
            try:
                reply = _ask_open(volume, asked, new_session_id() if writes else b"")
            finally:
                if early is not None:
                    early.finish()
            if not reply.inode.nlink:
                # Removed elsewhere, as by a rename over it: the kernel looks the name up again and opens what is there.
                _end_session(volume, reply.inode.id, asked.session)
                raise error(Code.STALE_HANDLE)
            live = volume.table.enter(reply.inode, volume.clock.monotonic_s())
            with live.lock:
                return opened(volume, live, reply, asked.session, flags, writes, early)
        with live.lock:
            if flags & os.O_TRUNC:
                volume.before_truncation(live, request)
            session = b""
            if writes:
                session = live.sessions[0] if live.sessions else new_session_id()
            reply = _ask_open(volume, asked, session)
            if flags & os.O_TRUNC:
                volume.truncated(live)
            return opened(volume, live, reply, session, flags, writes)
    except BaseException:
        if live is not None:
            volume.release(live, writes=False)
        raise


def _read_early(volume: Volume, request: Request) -> Early | None:
    if volume.rings is not None and volume.rings.files.knows(request.nodeid):
        return None  # they write around this mount's books
    return volume.first.begin(request)


def _ask_open(volume: Volume, asked: m.OpenRequest, session: bytes) -> m.OpenReply:
    asked.session = session
    try:
        return volume.meta.open(asked)
    except FfsError as exc:
        if exc.code is Code.NO_ENTRY:
            raise error(Code.STALE_HANDLE) from exc
        raise


def _end_session(volume: Volume, inode: int, session: bytes) -> None:
    if session:
        volume.meta.close(m.CloseRequest(caller=volume.callers.root, inode=inode, session=session))


def opened(
    volume: Volume,
    live: LiveInode,
    reply: m.OpenReply,
    session: bytes,
    flags: int,
    writes: bool,
    early: Early | None = None,
) -> bytes:
    """fuse_open_out; `live` has been entered for this handle, and its lock is held. `early` has been read meanwhile."""
    inode = reply.inode
    handle = volume.handles.add_file(live, flags, writes)
    handle.errors_seen = volume.write_behind.errors(live.id)
    given = early is not None and volume.first.give(early, live, inode)
    if given:
        volume.counts["files_given"] += 1
    live.learn(inode, volume.clock.monotonic_s())
    volume.ahead.forget(live.id)
    if session and session not in live.sessions:
        live.sessions.append(session)
    if writes:
        live.writers += 1
        live.limit.learn(inode, volume.clock.monotonic_s())
    keep = volume.table.opened(inode) or given
    if volume.options.relatime and live.atime_is_old(volume.clock.unix_ns()):
        keep = False  # a read that the kernel answers by itself is not seen here
    if not reply.created:
        volume.counts["pages_kept" if keep else "pages_dropped"] += 1
    if not reply.created and volume.table.kernel_attributes_differ(inode):
        # The kernel's length would cut reads short until its time is up: have it ask (we answer from `live`).
        volume.notify(protocol.encode_inval_inode(live.id, -1, 0))
    # Close has nothing to say of what was only read, unless it drops locks.
    how = _NOFLUSH if volume.options.local_locks and not writes else 0
    if volume.options.strict or flags & os.O_APPEND:
        # Through its pages the kernel would cut an append where a page ends, and others append in between.
        how |= _DIRECT_IO
    elif keep:
        how |= _KEEP_CACHE
    return protocol.OPEN_OUT.pack(handle.fh, how, 0)


def create(volume: Volume, request: Request) -> Reply:
    flags, mode, umask, _ = protocol.CREATE_IN.unpack_from(request.body)
    name = protocol.decode_name(request.body, protocol.CREATE_IN.size)
    writes = flags & os.O_ACCMODE != os.O_RDONLY
    session = new_session_id() if writes else b""
    asked = m.OpenRequest(
        caller=volume.caller(request),
        at=m.PathAt(dir=request.nodeid, path=name),
        flags=(flags & _CREATE_FLAGS) | os.O_CREAT,
        mode=stat.S_IFREG | (mode & 0o7777),
        umask=umask,
        session=session,
    )
    with volume.names.making(request.nodeid, name):
        reply = volume.meta.open(asked)
    volume.changed_directory(reply.directory)
    live = volume.table.enter(reply.inode, volume.clock.monotonic_s())
    with live.lock:
        if reply.created:
            live.created_here = True
        entry = volume.entry(reply.inode)
        return entry + opened(volume, live, reply, session, flags, writes)


def _let_earlier_reads_go_first(volume: Volume, request: Request) -> None:
    """Before it is said that nothing is there, as another mount has truncated the file.

    The kernel, which believed in a longer one, reads ahead in several requests, and takes the end from the first of
    their answers that comes short: it must be the one that the end is in, or it gives zeros behind the end to programs.
    What is read around its pages it does not treat so.
    """
    end_s = time.monotonic() + EARLIER_READS_S
    time.sleep(ARRIVAL_S)  # one that was taken before this one by another thread is known of then
    while volume.reads_before(request.nodeid, request.unique) and time.monotonic() < end_s:
        time.sleep(ARRIVAL_S / 4)


class SimpleRead(NamedTuple):
    """Bytes within a file's length that storage has."""

    live: LiveInode
    offset: int
    size: int


def simple_read(volume: Volume, request: Request, size_max: int) -> SimpleRead | None:
    """The READ where nothing but these bytes is to be asked of anybody; None: `request` is something else."""
    if request.opcode != Opcode.READ or request.nodeid >= protocol.VIRTUAL_BASE or volume.options.strict:
        return None
    fh, offset, size, _, _, _, _ = protocol.READ_IN.unpack_from(request.body)
    handle = volume.handles.file_or_none(fh)
    if handle is None or size > size_max or volume.locks.held.knows(handle.live.id):
        return None
    live = handle.live
    if offset + size > live.length or volume.write_behind.overlaps(live.id, offset, offset + size):
        return None
    _note_read(volume, handle)
    return SimpleRead(live, offset, size)


def _note_read(volume: Volume, handle: FileHandle) -> None:
    if volume.options.relatime and not handle.flags & os.O_NOATIME:
        now_ns = volume.clock.unix_ns()
        if handle.live.atime_is_old(now_ns):
            handle.live.atime_ns = now_ns


def read(volume: Volume, request: Request) -> Reply:
    fh, offset, size, _, _, _, _ = protocol.READ_IN.unpack_from(request.body)
    handle = volume.handles.file(fh)
    live = handle.live
    volume.locks.held.check(live.id, fh)
    _note_read(volume, handle)
    length = live.length
    if offset + size > length or volume.options.strict:
        length = length_now(volume, live)
        size = min(size, length - offset)
        if size <= 0:
            if not (volume.options.strict or handle.flags & (os.O_DIRECT | os.O_APPEND)):
                _let_earlier_reads_go_first(volume, request)
            return b""
    if volume.write_behind.overlaps(live.id, offset, offset + size):
        volume.write_behind.flush(live.id)
    volume.data.read(live.file, offset, request.landing_slice(size))
    while tainted(request.landing_slice(size)):
        request.renew_landing(volume.backend.pool)
        volume.data.read(live.file, offset, request.landing_slice(size))
    return (request.landing_view[:size],)


def length_now(volume: Volume, live: LiveInode) -> int:
    """The length for a read at the end: asked anew when what we know is older than attributes may be."""
    if volume.rings is not None:
        volume.rings.files.collect(live)
    if volume.clock.monotonic_s() - live.checked_s >= volume.options.attr_timeout_s:
        volume.stat(live.id, volume.callers.root)
    if live.unsure:
        with live.lock:
            volume.settle(live)
    return live.length


def write(volume: Volume, request: Request) -> Reply:
    fh, offset, size, write_flags, _, flags, _ = protocol.WRITE_IN.unpack_from(request.body)
    handle = volume.handles.file(fh)
    live = handle.live
    volume.locks.held.check(live.id, fh)
    with live.lock:
        if flags & os.O_APPEND and not write_flags & protocol.WRITE_CACHE:
            asked, offset = offset, volume.append_offset(live, size)
            if offset != asked:
                # The kernel believes an older length, and drops the pages of the wrong place.
                request.after_reply = protocol.encode_inval_inode(live.id, 0, 0)
            elif live.handles > 1:
                # It drops pages before it writes: who reads at the old end meanwhile has it keep zeros behind it.
                request.after_reply = protocol.encode_inval_inode(live.id, offset, size)
        if offset + size > FILE_BYTES_MAX:
            raise error(Code.TOO_BIG)
        volume.ensure_room(live, offset + size)
        if not live.sessions:
            volume.ensure_session(live)
        if live.inode.capability or live.inode.mode & SET_ID_BITS:
            drop_privileges(volume, request, live, write_flags)
        # The bytes before their end: whoever goes by that has the lock, or must find them.
        position = request.body_position + protocol.WRITE_IN.size
        relieve = volume.write_behind.write(live.id, offset, request.segment, position, size)
        live.written_end = max(live.written_end, offset + size)
        live.mtime_ns = volume.clock.unix_ns()
    if relieve is not None:
        relieve()
    # What rings read must be stored, and what they write must not be written over by what came before.
    if not volume.options.write_behind or (volume.rings is not None and volume.rings.files.knows(live.id)):
        volume.flush(live, handle)
    if volume.options.strict:
        volume.record(live, handle, keep=True)
    return protocol.WRITE_OUT.pack(size, 0)


def flush(volume: Volume, request: Request) -> Reply:
    """close(2): what was written here is stored and its length recorded before the call returns."""
    fh, _, _, owner = protocol.FLUSH_IN.unpack_from(request.body)
    handle = volume.handles.file(fh)
    try:
        if handle.writes:
            volume.flush(handle.live, handle)
            if volume.rings is not None:
                volume.rings.files.record(handle.live)
            volume.record(handle.live, handle)
    finally:
        volume.locks.closed(handle.live.id, owner)
    return b""


def release(volume: Volume, request: Request) -> Reply:
    fh, _, _, _ = protocol.RELEASE_IN.unpack_from(request.body)
    handle = volume.handles.pop_file(fh)
    if handle is not None:
        _release(volume, handle)
    return b""


def fsync(volume: Volume, request: Request) -> Reply:
    fh, _, _ = protocol.FSYNC_IN.unpack_from(request.body)
    handle = volume.handles.file(fh)
    live = handle.live
    volume.flush(live, handle)
    if volume.rings is not None:
        volume.rings.files.record(live)
    volume.data.sync(live.file)
    volume.record(live, handle, durable=True)
    return b""


def drop_handle(volume: Volume, handle: FileHandle) -> None:
    """At the end of the mount: as RELEASE does."""
    volume.handles.pop_file(handle.fh)
    _release(volume, handle)


def _release(volume: Volume, handle: FileHandle) -> None:
    """What was written is stored before others may have the locks that kept them from reading it."""
    if volume.rings is not None:
        volume.rings.files.released(handle)
    try:
        volume.release(handle.live, writes=handle.writes)
    finally:
        volume.locks.released(handle.live.id, handle.fh)
