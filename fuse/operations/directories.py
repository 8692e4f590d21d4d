"""OPENDIR, READDIR, READDIRPLUS, RELEASEDIR, FSYNCDIR."""

from __future__ import annotations

import stat

from fireflyfs.fuse import protocol
from fireflyfs.fuse.inodes import DirHandle, attributes_of
from fireflyfs.fuse.request import Reply, Request
from fireflyfs.fuse.volume import Volume
from fireflyfs.proto import meta_pb2 as m
from fireflyfs.proto.common_pb2 import Caller

DOTS = 2  # positions of `.` and `..`
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


def _load(volume: Volume, handle: DirHandle, caller: Caller, page: int, *, attributes: bool) -> None:
    """Make `page` the handle's page, reading the ones before it if their ends are not known."""
    while True:
        wanted = min(page, len(handle.afters) - 1)
        reply = volume.meta.list(
            m.ListRequest(
                caller=caller,
                at=m.PathAt(dir=handle.nodeid),
                after=handle.afters[wanted],
                limit=volume.options.list_entries,
                attributes=attributes,
            )
        )
        handle.entries = list(reply.entries)
        handle.more = reply.more
        handle.page = wanted
        if reply.parent:
            handle.parent = reply.parent
        if reply.more and wanted + 1 == len(handle.afters):
            handle.afters.append(handle.entries[-1].name)
        if wanted == page or not reply.more:
            return


def _list(volume: Volume, request: Request, *, plus: bool) -> Reply:
    fh, offset, size, _, _, _, _ = protocol.READ_IN.unpack_from(request.body)
    handle = volume.handles.dir(fh)
    caller = volume.caller(request)
    page_entries = volume.options.list_entries
    out: list[bytes] = []
    left = size
    with handle.lock:
        if offset == 0 and handle.page >= 0:
            handle.rewind()  # rewinddir(3) shows the directory as it is now
        position = offset
        while True:
            page, place = divmod(max(0, position - DOTS), page_entries)
            if handle.page != page or (plus and handle.entries and not handle.entries[0].HasField("attributes")):
                if handle.page >= 0 and page > handle.page and not handle.more:
                    break
                _load(volume, handle, caller, page, attributes=plus)
                if handle.page != page:
                    break
            if position < DOTS:
                name, ino = ((b".", handle.nodeid), (b"..", handle.parent))[position]
                need = protocol.dirent_bytes(name, plus=plus)
                if need > left:
                    break
                position += 1
                if plus:
                    out.append(_NO_ENTRY)
                out.append(protocol.encode_dirent(ino, position, stat.S_IFDIR, name))
                left -= need
                continue
            if place >= len(handle.entries):
                break
            full = False
            for entry in handle.entries[place:]:
                need = protocol.dirent_bytes(entry.name, plus=plus)
                if need > left:
                    full = True
                    break
                position += 1
                left -= need
                if plus:
                    out.append(_entry(volume, entry))
                out.append(protocol.encode_dirent(entry.inode, position, entry.mode, entry.name))
            if full or not handle.more:
                break
    return b"".join(out)


def _entry(volume: Volume, entry: m.DirEntry) -> bytes:
    inode = entry.attributes
    if not inode.id:
        return _NO_ENTRY  # removed while it was listed
    volume.told(inode)
    attributes = attributes_of(inode, volume.table.get(inode.id))
    return protocol.encode_entry(attributes, volume.entry_valid, volume.attr_valid)
