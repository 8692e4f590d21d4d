"""TMPFILE: open(2) with O_TMPFILE."""

from __future__ import annotations

import os
import stat

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.ids import new_session_id
from fireflyfs.fuse import protocol
from fireflyfs.fuse.operations.files import opened
from fireflyfs.fuse.request import Reply, Request
from fireflyfs.fuse.volume import Volume
from fireflyfs.proto import meta_pb2 as m


def tmpfile(volume: Volume, request: Request) -> Reply:
    """A file without a name in a directory; gone when it is closed, unless linkat(2) gives it one."""
    flags, mode, umask, _ = protocol.CREATE_IN.unpack_from(request.body)
    session = new_session_id()
    asked = m.OpenRequest(
        caller=volume.caller(request),
        at=m.PathAt(dir=request.nodeid),
        flags=(flags & os.O_ACCMODE) | os.O_TMPFILE,
        mode=stat.S_IFREG | (mode & 0o7777),
        umask=umask,
        session=session,
    )
    try:
        reply = volume.meta.open(asked)
    except FfsError as exc:
        if exc.code is not Code.STALE_HANDLE:
            raise
        raise error(Code.NO_ENTRY, "the directory was removed") from exc  # what the kernel says for all other new names
    live = volume.table.enter(reply.inode, volume.clock.monotonic_s())
    with live.lock:
        live.created_here = True
        return volume.entry(reply.inode) + opened(volume, live, reply, session, flags, True)
