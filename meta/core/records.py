"""Records of the metadata store, packed with struct; the byte pictures stand in docs/format/meta_records.md.

Every record begins with its format version; a newer one than this release knows is refused with VERSION_MISMATCH.
All integers are little-endian.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from enum import IntEnum
from struct import Struct, pack, unpack_from
from struct import error as struct_error
from typing import Any

from fireflyfs.common.errors import Code, error
from fireflyfs.meta.core.acl import Acl

VERSION = 1
COUNTED_VERSION = 2  # of an inode record: the inode is in the usage records

_INODE = Struct("<BBHIIIIIQQqqqqQIIIH")  # followed by chain ids (4 bytes each) and the symbolic link's target
_DENTRY = Struct("<BHQ")
_SESSION = Struct("<BBq16s")
_APPENDING = Struct("<QQ")  # behind a session that was given bytes to append to
_TRIM = Struct("<BQQ")
_GARBAGE = Struct("<BBqI")
_OUTCOME = Struct("<BHBq")
_TRASH = Struct("<BQII")  # followed by the name


class Flags:
    """Bits of `Inode.flags`; plain integers, because enum arithmetic costs more than the rest of a look-up."""

    WRITTEN = 1  # was opened for writing: chunks may exist
    TRIMMING = 2  # a trim record exists
    TRASHED = 128  # a trash record exists: it has no name, and can be given one again
    COLLECTING = 4  # its chunks are being removed: nobody may open it any more
    XATTRS = 8  # a record of extended attributes exists
    ACL = 16  # an access ACL is in the record of ACLs
    DEFAULT_ACL = 32  # a default ACL is in the record of ACLs
    CAPABILITY = 64  # one of the extended attributes is security.capability


class GarbageKind(IntEnum):
    FILE = 0  # no name left; its chunks go when the last session has ended
    TREE = 1  # a removed directory with what is still below it


@dataclass(slots=True)
class Inode:
    """One inode. Times in nanoseconds since the epoch.

    `parent`: of a directory `..`; of anything else the directory in which it is counted, one that it has a name in
    (meta/store/names.py). `counted`: it is in the usage records; what was made by a release before these is not, until
    it was come across, and then `parent` of a file is 0.
    """

    id: int
    mode: int
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    flags: int = 0
    length: int = 0
    truncate_version: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    btime_ns: int = 0
    parent: int = 0
    chunk_size: int = 0
    stripe_size: int = 0
    chain_table: int = 0
    chains: tuple[int, ...] = ()
    target: bytes = b""
    counted: bool = True
    acl: Acl = ()  # the access ACL, read from its own record when there is one

    @property
    def is_dir(self) -> bool:
        return self.mode & 0o170000 == stat.S_IFDIR

    @property
    def is_file(self) -> bool:
        return self.mode & 0o170000 == stat.S_IFREG

    @property
    def is_link(self) -> bool:
        return self.mode & 0o170000 == stat.S_IFLNK

    def pack(self) -> bytes:
        chains = self.chains
        head = _INODE.pack(
            COUNTED_VERSION if self.counted else VERSION, self.flags, len(chains), self.mode, self.nlink, self.uid,
            self.gid, self.rdev, self.length, self.truncate_version, self.atime_ns, self.mtime_ns, self.ctime_ns,
            self.btime_ns, self.parent, self.chunk_size, self.stripe_size, self.chain_table, len(self.target),
        )  # fmt: skip
        if chains:
            return head + pack(f"<{len(chains)}I", *chains)
        return head + self.target

    @classmethod
    def unpack(cls, inode_id: int, data: bytes) -> Inode:
        """Raises VERSION_MISMATCH, or IO_ERROR for a record that makes no sense."""
        try:
            (
                version, flags, chain_count, mode, nlink, uid, gid, rdev, length, truncate_version, atime, mtime, ctime,
                btime, parent, chunk_size, stripe_size, chain_table, target_length,
            ) = _INODE.unpack_from(data)  # fmt: skip
            if version not in (VERSION, COUNTED_VERSION):
                raise _unknown(version, f"inode {inode_id}", COUNTED_VERSION)
            chains = unpack_from(f"<{chain_count}I", data, _INODE.size) if chain_count else ()
        except struct_error as exc:
            raise _damaged(f"inode {inode_id}") from exc
        target = data[-target_length:] if target_length else b""
        return cls(
            inode_id, mode, nlink, uid, gid, rdev, flags, length, truncate_version, atime, mtime, ctime, btime, parent,
            chunk_size, stripe_size, chain_table, chains, target, version == COUNTED_VERSION,
        )  # fmt: skip


def pack_dentry(inode_id: int, mode: int) -> bytes:
    """A name's target and the type bits of its mode."""
    return _DENTRY.pack(VERSION, mode >> 12, inode_id)


def unpack_dentry(data: bytes) -> tuple[int, int]:
    """(inode id, S_IFMT bits)."""
    try:
        version, kind, inode_id = _DENTRY.unpack_from(data)
    except struct_error as exc:
        raise _damaged("directory entry") from exc
    if version != VERSION:
        raise _unknown(version, "directory entry")
    return inode_id, kind << 12


@dataclass(frozen=True, slots=True)
class Session:
    """An open file: whose it is, since when, and whether it may write.

    `appending_to` is the end of what it was given to append and has perhaps not recorded yet, under
    `truncate_version`; 0: nothing.
    """

    client_id: bytes
    write: bool
    opened_ns: int
    appending_to: int = 0
    truncate_version: int = 0

    def pack(self) -> bytes:
        head = _SESSION.pack(VERSION, self.write, self.opened_ns, self.client_id)
        return head + _APPENDING.pack(self.appending_to, self.truncate_version) if self.appending_to else head

    @classmethod
    def unpack(cls, data: bytes) -> Session:
        _, write, opened_ns, client_id = _unpack(_SESSION, data, "session")
        if len(data) == _SESSION.size:
            return cls(client_id, bool(write), opened_ns)
        try:
            return cls(client_id, bool(write), opened_ns, *_APPENDING.unpack(data[_SESSION.size :]))
        except struct_error as exc:
            raise _damaged("session") from exc


@dataclass(frozen=True, slots=True)
class Trim:
    """Chunks beyond `length` are to go; valid for this truncate version."""

    length: int
    truncate_version: int

    def pack(self) -> bytes:
        return _TRIM.pack(VERSION, self.length, self.truncate_version)

    @classmethod
    def unpack(cls, data: bytes) -> Trim:
        return cls(*_unpack(_TRIM, data, "trim")[1:])


@dataclass(frozen=True, slots=True)
class Garbage:
    """Something removed: when, and by whom."""

    kind: GarbageKind
    removed_ns: int
    uid: int = 0

    def pack(self) -> bytes:
        return _GARBAGE.pack(VERSION, self.kind, self.removed_ns, self.uid)

    @classmethod
    def unpack(cls, data: bytes) -> Garbage:
        _, kind, removed_ns, uid = _unpack(_GARBAGE, data, "garbage")
        return cls(GarbageKind(kind), removed_ns, uid)


@dataclass(frozen=True, slots=True)
class Trash:
    """Something removed that can be restored: where it was, its link count there, and who removed it."""

    parent: int
    nlink: int
    uid: int
    name: bytes

    def pack(self) -> bytes:
        return _TRASH.pack(VERSION, self.parent, self.nlink, self.uid) + self.name

    @classmethod
    def unpack(cls, data: bytes) -> Trash:
        _, parent, nlink, uid = _unpack(_TRASH, data, "trash")
        return cls(parent, nlink, uid, data[_TRASH.size :])


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a mutation ended: 0 and the reply, or an error code and its text. `method` guards against mixed-up ids."""

    code: int
    method: int
    done_ns: int
    body: bytes = field(default=b"", repr=False)

    def pack(self) -> bytes:
        return _OUTCOME.pack(VERSION, self.code, self.method, self.done_ns) + self.body

    @classmethod
    def unpack(cls, data: bytes) -> Outcome:
        _, code, method, done_ns = _unpack(_OUTCOME, data, "outcome")
        return cls(code, method, done_ns, data[_OUTCOME.size :])


def _unpack(layout: Struct, data: bytes, what: str) -> tuple[Any, ...]:
    try:
        values = layout.unpack_from(data)
    except struct_error as exc:
        raise _damaged(what) from exc
    if values[0] != VERSION:
        raise _unknown(values[0], what)
    return values


def _unknown(version: int, what: str, known: int = VERSION) -> Exception:
    return error(Code.VERSION_MISMATCH, f"{what} has record version {version}, this release reads version {known}")


def _damaged(what: str) -> Exception:
    return error(Code.IO_ERROR, f"the stored record of {what} is damaged")
