"""Set-uid and set-gid bits and security.capability go when a file is written (FUSE_HANDLE_KILLPRIV_V2)."""

from __future__ import annotations

import stat

from fireflyfs.fuse import protocol
from fireflyfs.fuse.inodes import LiveInode
from fireflyfs.fuse.request import Request
from fireflyfs.fuse.volume import Volume
from fireflyfs.proto import meta_pb2 as m

SET_ID_BITS = stat.S_ISUID | stat.S_ISGID
_GROUP_RUNS = stat.S_ISGID | stat.S_IXGRP


def drop_privileges(volume: Volume, request: Request, live: LiveInode, write_flags: int) -> None:
    """Before the bytes of a WRITE: at once, so that nobody runs new bytes under old privileges. Costs a round trip
    once, as nothing is left to take afterwards. Called under `live.lock`, with a session."""
    mode = live.inode.mode
    takes = write_flags & protocol.WRITE_KILL_SUIDGID if volume.kernel_says_who_keeps_set_id else request.uid != 0
    bits = takes and (mode & stat.S_ISUID or mode & _GROUP_RUNS == _GROUP_RUNS)
    if not bits and not live.inode.capability:
        return
    change = m.SetAttrRequest(
        caller=volume.caller(request),
        at=m.PathAt(dir=live.id),
        session=volume.ensure_session(live),
        kill_privileges=bool(bits),
        kill_capability=True,
    )
    live.learn(volume.meta.set_attr(change).inode, volume.clock.monotonic_s())
    volume.ahead.forget(live.id)
    if request.after_reply is None:
        request.after_reply = protocol.encode_inval_inode(live.id, -1, 0)
