"""POSIX access control lists (POSIX 1003.1e draft 17, acl(5)) as Linux decides by them. Pure.

An ACL is a tuple of entries in the kernel's order: owner, named users by id, group, named groups by id, mask, others.
Only a list that says more than the nine mode bits is kept as a list; while one is kept, the mode's group bits are its
mask.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final, NamedTuple

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import ACL_BYTES_MAX

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"

VERSION: Final = 2  # POSIX_ACL_XATTR_VERSION
USER_OBJ: Final = 0x01
USER: Final = 0x02
GROUP_OBJ: Final = 0x04
GROUP: Final = 0x08
MASK: Final = 0x10
OTHER: Final = 0x20
NO_ID: Final = 0xFFFFFFFF  # of entries that name nobody
_NAMED: Final = USER | GROUP
_ORDER: Final = {USER_OBJ: 0, USER: 1, GROUP_OBJ: 2, GROUP: 3, MASK: 4, OTHER: 5}

_HEADER = Struct("<I")
_ENTRY = Struct("<HHI")


class Entry(NamedTuple):
    """One line: whom it is about (`id` for USER and GROUP), and read 4, write 2, execute 1."""

    tag: int
    perm: int
    id: int = NO_ID


Acl = tuple[Entry, ...]


def parse(value: bytes) -> Acl:
    """From the value of the extended attribute. An empty list means: no ACL.

    Raises NOT_SUPPORTED for another version of the format, TOO_BIG_ARGUMENT, and INVALID for what is no valid list.
    """
    if len(value) > ACL_BYTES_MAX:
        raise error(Code.TOO_BIG_ARGUMENT, f"an ACL of {len(value)} bytes, at most {ACL_BYTES_MAX}")
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise error(Code.INVALID, f"an ACL does not have {len(value)} bytes")
    (version,) = _HEADER.unpack_from(value)
    if version != VERSION:
        raise error(Code.NOT_SUPPORTED, f"ACL format {version}, only {VERSION} is known")
    found = [Entry(*fields) for fields in _ENTRY.iter_unpack(value[_HEADER.size :])]
    acl = tuple(Entry(tag, perm, number if tag & _NAMED else NO_ID) for tag, perm, number in found)
    if acl:
        _check(acl)
    return acl


def pack(acl: Acl) -> bytes:
    return _HEADER.pack(VERSION) + b"".join(_ENTRY.pack(*entry) for entry in acl)


def _check(acl: Acl) -> None:
    """Each of owner, group and others once, a mask if somebody is named, everything in its place."""
    tags = [entry.tag for entry in acl]
    for tag, perm, number in acl:
        if tag not in _ORDER or perm & ~7 or (tag & _NAMED and number == NO_ID):
            raise error(Code.INVALID, f"no such ACL entry: tag {tag:#x}, permissions {perm:#o}, id {number}")
    if [_ORDER[tag] for tag in tags] != sorted(_ORDER[tag] for tag in tags):
        raise error(Code.INVALID, "ACL entries are out of order")
    if any(tags.count(tag) != 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER)) or tags.count(MASK) > 1:
        raise error(Code.INVALID, "an ACL has one entry for owner, group and others, and at most one mask")
    if (USER in tags or GROUP in tags) and MASK not in tags:
        raise error(Code.INVALID, "an ACL that names users or groups needs a mask")


def _perm(acl: Acl, tag: int) -> int | None:
    return next((entry.perm for entry in acl if entry.tag == tag), None)


def mode_of(acl: Acl) -> int:
    """The nine mode bits that go with it."""
    mask = _perm(acl, MASK)
    group = mask if mask is not None else _perm(acl, GROUP_OBJ)
    return (_perm(acl, USER_OBJ) or 0) << 6 | (group or 0) << 3 | (_perm(acl, OTHER) or 0)


def is_minimal(acl: Acl) -> bool:
    """Whether the mode bits say all of it."""
    return len(acl) == 3


def allows(acl: Acl, uid: int, gid: int, who_uid: int, in_group: Callable[[int], bool], mask: int) -> bool:
    """Whether user `who_uid` has every right of `mask` to an inode of owner `uid` and group `gid`."""
    mask_perm = _perm(acl, MASK)
    limit = 7 if mask_perm is None else mask_perm
    matched = False
    for tag, perm, number in acl:
        if tag == USER_OBJ:
            if who_uid == uid:
                return perm & mask == mask
        elif tag == USER:
            if who_uid == number:
                return perm & limit & mask == mask
        elif tag in (GROUP_OBJ, GROUP):
            if in_group(gid if tag == GROUP_OBJ else number):
                matched = True
                if perm & mask == mask:
                    return perm & limit & mask == mask
        elif tag == OTHER:
            return not matched and perm & mask == mask
    return False


def with_mode(acl: Acl, mode: int) -> Acl:
    """After chmod: the group bits go to the mask if there is one."""
    group = MASK if _perm(acl, MASK) is not None else GROUP_OBJ
    bits = {USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, OTHER: mode & 7}
    return tuple(Entry(tag, bits.get(tag, perm), number) for tag, perm, number in acl)


def inherited(default: Acl, mode: int) -> tuple[Acl, int]:
    """(access ACL, permission bits) of something that is made with `mode`, no umask applied, below a default ACL."""
    group = MASK if _perm(default, MASK) is not None else GROUP_OBJ
    bits = {USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, OTHER: mode & 7}
    acl = tuple(Entry(tag, perm & bits.get(tag, 7), number) for tag, perm, number in default)
    return acl, mode & ~0o777 | mode_of(acl)


RECORD_VERSION: Final = 1
_RECORD = Struct("<BHH")  # version, entries of the access ACL, entries of the default ACL; then all of them


def pack_record(access: Acl, default: Acl) -> bytes:
    """Both ACLs of one inode as they are stored; an empty one is none."""
    head = _RECORD.pack(RECORD_VERSION, len(access), len(default))
    return head + b"".join(_ENTRY.pack(*entry) for entry in (*access, *default))


def unpack_record(data: bytes) -> tuple[Acl, Acl]:
    """(access, default). Raises VERSION_MISMATCH, or IO_ERROR for a damaged record."""
    if data[:1] != bytes((RECORD_VERSION,)):
        raise error(Code.VERSION_MISMATCH, f"ACLs have record version {data[:1].hex()}, this is {RECORD_VERSION}")
    if len(data) < _RECORD.size or (len(data) - _RECORD.size) % _ENTRY.size:
        raise error(Code.IO_ERROR, "the stored record of ACLs is damaged")
    _, count, default_count = _RECORD.unpack_from(data)
    entries = tuple(Entry(*fields) for fields in _ENTRY.iter_unpack(data[_RECORD.size :]))
    if len(entries) != count + default_count:
        raise error(Code.IO_ERROR, "the stored record of ACLs is damaged")
    return entries[:count], entries[count:]
