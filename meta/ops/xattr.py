"""Extended attributes: get, list, set, remove. ACLs come and go under their names in the system namespace."""

from __future__ import annotations

import stat

from fireflyfs.common.errors import Code, error
from fireflyfs.meta.core import acl, xattrs
from fireflyfs.meta.core.acl import Acl
from fireflyfs.meta.core.permission import Who, require_owner
from fireflyfs.meta.core.records import Flags, Inode
from fireflyfs.meta.core.xattrs import Kind, kind_of
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.ops.reply import inode_reply
from fireflyfs.meta.ops.resolve import target
from fireflyfs.proto import meta_pb2


def get_xattr(op: Op, request: meta_pb2.GetXattrRequest) -> meta_pb2.GetXattrReply:
    kind = kind_of(request.name)
    inode = target(op.tree, op.who, request.at)
    if kind is Kind.ACL:
        access, default = op.tree.acls(inode)
        found = access if request.name == acl.ACCESS else default
        if inode.is_link:
            raise error(Code.NOT_SUPPORTED, "a symbolic link has no ACL")
        if not found:
            raise error(Code.NO_DATA)
        return meta_pb2.GetXattrReply(value=acl.pack(found))
    xattrs.require_get(inode, op.who, kind)
    value = op.tree.xattrs(inode).get(request.name)
    if value is None:
        raise error(Code.NO_DATA)
    return meta_pb2.GetXattrReply(value=value)


def list_xattr(op: Op, request: meta_pb2.ListXattrRequest) -> meta_pb2.ListXattrReply:
    inode = target(op.tree, op.who, request.at)
    names = [name for flag, name in _ACL_NAMES if inode.flags & flag]
    return meta_pb2.ListXattrReply(names=names + xattrs.visible(list(op.tree.xattrs(inode)), op.who))


_ACL_NAMES = ((Flags.ACL, acl.ACCESS), (Flags.DEFAULT_ACL, acl.DEFAULT))


def set_xattr(op: Op, request: meta_pb2.SetXattrRequest) -> meta_pb2.InodeReply:
    kind = kind_of(request.name)
    xattrs.check_value(request.value)
    inode = _target(op, request.at)
    if kind is Kind.ACL:
        _set_acl(op, inode, request.name, acl.parse(request.value))
    else:
        xattrs.require_set(inode, op.who, kind)
        values = op.tree.xattrs(inode)
        xattrs.put(values, request.name, request.value, request.flags)
        op.tree.set_xattrs(inode, values)
    return _changed(op, inode)


def remove_xattr(op: Op, request: meta_pb2.RemoveXattrRequest) -> meta_pb2.InodeReply:
    """An ACL that is not there is no error, as on Linux."""
    kind = kind_of(request.name)
    inode = _target(op, request.at)
    if kind is Kind.ACL:
        _set_acl(op, inode, request.name, ())
    else:
        xattrs.require_set(inode, op.who, kind)
        values = op.tree.xattrs(inode)
        if values.pop(request.name, None) is None:
            raise error(Code.NO_DATA)
        op.tree.set_xattrs(inode, values)
    return _changed(op, inode)


def _target(op: Op, at: meta_pb2.PathAt) -> Inode:
    inode = target(op.tree, op.who, at)
    if inode.flags & Flags.COLLECTING:
        raise error(Code.STALE_HANDLE)
    return inode


def _changed(op: Op, inode: Inode) -> meta_pb2.InodeReply:
    inode.ctime_ns = op.now_ns
    op.tree.put(inode)
    return inode_reply(inode)


def _set_acl(op: Op, inode: Inode, name: bytes, new: Acl) -> None:
    """An access ACL sets the mode's bits too, and is not kept when they say all of it."""
    if inode.is_link:
        raise error(Code.NOT_SUPPORTED, "a symbolic link has no ACL")
    require_owner(inode, op.who)
    access, default = op.tree.acls(inode)
    if name == acl.DEFAULT:
        if new and not inode.is_dir:
            raise error(Code.ACCESS_DENIED)
        op.tree.set_acls(inode, access, new)
        return
    if new:
        inode.mode = _mode_with(inode, op.who, acl.mode_of(new))
    op.tree.set_acls(inode, () if acl.is_minimal(new) else new, default)


def _mode_with(inode: Inode, who: Who, bits: int) -> int:
    mode = inode.mode & ~0o777 | bits
    if who.uid != 0 and not who.in_group(inode.gid):
        mode &= ~stat.S_ISGID
    return mode
