"""The mount's control directory: `.ffs` in its root, with what the mount is, how it is set up, and what it did.

It is found by name and not listed, belongs to whoever mounted, and nothing in it can be changed. A name `.ffs` that
really is in the root of the file system is shown instead. Node ids lie where no inode id will ever be. A file says what
was true when it was opened.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import stat
import threading
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from fireflyfs.common.ids import ROOT_INODE
from fireflyfs.fuse import protocol
from fireflyfs.fuse.operations.attributes import statfs
from fireflyfs.fuse.protocol import Attributes, Opcode, OpenReply, Valid
from fireflyfs.fuse.request import Reply, Request
from fireflyfs.fuse.statx import encode_statx
from fireflyfs.fuse.volume import Volume

NAME: Final = b".ffs"
CONTROL_FIRST: Final = 0xFFFF_FFFF_FF00_0000  # node ids from here on are no inodes
DIRECTORY: Final = CONTROL_FIRST
OPEN_MAX: Final = 256  # files open at a time
VALID: Final = Valid(60, 0)

_NO_ENTRY: Final = bytes(protocol.ENTRY_OUT.size)


def _version(volume: Volume) -> str:
    try:
        return version("fireflyfs") + "\n"
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown\n"


def _config(volume: Volume) -> str:
    return json.dumps(dataclasses.asdict(volume.options), indent=2) + "\n"


def _stats(volume: Volume) -> str:
    facts = {
        "up_s": round(volume.clock.monotonic_s() - volume.began_s, 1),
        **volume.statistics(),
        "links": volume.backend.traffic(),
        "operations": volume.times.operations(),
    }
    return json.dumps(facts, indent=2) + "\n"


FILES: Final[dict[bytes, Callable[[Volume], str]]] = {b"config": _config, b"stats": _stats, b"version": _version}
_NUMBERS: Final = {name: DIRECTORY + number for number, name in enumerate(FILES, 1)}


class OpenTexts:
    """Texts of open files, by handle. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._texts: dict[int, bytes] = {}
        self._next = 0

    def add(self, text: bytes) -> int:
        with self._lock:
            if len(self._texts) >= OPEN_MAX:
                raise OSError(errno.ENFILE, "too many files of the control directory are open")
            self._next += 1
            self._texts[self._next] = text
            return self._next

    def get(self, fh: int) -> bytes:
        return self._texts.get(fh, b"")

    def drop(self, fh: int) -> None:
        with self._lock:
            self._texts.pop(fh, None)


_open_texts = OpenTexts()


def found(parent: int, name: bytes) -> bytes | None:
    """fuse_entry_out for `name` in `parent`, where meta knows no such name; None: nobody does."""
    if parent == ROOT_INODE and name == NAME:
        return protocol.encode_entry(_attributes(DIRECTORY), VALID, VALID)
    return None


def handle(volume: Volume, request: Request) -> Reply:
    """Any request about a node of the control directory."""
    handler = _HANDLERS.get(request.opcode)
    if handler is None:
        raise OSError(errno.EPERM, "the control directory cannot be changed")
    return handler(volume, request)


def _attributes(nodeid: int) -> Attributes:
    mode = stat.S_IFDIR | 0o500 if nodeid == DIRECTORY else stat.S_IFREG | 0o400
    links = 2 if nodeid == DIRECTORY else 1
    return Attributes(nodeid, 0, 0, 0, 0, 0, mode, links, os.geteuid(), os.getegid(), 0, 4096)


def _lookup(volume: Volume, request: Request) -> Reply:
    nodeid = _NUMBERS.get(protocol.decode_name(request.body, 0))
    if nodeid is None or request.nodeid != DIRECTORY:
        raise OSError(errno.ENOENT, "no such file")
    return protocol.encode_entry(_attributes(nodeid), VALID, VALID)


def _getattr(volume: Volume, request: Request) -> Reply:
    return protocol.encode_attr(_attributes(request.nodeid), VALID)


def _statx(volume: Volume, request: Request) -> Reply:
    return encode_statx(protocol.encode_attr(_attributes(request.nodeid), VALID))


def _open(volume: Volume, request: Request) -> Reply:
    flags, _ = protocol.OPEN_IN.unpack_from(request.body)
    if flags & os.O_ACCMODE != os.O_RDONLY:
        raise OSError(errno.EACCES, "the control directory can only be read")
    name = next(name for name, number in _NUMBERS.items() if number == request.nodeid)
    fh = _open_texts.add(FILES[name](volume).encode())
    return protocol.OPEN_OUT.pack(fh, int(OpenReply.DIRECT_IO), 0)  # its length is not known before


def _read(volume: Volume, request: Request) -> Reply:
    fh, offset, size, _, _, _, _ = protocol.READ_IN.unpack_from(request.body)
    return _open_texts.get(fh)[offset : offset + size]


def _release(volume: Volume, request: Request) -> Reply:
    fh, _, _, _ = protocol.RELEASE_IN.unpack_from(request.body)
    _open_texts.drop(fh)
    return b""


def _opendir(volume: Volume, request: Request) -> Reply:
    return protocol.OPEN_OUT.pack(0, 0, 0)


def _list(volume: Volume, request: Request) -> Reply:
    _, offset, size, _, _, _, _ = protocol.READ_IN.unpack_from(request.body)
    plus = request.opcode == Opcode.READDIRPLUS
    entries = [(b".", DIRECTORY, stat.S_IFDIR), (b"..", ROOT_INODE, stat.S_IFDIR)]
    entries += [(name, number, stat.S_IFREG) for name, number in _NUMBERS.items()]
    out: list[bytes] = []
    for position, (name, number, mode) in enumerate(entries[offset:], offset + 1):
        size -= protocol.dirent_bytes(name, plus=plus)
        if size < 0:
            break
        if plus:
            dots = name in (b".", b"..")
            out.append(_NO_ENTRY if dots else protocol.encode_entry(_attributes(number), VALID, VALID))
        out.append(protocol.encode_dirent(number, position, mode, name))
    return b"".join(out)


def _nothing(volume: Volume, request: Request) -> Reply:
    return b""


def _no_reply(volume: Volume, request: Request) -> Reply:
    return None


def _no_attributes(volume: Volume, request: Request) -> Reply:
    raise OSError(errno.ENODATA, "no extended attributes here")


_HANDLERS: Final[dict[int, Callable[[Volume, Request], Reply]]] = {
    Opcode.LOOKUP: _lookup,
    Opcode.FORGET: _no_reply,
    Opcode.GETATTR: _getattr,
    Opcode.STATX: _statx,
    Opcode.OPEN: _open,
    Opcode.READ: _read,
    Opcode.FLUSH: _nothing,
    Opcode.FSYNC: _nothing,
    Opcode.FSYNCDIR: _nothing,
    Opcode.RELEASE: _release,
    Opcode.OPENDIR: _opendir,
    Opcode.READDIR: _list,
    Opcode.READDIRPLUS: _list,
    Opcode.RELEASEDIR: _nothing,
    Opcode.STATFS: statfs,
    Opcode.GETXATTR: _no_attributes,
    Opcode.LISTXATTR: _no_attributes,
}
