"""What was removed and is kept for a while: put away, listed, restored, given up.

A trashed inode has no name and no links, like one that is removed while it is open; its trash record alone knows it. A
removed tree is kept by its top: what is below stays as it was.
"""

from __future__ import annotations

from itertools import pairwise

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.meta.core.paths import check_new_name
from fireflyfs.meta.core.permission import EXECUTE, WRITE, require
from fireflyfs.meta.core.records import Flags, Garbage, GarbageKind, Inode, Trash
from fireflyfs.meta.ops import create
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.ops.reply import inode_reply
from fireflyfs.meta.ops.resolve import resolve
from fireflyfs.meta.store import names
from fireflyfs.proto import meta_pb2

LIST_MAX = 1000
EMPTY_MAX = 30  # entries given up in one transaction: at most three writes each
NAMES_SEEN_MAX = 10_000  # entries of a directory that are looked through for the name of another one
FOREVER_NS = (1 << 63) - 1


def put_away(op: Op, parent: Inode, name: bytes, inode: Inode) -> None:
    """Keep what has just lost its last name. The caller has taken the name away and stores `parent`."""
    op.tree.put_trash(op.now_ns, inode.id, Trash(parent.id, inode.nlink, op.who.uid, name))
    inode.nlink = 0
    inode.ctime_ns = op.now_ns
    inode.flags |= Flags.TRASHED
    op.tree.put(inode)


def list_trash(op: Op, request: meta_pb2.ListTrashRequest) -> meta_pb2.ListTrashReply:
    """A page, oldest first: of everybody for root, otherwise of what the caller has removed."""
    limit = min(request.limit or LIST_MAX, LIST_MAX)
    reply = meta_pb2.ListTrashReply(after=request.after)
    paths: dict[int, bytes] = {}
    found = list(op.tree.all_trash((request.after.removed_ns, request.after.inode), FOREVER_NS, limit + 1))
    reply.more = len(found) > limit
    for removed_ns, inode_id, trash in found[:limit]:
        reply.after.removed_ns, reply.after.inode = removed_ns, inode_id
        if op.who.uid not in (0, trash.uid):
            continue
        inode = op.tree.find(inode_id)
        if inode is None:
            continue
        entry = reply.entries.add(name=trash.name, uid=trash.uid, mode=inode.mode, length=inode.length)
        entry.ref.removed_ns, entry.ref.inode = removed_ns, inode_id
        if trash.parent not in paths:
            paths[trash.parent] = path_of(op, trash.parent)
        entry.directory = paths[trash.parent]
    return reply


def path_of(op: Op, inode_id: int) -> bytes:
    """Where a directory is now; empty when it is gone, or too many names would have to be looked through."""
    steps: list[bytes] = []
    directory = op.tree.find(inode_id)
    if directory is None:
        return b""
    try:
        for child, parent in pairwise(op.tree.ancestors(directory)):
            if not child.nlink:
                return b""
            children = op.tree.children(parent.id, limit=NAMES_SEEN_MAX)
            steps.append(next(name for name, found, _ in children if found == child.id))
    except (FfsError, StopIteration):
        return b""
    return b"/" + b"/".join(reversed(steps))


def restore(op: Op, request: meta_pb2.RestoreTrashRequest) -> meta_pb2.InodeReply:
    """Give it its name back, or the one that `to` names. Raises EXISTS when that is taken."""
    removed_ns, inode_id = request.ref.removed_ns, request.ref.inode
    trash, inode = _found(op, request.ref)
    if request.HasField("to"):
        place = resolve(op.tree, op.who, request.to, entry=True)
        parent, name = create.vacant(op, place), place.name
    else:
        name = trash.name
        parent_or_none = op.tree.find(trash.parent)
        if parent_or_none is None or not parent_or_none.nlink:
            raise error(Code.NO_ENTRY, "the directory that it was in is gone: say where to restore it")
        parent = parent_or_none
        require(parent, op.who, WRITE | EXECUTE)
        if op.tree.child(parent.id, name) is not None:
            raise error(Code.EXISTS, "its name is taken: say where to restore it")
        check_new_name(name)
    if inode.is_dir and _is_within(op, parent, inode.id):
        raise error(Code.INVALID, "a directory cannot be restored below itself")
    inode.nlink = trash.nlink
    inode.flags &= ~Flags.TRASHED
    inode.ctime_ns = op.now_ns
    if inode.is_dir:
        inode.parent, inode.counted = parent.id, True
    else:
        names.added(op.tree, inode, parent.id)
    op.tree.delete_trash(removed_ns, inode_id)
    create.attach(op, parent, name, inode)
    return inode_reply(inode, parent)


def _is_within(op: Op, directory: Inode, inode_id: int) -> bool:
    """Whether `directory` is the trashed inode or below it. Raises NO_ENTRY for one that is below other trash."""
    for one in op.tree.ancestors(directory):
        if one.id == inode_id:
            return True
        if not one.nlink:
            raise error(Code.NO_ENTRY, "the directory was removed")
    return False


def empty(op: Op, request: meta_pb2.EmptyTrashRequest) -> meta_pb2.EmptyTrashReply:
    """Give these up now. What is not there any more is as good as given up."""
    if len(request.refs) > EMPTY_MAX:
        raise error(Code.TOO_LARGE, f"{len(request.refs)} entries in one request, at most {EMPTY_MAX} are allowed")
    for ref in request.refs:
        try:
            _, inode = _found(op, ref)
        except FfsError as exc:
            if exc.code is not Code.NO_ENTRY:
                raise
            continue
        give_up(op, ref.removed_ns, inode)
    return meta_pb2.EmptyTrashReply()


def give_up(op: Op, removed_ns: int, inode: Inode) -> None:
    """From trash to garbage."""
    op.tree.delete_trash(removed_ns, inode.id)
    inode.flags &= ~Flags.TRASHED
    if inode.is_dir:
        kind = GarbageKind.TREE
    else:
        kind = GarbageKind.FILE
        op.files_delta -= 1
    op.tree.put(inode)
    op.tree.put_garbage(inode.id, Garbage(kind, op.now_ns, op.who.uid))
    op.garbage.append(inode.id)


def _found(op: Op, ref: meta_pb2.TrashRef) -> tuple[Trash, Inode]:
    trash = op.tree.trash(ref.removed_ns, ref.inode)
    inode = op.tree.find(ref.inode) if trash is not None else None
    if trash is None or inode is None:
        raise error(Code.NO_ENTRY, "it is not in the trash any more")
    if op.who.uid not in (0, trash.uid):
        raise error(Code.NOT_PERMITTED, "somebody else removed it")
    return trash, inode
