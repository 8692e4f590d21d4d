"""The kernel's FUSE protocol (include/uapi/linux/fuse.h, 7.31 to 7.45): layouts, constants, encode and decode.

Pure: no descriptor is touched here. All integers are in the host's byte order, which `struct`'s "=" gives without
padding; every layout below is already aligned as the kernel has it. A request is `IN_HEADER`, then the message of its
opcode, then names or data. A reply is `OUT_HEADER`, then the message; `error` is 0 or a negative errno.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from enum import IntEnum, IntFlag
from typing import NamedTuple

KERNEL_MAJOR = 7
KERNEL_MINOR = 39  # what we speak; the kernel answers in the lower of both
KERNEL_MINOR_MIN = 31  # older kernels lack max_pages and readable init flags
ROOT_ID = 1
VIRTUAL_BASE = 0xFFFF_FF00_0000_0000  # node ids from here on are of no file: fuse/usrbio/virtual.py


class Opcode(IntEnum):
    """What a request asks for (enum fuse_opcode)."""

    LOOKUP = 1
    FORGET = 2  # no reply
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36  # no reply
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41  # no reply
    BATCH_FORGET = 42  # no reply
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


class InitFlag(IntFlag):
    """Capabilities offered in INIT (FUSE_ASYNC_READ and so on)."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    # From here on in flags2
    DIRECT_IO_ALLOW_MMAP = 1 << 36


class SetAttr(IntFlag):
    """Which fields of SETATTR count (FATTR_*)."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    LOCKOWNER = 1 << 9
    CTIME = 1 << 10
    KILL_SUIDGID = 1 << 11


class OpenReply(IntFlag):
    """How the kernel treats an opened file (FOPEN_*)."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NONSEEKABLE = 1 << 2
    CACHE_DIR = 1 << 3
    STREAM = 1 << 4
    NOFLUSH = 1 << 5
    PARALLEL_DIRECT_WRITES = 1 << 6


class Notify(IntEnum):
    """Messages from us to the kernel that answer no request."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4


WRITE_CACHE = 1 << 0  # a page written back: by no particular handle, at an exact offset
GETATTR_FH = 1 << 0
FSYNC_FDATASYNC = 1 << 0
WRITE_KILL_SUIDGID = 1 << 2  # set-uid and set-gid bits go, as the writer may not keep them
SETXATTR_ACL_KILL_SGID = 1 << 0  # the set-gid bit goes: the owner is not in the group
IOCTL_DIR = 1 << 4  # of flags: the ioctl is of a directory
LK_FLOCK = 1 << 0  # of lk_flags: flock(2), not fcntl(2)
RELEASE_FLOCK_UNLOCK = 1 << 1  # of release_flags: the open file may have an flock lock, lock_owner's
# FUSE_DEV_IOC_CLONE, _IOR(229, 0, uint32_t)
DEV_IOC_CLONE = 0x8004E500

IN_HEADER = struct.Struct("=IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
OUT_HEADER = struct.Struct("=IiQ")  # len, error, unique
# ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, nlink, uid, gid, rdev, blksize, flags
ATTR = struct.Struct("=6Q10I")
# nodeid, generation, entry_valid, attr_valid, entry_valid_nsec, attr_valid_nsec, then ATTR
ENTRY_OUT = struct.Struct("=4Q2I6Q10I")
ATTR_OUT = struct.Struct("=QII6Q10I")  # attr_valid, attr_valid_nsec, dummy, then ATTR
OPEN_OUT = struct.Struct("=QII")  # fh, open_flags, padding
FORGET_IN = struct.Struct("=Q")  # nlookup
FORGET_ONE = struct.Struct("=QQ")  # nodeid, nlookup
BATCH_FORGET_IN = struct.Struct("=II")  # count, dummy
GETATTR_IN = struct.Struct("=IIQ")  # getattr_flags, dummy, fh
# valid, padding, fh, size, lock_owner, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, unused, uid, gid,
# unused
SETATTR_IN = struct.Struct("=II6Q8I")
MKNOD_IN = struct.Struct("=4I")  # mode, rdev, umask, padding; then the name
MKDIR_IN = struct.Struct("=II")  # mode, umask; then the name
RENAME_IN = struct.Struct("=Q")  # newdir; then both names
RENAME2_IN = struct.Struct("=QII")  # newdir, flags, padding; then both names
LINK_IN = struct.Struct("=Q")  # oldnodeid; then the name
OPEN_IN = struct.Struct("=II")  # flags, open_flags
CREATE_IN = struct.Struct("=4I")  # flags, mode, umask, open_flags; then the name
RELEASE_IN = struct.Struct("=QIIQ")  # fh, flags, release_flags, lock_owner
FLUSH_IN = struct.Struct("=QIIQ")  # fh, unused, padding, lock_owner
READ_IN = struct.Struct("=QQIIQII")  # fh, offset, size, read_flags, lock_owner, flags, padding
WRITE_IN = struct.Struct("=QQIIQII")  # fh, offset, size, write_flags, lock_owner, flags, padding; then the data
WRITE_OUT = struct.Struct("=II")  # size, padding
# blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, padding, spare[6]
STATFS_OUT = struct.Struct("=5Q4I24x")
FSYNC_IN = struct.Struct("=QII")  # fh, fsync_flags, padding
SETXATTR_IN = struct.Struct("=4I")  # size, flags, setxattr_flags, padding; then the name and the value
SETXATTR_IN_OLD = struct.Struct("=II")  # size, flags: without SETXATTR_EXT
GETXATTR_IN = struct.Struct("=II")  # size of the caller's buffer (0: only asks for the length), padding; then the name
GETXATTR_OUT = struct.Struct("=II")  # length of the value, padding
ACCESS_IN = struct.Struct("=II")  # mask, padding
INIT_IN = struct.Struct("=4I")  # major, minor, max_readahead, flags; then flags2 and reserved words
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
# map_alignment, flags2, unused[7]
INIT_OUT = struct.Struct("=4IHHIIHHI28x")
INTERRUPT_IN = struct.Struct("=Q")  # unique of the request that its caller gave up on
LK_IN = struct.Struct("=4Q4I")  # fh, owner, start, end (inclusive), type, pid, lk_flags, padding
LK_OUT = struct.Struct("=QQII")  # start, end, type, pid
FALLOCATE_IN = struct.Struct("=3QII")  # fh, offset, length, mode, padding
COPY_FILE_RANGE_IN = struct.Struct("=7Q")  # fh_in, off_in, nodeid_out, fh_out, off_out, len, flags
IOCTL_IN = struct.Struct("=QIIQII")  # fh, flags, cmd, arg, in_size, out_size; then what goes in
IOCTL_OUT = struct.Struct("=iIII")  # result, flags, in_iovs, out_iovs; then what goes out
LSEEK_IN = struct.Struct("=QQII")  # fh, offset, whence, padding
LSEEK_OUT = struct.Struct("=Q")
DIRENT = struct.Struct("=QQII")  # ino, off, namelen, type; then the name, padded to 8 bytes
NOTIFY_INVAL_INODE = struct.Struct("=Qqq")  # ino, off, len; off < 0: attributes only
NOTIFY_STORE = struct.Struct("=QQII")  # ino, offset, size, padding; then the bytes
NOTIFY_INVAL_ENTRY = struct.Struct("=QII")  # parent, namelen, flags; then the name and a NUL

IN_HEADER_BYTES = IN_HEADER.size
OUT_HEADER_BYTES = OUT_HEADER.size
WRITE_DATA_OFFSET = IN_HEADER.size + WRITE_IN.size  # of the data in a WRITE request
REQUEST_EXTRA_BYTES = 4096  # a request buffer holds max_write and this much for headers and names


class InitRequest(NamedTuple):
    """What the kernel offers at the start."""

    major: int
    minor: int
    max_readahead: int
    flags: int  # 64 bits, when the kernel says more than 32


class Attributes(NamedTuple):
    """One inode as the kernel caches it. Times are nanoseconds since the epoch; `blocks` counts 512 bytes."""

    ino: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int


class SetAttrRequest(NamedTuple):
    """Fields to change; those without their bit in `valid` mean nothing."""

    valid: int
    fh: int
    size: int
    atime_ns: int
    mtime_ns: int
    mode: int
    uid: int
    gid: int


class Valid(NamedTuple):
    """How long the kernel may keep a name and attributes, as whole seconds and nanoseconds."""

    seconds: int
    nanoseconds: int

    @classmethod
    def of(cls, seconds: float) -> Valid:
        whole = int(seconds)
        return cls(whole, int((seconds - whole) * 1_000_000_000))


NEVER = Valid(0, 0)


def _attr_fields(a: Attributes) -> tuple[int, ...]:
    giga = 1_000_000_000
    atime_s, atime_ns = divmod(a.atime_ns, giga)
    mtime_s, mtime_ns = divmod(a.mtime_ns, giga)
    ctime_s, ctime_ns = divmod(a.ctime_ns, giga)
    mask = 0xFFFFFFFFFFFFFFFF  # times before 1970 travel as two's complement
    return (
        a.ino,
        a.size,
        a.blocks,
        atime_s & mask,
        mtime_s & mask,
        ctime_s & mask,
        atime_ns,
        mtime_ns,
        ctime_ns,
        a.mode,
        a.nlink,
        a.uid,
        a.gid,
        a.rdev,
        a.blksize,
        0,
    )


def encode_entry(attributes: Attributes, entry_valid: Valid, attr_valid: Valid) -> bytes:
    """fuse_entry_out: the node id is the inode number; ids are never used twice, so the generation is 0."""
    return ENTRY_OUT.pack(
        attributes.ino,
        0,
        entry_valid.seconds,
        attr_valid.seconds,
        entry_valid.nanoseconds,
        attr_valid.nanoseconds,
        *_attr_fields(attributes),
    )


def encode_no_entry(entry_valid: Valid) -> bytes:
    """fuse_entry_out for a name that does not exist and may be remembered so for a while."""
    return ENTRY_OUT.pack(0, 0, entry_valid.seconds, 0, entry_valid.nanoseconds, 0, *([0] * 16))


def encode_attr(attributes: Attributes, attr_valid: Valid) -> bytes:
    """fuse_attr_out."""
    return ATTR_OUT.pack(attr_valid.seconds, attr_valid.nanoseconds, 0, *_attr_fields(attributes))


def encode_init(
    *, max_readahead: int, flags: int, max_background: int, congestion_threshold: int, max_write: int, max_pages: int
) -> bytes:
    """fuse_init_out."""
    return INIT_OUT.pack(
        KERNEL_MAJOR,
        KERNEL_MINOR,
        max_readahead,
        flags & 0xFFFFFFFF,
        max_background,
        congestion_threshold,
        max_write,
        1,  # time_gran: nanoseconds
        max_pages,
        0,
        flags >> 32,
    )


def decode_init(body: memoryview) -> InitRequest:
    major, minor, max_readahead, flags = INIT_IN.unpack_from(body)
    if flags & InitFlag.INIT_EXT and len(body) >= INIT_IN.size + 4:
        flags |= int.from_bytes(body[INIT_IN.size : INIT_IN.size + 4], sys.byteorder) << 32
    return InitRequest(major, minor, max_readahead, flags)


def decode_setattr(body: memoryview) -> SetAttrRequest:
    valid, _, fh, size, _, atime, mtime, _, atimensec, mtimensec, _, mode, _, uid, gid, _ = SETATTR_IN.unpack_from(body)
    return SetAttrRequest(
        valid, fh, size, _signed(atime) * 10**9 + atimensec, _signed(mtime) * 10**9 + mtimensec, mode, uid, gid
    )


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def decode_name(body: memoryview, offset: int = 0) -> bytes:
    """The NUL-terminated name at `offset`."""
    return bytes(body[offset:]).split(b"\0", 1)[0]


def decode_names(body: memoryview, offset: int = 0) -> tuple[bytes, bytes]:
    """Two NUL-terminated names, one after the other."""
    first, second, *_ = bytes(body[offset:]).split(b"\0", 2)
    return first, second


def decode_batch_forget(body: memoryview) -> Iterator[tuple[int, int]]:
    """(nodeid, lookups forgotten) of each."""
    count, _ = BATCH_FORGET_IN.unpack_from(body)
    end = BATCH_FORGET_IN.size + count * FORGET_ONE.size
    return FORGET_ONE.iter_unpack(body[BATCH_FORGET_IN.size : end])


def dirent_bytes(name: bytes, *, plus: bool) -> int:
    """What one entry of a listing takes, padding included."""
    return (DIRENT.size + len(name) + 7 & ~7) + (ENTRY_OUT.size if plus else 0)


def encode_dirent(ino: int, next_offset: int, mode: int, name: bytes) -> bytes:
    """fuse_dirent; `next_offset` is where a listing goes on after this entry."""
    packed = DIRENT.pack(ino, next_offset, len(name), mode >> 12) + name
    return packed + bytes(-len(packed) % 8)


def reply_header(unique: int, body_bytes: int, error: int = 0) -> bytes:
    """fuse_out_header; `error` is a positive errno here."""
    return OUT_HEADER.pack(OUT_HEADER_BYTES + body_bytes, -error, unique)


def encode_inval_inode(nodeid: int, offset: int, length: int) -> bytes:
    """A whole notification: forget attributes, and with offset >= 0 cached pages (length 0: to the end)."""
    return OUT_HEADER.pack(OUT_HEADER_BYTES + NOTIFY_INVAL_INODE.size, Notify.INVAL_INODE, 0) + NOTIFY_INVAL_INODE.pack(
        nodeid, offset, length
    )


def encode_store(nodeid: int, length: int) -> bytes:
    """A notification without its data: these are the first `length` bytes of the file."""
    total = OUT_HEADER_BYTES + NOTIFY_STORE.size + length
    return OUT_HEADER.pack(total, Notify.STORE, 0) + NOTIFY_STORE.pack(nodeid, 0, length, 0)


def encode_inval_entry(parent: int, name: bytes) -> bytes:
    """A whole notification: look the name up anew."""
    length = OUT_HEADER_BYTES + NOTIFY_INVAL_ENTRY.size + len(name) + 1
    return OUT_HEADER.pack(length, Notify.INVAL_ENTRY, 0) + NOTIFY_INVAL_ENTRY.pack(parent, len(name), 0) + name + b"\0"
