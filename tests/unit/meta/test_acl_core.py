"""ACLs: the format, who is allowed what, and how modes and lists follow each other."""

from __future__ import annotations

import struct

import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.meta.core import acl
from fireflyfs.meta.core.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, Acl, Entry
from fireflyfs.meta.core.permission import Who, may
from fireflyfs.meta.core.records import Inode

FULL: Acl = (
    Entry(USER_OBJ, 6),
    Entry(USER, 7, 100),
    Entry(USER, 4, 101),
    Entry(GROUP_OBJ, 4),
    Entry(GROUP, 2, 200),
    Entry(GROUP, 6, 201),
    Entry(MASK, 6),
    Entry(OTHER, 1),
)
SHORT: Acl = (Entry(USER_OBJ, 7), Entry(GROUP_OBJ, 5), Entry(OTHER, 4))


def test_a_list_is_the_same_after_packing() -> None:
    assert acl.parse(acl.pack(FULL)) == FULL
    assert acl.parse(acl.pack(())) == ()
    assert acl.unpack_record(acl.pack_record(FULL, SHORT)) == (FULL, SHORT)
    assert acl.unpack_record(acl.pack_record((), SHORT)) == ((), SHORT)


def test_the_format_is_the_kernels() -> None:
    entry = struct.pack("<HHI", 1, 7, 0xFFFFFFFF) + struct.pack("<HHI", 4, 5, 0xFFFFFFFF)
    assert acl.pack(SHORT) == struct.pack("<I", 2) + entry + struct.pack("<HHI", 0x20, 4, 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (b"", Code.INVALID),
        (b"\2\0\0\0x", Code.INVALID),
        (b"\1\0\0\0", Code.NOT_SUPPORTED),
        (acl.pack(FULL) + bytes(4096), Code.TOO_BIG_ARGUMENT),
        (acl.pack(FULL[1:]), Code.INVALID),  # no owner
        (acl.pack(FULL[::-1]), Code.INVALID),  # out of order
        (acl.pack(FULL[:6] + FULL[7:]), Code.INVALID),  # names and no mask
        (acl.pack((*SHORT, SHORT[2])), Code.INVALID),  # others twice
        (acl.pack((Entry(USER_OBJ, 8), *SHORT[1:])), Code.INVALID),
        (acl.pack((Entry(0x40, 1), *SHORT)), Code.INVALID),
        (acl.pack((SHORT[0], Entry(USER, 7), *SHORT[1:2], Entry(MASK, 7), SHORT[2])), Code.INVALID),
    ],
)
def test_what_is_no_list_is_refused(value: bytes, code: Code) -> None:
    with pytest.raises(FfsError) as caught:
        acl.parse(value)
    assert caught.value.code is code


@pytest.mark.parametrize("cut", [1, 4, 5, 12])
def test_a_damaged_record_is_an_error(cut: int) -> None:
    record = acl.pack_record(FULL, SHORT)
    with pytest.raises(FfsError):
        acl.unpack_record(record[:cut])
    with pytest.raises(FfsError):
        acl.unpack_record(record[:-8])


@pytest.mark.parametrize(
    ("who", "granted"),
    [
        (Who(10, 99), 6),  # the owner, not masked
        (Who(100, 20), 6),  # named, masked; that the group has less does not matter
        (Who(101, 201), 4),
        (Who(11, 20), 4),  # the owning group
        (Who(11, 200), 2),
        (Who(11, 20, (200, 201)), 6),
        (Who(11, 20, (200,)), 4 | 2),  # one of the groups must have all that is asked at once: see below
        (Who(11, 99), 1),
    ],
)
def test_who_is_allowed_what(who: Who, granted: int) -> None:
    inode = Inode(5, 0o100661, uid=10, gid=20, acl=FULL)
    for bit in (4, 2, 1):
        assert may(inode, who, bit) == bool(granted & bit), (who, bit)


def test_two_groups_are_not_added_up() -> None:
    inode = Inode(5, 0o100661, uid=10, gid=20, acl=FULL)
    assert not may(inode, Who(11, 20, (200,)), 6)
    assert may(inode, Who(11, 20, (201,)), 6)


def test_a_group_that_matched_bars_others_rights() -> None:
    assert not may(Inode(5, 0o100661, uid=10, gid=20, acl=FULL), Who(11, 20), 1)


def test_a_mask_of_nothing_leaves_the_mode_bits() -> None:
    """Linux looks at no ACL then."""
    closed = acl.with_mode(FULL, 0o601)
    inode = Inode(5, 0o100601, uid=10, gid=20, acl=closed)
    assert not may(inode, Who(11, 201), 4)
    assert may(inode, Who(100, 99), 1)


def test_mode_and_list_follow_each_other() -> None:
    assert acl.mode_of(FULL) == 0o661
    assert acl.mode_of(SHORT) == 0o754
    changed = acl.with_mode(FULL, 0o100750)
    assert acl.mode_of(changed) == 0o750
    assert changed[3] == FULL[3]  # the group's own entry stays: the mask took the bits
    assert acl.with_mode(SHORT, 0o640) == (Entry(USER_OBJ, 6), Entry(GROUP_OBJ, 4), Entry(OTHER, 0))


def test_inheritance() -> None:
    access, mode = acl.inherited(FULL, 0o100644)
    assert (acl.mode_of(access), mode) == (0o640, 0o100640)
    assert access[1] == FULL[1]  # named entries as they are; the mask limits them
    access, mode = acl.inherited(SHORT, 0o100666)
    assert (access, mode) == ((Entry(USER_OBJ, 6), Entry(GROUP_OBJ, 4), Entry(OTHER, 4)), 0o100644)
