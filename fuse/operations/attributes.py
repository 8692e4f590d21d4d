"""GETATTR, STATX, SETATTR, ACCESS, STATFS."""

from __future__ import annotations

import stat

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.limits import NAME_BYTES_MAX
from fireflyfs.fuse import protocol
from fireflyfs.fuse.inodes import LiveInode, attributes_of
from fireflyfs.fuse.protocol import SetAttr
from fireflyfs.fuse.request import Reply, Request
from fireflyfs.fuse.statx import encode_statx
from fireflyfs.fuse.volume import Volume
from fireflyfs.proto import meta_pb2 as m

STATFS_BLOCK_BYTES = 4096
TIME_NS_MAX = (1 << 63) - 1


def getattr_(volume: Volume, request: Request) -> Reply:
    return _attributes(volume, request)[1]


def statx(volume: Volume, request: Request) -> Reply:
    inode, attr_out = _attributes(volume, request)
    return encode_statx(attr_out, inode.btime_ns)


def _attributes(volume: Volume, request: Request) -> tuple[m.Inode, bytes]:
    """An inode, and what GETATTR says of it."""
    live = volume.table.get(request.nodeid)
    if live is not None:
        if volume.rings is not None:
            volume.rings.files.collect(live)
        # What is open here was asked for at its open: within the time that the kernel may trust it, so may we.
        with live.lock:
            volume.settle(live)
            if volume.clock.monotonic_s() - live.checked_s < volume.options.attr_timeout_s:
                volume.counts["attributes_known"] += 1
                return live.inode, volume.attr(live.inode)
    changed = volume.changed.take(request.nodeid, volume.clock.monotonic_s())
    if changed is not None:
        inode, left_s = changed
        volume.counts["attributes_known"] += 1
        volume.table.told(inode)
        return inode, protocol.encode_attr(attributes_of(inode, None), protocol.Valid.of(left_s))
    volume.counts["attributes_asked"] += 1
    try:
        inode = volume.stat(request.nodeid, volume.caller(request))
    except FfsError as exc:
        removed = volume.removed.get(request.nodeid)
        if removed is None or exc.code is not Code.STALE_HANDLE:
            raise
        inode = removed
    return inode, volume.attr(inode)


def setattr_(volume: Volume, request: Request) -> Reply:
    live = volume.table.hold(request.nodeid)
    volume.changed.forget(request.nodeid)
    if live is None:
        return volume.attr(_set(volume, request, None))
    try:
        with live.lock:
            inode = _set(volume, request, live)
            live.learn(inode, volume.clock.monotonic_s())
            live.limit.learn(inode, volume.clock.monotonic_s())
            return volume.attr(inode)
    finally:
        volume.release(live, writes=False)


def _set(volume: Volume, request: Request, live: LiveInode | None) -> m.Inode:
    asked = protocol.decode_setattr(request.body)
    valid = asked.valid
    change = m.SetAttrRequest(caller=volume.caller(request), at=m.PathAt(dir=request.nodeid))
    if valid & SetAttr.MODE:
        change.mode = asked.mode & 0o7777
    if valid & SetAttr.UID:
        change.uid = asked.uid
    if valid & SetAttr.GID:
        change.gid = asked.gid
    if valid & SetAttr.ATIME_NOW:
        change.atime_now = True
    elif valid & SetAttr.ATIME:
        change.atime_ns = _bounded(asked.atime_ns)
    if valid & SetAttr.MTIME_NOW:
        change.mtime_now = True
    elif valid & SetAttr.MTIME:
        change.mtime_ns = _bounded(asked.mtime_ns)
    if valid & SetAttr.SIZE:
        change.length = asked.size
        if live is not None:
            volume.before_truncation(live, request)
            handle = volume.handles.file_or_none(asked.fh) if valid & SetAttr.FH else None
            if handle is not None and handle.writes:
                change.session = volume.ensure_session(live)
    if not valid or valid & SetAttr.KILL_SUIDGID:
        # Nothing to change is how the kernel says that set-id bits must go: before a write, or by chown(path, -1, -1).
        change.kill_privileges = True
        if live is not None and live.writers and not change.session:
            change.session = volume.ensure_session(live)
    try:
        inode = volume.meta.set_attr(change).inode
        volume.ahead.forget(inode.id)
        volume.table.pages_stay(inode)
    except FfsError as exc:
        removed = volume.removed.get(request.nodeid)
        if removed is None or exc.code is not Code.STALE_HANDLE or change.HasField("length"):
            raise
        inode = _set_removed(volume, removed, change)
    if live is not None:
        if valid & SetAttr.SIZE:
            volume.truncated(live)
        if valid & (SetAttr.MTIME | SetAttr.MTIME_NOW):
            live.mtime_ns = 0  # set just now, later than any write before
        if valid & (SetAttr.ATIME | SetAttr.ATIME_NOW):
            live.atime_ns = 0
    return inode


def _set_removed(volume: Volume, removed: m.Inode, change: m.SetAttrRequest) -> m.Inode:
    """Of something that only the kernel still holds, as a removed directory: nobody else can see it."""
    inode = m.Inode()
    inode.CopyFrom(removed)
    now_ns = volume.clock.unix_ns()
    if change.HasField("mode"):
        inode.mode = stat.S_IFMT(inode.mode) | change.mode
    for name in ("uid", "gid", "atime_ns", "mtime_ns"):
        if change.HasField(name):
            setattr(inode, name, getattr(change, name))
    if change.atime_now:
        inode.atime_ns = now_ns
    if change.mtime_now:
        inode.mtime_ns = now_ns
    inode.ctime_ns = now_ns
    volume.removed.add(inode)
    return inode


def _bounded(time_ns: int) -> int:
    """A time that can be stored: from 1677 to 2262. Others become the nearest, as on other file systems."""
    return max(-TIME_NS_MAX - 1, min(TIME_NS_MAX, time_ns))


def access(volume: Volume, request: Request) -> Reply:
    mask, _ = protocol.ACCESS_IN.unpack_from(request.body)
    volume.meta.access(m.AccessRequest(caller=volume.caller(request), at=m.PathAt(dir=request.nodeid), mask=mask))
    return b""


def statfs(volume: Volume, request: Request) -> Reply:
    space = volume.meta.stat_fs(m.StatFsRequest(caller=volume.caller(request), inode=request.nodeid))
    block = space.block_bytes or STATFS_BLOCK_BYTES
    free = space.free_bytes // block
    inodes_free = space.free_files if space.HasField("free_files") else space.free_bytes // STATFS_BLOCK_BYTES
    return protocol.STATFS_OUT.pack(
        space.capacity_bytes // block, free, free, space.files + inodes_free, inodes_free, block, NAME_BYTES_MAX,
        block, 0,
    )  # fmt: skip
