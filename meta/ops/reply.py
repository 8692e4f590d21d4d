"""Inodes as messages."""

from __future__ import annotations

from fireflyfs.meta.core.records import Flags, Inode
from fireflyfs.proto import common_pb2, meta_pb2

ATTRIBUTE_FLAGS = Flags.XATTRS | Flags.ACL | Flags.DEFAULT_ACL | Flags.CAPABILITY


def layout_of(inode: Inode) -> common_pb2.Layout:
    return common_pb2.Layout(
        chunk_size=inode.chunk_size,
        stripe_size=inode.stripe_size,
        chain_table=inode.chain_table,
        chains=inode.chains,
    )


def to_attributes(inode: Inode) -> meta_pb2.Inode:
    """Without layout: for whoever knows the inode, and will not read it for the first time."""
    message = meta_pb2.Inode(
        id=inode.id,
        mode=inode.mode,
        nlink=inode.nlink,
        uid=inode.uid,
        gid=inode.gid,
        length=inode.length,
        atime_ns=inode.atime_ns,
        mtime_ns=inode.mtime_ns,
        ctime_ns=inode.ctime_ns,
        btime_ns=inode.btime_ns,
        rdev=inode.rdev,
        truncate_version=inode.truncate_version,
        parent=inode.parent if inode.is_dir else 0,
        symlink_target=inode.target,
    )
    if inode.flags & ATTRIBUTE_FLAGS:
        message.xattrs = bool(inode.flags & Flags.XATTRS)
        message.acl = bool(inode.flags & Flags.ACL)
        message.default_acl = bool(inode.flags & Flags.DEFAULT_ACL)
        message.capability = bool(inode.flags & Flags.CAPABILITY)
    return message


def to_message(inode: Inode) -> meta_pb2.Inode:
    message = to_attributes(inode)
    if inode.chunk_size:
        layout = message.layout
        layout.chunk_size = inode.chunk_size
        layout.stripe_size = inode.stripe_size
        layout.chain_table = inode.chain_table
        if inode.chains:
            layout.chains.extend(inode.chains)
    return message


def inode_reply(inode: Inode, directory: Inode | None = None) -> meta_pb2.InodeReply:
    """`directory`: the one that got a new name for the inode."""
    return meta_pb2.InodeReply(
        inode=to_message(inode), directory=to_message(directory) if directory is not None else None
    )
