"""Rename: replace, NOREPLACE and EXCHANGE, in one transaction."""

from __future__ import annotations

from fireflyfs.common.errors import Code, error
from fireflyfs.meta.core.paths import check_new_name
from fireflyfs.meta.core.permission import EXECUTE, WRITE, require, require_unlink
from fireflyfs.meta.core.records import Inode
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.ops.delegations import before_new_name
from fireflyfs.meta.ops.remove import drop_directory, drop_name, require_there, touch
from fireflyfs.meta.ops.reply import fill, fill_attributes
from fireflyfs.meta.ops.resolve import resolve
from fireflyfs.meta.store import names
from fireflyfs.meta.store.tree import Tree
from fireflyfs.proto import meta_pb2

NOREPLACE = 1  # the values of renameat2(2)
EXCHANGE = 2


def rename(op: Op, request: meta_pb2.RenameRequest) -> meta_pb2.RenameReply:
    flags = request.flags
    if flags & ~(NOREPLACE | EXCHANGE) or flags == NOREPLACE | EXCHANGE:
        raise error(Code.INVALID, f"rename flags {flags}")
    tree, who = op.tree, op.who
    old = resolve(tree, who, request.old, entry=True)
    new = resolve(tree, who, request.new, entry=True)
    if old.parent is None or new.parent is None or {old.name, new.name} & {b".", b".."}:
        raise error(Code.BUSY)
    inode, other = old.inode, new.inode
    if inode is None:
        raise error(Code.NO_ENTRY)
    if flags & NOREPLACE and other is not None:
        raise error(Code.EXISTS)
    if flags & EXCHANGE and other is None:
        raise error(Code.NO_ENTRY)
    source = old.parent
    goal = source if new.parent.id == source.id else new.parent
    if other is None:
        check_new_name(new.name)
    if (old.must_be_dir or new.must_be_dir) and not inode.is_dir:
        raise error(Code.NOT_DIRECTORY)
    if other is not None and other.id == inode.id:
        return meta_pb2.RenameReply()  # two names of one file: POSIX says to do nothing
    _check_cycles(tree, source, inode, goal, other, exchange=bool(flags & EXCHANGE))
    require_there(source)
    require_there(goal)
    require_unlink(source, inode, who)
    if other is None:
        require(goal, who, WRITE | EXECUTE)
        before_new_name(op, goal)
    else:
        require_unlink(goal, other, who)
    if source is not goal:
        for moved in (inode, other if flags & EXCHANGE else None):
            if moved is not None and moved.is_dir:
                require(moved, who, WRITE)  # its `..` changes
    if flags & EXCHANGE:
        assert other is not None
        _place(op, source, goal, new.name, inode)
        _place(op, goal, source, old.name, other)
    else:
        if other is not None:
            _replace(op, inode, goal, new.name, other)
        tree.unlink(source.id, old.name)
        _place(op, source, goal, new.name, inode)
    for directory in (source, goal):
        touch(op, directory)
        tree.put(directory)
    reply = meta_pb2.RenameReply()
    fill(reply.old_directory, source)
    fill_attributes(reply.inode, inode)
    if other is not None:
        fill_attributes(reply.other, other)
    if goal is not source:
        fill(reply.new_directory, goal)
    return reply


def _place(op: Op, source: Inode, goal: Inode, name: bytes, inode: Inode) -> None:
    inode.ctime_ns = op.now_ns
    if inode.is_dir and source is not goal:
        source.nlink -= 1
        goal.nlink += 1
        inode.parent, inode.counted = goal.id, True
    elif not inode.is_dir:
        names.moved(op.tree, inode, source.id, goal.id)
        if inode.nlink > 1:
            op.further_names.append((inode.id, goal.id, source.id))
    op.tree.put(inode)
    op.tree.link(goal.id, name, inode)


def _replace(op: Op, inode: Inode, goal: Inode, name: bytes, other: Inode) -> None:
    if inode.is_dir:
        if not other.is_dir:
            raise error(Code.NOT_DIRECTORY)
        if not op.tree.is_empty(other.id):
            raise error(Code.NOT_EMPTY)
        drop_directory(op, goal, name, other)
    else:
        if other.is_dir:
            raise error(Code.IS_DIRECTORY)
        drop_name(op, goal, name, other)
    op.enters = goal.id


def _check_cycles(tree: Tree, source: Inode, inode: Inode, goal: Inode, other: Inode | None, *, exchange: bool) -> None:
    """No directory may move below itself. Every directory on the way up is in the transaction's conflict set."""
    if source.id == goal.id:
        return
    if inode.is_dir and _is_above(tree, inode.id, goal):
        raise error(Code.INVALID, "a directory cannot move below itself")
    if other is not None and other.is_dir and _is_above(tree, other.id, source):
        raise error(Code.INVALID if exchange else Code.NOT_EMPTY)


def _is_above(tree: Tree, inode_id: int, directory: Inode) -> bool:
    return any(one.id == inode_id for one in tree.ancestors(directory))
