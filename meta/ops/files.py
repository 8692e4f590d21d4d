"""Open, close and sync: sessions, and what a client says of the bytes it wrote."""

from __future__ import annotations

import os
import stat

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import FILE_BYTES_MAX, SESSIONS_ENDED_MAX
from fireflyfs.meta.core.keys import ID_BYTES
from fireflyfs.meta.core.length import Hint, lengthened, settles
from fireflyfs.meta.core.permission import EXECUTE, READ, WRITE, may, require
from fireflyfs.meta.core.records import Flags, Garbage, GarbageKind, Inode, Session
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.ops.create import attach, new_inode, rule_of, vacant
from fireflyfs.meta.ops.needs import AskStorage, TrimFirst
from fireflyfs.meta.ops.privileges import after_write
from fireflyfs.meta.ops.reply import inode_reply, open_reply
from fireflyfs.meta.ops.resolve import resolve, target
from fireflyfs.meta.ops.truncate import as_told, truncate_to
from fireflyfs.proto import meta_pb2

O_TMPFILE = os.O_TMPFILE
# The last one, which asks for both rights and neither reads nor writes, is Linux's own: open(2).
_MASKS = {os.O_RDONLY: READ, os.O_WRONLY: WRITE, os.O_RDWR: READ | WRITE, os.O_ACCMODE: READ | WRITE}


def only_looks(request: meta_pb2.OpenRequest) -> bool:
    """Whether this open writes nothing: for reading, without a session."""
    return not (request.session or request.flags & (os.O_ACCMODE | os.O_CREAT | os.O_TRUNC))


def open_file(op: Op, request: meta_pb2.OpenRequest) -> meta_pb2.OpenReply:
    flags = request.flags
    mask = _MASKS.get(flags & os.O_ACCMODE)
    if mask is None:
        raise error(Code.INVALID, f"open flags {flags:o}")
    if flags & O_TMPFILE == O_TMPFILE:
        return _open_nameless(op, request, mask)
    exclusive = flags & os.O_CREAT and flags & os.O_EXCL
    place = resolve(op.tree, op.who, request.at, follow=False if exclusive else None)
    inode = place.inode
    if inode is None:
        if not flags & os.O_CREAT:
            raise error(Code.NO_ENTRY)
        if place.must_be_dir:
            raise error(Code.IS_DIRECTORY)
        parent = vacant(op, place)
        layout = rule_of(request.layout) if request.HasField("layout") else None
        inode = new_inode(op, parent, stat.S_IFREG | request.mode & 0o7777, umask=request.umask, layout=layout)
        _start_session(op, request, inode, mask, new=True)
        attach(op, parent, place.name, inode)
        op.files_delta += 1
        return open_reply(inode, parent, created=True)
    if exclusive:
        raise error(Code.EXISTS)
    _check_existing(op, inode, flags, mask)
    if inode.is_file:
        changed = False
        if flags & os.O_TRUNC:
            truncate_to(op, inode, 0)
            changed = True
        if _start_session(op, request, inode, mask) or changed:
            op.tree.put(inode)
    return open_reply(as_told(op, inode))


def _open_nameless(op: Op, request: meta_pb2.OpenRequest, mask: int) -> meta_pb2.OpenReply:
    """A file in no directory, which only its session keeps: garbage from the start, until it is linked."""
    if not mask & WRITE or not request.session:
        raise error(Code.INVALID, "a file without a name is opened for writing, with a session")
    parent = target(op.tree, op.who, request.at)
    if not parent.is_dir:
        raise error(Code.NOT_DIRECTORY)
    if parent.nlink == 0:
        raise error(Code.NO_ENTRY, "the directory was removed")
    require(parent, op.who, WRITE | EXECUTE)
    layout = rule_of(request.layout) if request.HasField("layout") else None
    inode = new_inode(op, parent, stat.S_IFREG | request.mode & 0o7777, umask=request.umask, layout=layout)
    inode.nlink = 0
    _start_session(op, request, inode, mask, new=True)
    op.tree.put(inode)
    op.tree.put_garbage(inode.id, Garbage(GarbageKind.FILE, op.now_ns, op.who.uid))
    return open_reply(inode, created=True)


def _check_existing(op: Op, inode: Inode, flags: int, mask: int) -> None:
    if inode.is_link:
        raise error(Code.LINK_LOOP)
    if inode.is_dir:
        if mask & WRITE or flags & (os.O_CREAT | os.O_TRUNC):
            raise error(Code.IS_DIRECTORY)
    elif flags & os.O_DIRECTORY:
        raise error(Code.NOT_DIRECTORY)
    require(inode, op.who, mask | (WRITE if flags & os.O_TRUNC else 0))
    if inode.is_file and (inode.flags & Flags.COLLECTING or (inode.nlink == 0 and not op.tree.has_sessions(inode.id))):
        raise error(Code.STALE_HANDLE)


def _start_session(op: Op, request: meta_pb2.OpenRequest, inode: Inode, mask: int, *, new: bool = False) -> bool:
    """Record the session; whether the inode changed (the first open for writing marks it). `new`: it has none yet."""
    if request.session:
        if len(request.session) != ID_BYTES or len(op.who.client_id) != ID_BYTES:
            raise error(Code.INVALID, f"session and client id have {ID_BYTES} bytes")
        known = None if new else op.tree.session(inode.id, request.session)
        if known is None or known.client_id != op.who.client_id or (mask & WRITE and not known.write):
            op.tree.put_session(inode.id, request.session, Session(op.who.client_id, bool(mask & WRITE), op.now_ns))
    if mask & WRITE and not inode.flags & Flags.WRITTEN:
        inode.flags |= Flags.WRITTEN
        return True
    return False


def close_file(op: Op, request: meta_pb2.CloseRequest) -> meta_pb2.InodeReply:
    tree = op.tree
    inode = tree.inode(request.inode)
    session = tree.session(inode.id, request.session) if request.session else None
    mine = session is not None and session.client_id == op.who.client_id
    if request.HasField("hint") or request.HasField("mtime") or request.HasField("atime"):
        if not (mine or may(inode, op.who, WRITE)):
            raise error(Code.BAD_HANDLE)
        if _written(op, inode, request):
            tree.put(inode)
    if mine:
        tree.delete_session(inode.id, request.session)
        if inode.nlink == 0:
            op.garbage.append(inode.id)
    return inode_reply(inode)


def end_sessions(op: Op, request: meta_pb2.EndSessionsRequest) -> meta_pb2.EndSessionsReply:
    if len(request.sessions) > SESSIONS_ENDED_MAX:
        raise error(Code.TOO_LARGE, f"{len(request.sessions)} sessions, at most {SESSIONS_ENDED_MAX} are ended at once")
    for ended in request.sessions:
        session = op.tree.session(ended.inode, ended.session) if len(ended.session) == ID_BYTES else None
        if session is None or session.client_id != op.who.client_id:
            continue
        op.tree.delete_session(ended.inode, ended.session)
        inode = op.tree.find(ended.inode)
        if inode is not None and inode.nlink == 0:
            op.garbage.append(inode.id)
    return meta_pb2.EndSessionsReply()


def end_session(op: Op, request: meta_pb2.CloseRequest, *, settle: bool) -> meta_pb2.InodeReply:
    """Close for a client that is gone; `settle`: it may have written, so storage says how long the file is."""
    inode = op.tree.find(request.inode)
    op.tree.delete_session(request.inode, request.session)
    if inode is None:
        return meta_pb2.InodeReply()
    if inode.nlink == 0 and not inode.flags & Flags.TRASHED:
        op.garbage.append(inode.id)
    elif settle:
        length = lengthened(inode, stored_end(op, inode))
        if length != inode.length:
            inode.length = length
            inode.mtime_ns = inode.ctime_ns = op.now_ns
            op.tree.put(inode)
    return inode_reply(inode)


def sync_file(op: Op, request: meta_pb2.SyncRequest) -> meta_pb2.InodeReply:
    tree = op.tree
    inode = tree.inode(request.inode)
    if request.HasField("hint") or request.HasField("mtime") or request.HasField("atime"):
        if not may(inode, op.who, WRITE) and not any(
            session.client_id == op.who.client_id for _, session in tree.sessions(inode.id)
        ):
            raise error(Code.BAD_HANDLE)
        if _written(op, inode, request):
            tree.put(inode)
    return inode_reply(inode)


def _written(op: Op, inode: Inode, request: meta_pb2.CloseRequest | meta_pb2.SyncRequest) -> bool:
    """Take what a client says of its writes into `inode`; whether that changed it."""
    before = (inode.length, inode.mtime_ns, inode.atime_ns, inode.mode, inode.flags)
    if request.HasField("hint") and inode.is_file:
        hint = Hint(request.hint.length, request.hint.truncate_version)
        if hint.length > FILE_BYTES_MAX:
            raise error(Code.TOO_BIG)
        if settles(inode, hint):
            inode.length = lengthened(inode, hint.length)
        else:
            inode.length = lengthened(inode, stored_end(op, inode))
    if request.HasField("atime"):
        inode.atime_ns = request.atime.ns
    if request.HasField("mtime"):
        inode.mtime_ns = request.mtime.ns
    if request.HasField("hint") or request.HasField("mtime"):
        newer = not request.HasField("mtime") or request.mtime.ns > inode.ctime_ns
        if newer and not request.privileges_taken:
            after_write(op, inode)
    after = (inode.length, inode.mtime_ns, inode.atime_ns, inode.mode, inode.flags)
    if before[:2] != after[:2] or before[3:] != after[3:]:
        inode.ctime_ns = op.now_ns
    return before != after


def stored_end(op: Op, inode: Inode) -> int:
    if inode.flags & Flags.TRIMMING:
        raise TrimFirst(inode.id)
    asked = op.learned.get(inode.id)
    if asked is None or asked[0] != inode.truncate_version:
        raise AskStorage(inode)
    return asked[1]
