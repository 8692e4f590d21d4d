"""TMPFILE: open(2) with O_TMPFILE."""

from __future__ import annotations

import os
import stat

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
    reply = volume.meta.open(
        m.OpenRequest(
            caller=volume.caller(request),
            at=m.PathAt(dir=request.nodeid),
            flags=(flags & os.O_ACCMODE) | os.O_TMPFILE,
            mode=stat.S_IFREG | (mode & 0o7777),
            umask=umask,
            session=session,
        )
    )
    live = volume.table.enter(reply.inode, volume.clock.monotonic_s())
    with live.lock:
        live.created_here = True
        return volume.entry(reply.inode) + opened(volume, live, reply, session, flags, True)
