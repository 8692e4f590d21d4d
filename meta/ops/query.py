"""Operations that only look."""

from __future__ import annotations

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.ids import ROOT_INODE
from fireflyfs.common.limits import BATCH_STAT_MAX, FRAME_BODY_BYTES_MAX, LIST_ENTRIES_MAX, NAME_BYTES_MAX
from fireflyfs.meta.core.permission import EXECUTE, READ, may, require
from fireflyfs.meta.core.records import Inode
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.ops.reply import fill, inode_reply
from fireflyfs.meta.ops.resolve import resolve, target
from fireflyfs.proto import meta_pb2

LIST_ENTRIES_DEFAULT = 1024
LIST_BYTES_MAX = FRAME_BODY_BYTES_MAX // 2  # a page ends here, whatever the limit asked for
ENTRY_BYTES = 64  # about what an entry takes in a message, without its name
ATTRIBUTES_BYTES = 128


def stat(op: Op, request: meta_pb2.StatRequest) -> meta_pb2.InodeReply:
    return inode_reply(target(op.tree, op.who, request.at))


def batch_stat(op: Op, request: meta_pb2.BatchStatRequest) -> meta_pb2.BatchStatReply:
    """Inodes by id; one that does not exist comes back with id 0."""
    _bound(len(request.inodes))
    reply = meta_pb2.BatchStatReply()
    for inode in map(op.tree.find, request.inodes):
        message = reply.inodes.add()
        if inode is not None:
            fill(message, inode)
    return reply


def batch_stat_path(op: Op, request: meta_pb2.BatchStatPathRequest) -> meta_pb2.BatchStatPathReply:
    """Each path has its own result: one that fails does not fail the others."""
    _bound(len(request.paths))
    reply = meta_pb2.BatchStatPathReply()
    for at in request.paths:
        result = reply.results.add()
        try:
            fill(result.inode, target(op.tree, op.who, at))
        except FfsError as exc:
            result.status = exc.code
    return reply


def _bound(count: int) -> None:
    if count > BATCH_STAT_MAX:
        raise error(Code.TOO_LARGE, f"{count} inodes in one request, at most {BATCH_STAT_MAX} are allowed")


def lookup(op: Op, request: meta_pb2.LookupRequest) -> meta_pb2.InodeReply:
    """One name in one directory, never followed: what a mount asks most."""
    name = request.name
    if len(name) > NAME_BYTES_MAX:
        raise error(Code.NAME_TOO_LONG)
    if not name or b"/" in name or b"\0" in name:
        raise error(Code.INVALID, "not a name")
    tree = op.tree
    parent = tree.inode(request.parent)
    if not parent.is_dir:
        raise error(Code.NOT_DIRECTORY)
    require(parent, op.who, EXECUTE)
    if name == b".":
        return inode_reply(parent)
    if name == b"..":
        return inode_reply(tree.inode(parent.parent))
    child = tree.child(parent.id, name)
    if child is None:
        raise error(Code.NO_ENTRY)
    return inode_reply(child)


def readlink(op: Op, request: meta_pb2.ReadlinkRequest) -> meta_pb2.ReadlinkReply:
    inode = target(op.tree, op.who, request.at, follow=False)
    if not inode.is_link:
        raise error(Code.INVALID, "not a symbolic link")
    return meta_pb2.ReadlinkReply(target=inode.target)


def access(op: Op, request: meta_pb2.AccessRequest) -> meta_pb2.InodeReply:
    inode = target(op.tree, op.who, request.at)
    require(inode, op.who, request.mask & 7)
    return inode_reply(inode)


def list_directory(op: Op, request: meta_pb2.ListRequest) -> meta_pb2.ListReply:
    """One page of a directory in name order, after `after`.

    Attributes are given to those who may search the directory; others get names and types.
    """
    tree = op.tree
    directory = target(tree, op.who, request.at)
    if not directory.is_dir:
        raise error(Code.NOT_DIRECTORY)
    require(directory, op.who, READ)
    attributes = request.attributes and may(directory, op.who, EXECUTE)
    limit = min(request.limit or LIST_ENTRIES_DEFAULT, LIST_ENTRIES_MAX)
    reply = meta_pb2.ListReply(parent=directory.parent)
    size = 0
    for count, (name, inode_id, kind) in enumerate(tree.children(directory.id, after=request.after, limit=limit + 1)):
        if count == limit or size > LIST_BYTES_MAX:
            reply.more = True
            break
        entry = reply.entries.add(name=name, inode=inode_id, mode=kind)
        size += ENTRY_BYTES + len(name)
        if attributes:
            inode = tree.find(inode_id)
            if inode is not None:
                fill(entry.attributes, inode)
                entry.mode = inode.mode
                size += ATTRIBUTES_BYTES + 5 * len(inode.chains) + len(inode.target)
    return reply


def real_path(op: Op, request: meta_pb2.RealPathRequest) -> meta_pb2.RealPathReply:
    """The path from the root, without links. A directory's own name is looked for in its parent, entry by entry."""
    place = resolve(op.tree, op.who, request.at, follow=True)
    if place.inode is None:
        raise error(Code.NO_ENTRY)
    names: list[bytes] = []
    directory = place.inode
    if not directory.is_dir:
        if place.parent is None:
            raise error(Code.INVALID, "only a directory has one path")
        names.append(place.name)
        directory = place.parent
    while directory.id != ROOT_INODE:
        parent = op.tree.inode(directory.parent)
        names.append(_name_in(op, parent, directory.id))
        directory = parent
    return meta_pb2.RealPathReply(path=b"/" + b"/".join(reversed(names)))


def _name_in(op: Op, parent: Inode, inode_id: int) -> bytes:
    for name, child, _ in op.tree.children(parent.id):
        if child == inode_id:
            return name
    raise error(Code.NO_ENTRY, "the directory was removed")
