"""Extended attributes: names, who may do what (xattr(7)), and the record that holds those of one inode. Pure.

POSIX ACLs have names of this kind too, but a record of their own: see core/acl.py.
"""

from __future__ import annotations

import stat
from enum import Enum
from struct import Struct
from struct import error as struct_error
from typing import Final

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import (
    XATTR_LIST_BYTES_MAX,
    XATTR_NAME_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
    XATTRS_BYTES_MAX,
)
from fireflyfs.meta.core import acl
from fireflyfs.meta.core.permission import READ, WRITE, Who, require
from fireflyfs.meta.core.records import Inode

CREATE: Final = 1  # XATTR_CREATE: it must not exist
REPLACE: Final = 2  # XATTR_REPLACE: it must exist
CAPABILITY: Final = b"security.capability"
VERSION: Final = 1
_ENTRY = Struct("<BI")  # length of the name, length of the value; then both


class Kind(Enum):
    USER = b"user."
    TRUSTED = b"trusted."
    SECURITY = b"security."
    ACL = b"system.posix_acl_"


def kind_of(name: bytes) -> Kind:
    """Raises OUT_OF_RANGE for a name too long or empty, INVALID, and NOT_SUPPORTED for another namespace."""
    if not 0 < len(name) <= XATTR_NAME_BYTES_MAX:
        raise error(Code.OUT_OF_RANGE, f"the name of an extended attribute has 1 to {XATTR_NAME_BYTES_MAX} bytes")
    if b"\0" in name:
        raise error(Code.INVALID, "a name holds no NUL byte")
    if name in (acl.ACCESS, acl.DEFAULT):
        return Kind.ACL
    for kind in (Kind.USER, Kind.TRUSTED, Kind.SECURITY):
        if name.startswith(kind.value):
            if len(name) == len(kind.value):
                raise error(Code.INVALID, "the name of an extended attribute ends after its namespace")
            return kind
    raise error(Code.NOT_SUPPORTED, "namespaces: user, trusted, security, system.posix_acl_access and _default")


def require_get(inode: Inode, who: Who, kind: Kind) -> None:
    """May `who` read an attribute of this kind? Raises NO_DATA (it is not to be seen) or ACCESS_DENIED."""
    if kind is Kind.TRUSTED and who.uid != 0:
        raise error(Code.NO_DATA)
    if kind is Kind.USER:
        if not (inode.is_file or inode.is_dir):
            raise error(Code.NO_DATA)
        require(inode, who, READ)


def require_set(inode: Inode, who: Who, kind: Kind) -> None:
    """May `who` set or remove an attribute of this kind? Raises NOT_PERMITTED or ACCESS_DENIED."""
    if kind is Kind.USER:
        if not (inode.is_file or inode.is_dir):
            raise error(Code.NOT_PERMITTED)
        if inode.is_dir and inode.mode & stat.S_ISVTX and who.uid not in (0, inode.uid):
            raise error(Code.NOT_PERMITTED)
        require(inode, who, WRITE)
    elif who.uid != 0:
        raise error(Code.NOT_PERMITTED)


def check_value(value: bytes) -> None:
    """Raises TOO_BIG_ARGUMENT."""
    if len(value) > XATTR_VALUE_BYTES_MAX:
        raise error(Code.TOO_BIG_ARGUMENT, f"a value of {len(value)} bytes, at most {XATTR_VALUE_BYTES_MAX}")


def put(xattrs: dict[bytes, bytes], name: bytes, value: bytes, flags: int) -> None:
    """Set one of `xattrs` in place. Raises EXISTS, NO_DATA, INVALID (flags), NO_SPACE; nothing changed then."""
    if flags & ~(CREATE | REPLACE):
        raise error(Code.INVALID, f"setxattr flags {flags:#x}")
    if flags & CREATE and name in xattrs:
        raise error(Code.EXISTS)
    if flags & REPLACE and name not in xattrs:
        raise error(Code.NO_DATA)
    after = {**xattrs, name: value}
    if sum(map(len, after)) + len(after) > XATTR_LIST_BYTES_MAX:
        raise error(Code.NO_SPACE, f"the names of all attributes are longer than {XATTR_LIST_BYTES_MAX} bytes")
    if packed_bytes(after) > XATTRS_BYTES_MAX:
        raise error(Code.NO_SPACE, f"all attributes together are longer than {XATTRS_BYTES_MAX} bytes")
    xattrs[name] = value


def visible(names: list[bytes], who: Who) -> list[bytes]:
    """What listxattr shows."""
    return names if who.uid == 0 else [name for name in names if not name.startswith(Kind.TRUSTED.value)]


def packed_bytes(xattrs: dict[bytes, bytes]) -> int:
    return 1 + sum(_ENTRY.size + len(name) + len(value) for name, value in xattrs.items())


def pack(xattrs: dict[bytes, bytes]) -> bytes:
    parts = [bytes((VERSION,))]
    for name, value in xattrs.items():
        parts += (_ENTRY.pack(len(name), len(value)), name, value)
    return b"".join(parts)


def unpack(data: bytes) -> dict[bytes, bytes]:
    """In the order in which they were first set. Raises VERSION_MISMATCH, or IO_ERROR for a damaged record."""
    if data[:1] != bytes((VERSION,)):
        raise error(Code.VERSION_MISMATCH, f"extended attributes: record version {data[:1].hex()}, this is {VERSION}")
    found: dict[bytes, bytes] = {}
    place = 1
    try:
        while place < len(data):
            name_bytes, value_bytes = _ENTRY.unpack_from(data, place)
            middle = place + _ENTRY.size + name_bytes
            found[data[place + _ENTRY.size : middle]] = data[middle : middle + value_bytes]
            place = middle + value_bytes
    except struct_error as exc:
        raise error(Code.IO_ERROR, "the stored record of extended attributes is damaged") from exc
    if place != len(data):
        raise error(Code.IO_ERROR, "the stored record of extended attributes is damaged")
    return found
