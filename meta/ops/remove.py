"""Operations that take names away."""

from __future__ import annotations

from fireflyfs.common.errors import Code, error
from fireflyfs.meta.core.permission import EXECUTE, READ, WRITE, Who, may, require, require_unlink
from fireflyfs.meta.core.records import Flags, Garbage, GarbageKind, Inode
from fireflyfs.meta.ops import trash
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.ops.reply import fill, fill_attributes
from fireflyfs.meta.ops.resolve import resolve
from fireflyfs.meta.store import names
from fireflyfs.meta.store.tree import Tree
from fireflyfs.proto import meta_pb2

RECURSIVE_CHECK_MAX = 4096  # entries looked at before a caller who is not root may remove a whole tree at once


def remove(op: Op, request: meta_pb2.RemoveRequest) -> meta_pb2.RemoveReply:
    place = resolve(op.tree, op.who, request.at, entry=True)
    directory = request.kind != meta_pb2.REMOVE_UNLINK
    if place.name == b"." and directory:
        raise error(Code.INVALID)
    if place.name == b".." and directory:
        raise error(Code.NOT_EMPTY)
    if place.parent is None:
        raise error(Code.BUSY if directory or place.must_be_dir else Code.INVALID)
    inode, parent = place.inode, place.parent
    if inode is None:
        raise error(Code.NO_ENTRY)
    require_there(parent)
    require_unlink(parent, inode, op.who)
    if place.must_be_dir and not inode.is_dir:
        raise error(Code.NOT_DIRECTORY)
    if request.kind == meta_pb2.REMOVE_UNLINK:
        if inode.is_dir:
            raise error(Code.IS_DIRECTORY)
        drop_name(op, parent, place.name, inode)
    elif inode.is_dir:
        if op.tree.is_empty(inode.id):
            drop_directory(op, parent, place.name, inode)
        elif request.kind == meta_pb2.REMOVE_RMDIR:
            raise error(Code.NOT_EMPTY)
        else:
            _require_whole_tree(op.tree, inode, op.who)
            _drop_tree(op, parent, place.name, inode)
    elif request.kind == meta_pb2.REMOVE_RMDIR:
        raise error(Code.NOT_DIRECTORY)
    else:
        drop_name(op, parent, place.name, inode)
    touch(op, parent)
    op.tree.put(parent)
    reply = meta_pb2.RemoveReply()
    fill(reply.directory, parent)
    fill_attributes(reply.inode, inode)
    return reply


def require_there(directory: Inode) -> None:
    """Raises NO_ENTRY for one that was removed: what is in it waits to be collected, or restored as it was."""
    if directory.nlink == 0:
        raise error(Code.NO_ENTRY, "the directory was removed")


def touch(op: Op, directory: Inode) -> None:
    directory.mtime_ns = directory.ctime_ns = op.now_ns


def drop_name(op: Op, parent: Inode, name: bytes, inode: Inode) -> None:
    """Take one name of something that is no directory; the last one makes it garbage. The caller stores `parent`."""
    op.tree.unlink(parent.id, name)
    if op.trash and inode.nlink == 1:
        trash.put_away(op, parent, name, inode)
    else:
        drop_link(op, parent.id, inode)


def drop_link(op: Op, directory: int, inode: Inode) -> None:
    """One name in `directory` fewer: the caller has taken it away."""
    inode.nlink -= 1
    names.removed(op.tree, inode, directory)
    inode.ctime_ns = op.now_ns
    if inode.nlink:
        op.tree.put(inode)
        return
    op.files_delta -= 1
    if inode.flags & Flags.WRITTEN or (inode.is_file and op.tree.has_sessions(inode.id)):
        op.tree.put(inode)
        op.tree.put_garbage(inode.id, Garbage(GarbageKind.FILE, op.now_ns, op.who.uid))
        op.garbage.append(inode.id)
    else:
        op.tree.delete(inode)


def drop_directory(op: Op, parent: Inode, name: bytes, inode: Inode) -> None:
    """Take an empty directory away. The caller stores `parent`."""
    op.tree.unlink(parent.id, name)
    parent.nlink -= 1
    inode.nlink = 0
    inode.ctime_ns = op.now_ns
    op.tree.delete(inode)
    op.files_delta -= 1


def _drop_tree(op: Op, parent: Inode, name: bytes, inode: Inode) -> None:
    op.tree.unlink(parent.id, name)
    parent.nlink -= 1
    if op.trash:
        trash.put_away(op, parent, name, inode)
        return
    inode.nlink = 0
    inode.ctime_ns = op.now_ns
    op.tree.put(inode)
    op.tree.put_garbage(inode.id, Garbage(GarbageKind.TREE, op.now_ns, op.who.uid))
    op.garbage.append(inode.id)


def _require_whole_tree(tree: Tree, top: Inode, who: Who) -> None:
    """May `who` remove everything below `top`? What `rm -r` would find out name by name is found out here first.

    Raises ACCESS_DENIED, NOT_PERMITTED, or NOT_SUPPORTED for a tree too large to look through: then remove it
    piece by piece.
    """
    if who.uid == 0:
        return
    seen = 0
    waiting = [top]
    while waiting:
        directory = waiting.pop()
        require(directory, who, READ | WRITE | EXECUTE)
        for _, inode_id, _ in tree.children(directory.id):
            seen += 1
            if seen > RECURSIVE_CHECK_MAX:
                raise error(Code.NOT_SUPPORTED, "too many entries to check: remove the tree piece by piece")
            child = tree.find(inode_id)
            if child is None:
                continue
            require_unlink(directory, child, who)
            if child.is_dir and not (tree.is_empty(child.id) and not may(child, who, READ)):
                waiting.append(child)
