"""Every key of the metadata store, in one table.

| first byte | rest | value | what |
|---|---|---|---|
| `I` | inode id, 8 bytes big-endian | inode record | one file, directory, link or node |
| `D` | directory's inode id, name | dentry record | a name in a directory; a scan gives them ordered by name |
| `S` | inode id, session id (16) | session record | someone has the file open |
| `T` | inode id | trim record | a truncation whose chunks are not all removed yet |
| `G` | inode id | garbage record | removed from the tree, not yet given back |
| `R` | time of removal, 8 bytes big-endian; inode id | trash record | removed, and kept for a while |
| `X` | inode id | extended attributes record | all of one inode, without ACLs |
| `A` | inode id | ACL record | its access and default ACL |
| `P` | inode id, directory's inode id | names record | of a file with several names: how many are in that directory |
| `C` | time in ns, 8 bytes big-endian; server's life (8); number (4) | change record | of usage, not folded yet |
| `U` | kind (1), id (8) | usage record | bytes and inodes below a directory, of a user or of a group |
| `Q` | kind (1), id (8) | quota record | how much of them there may be |
| `O` | time bucket, 4 bytes big-endian; request id (16) | outcome record | a mutation that was done |
| `N` | inode id | delegations record | clients that know all names of a directory |
| `M` | text | depends | counters of the store itself |
"""

from __future__ import annotations

from struct import Struct

_U64 = Struct(">cQ")
_OUTCOME = Struct(">cI16s")
_U32 = Struct(">cI")
_U64_U64 = Struct(">cQQ")
_CHANGE = Struct(">cQQI")
_SUBJECT = Struct(">cBQ")

NEXT_INODE = b"Mnext-inode"  # 8 bytes big-endian: the first id that no server has taken
FORMAT = b"Mformat"  # 4 bytes big-endian: version of everything in this table
REPAIRS = b"Mrepairs"  # 8 bytes big-endian: how often usage was repaired
UNCOUNTED = b"Muncounted"  # a key of `D`: entries behind it may lead to inodes that are in no usage yet
ID_BYTES = 16


def inode(inode_id: int) -> bytes:
    return _U64.pack(b"I", inode_id)


def dentry(parent: int, name: bytes) -> bytes:
    return _U64.pack(b"D", parent) + name


def dentries(parent: int) -> tuple[bytes, bytes]:
    """The range of one directory's entries. Names hold no NUL, so the bare prefix is before all of them."""
    begin = _U64.pack(b"D", parent)
    return begin, begin + b"\xff" * 256


def dentry_name(key: bytes) -> bytes:
    return key[9:]


def session(inode_id: int, session_id: bytes) -> bytes:
    return _U64.pack(b"S", inode_id) + session_id


def sessions(inode_id: int) -> tuple[bytes, bytes]:
    begin = _U64.pack(b"S", inode_id)
    return begin, begin + b"\xff" * (ID_BYTES + 1)


def trim(inode_id: int) -> bytes:
    return _U64.pack(b"T", inode_id)


def garbage(inode_id: int) -> bytes:
    return _U64.pack(b"G", inode_id)


def xattrs(inode_id: int) -> bytes:
    return _U64.pack(b"X", inode_id)


def acls(inode_id: int) -> bytes:
    return _U64.pack(b"A", inode_id)


def names(inode_id: int, directory: int) -> bytes:
    return _U64_U64.pack(b"P", inode_id, directory)


def all_names(inode_id: int) -> tuple[bytes, bytes]:
    begin = _U64.pack(b"P", inode_id)
    return begin, begin + b"\xff" * 9


def names_directory(key: bytes) -> int:
    return int.from_bytes(key[9:], "big")


def change(now_ns: int, life: int, number: int) -> bytes:
    return _CHANGE.pack(b"C", now_ns, life, number)


def changes_from(time_ns: int) -> bytes:
    return _U64.pack(b"C", time_ns)


def change_time(key: bytes) -> int:
    return int.from_bytes(key[1:9], "big")


def usage(kind: int, subject: int) -> bytes:
    return _SUBJECT.pack(b"U", kind, subject)


def quota(kind: int, subject: int) -> bytes:
    return _SUBJECT.pack(b"Q", kind, subject)


def delegations(inode_id: int) -> bytes:
    return _U64.pack(b"N", inode_id)


def subject_of(key: bytes) -> tuple[int, int]:
    """(kind, id) of a key of the tables U and Q."""
    _, kind, subject = _SUBJECT.unpack(key)
    return kind, subject


def id_of(key: bytes) -> int:
    """The inode id in a key of the tables I, S, T, G or N; the directory in one of D."""
    return int.from_bytes(key[1:9], "big")


def session_of(key: bytes) -> bytes:
    return key[9:]


def trash(removed_ns: int, inode_id: int) -> bytes:
    return _U64_U64.pack(b"R", removed_ns, inode_id)


def trash_of(key: bytes) -> tuple[int, int]:
    """(time of removal in ns, inode id)."""
    _, removed_ns, inode_id = _U64_U64.unpack(key)
    return removed_ns, inode_id


def outcome(bucket: int, request_id: bytes) -> bytes:
    return _OUTCOME.pack(b"O", bucket, request_id)


def outcomes_before(bucket: int) -> tuple[bytes, bytes]:
    return b"O", _U32.pack(b"O", bucket)


def table(letter: bytes) -> tuple[bytes, bytes]:
    """The range of a whole table."""
    return letter, bytes((letter[0] + 1,))
