"""Room at the end of a file: what O_APPEND needs when several clients append (docs/data_and_locks.md, Appending)."""

from __future__ import annotations

import dataclasses

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import FILE_BYTES_MAX
from fireflyfs.meta.core.keys import ID_BYTES
from fireflyfs.meta.core.length import Hint, lengthened, settles
from fireflyfs.meta.core.permission import WRITE, require
from fireflyfs.meta.core.records import Flags, Session
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.ops.files import stored_end
from fireflyfs.meta.ops.needs import TrimFirst
from fireflyfs.meta.ops.reply import to_message
from fireflyfs.meta.ops.room import require_room
from fireflyfs.proto import meta_pb2


def append(op: Op, request: meta_pb2.AppendRequest) -> meta_pb2.AppendReply:
    """The length does not change here: nobody should read bytes that are not there yet."""
    if len(request.session) != ID_BYTES or len(op.who.client_id) != ID_BYTES:
        raise error(Code.INVALID, f"session and client id have {ID_BYTES} bytes")
    inode = op.tree.inode(request.inode)
    if not inode.is_file:
        raise error(Code.INVALID, "only a regular file is appended to")
    if inode.flags & Flags.COLLECTING:
        raise error(Code.STALE_HANDLE)
    session = op.tree.session(inode.id, request.session)
    if session is None or session.client_id != op.who.client_id or not session.write:
        require(inode, op.who, WRITE)
        session = Session(op.who.client_id, True, op.now_ns)
        if not inode.flags & Flags.WRITTEN:
            inode.flags |= Flags.WRITTEN
            op.tree.put(inode)
    if inode.flags & Flags.TRIMMING:
        raise TrimFirst(inode.id)
    end = inode.length
    if request.HasField("hint"):
        hint = Hint(request.hint.length, request.hint.truncate_version)
        end = lengthened(inode, hint.length if settles(inode, hint) else stored_end(op, inode))
    for _, other in op.tree.sessions(inode.id):
        if other.client_id != op.who.client_id and other.truncate_version == inode.truncate_version:
            end = max(end, other.appending_to)
    if end + request.size > FILE_BYTES_MAX:
        raise error(Code.TOO_BIG)
    require_room(op, inode, end + request.size)
    given = dataclasses.replace(session, appending_to=end + request.size, truncate_version=inode.truncate_version)
    op.tree.put_session(inode.id, request.session, given)
    return meta_pb2.AppendReply(offset=end, inode=to_message(inode))
