"""LOOKUP, FORGET, READLINK and everything that makes, moves or removes a name."""

from __future__ import annotations

import errno
import stat
from contextlib import nullcontext

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import NAME_BYTES_MAX
from fireflyfs.fuse import protocol
from fireflyfs.fuse.operations import control
from fireflyfs.fuse.request import Reply, Request
from fireflyfs.fuse.usrbio import virtual
from fireflyfs.fuse.volume import Volume
from fireflyfs.proto import meta_pb2 as m

O_CREAT_EXCL = 0o100 | 0o200
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


def _name(body: memoryview, offset: int) -> bytes:
    name = protocol.decode_name(body, offset)
    if len(name) > NAME_BYTES_MAX:
        raise error(Code.NAME_TOO_LONG)
    return name


def lookup(volume: Volume, request: Request) -> Reply:
    name = _name(request.body, 0)
    if name == virtual.NAME and request.nodeid == protocol.ROOT_ID and volume.rings is not None:
        return virtual.top(volume)
    if volume.names.absent(request.nodeid, name):  # the kernel let them search here
        volume.counts["absent_known"] += 1
        return _missing(volume, request, name)
    ahead = volume.ahead.take(request.nodeid, name)
    if ahead is not None:
        volume.counts["names_ahead"] += 1
        return volume.entry_ahead(*ahead)
    asked = m.LookupRequest(caller=volume.caller(request), parent=request.nodeid, name=name)
    try:
        inode = volume.changes.newest(lambda: volume.meta.lookup(asked).inode)
    except FfsError as exc:
        if exc.code != errno.ENOENT:
            raise
        volume.names.missed(request.nodeid)
        return _missing(volume, request, name)
    entry = volume.entry(inode)
    volume.ahead.missed(request.nodeid, name)
    return entry


def _missing(volume: Volume, request: Request, name: bytes) -> Reply:
    entry = control.found(request.nodeid, name)
    if entry is not None:
        return entry
    if any(volume.negative_valid):
        return protocol.encode_no_entry(volume.negative_valid)
    raise error(Code.NO_ENTRY)


def forget(volume: Volume, request: Request) -> Reply:
    volume.forget(request.nodeid)
    return None


def batch_forget(volume: Volume, request: Request) -> Reply:
    for nodeid, _ in protocol.decode_batch_forget(request.body):
        volume.forget(nodeid)
    return None


def readlink(volume: Volume, request: Request) -> Reply:
    at = m.PathAt(dir=request.nodeid)
    return volume.meta.readlink(m.ReadlinkRequest(caller=volume.caller(request), at=at)).target


def symlink(volume: Volume, request: Request) -> Reply:
    name, target = protocol.decode_names(request.body)
    at = m.PathAt(dir=request.nodeid, path=name)
    with volume.names.making(request.nodeid, name):
        reply = volume.meta.symlink(m.SymlinkRequest(caller=volume.caller(request), at=at, target=target))
    volume.changed_directory(reply.directory)
    return volume.entry(reply.inode)


def mknod(volume: Volume, request: Request) -> Reply:
    mode, rdev, umask, _ = protocol.MKNOD_IN.unpack_from(request.body)
    at = m.PathAt(dir=request.nodeid, path=_name(request.body, protocol.MKNOD_IN.size))
    caller = volume.caller(request)
    with volume.names.making(request.nodeid, at.path):
        if stat.S_ISREG(mode):
            opened = volume.meta.open(m.OpenRequest(caller=caller, at=at, flags=O_CREAT_EXCL, mode=mode, umask=umask))
            volume.changed_directory(opened.directory)
            return volume.entry(opened.inode)
        reply = volume.meta.make_node(m.MakeNodeRequest(caller=caller, at=at, mode=mode, umask=umask, rdev=rdev))
    volume.changed_directory(reply.directory)
    return volume.entry(reply.inode)


def mkdir(volume: Volume, request: Request) -> Reply:
    mode, umask = protocol.MKDIR_IN.unpack_from(request.body)
    at = m.PathAt(dir=request.nodeid, path=_name(request.body, protocol.MKDIR_IN.size))
    mode = stat.S_IFDIR | (mode & 0o7777)
    asked = m.MakeNodeRequest(caller=volume.caller(request), at=at, mode=mode, umask=umask)
    with volume.names.making(request.nodeid, at.path):
        reply = volume.meta.make_node(asked)
    volume.changed_directory(reply.directory)
    return volume.entry(reply.inode)


def unlink(volume: Volume, request: Request) -> Reply:
    name = _name(request.body, 0)
    at = m.PathAt(dir=request.nodeid, path=name)
    with volume.removing(request.nodeid, name):
        reply = volume.meta.remove(m.RemoveRequest(caller=volume.caller(request), at=at, kind=m.REMOVE_UNLINK))
        volume.changed_inode(reply.inode)
    volume.changed_directory(reply.directory)
    volume.ahead.forget_name(request.nodeid, name)
    return b""


def rmdir(volume: Volume, request: Request) -> Reply:
    name = _name(request.body, 0)
    at = m.PathAt(dir=request.nodeid, path=name)
    reply = volume.meta.remove(m.RemoveRequest(caller=volume.caller(request), at=at, kind=m.REMOVE_RMDIR))
    volume.changed_directory(reply.directory)
    volume.changed_inode(reply.inode)
    volume.ahead.forget_name(request.nodeid, name)
    return b""


def _rename(volume: Volume, request: Request, new_parent: int, flags: int, offset: int) -> Reply:
    if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
        raise error(Code.INVALID, f"rename with flags {flags:#x}")
    old, new = protocol.decode_names(request.body, offset)
    if max(len(old), len(new)) > NAME_BYTES_MAX:
        raise error(Code.NAME_TOO_LONG)
    if new_parent >= control.CONTROL_FIRST:
        raise error(Code.NOT_PERMITTED, "the control directory cannot be changed")
    if new_parent >= protocol.VIRTUAL_BASE:
        virtual.rename_into(volume, request, new_parent, old)
        return b""
    volume.changed.clear()  # what moves may be a directory that was changed, and is changed now
    asked = m.RenameRequest(
        caller=volume.caller(request),
        old=m.PathAt(dir=request.nodeid, path=old),
        new=m.PathAt(dir=new_parent, path=new),
        flags=flags,
    )
    began = volume.ahead.asking()
    with volume.names.making(new_parent, new), nullcontext() if flags else volume.removing(new_parent, new):
        reply = volume.meta.rename(asked)
        volume.changed_inode(reply.other)
    volume.changed_directory(reply.old_directory)
    volume.changed_directory(reply.new_directory)
    volume.ahead.forget_name(request.nodeid, old)
    volume.ahead.forget_name(new_parent, new)
    volume.ahead.renamed(new_parent, new, reply.inode, began)
    volume.moved_inode(reply.inode)
    return b""


def rename(volume: Volume, request: Request) -> Reply:
    (new_parent,) = protocol.RENAME_IN.unpack_from(request.body)
    return _rename(volume, request, new_parent, 0, protocol.RENAME_IN.size)


def rename2(volume: Volume, request: Request) -> Reply:
    new_parent, flags, _ = protocol.RENAME2_IN.unpack_from(request.body)
    return _rename(volume, request, new_parent, flags, protocol.RENAME2_IN.size)


def link(volume: Volume, request: Request) -> Reply:
    (old,) = protocol.LINK_IN.unpack_from(request.body)
    name = _name(request.body, protocol.LINK_IN.size)
    new = m.PathAt(dir=request.nodeid, path=name)
    with volume.names.making(request.nodeid, name):
        reply = volume.meta.link(m.LinkRequest(caller=volume.caller(request), old=m.PathAt(dir=old), new=new))
    volume.changed_directory(reply.directory)
    volume.changed_inode(reply.inode)
    return volume.entry(reply.inode)
