"""Who may do what, on real operations; and what owner, group and mode new things get."""

from __future__ import annotations

import os
import stat
from typing import Any

import pytest

from fireflyfs.common.errors import Code
from fireflyfs.meta.core.permission import EXECUTE, READ, WRITE, Who, may
from fireflyfs.meta.core.records import Inode
from fireflyfs.proto import meta_pb2

ME = {"uid": 10, "gid": 20}
OTHER = {"uid": 11, "gid": 21}
ONE = b"1" * 16


@pytest.fixture
def home(meta: Any) -> Any:
    meta.mkdir(b"home", 0o755)
    meta.set_attr(b"home", owner=10, group=20)
    return meta


@pytest.mark.parametrize(
    ("who", "expected"),
    [(Who(10, 99), 7), (Who(11, 20), 5), (Who(11, 99, (5, 20)), 5), (Who(11, 99), 1), (Who(0, 0), 7)],
)
def test_permission_bits(who: Who, expected: int) -> None:
    inode = Inode(5, stat.S_IFREG | 0o751, uid=10, gid=20)
    assert sum(bit for bit in (READ, WRITE, EXECUTE) if may(inode, who, bit)) == expected


def test_the_owner_has_only_the_owner_bits_and_root_executes_only_what_someone_may() -> None:
    inode = Inode(5, stat.S_IFREG | 0o077, uid=10, gid=20)
    assert not may(inode, Who(10, 20), READ)
    assert not may(Inode(5, stat.S_IFREG | 0o666), Who(0, 0), EXECUTE)
    assert may(Inode(5, stat.S_IFDIR), Who(0, 0), EXECUTE)


def test_directories_guard_their_entries(home: Any) -> None:
    home.create(b"home/f", 0o600, **ME)
    assert home.code(lambda: home.create(b"home/g", **OTHER)) is Code.ACCESS_DENIED
    assert home.code(lambda: home.remove(b"home/f", **OTHER)) is Code.ACCESS_DENIED
    assert home.code(lambda: home.open(b"home/f", **OTHER)) is Code.ACCESS_DENIED
    home.set_attr(b"home", mode=0o700)
    assert home.code(lambda: home.stat(b"home/f", **OTHER)) is Code.ACCESS_DENIED
    assert home.code(lambda: home.names(b"home", **OTHER)) is Code.ACCESS_DENIED
    home.set_attr(b"home", mode=0o711)
    assert home.stat(b"home/f", **OTHER).uid == 10
    assert home.code(lambda: home.names(b"home", **OTHER)) is Code.ACCESS_DENIED
    home.set_attr(b"home", mode=0o744)
    reply = home.call("list", meta_pb2.ListRequest(at=meta_pb2.PathAt(dir=1, path=b"home"), attributes=True), **OTHER)
    assert not reply.entries[0].HasField("attributes")


def test_sticky_directories(meta: Any) -> None:
    meta.mkdir(b"tmp")
    meta.set_attr(b"tmp", mode=0o1777)
    meta.create(b"tmp/mine", **ME)
    meta.create(b"tmp/yours", **OTHER)
    assert meta.code(lambda: meta.remove(b"tmp/mine", **OTHER)) is Code.NOT_PERMITTED
    assert meta.code(lambda: meta.rename(b"tmp/mine", b"tmp/x", **OTHER)) is Code.NOT_PERMITTED
    assert meta.code(lambda: meta.rename(b"tmp/yours", b"tmp/mine", **OTHER)) is Code.NOT_PERMITTED
    meta.rename(b"tmp/mine", b"tmp/still-mine", **ME)
    meta.remove(b"tmp/still-mine", **ME)


def test_set_gid_directories_hand_down_their_group(meta: Any) -> None:
    meta.mkdir(b"team")
    meta.set_attr(b"team", group=500)
    meta.set_attr(b"team", mode=0o2777)
    inode = meta.create(b"team/f", **ME)
    assert (inode.uid, inode.gid) == (10, 500)
    sub = meta.mkdir(b"team/sub", **ME)
    assert sub.gid == 500
    assert sub.mode & stat.S_ISGID
    assert not meta.create(b"team/tool", 0o2755, **ME).mode & stat.S_ISGID


def test_chown_and_chmod_rules(home: Any) -> None:
    home.create(b"home/f", 0o644, **ME)
    assert home.code(lambda: home.set_attr(b"home/f", mode=0o600, **OTHER)) is Code.NOT_PERMITTED
    assert home.code(lambda: home.set_attr(b"home/f", owner=11, **ME)) is Code.NOT_PERMITTED
    assert home.code(lambda: home.set_attr(b"home/f", group=77, **ME)) is Code.NOT_PERMITTED
    assert home.set_attr(b"home/f", group=77, gids=(77,), **ME).gid == 77
    assert not home.set_attr(b"home/f", mode=0o2755, **ME).mode & stat.S_ISGID
    assert home.set_attr(b"home/f", mode=0o6755, gids=(77,), **ME).mode & 0o7777 == 0o6755
    assert home.set_attr(b"home/f", group=20, **ME).mode & 0o7777 == 0o755
    home.set_attr(b"home/f", mode=0o6755)
    assert home.set_attr(b"home/f", owner=11).mode & 0o7777 == 0o755


def test_writing_and_truncating_by_others_clears_the_privilege_bits(home: Any) -> None:
    home.create(b"home/f", 0o666, **ME)
    home.set_attr(b"home/f", mode=0o6777)
    home.set_attr(b"home/f", length=5, **OTHER)
    assert home.stat(b"home/f").mode & 0o7777 == 0o777
    home.set_attr(b"home/f", mode=0o6777)
    inode = home.open(b"home/f", os.O_WRONLY, session=ONE, **OTHER).inode
    home.close(inode.id, ONE, 10, **OTHER)
    assert home.stat(b"home/f").mode & 0o7777 == 0o777


def test_renaming_to_another_name_of_the_same_file_needs_no_right(home: Any) -> None:
    """It does nothing: Linux says so before it looks at rights."""
    home.create(b"home/f", 0o600, **ME)
    home.link(b"home/f", b"home/g", **ME)
    home.rename(b"home/f", b"home/g", **OTHER)
    assert home.names(b"home") == [b"f", b"g"]
    assert home.code(lambda: home.rename(b"home/f", b"home/h", **OTHER)) is Code.ACCESS_DENIED


def test_times(home: Any) -> None:
    home.create(b"home/f", 0o666, **ME)
    assert home.code(lambda: home.set_attr(b"home/f", mtime_ns=1, **OTHER)) is Code.NOT_PERMITTED
    home.clock.advance(3)
    touched = home.set_attr(b"home/f", mtime_now=True, atime_now=True, **OTHER)
    assert touched.mtime_ns == touched.atime_ns == home.clock.unix_ns()
    home.set_attr(b"home/f", mode=0o600)
    assert home.code(lambda: home.set_attr(b"home/f", atime_now=True, mtime_now=True, **OTHER)) is Code.ACCESS_DENIED
    home.set_attr(b"home/f", mode=0o666)
    assert home.code(lambda: home.set_attr(b"home/f", mtime_now=True, **OTHER)) is Code.NOT_PERMITTED  # one of them
    assert home.set_attr(b"home/f", mtime_ns=-5, **ME).mtime_ns == -5


def test_namespace_changes_move_the_directorys_times(home: Any) -> None:
    for change in (
        lambda: home.create(b"home/a"),
        lambda: home.link(b"home/a", b"home/b"),
        lambda: home.rename(b"home/b", b"home/c"),
        lambda: home.remove(b"home/c"),
        lambda: home.mkdir(b"home/d"),
        lambda: home.rmdir(b"home/d"),
        lambda: home.symlink(b"home/e", b"x"),
    ):
        home.clock.advance(1)
        change()
        directory = home.stat(b"home")
        assert directory.mtime_ns == directory.ctime_ns == home.clock.unix_ns()


def test_a_truncation_needs_the_right_to_write_or_a_session_that_has_it(home: Any) -> None:
    inode = home.create(b"home/f", 0o400, session=ONE, **ME)
    assert home.code(lambda: home.set_attr(b"home/f", length=1, **ME)) is Code.ACCESS_DENIED
    assert home.set_attr(b"home/f", length=1, session=ONE, **ME).length == 1
    home.close(inode.id, ONE, **ME)
    home.open(b"home/f", os.O_RDONLY, session=ONE, **ME)
    assert home.code(lambda: home.set_attr(b"home/f", length=2, session=ONE, **ME)) is Code.ACCESS_DENIED


def test_access(home: Any) -> None:
    home.create(b"home/f", 0o640, **ME)

    def access(mask: int, **who: int) -> Any:
        return home.call("access", meta_pb2.AccessRequest(at=meta_pb2.PathAt(dir=1, path=b"home/f"), mask=mask), **who)

    access(os.R_OK | os.W_OK, **ME)
    access(os.R_OK, uid=99, gid=20)
    assert home.code(lambda: access(os.W_OK, uid=99, gid=20)) is Code.ACCESS_DENIED
    assert home.code(lambda: access(os.X_OK, uid=0)) is Code.ACCESS_DENIED
    access(os.F_OK, **OTHER)


def test_recursive_removal_asks_for_every_directory_below(home: Any) -> None:
    home.mkdir(b"home/a", 0o755, **ME)
    home.mkdir(b"home/a/b", 0o777, **ME)
    home.mkdir(b"home/a/b/theirs", 0o755, **OTHER)
    home.create(b"home/a/b/theirs/f", **OTHER)
    remove = meta_pb2.REMOVE_RECURSIVE
    assert home.code(lambda: home.remove(b"home/a", remove, **ME)) is Code.ACCESS_DENIED
    home.remove(b"home/a/b/theirs/f", **OTHER)
    home.set_attr(b"home/a/b/theirs", mode=0o777)
    home.remove(b"home/a", remove, **ME)
    assert home.names(b"home") == []


def test_moving_a_directory_needs_the_right_to_write_it(home: Any) -> None:
    home.mkdir(b"home/d", 0o500, **ME)
    home.mkdir(b"home/e", 0o700, **ME)
    home.rename(b"home/d", b"home/d2", **ME)
    assert home.code(lambda: home.rename(b"home/d2", b"home/e/d", **ME)) is Code.ACCESS_DENIED


def test_devices_and_too_many_groups(meta: Any) -> None:
    assert meta.code(lambda: meta.stat(b"/", uid=1, gids=tuple(range(300)))) is Code.INVALID
