"""Changing attributes: mode, owner, times, length, layout. All of one request or nothing."""

from __future__ import annotations

import stat

from fireflyfs.common.errors import Code, error
from fireflyfs.meta.core import acl
from fireflyfs.meta.core.layout import LayoutRule, merged
from fireflyfs.meta.core.permission import WRITE, may, require, require_owner, without_privilege_bits
from fireflyfs.meta.core.records import Flags, Inode
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.ops.create import rule_of
from fireflyfs.meta.ops.privileges import drop_capability
from fireflyfs.meta.ops.reply import inode_reply
from fireflyfs.meta.ops.resolve import target
from fireflyfs.meta.ops.truncate import as_told, truncate_to
from fireflyfs.proto import meta_pb2

UNCHANGED = 0xFFFFFFFF  # (uid_t) -1


def set_attributes(op: Op, request: meta_pb2.SetAttrRequest) -> meta_pb2.InodeReply:
    inode = target(op.tree, op.who, request.at)
    if request.HasField("length"):
        _set_length(op, inode, request)
    if request.kill_privileges or request.kill_capability:
        _kill_privileges(op, inode, request)
    if request.HasField("uid") or request.HasField("gid"):
        _set_owner(op, inode, request)
    if request.HasField("mode"):
        _set_mode(op, inode, request.mode)
    _set_times(op, inode, request)
    if request.HasField("layout"):
        _set_layout(op, inode, rule_of(request.layout))
    inode.ctime_ns = op.now_ns
    op.tree.put(inode)
    return inode_reply(as_told(op, inode))


def _set_length(op: Op, inode: Inode, request: meta_pb2.SetAttrRequest) -> None:
    if inode.is_dir:
        raise error(Code.IS_DIRECTORY)
    if not inode.is_file:
        raise error(Code.INVALID, "only a regular file has a length to set")
    if not _has_open(op, inode, request):
        require(inode, op.who, WRITE)
    truncate_to(op, inode, request.length)


def _has_open(op: Op, inode: Inode, request: meta_pb2.SetAttrRequest) -> bool:
    """Whether the request comes with a session for writing: permission was checked when the file was opened."""
    session = op.tree.session(inode.id, request.session) if request.session else None
    return session is not None and session.write and session.client_id == op.who.client_id


def _kill_privileges(op: Op, inode: Inode, request: meta_pb2.SetAttrRequest) -> None:
    """As a write does; so whoever could write may do it, and the owner. Nothing to take is no error."""
    mode = without_privilege_bits(inode, op.who) if request.kill_privileges and not inode.is_dir else inode.mode
    if mode == inode.mode and not inode.flags & Flags.CAPABILITY:
        return
    if op.who.uid not in (0, inode.uid) and not (_has_open(op, inode, request) or may(inode, op.who, WRITE)):
        raise error(Code.NOT_PERMITTED)
    inode.mode = mode
    drop_capability(op, inode)


def _set_owner(op: Op, inode: Inode, request: meta_pb2.SetAttrRequest) -> None:
    who = op.who
    uid = request.uid if request.HasField("uid") and request.uid != UNCHANGED else inode.uid
    gid = request.gid if request.HasField("gid") and request.gid != UNCHANGED else inode.gid
    named = (request.HasField("uid") and request.uid != UNCHANGED) or (
        request.HasField("gid") and request.gid != UNCHANGED
    )
    mine = who.uid == inode.uid and uid == inode.uid and (gid == inode.gid or who.in_group(gid))
    if who.uid != 0 and named and not mine:
        raise error(Code.NOT_PERMITTED)
    if not inode.is_dir:  # by the group that it has now: a new one's members are not asked
        inode.mode = without_privilege_bits(inode, who)
        drop_capability(op, inode)
    inode.uid, inode.gid = uid, gid


def _set_mode(op: Op, inode: Inode, mode: int) -> None:
    require_owner(inode, op.who)
    mode = stat.S_IMODE(mode)
    if op.who.uid != 0 and not op.who.in_group(inode.gid):
        mode &= ~stat.S_ISGID
    inode.mode = stat.S_IFMT(inode.mode) | mode
    if inode.acl:
        _, default = op.tree.acls(inode)
        op.tree.set_acls(inode, acl.with_mode(inode.acl, mode), default)


def _set_times(op: Op, inode: Inode, request: meta_pb2.SetAttrRequest) -> None:
    explicit = request.HasField("atime_ns") or request.HasField("mtime_ns")
    one = request.atime_now != request.mtime_now and not request.HasField("length")
    if explicit or one:  # utimensat(2): whoever may write may set both to now, and nothing else
        require_owner(inode, op.who)
    elif (request.atime_now or request.mtime_now) and op.who.uid != inode.uid and not may(inode, op.who, WRITE):
        raise error(Code.ACCESS_DENIED)
    if request.HasField("atime_ns"):
        inode.atime_ns = request.atime_ns
    elif request.atime_now:
        inode.atime_ns = op.now_ns
    if request.HasField("mtime_ns"):
        inode.mtime_ns = request.mtime_ns
    elif request.mtime_now:
        inode.mtime_ns = op.now_ns


def _set_layout(op: Op, inode: Inode, asked: LayoutRule) -> None:
    """A directory's is for what is made in it from now on; a file's can change until it is opened for writing."""
    require_owner(inode, op.who)
    rule = merged(asked, LayoutRule(inode.chunk_size, inode.stripe_size, inode.chain_table))
    if inode.is_file:
        if inode.flags & Flags.WRITTEN or inode.length:
            raise error(Code.BUSY, "the file was opened for writing: its chunks may already lie in the old layout")
        inode.chains = op.choose_chains(rule.chain_table, rule.stripe_size, inode.id)
    elif not inode.is_dir:
        raise error(Code.INVALID, "only files and directories have a layout")
    elif asked.chain_table:
        op.choose_chains(rule.chain_table, 1, inode.id)  # files could not be made in it
    inode.chunk_size, inode.stripe_size, inode.chain_table = rule.chunk_size, rule.stripe_size, rule.chain_table
