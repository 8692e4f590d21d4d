"""How much there is: below a directory, of a user, of a group; and how much there may be.

A file's bytes are its recorded length, rounded up to whole blocks of 4 KiB: what storage keeps at the least. Holes
count, because nobody tells metadata what of a file was written. Directories, links and nodes are inodes without bytes.

An inode counts for its directory while it has a name, and once, however many names it has. It counts for its owner and
group until it is gone altogether: while it is in the trash, or open without a name, its space is still taken.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import IntEnum
from struct import Struct
from struct import error as struct_error
from typing import NamedTuple

from fireflyfs.common.errors import Code, error
from fireflyfs.meta.core.records import COUNTED_VERSION, VERSION, Inode

BLOCK_BYTES = 4096
NO_LIMIT = (1 << 64) - 1
_VERSION_BYTE = bytes((VERSION,))

_FACTS = Struct("<B3xIIII4xQ40xQ")  # of an inode record: version, mode, nlink, uid, gid, length, parent
# Bytes take 128 bits, signed, the low 64 first: a sparse file may have nearly 2^63, and a directory many of them.
_CHANGE = Struct("<BQQqq")  # of a change record, repeated: kind, id, bytes (two fields), inodes
_THREE_CHANGES = Struct("<BBQQqqBQQqqBQQqq")
_USAGE = Struct("<BQqq")
_LOW = (1 << 64) - 1
_QUOTA = Struct("<BQQ")
_NAMES = Struct("<BI")


class Kind(IntEnum):
    """Whose usage it is; the number is stored, and travels."""

    DIRECTORY = 0  # all that is below it, itself left out
    USER = 1
    GROUP = 2


Subject = tuple[int, int]  # (kind, id)


class Usage(NamedTuple):
    """An amount, or a change of one."""

    bytes: int = 0
    inodes: int = 0

    def plus(self, other: Usage) -> Usage:
        return Usage(self.bytes + other.bytes, self.inodes + other.inodes)

    def minus(self, other: Usage) -> Usage:
        return Usage(self.bytes - other.bytes, self.inodes - other.inodes)


class Quota(NamedTuple):
    """The most of each; NO_LIMIT: no limit."""

    bytes_max: int = NO_LIMIT
    inodes_max: int = NO_LIMIT


class Facts(NamedTuple):
    """What usage depends on, of one inode. `at`: the directory in which it has a name and is counted, 0: none."""

    is_dir: bool
    counted: bool
    at: int
    uid: int
    gid: int
    bytes: int


def rounded(length: int) -> int:
    return -(-length // BLOCK_BYTES) * BLOCK_BYTES


def bytes_of(mode: int, length: int) -> int:
    """What an inode counts: only regular files have bytes."""
    return rounded(length) if mode & 0o170000 == stat.S_IFREG else 0


def facts_of(inode: Inode) -> Facts:
    kind = inode.mode & 0o170000
    length = bytes_of(inode.mode, inode.length)
    at = inode.parent if inode.nlink else 0
    return Facts(kind == stat.S_IFDIR, inode.counted, at, inode.uid, inode.gid, length)


def facts_of_record(data: bytes) -> Facts:
    """The same of a stored inode record that was unpacked before."""
    version, mode, nlink, uid, gid, length, parent = _FACTS.unpack_from(data)
    kind = mode & 0o170000
    length = bytes_of(mode, length)
    return Facts(kind == stat.S_IFDIR, version == COUNTED_VERSION, parent if nlink else 0, uid, gid, length)


def is_unchanged(data: bytes, inode: Inode) -> bool:
    """Whether usage knows the same of an inode and of its record as stored before, at a glance."""
    return _FACTS.unpack_from(data) == (
        COUNTED_VERSION if inode.counted else VERSION,
        inode.mode,
        inode.nlink,
        inode.uid,
        inode.gid,
        inode.length,
        inode.parent,
    )


def of_new(inode: Inode) -> dict[Subject, Usage]:
    """The change that a new inode makes."""
    one = Usage(bytes_of(inode.mode, inode.length), 1)
    owners: dict[Subject, Usage] = {(1, inode.uid): one, (2, inode.gid): one}
    if inode.nlink:
        owners[0, inode.parent] = one
    return owners


def pack_new(inode: Inode) -> bytes:
    """The change record of `of_new` of an inode with a name, without taking it apart: creating is mostly this."""
    size = bytes_of(inode.mode, inode.length)
    return _THREE_CHANGES.pack(VERSION, 1, inode.uid, size, 0, 1, 2, inode.gid, size, 0, 1, 0, inode.parent, size, 0, 1)


class Sums:
    """Changes of usage that belong together, added up by subject; what adds up to nothing is left out at the end."""

    __slots__ = ("by_subject",)

    def __init__(self) -> None:
        self.by_subject: dict[Subject, Usage] = {}

    def add(self, kind: int, subject: int, change: Usage) -> None:
        key = (kind, subject)
        known = self.by_subject.get(key)
        self.by_subject[key] = change if known is None else known.plus(change)

    def settled(self) -> dict[Subject, Usage]:
        return {subject: change for subject, change in self.by_subject.items() if change.bytes or change.inodes}


def add_inode(sums: Sums, was: Facts | None, now: Facts | None) -> bool:
    """Add the change that one inode makes; whether it is a directory that came to another place or left its place.

    Then the caller moves along what is below it.
    """
    for facts, sign in ((was, -1), (now, 1)):
        if facts is not None and facts.counted:
            change = Usage(sign * facts.bytes, sign)
            if facts.at:
                sums.add(Kind.DIRECTORY, facts.at, change)
            sums.add(Kind.USER, facts.uid, change)
            sums.add(Kind.GROUP, facts.gid, change)
    if was is None or not was.is_dir:
        return False
    return was.at != (now.at if now is not None else 0)


def pack_changes(changes: Mapping[Subject, Usage]) -> bytes:
    if len(changes) == 3:  # as nearly all
        (a, (x, i)), (b, (y, j)), (c, (z, k)) = changes.items()
        return _THREE_CHANGES.pack(
            VERSION, *a, x & _LOW, x >> 64, i, *b, y & _LOW, y >> 64, j, *c, z & _LOW, z >> 64, k
        )
    parts = [bytes((VERSION,))]
    parts += [
        _CHANGE.pack(kind, subject, size & _LOW, size >> 64, inodes)
        for (kind, subject), (size, inodes) in changes.items()
    ]
    return b"".join(parts)


def summed(records: Iterable[bytes]) -> dict[Subject, Usage]:
    """Change records added up; what adds up to nothing is left out.

    Raises VERSION_MISMATCH, and IO_ERROR for a record that makes no sense.
    """
    totals: dict[Subject, list[int]] = {}
    for data, times in Counter(records).items():  # files made in one directory by one user leave the same records
        if data[:1] != _VERSION_BYTE:
            _check_version(data, "change of usage")
        if (len(data) - 1) % _CHANGE.size:
            raise error(Code.IO_ERROR, "the stored record of a change of usage is damaged")
        for kind, subject, low, high, inodes in _CHANGE.iter_unpack(memoryview(data)[1:]):
            size = (low | high << 64) * times
            inodes *= times
            total = totals.get((kind, subject))
            if total is None:
                totals[kind, subject] = [size, inodes]
            else:
                total[0] += size
                total[1] += inodes
    return {subject: Usage(*total) for subject, total in totals.items() if any(total)}


def shown(amount: int) -> int:
    """As a message has it: what is more than 63 bits say is as much as they say."""
    return max(-(1 << 63), min(amount, (1 << 63) - 1))


def pack_usage(usage: Usage) -> bytes:
    return _USAGE.pack(VERSION, usage.bytes & _LOW, usage.bytes >> 64, usage.inodes)


def unpack_usage(data: bytes | None) -> Usage:
    """None, where there is no record: nothing."""
    if data is None:
        return Usage()
    _check_version(data, "usage")
    low, high, inodes = _fields(_USAGE, data, "usage")
    return Usage(low | high << 64, inodes)


def pack_quota(quota: Quota) -> bytes:
    return _QUOTA.pack(VERSION, *quota)


def unpack_quota(data: bytes) -> Quota:
    _check_version(data, "quota")
    return Quota(*_fields(_QUOTA, data, "quota"))


def pack_names(count: int) -> bytes:
    return _NAMES.pack(VERSION, count)


def unpack_names(data: bytes | None) -> int:
    """None, where there is no record: 0 names."""
    if data is None:
        return 0
    _check_version(data, "names")
    (count,) = _fields(_NAMES, data, "names")
    return count


def _check_version(data: bytes, what: str) -> None:
    if data[:1] != _VERSION_BYTE:
        found = data[0] if data else "none"
        raise error(
            Code.VERSION_MISMATCH, f"a record of {what} has version {found}, this release reads version {VERSION}"
        )


def _fields(layout: Struct, data: bytes, what: str) -> tuple[int, ...]:
    try:
        return layout.unpack(data)[1:]
    except struct_error as exc:
        raise error(Code.IO_ERROR, f"the stored record of {what} is damaged") from exc
