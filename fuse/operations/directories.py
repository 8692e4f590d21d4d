"""OPENDIR, READDIR, READDIRPLUS, RELEASEDIR, FSYNCDIR."""

from __future__ import annotations

import stat

from fireflyfs.fuse import protocol
from fireflyfs.fuse.inodes import attributes_of
from fireflyfs.fuse.request import Reply, Request
from fireflyfs.fuse.volume import Volume
from fireflyfs.proto import meta_pb2 as m

DOTS = 2  # positions of `.` and `..`
SMALLEST = 32  # bytes of an entry with a name of one letter: with less room the next page is not asked for
_NO_ENTRY = bytes(protocol.ENTRY_OUT.size)  # node id 0: nothing for the kernel to remember


def opendir(volume: Volume, request: Request) -> Reply:
    return protocol.OPEN_OUT.pack(volume.handles.add_dir(request.nodeid).fh, 0, 0)


def releasedir(volume: Volume, request: Request) -> Reply:
    fh, _, _, _ = protocol.RELEASE_IN.unpack_from(request.body)
    volume.handles.pop_dir(fh)
    return b""


def fsyncdir(volume: Volume, request: Request) -> Reply:
    volume.meta.sync(m.SyncRequest(caller=volume.caller(request), inode=request.nodeid, durable=True))
    return b""


def readdir(volume: Volume, request: Request) -> Reply:
    return _list(volume, request, plus=False)


def readdirplus(volume: Volume, request: Request) -> Reply:
    return _list(volume, request, plus=True)


def _list(volume: Volume, request: Request, *, plus: bool) -> Reply:
    fh, offset, size, _, _, _, _ = protocol.READ_IN.unpack_from(request.body)
    handle = volume.handles.dir(fh)
    listing = handle.listing

    def fetch(after: bytes, attributes: bool) -> m.ListReply:
        # As root: whoever has the directory open may read it, as the kernel found when it was opened.
        at = m.PathAt(dir=handle.nodeid)
        limit = volume.options.list_entries
        listing.asked = volume.changes.mark()
        asked = m.ListRequest(caller=volume.callers.root, at=at, after=after, limit=limit, attributes=attributes)
        return volume.meta.list(asked)

    out: list[bytes] = []
    left = size
    with handle.lock:
        if offset == 0 and listing.begun:
            listing.rewind()
        position = offset
        while True:
            first, entries = listing.entries_from(max(0, position - DOTS), fetch, attributes=plus)
            if position < DOTS:
                name, ino = ((b".", handle.nodeid), (b"..", listing.parent))[position]
                need = protocol.dirent_bytes(name, plus=plus)
                if need > left:
                    break
                position += 1
                if plus:
                    out.append(_NO_ENTRY)
                out.append(protocol.encode_dirent(ino, position, stat.S_IFDIR, name))
                left -= need
                continue
            position = first + DOTS
            full = False
            for entry in entries:
                need = protocol.dirent_bytes(entry.name, plus=plus)
                if need > left:
                    full = True
                    break
                position += 1
                left -= need
                if plus:
                    out.append(_entry(volume, entry, listing.asked))
                out.append(protocol.encode_dirent(entry.inode, position, entry.mode, entry.name))
            if full or not entries or left < SMALLEST:
                break
    return b"".join(out)


def _entry(volume: Volume, entry: m.DirEntry, asked: int) -> bytes:
    inode = entry.attributes
    if not inode.id or volume.changes.since(inode.id, asked):  # also: a name of it was made, moved or taken out
        return _NO_ENTRY  # the kernel looks it up when somebody asks
    volume.told(inode)
    attributes = attributes_of(inode, volume.table.get(inode.id))
    return protocol.encode_entry(attributes, volume.entry_valid, volume.attr_valid)
