"""The folder `3fs-virt` in the root of a mount: what 3FS's programs do there. FUSE operations on inodes of no file.

* `iovs/`: links register regions and rings, unlinking takes them back.
* `rm-rf/`: a link to a path of this mount, or a rename into it, removes the tree in one request.
* `get-conf/`, `set-conf/`: what the mount is told, as links from a key to its value.

The folder is found by its name and not listed, so that who walks the mount does not walk into it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from fireflyfs.client.usrbio.mountpoint import VIRTUAL
from fireflyfs.fuse import protocol
from fireflyfs.fuse.protocol import Attributes, Opcode
from fireflyfs.fuse.request import Reply, Request
from fireflyfs.fuse.statx import encode_statx
from fireflyfs.fuse.usrbio import settings
from fireflyfs.fuse.usrbio.host import RingHost
from fireflyfs.fuse.usrbio.links import Link
from fireflyfs.fuse.volume import Volume
from fireflyfs.proto import meta_pb2 as m

BASE: Final = protocol.VIRTUAL_BASE
NAME: Final = VIRTUAL.encode()
TOP, IOVS, REMOVE, GET, SET = range(BASE, BASE + 5)
PASSING: Final = BASE + 5  # a link that did its work as it was made: nobody finds it afterwards
SETTING: Final = BASE + 16  # and on: `get-conf`
LINK: Final = BASE + (1 << 32)  # and on: links by their number
_FOLDERS: Final = {b"iovs": IOVS, b"rm-rf": REMOVE, b"get-conf": GET, b"set-conf": SET}
_NO_TIME: Final = protocol.Valid.of(0.0)
_SMALL: Final = 4096
_NO_ENTRY: Final = bytes(protocol.ENTRY_OUT.size)


class Named(NamedTuple):
    """An entry of one of the folders."""

    name: bytes
    nodeid: int
    mode: int


def handle(volume: Volume, request: Request) -> Reply:
    """Any operation on an inode of ours. OSError: its errno."""
    rings = volume.rings
    if not isinstance(rings, RingHost):
        raise OSError(errno.ENOENT, "no rings are served here")
    operation = _OPERATIONS.get(request.opcode)
    if operation is None:
        raise OSError(errno.EPERM, "not in 3fs-virt")
    return operation(volume, rings, request)


def top(volume: Volume) -> bytes:
    """The answer to a look-up of NAME in the mount's root."""
    return _entry(volume, TOP)


def rename_into(volume: Volume, request: Request, folder: int, old: bytes) -> None:
    """A name of a real folder is moved into one of ours: `rm-rf` takes it. EXDEV anywhere else."""
    if folder != REMOVE:
        raise OSError(errno.EXDEV, "only into rm-rf")
    _remove_tree(volume, request, m.PathAt(dir=request.nodeid, path=old))
    volume.ahead.forget_name(request.nodeid, old)


def _remove_tree(volume: Volume, request: Request, at: m.PathAt) -> None:
    asked = m.RemoveRequest(caller=volume.caller(request), at=at, kind=m.REMOVE_RECURSIVE)
    reply = volume.meta.remove(asked)
    volume.changed_directory(reply.directory)
    volume.changed_inode(reply.inode)


# What stands where


def _entries(volume: Volume, rings: RingHost, folder: int) -> Iterable[Named]:
    if folder == TOP:
        return [Named(name, nodeid, stat.S_IFDIR) for name, nodeid in _FOLDERS.items()]
    if folder == IOVS:
        return [Named(link.name, LINK + link.number, stat.S_IFLNK) for link in rings.links()]
    if folder == GET:
        return [Named(key.encode(), SETTING + n, stat.S_IFLNK) for n, key in enumerate(settings.KEYS)]
    return []


def _link_of(rings: RingHost, nodeid: int) -> Link:
    link = rings.numbered(nodeid - LINK) if nodeid >= LINK else None
    if link is None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    return link


def _attributes(volume: Volume, nodeid: int, link: Link | None = None, target: bytes = b"") -> Attributes:
    if nodeid < PASSING:
        mode = stat.S_IFDIR | (0o1777 if nodeid in (IOVS, REMOVE, SET) else 0o755)
        return _fields(nodeid, 0, mode, 2, 0, 0, 0)
    if link is not None:
        return _fields(nodeid, len(link.target), stat.S_IFLNK | 0o777, 1, link.uid, link.gid, link.born_ns)
    return _fields(nodeid, len(target), stat.S_IFLNK | 0o777, 1, 0, 0, volume.clock.unix_ns())


def _fields(nodeid: int, size: int, mode: int, nlink: int, uid: int, gid: int, time_ns: int) -> Attributes:
    return Attributes(nodeid, size, 0, time_ns, time_ns, time_ns, mode, nlink, uid, gid, 0, _SMALL)


def _entry(volume: Volume, nodeid: int, link: Link | None = None, target: bytes = b"") -> bytes:
    # Nothing may be kept of links: applications make and drop them, and not only by the name that the kernel knows.
    return protocol.encode_entry(_attributes(volume, nodeid, link, target), _NO_TIME, _NO_TIME)


# Operations


def _lookup(volume: Volume, rings: RingHost, request: Request) -> Reply:
    name = protocol.decode_name(request.body)
    if request.nodeid == IOVS:
        link = rings.named(name)
        if link is not None:
            return _entry(volume, LINK + link.number, link)
    elif request.nodeid == GET:
        for number, key in enumerate(settings.KEYS):
            if key.encode() == name:
                return _entry(volume, SETTING + number, target=settings.read(volume, key))
    elif request.nodeid == TOP and name in _FOLDERS:
        return _entry(volume, _FOLDERS[name])
    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def _getattr(volume: Volume, rings: RingHost, request: Request) -> bytes:
    nodeid = request.nodeid
    if nodeid >= LINK:
        return protocol.encode_attr(_attributes(volume, nodeid, _link_of(rings, nodeid)), _NO_TIME)
    target = settings.read(volume, settings.KEYS[nodeid - SETTING]) if nodeid >= SETTING else b""
    return protocol.encode_attr(_attributes(volume, nodeid, target=target), _NO_TIME)


def _statx(volume: Volume, rings: RingHost, request: Request) -> Reply:
    return encode_statx(_getattr(volume, rings, request))


def _readlink(volume: Volume, rings: RingHost, request: Request) -> Reply:
    if SETTING <= request.nodeid < LINK:
        return settings.read(volume, settings.KEYS[request.nodeid - SETTING])
    return _link_of(rings, request.nodeid).target


def _symlink(volume: Volume, rings: RingHost, request: Request) -> Reply:
    name, target = protocol.decode_names(request.body)
    if request.nodeid == IOVS:
        groups = [request.gid, *volume.caller(request).gids]
        link = rings.make(name, target, request.pid, request.uid, groups)
        return _entry(volume, LINK + link.number, link)
    if request.nodeid == REMOVE:
        _remove_tree(volume, request, m.PathAt(dir=protocol.ROOT_ID, path=_inside(volume, target)))
    elif request.nodeid == SET:
        key = os.fsdecode(name)
        settings.change(volume, key, os.fsdecode(target), request.uid)
        # The kernel keeps what links point to.
        volume.notify(protocol.encode_inval_inode(SETTING + settings.KEYS.index(key), 0, 0))
    else:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    return _entry(volume, PASSING, target=target)


def _inside(volume: Volume, target: bytes) -> bytes:
    """The path from the mount's root, of something below it."""
    point = os.fsencode(volume.mountpoint)
    path = os.path.normpath(target)
    if not target.startswith(b"/") or not path.startswith(point.rstrip(b"/") + b"/"):
        raise OSError(errno.EINVAL, f"{target!r} is no path below {point!r}")
    return os.path.relpath(path, point)


def _unlink(volume: Volume, rings: RingHost, request: Request) -> Reply:
    if request.nodeid != IOVS:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    rings.remove(protocol.decode_name(request.body))
    return b""


def _opendir(volume: Volume, rings: RingHost, request: Request) -> Reply:
    return protocol.OPEN_OUT.pack(0, 0, 0)


def _nothing(volume: Volume, rings: RingHost, request: Request) -> Reply:
    return b""


def _no_reply(volume: Volume, rings: RingHost, request: Request) -> Reply:
    return None


def _readdir(volume: Volume, rings: RingHost, request: Request) -> Reply:
    """Positions are node ids above BASE, in order: what is made or goes meanwhile moves none of the others."""
    _, offset, left, _, _, _, _ = protocol.READ_IN.unpack_from(request.body)
    plus = request.opcode == Opcode.READDIRPLUS
    dots = [Named(b".", request.nodeid, stat.S_IFDIR), Named(b"..", TOP, stat.S_IFDIR)]
    listed = [(place, entry) for place, entry in enumerate(dots, 1)]
    listed += [(entry.nodeid - BASE + 3, entry) for entry in _entries(volume, rings, request.nodeid)]
    out: list[bytes] = []
    for place, entry in listed:
        if place <= offset:
            continue
        left -= protocol.dirent_bytes(entry.name, plus=plus)
        if left < 0:
            break
        if plus:
            out.append(_NO_ENTRY)
        out.append(protocol.encode_dirent(entry.nodeid, place, entry.mode, entry.name))
    return b"".join(out)


def _no_attribute(volume: Volume, rings: RingHost, request: Request) -> Reply:
    raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))


def _statfs(volume: Volume, rings: RingHost, request: Request) -> Reply:
    return protocol.STATFS_OUT.pack(0, 0, 0, len(rings.links()), 0, _SMALL, 255, _SMALL, 0)


_OPERATIONS: Final[dict[int, Callable[[Volume, RingHost, Request], Reply]]] = {
    Opcode.LOOKUP: _lookup,
    Opcode.GETATTR: _getattr,
    Opcode.STATX: _statx,
    Opcode.READLINK: _readlink,
    Opcode.SYMLINK: _symlink,
    Opcode.UNLINK: _unlink,
    Opcode.OPENDIR: _opendir,
    Opcode.READDIR: _readdir,
    Opcode.READDIRPLUS: _readdir,
    Opcode.RELEASEDIR: _nothing,
    Opcode.FSYNCDIR: _nothing,
    Opcode.ACCESS: _nothing,
    Opcode.STATFS: _statfs,
    Opcode.GETXATTR: _no_attribute,
    Opcode.FORGET: _no_reply,
}
