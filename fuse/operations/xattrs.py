"""GETXATTR, LISTXATTR, SETXATTR, REMOVEXATTR. ACLs come this way too; the kernel checks them (FUSE_POSIX_ACL)."""

from __future__ import annotations

import stat

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.fuse import protocol
from fireflyfs.fuse.request import Reply, Request
from fireflyfs.fuse.told import ACL_NAME, CAPABILITY_NAME, DEFAULT_ACL_NAME, Known
from fireflyfs.fuse.volume import Volume
from fireflyfs.proto import meta_pb2 as m

_SPACES = (b"user.", b"trusted.", b"security.")
_ASKED_OFTEN = (CAPABILITY_NAME, ACL_NAME, DEFAULT_ACL_NAME)


def getxattr(volume: Volume, request: Request) -> Reply:
    size, _ = protocol.GETXATTR_IN.unpack_from(request.body)
    name = protocol.decode_name(request.body, protocol.GETXATTR_IN.size)
    if _may_be_set(name) and _look(volume, request, name) is Known.ABSENT:
        raise error(Code.NO_DATA)
    asked = m.GetXattrRequest(caller=volume.caller(request), at=m.PathAt(dir=request.nodeid), name=name)
    return _sized(volume.meta.get_xattr(asked).value, size)


def _may_be_set(name: bytes) -> bool:
    """Whether the name is one that an attribute can have: what is wrong with another one, meta says."""
    return name in _ASKED_OFTEN or (name.startswith(_SPACES) and name not in _SPACES)


def _look(volume: Volume, request: Request, name: bytes) -> Known:
    """Whether meta must be asked for the attribute: not when its last word about the inode is new enough."""
    now = volume.clock.monotonic_s()
    known = volume.xattrs.look(request.nodeid, name, now)
    if known is not Known.UNKNOWN:
        return known
    live = volume.table.get(request.nodeid)
    if live is not None and now - live.checked_s < volume.options.attr_timeout_s:
        volume.xattrs.learn(live.inode, live.checked_s)
    elif name in _ASKED_OFTEN:  # attributes say as much as the answer would, and the kernel asks for all three
        try:
            volume.xattrs.learn(volume.stat(request.nodeid, volume.caller(request)), now)
        except FfsError as exc:
            if exc.code is not Code.STALE_HANDLE:
                raise
            return Known.ABSENT  # removed, and the kernel still has it
    return volume.xattrs.look(request.nodeid, name, now)


def _sized(value: bytes, size: int) -> Reply:
    if not size:
        return protocol.GETXATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise error(Code.OUT_OF_RANGE, f"{len(value)} bytes, the caller has room for {size}")
    return value


def listxattr(volume: Volume, request: Request) -> Reply:
    size, _ = protocol.GETXATTR_IN.unpack_from(request.body)
    if _look(volume, request, b"") is Known.ABSENT:
        return _sized(b"", size)
    asked = m.ListXattrRequest(caller=volume.caller(request), at=m.PathAt(dir=request.nodeid))
    names = volume.meta.list_xattr(asked).names
    return _sized(b"".join(name + b"\0" for name in names), size)


def setxattr(volume: Volume, request: Request) -> Reply:
    layout = volume.setxattr_in
    size, flags, *_ = layout.unpack_from(request.body)
    kill_sgid = layout is protocol.SETXATTR_IN and layout.unpack_from(request.body)[2] & protocol.SETXATTR_ACL_KILL_SGID
    name = protocol.decode_name(request.body, layout.size)
    start = layout.size + len(name) + 1
    asked = m.SetXattrRequest(
        caller=volume.caller(request),
        at=m.PathAt(dir=request.nodeid),
        name=name,
        value=bytes(request.body[start : start + size]),
        flags=0 if name in (ACL_NAME, DEFAULT_ACL_NAME) else flags,
    )
    inode = volume.meta.set_xattr(asked).inode
    if kill_sgid and inode.mode & stat.S_ISGID:  # root without CAP_FSETID: meta knows users only
        mode = stat.S_IMODE(inode.mode) & ~stat.S_ISGID
        change = m.SetAttrRequest(caller=volume.caller(request), at=m.PathAt(dir=request.nodeid), mode=mode)
        inode = volume.meta.set_attr(change).inode
    _changed(volume, inode)
    return b""


def removexattr(volume: Volume, request: Request) -> Reply:
    name = protocol.decode_name(request.body)
    at = m.PathAt(dir=request.nodeid)
    if name == CAPABILITY_NAME:
        # The kernel lets only root ask for that by itself. Otherwise it asks on behalf of whoever writes to the file.
        if _look(volume, request, name) is Known.ABSENT:
            raise error(Code.NO_DATA)
        change = m.SetAttrRequest(caller=volume.callers.root, at=at, kill_capability=True)
        _changed(volume, volume.meta.set_attr(change).inode)
        return b""
    asked = m.RemoveXattrRequest(caller=volume.caller(request), at=at, name=name)
    _changed(volume, volume.meta.remove_xattr(asked).inode)
    return b""


def _changed(volume: Volume, inode: m.Inode) -> None:
    volume.changed.forget(inode.id)
    volume.changed_inode(inode)
