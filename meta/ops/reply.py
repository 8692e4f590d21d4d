"""Inodes as messages."""

from __future__ import annotations

from functools import lru_cache

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


def fill_attributes(message: meta_pb2.Inode, inode: Inode) -> None:
    """Without layout: for whoever knows the inode, and will not read it for the first time.

    A message is filled where it stands, in its reply: to put a finished one there would copy it.
    """
    message.id = inode.id
    message.mode = inode.mode
    message.nlink = inode.nlink
    message.uid = inode.uid
    message.gid = inode.gid
    message.length = inode.length
    message.atime_ns = inode.atime_ns
    message.mtime_ns = inode.mtime_ns
    message.ctime_ns = inode.ctime_ns
    message.btime_ns = inode.btime_ns
    message.truncate_version = inode.truncate_version
    if inode.rdev:
        message.rdev = inode.rdev
    if inode.is_dir:
        message.parent = inode.parent
    elif inode.target:
        message.symlink_target = inode.target
    if inode.flags & ATTRIBUTE_FLAGS:
        message.xattrs = bool(inode.flags & Flags.XATTRS)
        message.acl = bool(inode.flags & Flags.ACL)
        message.default_acl = bool(inode.flags & Flags.DEFAULT_ACL)
        message.capability = bool(inode.flags & Flags.CAPABILITY)


def fill(message: meta_pb2.Inode, inode: Inode) -> None:
    fill_attributes(message, inode)
    if inode.chunk_size:
        packed = _packed_layout(inode.chunk_size, inode.stripe_size, inode.chain_table, inode.chains)
        message.layout.MergeFromString(packed)


def to_message(inode: Inode) -> meta_pb2.Inode:
    message = meta_pb2.Inode()
    fill(message, inode)
    return message


@lru_cache(maxsize=1024)
def _packed_layout(chunk_size: int, stripe_size: int, chain_table: int, chains: tuple[int, ...]) -> bytes:
    """Many files have the same one, and to parse it is a third of the work of filling it in."""
    return common_pb2.Layout(
        chunk_size=chunk_size, stripe_size=stripe_size, chain_table=chain_table, chains=chains
    ).SerializeToString()


def inode_reply(inode: Inode, directory: Inode | None = None) -> meta_pb2.InodeReply:
    """`directory`: the one that got a new name for the inode."""
    reply = meta_pb2.InodeReply()
    fill(reply.inode, inode)
    if directory is not None:
        fill(reply.directory, directory)
    return reply


def open_reply(inode: Inode, directory: Inode | None = None, *, created: bool = False) -> meta_pb2.OpenReply:
    """As `inode_reply`."""
    reply = meta_pb2.OpenReply(created=created)
    fill(reply.inode, inode)
    if directory is not None:
        fill(reply.directory, directory)
    return reply
