"""Names: creating, finding, linking, renaming, removing, listing, and the errno of what must not be."""

from __future__ import annotations

import dataclasses
import os
import stat
from typing import Any

import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.limits import LINKS_MAX
from fireflyfs.proto import common_pb2, meta_pb2, mgmtd_pb2


def test_root_exists_and_create_stat_remove(meta: Any) -> None:
    assert stat.S_ISDIR(meta.stat(b"/").mode)
    inode = meta.create(b"a", 0o640)
    assert (inode.mode, inode.nlink, inode.length) == (stat.S_IFREG | 0o640, 1, 0)
    assert len(inode.layout.chains) == 2
    assert inode.layout.chunk_size == 65536
    assert meta.stat(b"/a") == inode
    meta.remove(b"a")
    assert meta.code(lambda: meta.stat(b"a")) is Code.NO_ENTRY


def test_changes_tell_how_they_left_their_directory(meta: Any) -> None:
    root = meta.stat(b"/").id

    def at(path: bytes) -> meta_pb2.PathAt:
        return meta_pb2.PathAt(dir=root, path=path)

    def call(name: str, **fields: Any) -> Any:
        kind = {"make_node": "MakeNode", "open": "Open", "symlink": "Symlink", "link": "Link"}
        request = getattr(meta_pb2, f"{kind.get(name, name.capitalize())}Request")(**fields)
        return meta.call(name, request)

    made = call("make_node", at=at(b"d"), mode=stat.S_IFDIR | 0o755)
    assert made.directory == meta.stat(b"/")
    opened = call("open", at=at(b"f"), flags=os.O_CREAT | os.O_WRONLY, mode=0o600)
    assert opened.directory == meta.stat(b"/")
    assert not call("open", at=at(b"f"), flags=os.O_RDONLY).HasField("directory")
    assert call("symlink", at=at(b"l"), target=b"t").directory == meta.stat(b"/")
    assert call("link", old=at(b"f"), new=at(b"d/f")).directory == meta.stat(b"d")
    moved = call("rename", old=at(b"l"), new=at(b"d/l"))
    assert (moved.old_directory, moved.new_directory) == (meta.stat(b"/"), meta.stat(b"d"))
    moved = call("rename", old=at(b"f"), new=at(b"g"))
    assert moved.old_directory == meta.stat(b"/")
    assert not moved.HasField("new_directory")
    assert call("remove", at=at(b"d/l"), kind=meta_pb2.REMOVE_UNLINK).directory == meta.stat(b"d")


def test_consecutive_files_start_on_different_chains(meta: Any) -> None:
    layouts = [tuple(meta.create(b"f%d" % number).layout.chains) for number in range(3)]
    assert len(set(layouts)) == 3
    assert sorted(chain for layout in layouts for chain in layout) == [1, 1, 2, 2, 3, 3]


def test_lookup_errno_precedence(meta: Any) -> None:
    meta.create(b"file")
    meta.mkdir(b"dir")
    long = b"x" * 256
    assert meta.code(lambda: meta.stat(long)) is Code.NAME_TOO_LONG
    assert meta.code(lambda: meta.stat(b"dir/" + long)) is Code.NAME_TOO_LONG
    assert meta.code(lambda: meta.stat(b"a/" * 2048)) is Code.NAME_TOO_LONG
    assert meta.code(lambda: meta.stat(b"file/x")) is Code.NOT_DIRECTORY
    assert meta.code(lambda: meta.stat(b"file/")) is Code.NOT_DIRECTORY
    assert meta.code(lambda: meta.stat(b"none/x")) is Code.NO_ENTRY
    assert meta.code(lambda: meta.stat(b"a\0b")) is Code.INVALID
    assert meta.stat(b"dir/../file").id == meta.stat(b"file").id
    assert meta.stat(b"../..").id == 1
    assert meta.stat(b"dir/.").id == meta.stat(b"dir/").id
    assert meta.code(lambda: meta.fstat(999)) is Code.STALE_HANDLE


def test_symbolic_links(meta: Any) -> None:
    meta.mkdir(b"dir")
    inode = meta.create(b"dir/file")
    meta.symlink(b"link", b"dir")
    meta.symlink(b"abs", b"/dir/file")
    meta.symlink(b"dir/up", b"../link/file")
    meta.symlink(b"loop", b"loop")
    meta.symlink(b"dangling", b"dir/new")
    assert meta.stat(b"link/file").id == inode.id
    assert meta.stat(b"abs").id == inode.id
    assert meta.stat(b"dir/up").id == inode.id
    assert stat.S_ISLNK(meta.stat(b"abs", follow=False).mode)
    assert meta.stat(b"link/", follow=False).id == meta.stat(b"dir").id
    assert meta.code(lambda: meta.stat(b"loop")) is Code.LINK_LOOP
    assert meta.code(lambda: meta.stat(b"dangling")) is Code.NO_ENTRY
    assert meta.code(lambda: meta.symlink(b"empty", b"")) is Code.NO_ENTRY
    assert meta.code(lambda: meta.open(b"dangling", os.O_CREAT | os.O_EXCL)) is Code.EXISTS
    assert meta.open(b"dangling", os.O_CREAT | os.O_WRONLY).created
    assert meta.stat(b"dir/new").id == meta.stat(b"dangling").id
    at = meta_pb2.PathAt(dir=1, path=b"abs")
    assert meta.call("readlink", meta_pb2.ReadlinkRequest(at=at)).target == b"/dir/file"
    assert meta.call("real_path", meta_pb2.RealPathRequest(at=meta_pb2.PathAt(dir=1, path=b"link/up"))).path == (
        b"/dir/file"
    )
    link = meta.stat(b"abs", follow=False)
    assert link.length == len(b"/dir/file")
    meta.remove(b"abs")
    assert meta.code(lambda: meta.fstat(link.id)) is Code.STALE_HANDLE


def test_a_chain_of_forty_links_is_followed_and_one_more_is_not(meta: Any) -> None:
    meta.create(b"l0")
    for number in range(1, 42):
        meta.symlink(b"l%d" % number, b"l%d" % (number - 1))
    assert meta.stat(b"l40").id == meta.stat(b"l0").id
    assert meta.code(lambda: meta.stat(b"l41")) is Code.LINK_LOOP


def test_directories_count_links_and_must_be_empty(meta: Any) -> None:
    meta.mkdir(b"a")
    meta.mkdir(b"a/b")
    assert (meta.stat(b"a").nlink, meta.stat(b"/").nlink) == (3, 3)
    assert meta.stat(b"a/b").parent == meta.stat(b"a").id
    assert meta.code(lambda: meta.rmdir(b"a")) is Code.NOT_EMPTY
    assert meta.code(lambda: meta.remove(b"a/b")) is Code.IS_DIRECTORY
    assert meta.code(lambda: meta.mkdir(b"a")) is Code.EXISTS
    assert meta.code(lambda: meta.mkdir(b"/")) is Code.EXISTS
    assert meta.code(lambda: meta.rmdir(b"a/.")) is Code.INVALID
    assert meta.code(lambda: meta.rmdir(b"a/b/..")) is Code.NOT_EMPTY
    assert meta.code(lambda: meta.rmdir(b"/")) is Code.BUSY
    meta.create(b"file")
    assert meta.code(lambda: meta.rmdir(b"file")) is Code.NOT_DIRECTORY
    meta.rmdir(b"a/b")
    meta.rmdir(b"a/")
    assert meta.stat(b"/").nlink == 2


def test_make_parents(meta: Any) -> None:
    made = meta.mkdir(b"x/y/z", parents=True)
    assert meta.mkdir(b"x/y/z", parents=True).id == made.id
    meta.create(b"x/file")
    assert meta.code(lambda: meta.mkdir(b"x/file", parents=True)) is Code.EXISTS
    assert meta.code(lambda: meta.mkdir(b"x/file/sub", parents=True)) is Code.NOT_DIRECTORY


def test_special_nodes(meta: Any) -> None:
    def mknod(path: bytes, mode: int, rdev: int = 0, **who: Any) -> Any:
        at = meta_pb2.PathAt(dir=1, path=path)
        return meta.call("make_node", meta_pb2.MakeNodeRequest(at=at, mode=mode, rdev=rdev), **who).inode

    meta.set_attr(b"/", mode=0o777)
    assert mknod(b"fifo", stat.S_IFIFO | 0o600, 7).rdev == 0
    assert mknod(b"null", stat.S_IFCHR | 0o600, 0x103).rdev == 0x103
    assert stat.S_ISSOCK(mknod(b"sock", stat.S_IFSOCK | 0o600, uid=5).mode)
    assert stat.S_ISREG(mknod(b"plain", 0o600).mode)
    assert meta.code(lambda: mknod(b"disk", stat.S_IFBLK | 0o600, uid=5)) is Code.NOT_PERMITTED
    assert meta.code(lambda: mknod(b"odd", stat.S_IFLNK | 0o600)) is Code.INVALID
    assert meta.code(lambda: meta.set_attr(b"fifo", length=3)) is Code.INVALID


def test_hard_links(meta: Any) -> None:
    inode = meta.create(b"a")
    meta.clock.advance(1)
    linked = meta.link(b"a", b"b")
    assert (linked.id, linked.nlink) == (inode.id, 2)
    assert linked.ctime_ns > inode.ctime_ns
    assert linked.mtime_ns == inode.mtime_ns
    meta.mkdir(b"dir")
    assert meta.code(lambda: meta.link(b"dir", b"dir2")) is Code.NOT_PERMITTED
    assert meta.code(lambda: meta.link(b"a", b"b")) is Code.EXISTS
    assert meta.code(lambda: meta.link(b"none", b"c")) is Code.NO_ENTRY
    meta.remove(b"a")
    assert meta.stat(b"b").nlink == 1


def test_link_count_is_bounded(meta: Any) -> None:
    meta.create(b"a")
    runner = meta.parts.runner
    from fireflyfs.common.kv.interface import run
    from fireflyfs.meta.store.tree import Tree

    def raise_count(txn: Any) -> None:
        inode = Tree(txn).child(1, b"a")
        assert inode is not None
        inode.nlink = LINKS_MAX
        Tree(txn).put(inode)

    run(runner.engine, raise_count)
    assert meta.code(lambda: meta.link(b"a", b"b")) is Code.TOO_MANY_LINKS


def test_rename_replaces_like_posix(meta: Any) -> None:
    one, two = meta.create(b"one"), meta.create(b"two")
    meta.rename(b"one", b"two")
    assert meta.stat(b"two").id == one.id
    assert meta.names() == [b"two"]
    meta.collect()
    assert meta.code(lambda: meta.fstat(two.id)) is Code.STALE_HANDLE
    meta.mkdir(b"dir")
    meta.mkdir(b"full")
    meta.create(b"full/x")
    assert meta.code(lambda: meta.rename(b"two", b"dir")) is Code.IS_DIRECTORY
    assert meta.code(lambda: meta.rename(b"dir", b"two")) is Code.NOT_DIRECTORY
    assert meta.code(lambda: meta.rename(b"dir", b"full")) is Code.NOT_EMPTY
    assert meta.code(lambda: meta.rename(b"none", b"x")) is Code.NO_ENTRY
    assert meta.code(lambda: meta.rename(b"two", b"x/")) is Code.NOT_DIRECTORY
    assert meta.code(lambda: meta.rename(b"full/.", b"x")) is Code.BUSY
    assert meta.code(lambda: meta.rename(b"/", b"x")) is Code.BUSY
    meta.rename(b"full", b"dir")
    assert meta.names() == [b"dir", b"two"]
    assert meta.stat(b"/").nlink == 3


def test_rename_of_directories_keeps_the_tree_a_tree(meta: Any) -> None:
    for path in (b"a", b"a/b", b"a/b/c", b"d"):
        meta.mkdir(path)
    assert meta.code(lambda: meta.rename(b"a", b"a/b/c/a")) is Code.INVALID
    assert meta.code(lambda: meta.rename(b"a", b"a/x")) is Code.INVALID
    assert meta.code(lambda: meta.rename(b"a/b/c", b"a")) is Code.NOT_EMPTY
    assert meta.code(lambda: meta.rename(b"a/b", b"a", 2)) is Code.INVALID
    meta.rename(b"a/b", b"d/b")
    assert meta.stat(b"d/b/..").id == meta.stat(b"d").id
    assert (meta.stat(b"a").nlink, meta.stat(b"d").nlink) == (2, 3)
    meta.rename(b"d", b"d")
    assert meta.names(b"d") == [b"b"]


def test_rename_flags(meta: Any) -> None:
    meta.mkdir(b"dir")
    meta.mkdir(b"sub")
    file, inner = meta.create(b"file"), meta.mkdir(b"sub/inner")
    assert meta.code(lambda: meta.rename(b"file", b"dir", 1)) is Code.EXISTS
    assert meta.code(lambda: meta.rename(b"file", b"none", 2)) is Code.NO_ENTRY
    assert meta.code(lambda: meta.rename(b"file", b"dir", 3)) is Code.INVALID
    assert meta.code(lambda: meta.rename(b"file", b"dir", 4)) is Code.INVALID
    meta.rename(b"file", b"sub/inner", 2)
    assert meta.stat(b"sub/inner").id == file.id
    assert meta.stat(b"file").id == inner.id
    assert meta.stat(b"file/..").id == 1
    assert (meta.stat(b"/").nlink, meta.stat(b"sub").nlink) == (5, 2)
    meta.rename(b"file", b"fresh", 1)
    assert meta.names() == [b"dir", b"fresh", b"sub"]


def test_two_names_of_one_file_are_left_alone_by_rename(meta: Any) -> None:
    meta.create(b"a")
    meta.link(b"a", b"b")
    meta.rename(b"a", b"b")
    assert meta.names() == [b"a", b"b"]


def test_listing_pages_in_name_order(meta: Any) -> None:
    names = sorted(b"n%03d" % number for number in range(50))
    for name in reversed(names):
        meta.create(name)
    at = meta_pb2.PathAt(dir=1)
    seen: list[bytes] = []
    while True:
        request = meta_pb2.ListRequest(at=at, after=seen[-1] if seen else b"", limit=7, attributes=True)
        reply = meta.call("list", request)
        seen += [entry.name for entry in reply.entries]
        assert all(entry.attributes.id == entry.inode for entry in reply.entries)
        if not reply.more:
            break
        assert len(reply.entries) == 7
    assert seen == names
    meta.create(b"x")
    assert meta.code(lambda: meta.names(b"x")) is Code.NOT_DIRECTORY


def test_batches(meta: Any) -> None:
    one = meta.create(b"one")
    found = meta.call("batch_stat", meta_pb2.BatchStatRequest(inodes=[one.id, 999, 1])).inodes
    assert [inode.id for inode in found] == [one.id, 0, 1]
    paths = [meta_pb2.PathAt(dir=1, path=path) for path in (b"one", b"none", b"one/x")]
    results = meta.call("batch_stat_path", meta_pb2.BatchStatPathRequest(paths=paths)).results
    assert [result.status for result in results] == [0, Code.NO_ENTRY, Code.NOT_DIRECTORY]
    assert results[0].inode == one
    assert meta.code(lambda: meta.call("batch_stat", meta_pb2.BatchStatRequest(inodes=[1] * 5000))) is Code.TOO_LARGE


def test_lookup_by_parent_and_name(meta: Any) -> None:
    directory = meta.mkdir(b"d", 0o700)
    inode = meta.create(b"d/f")

    def lookup(parent: int, name: bytes, uid: int = 0) -> Any:
        return meta.call("lookup", meta_pb2.LookupRequest(parent=parent, name=name), uid=uid).inode

    assert lookup(directory.id, b"f") == inode
    assert lookup(directory.id, b"..").id == 1
    assert meta.code(lambda: lookup(directory.id, b"none")) is Code.NO_ENTRY
    assert meta.code(lambda: lookup(directory.id, b"f", uid=5)) is Code.ACCESS_DENIED
    assert meta.code(lambda: lookup(inode.id, b"f")) is Code.NOT_DIRECTORY
    assert meta.code(lambda: lookup(999, b"f")) is Code.STALE_HANDLE
    assert meta.code(lambda: lookup(1, b"a/b")) is Code.INVALID


def test_layouts_are_inherited_and_can_be_set(meta: Any) -> None:
    meta.mkdir(b"wide")
    layout = common_pb2.Layout(chunk_size=1 << 20, stripe_size=3)
    meta.set_attr(b"wide", layout=layout)
    meta.mkdir(b"wide/sub")
    inode = meta.create(b"wide/sub/f")
    assert (inode.layout.chunk_size, len(inode.layout.chains)) == (1 << 20, 3)
    assert meta.code(lambda: meta.set_attr(b"wide/sub/f", layout=layout)) is Code.BUSY
    assert meta.code(lambda: meta.set_attr(b"wide", layout=common_pb2.Layout(chunk_size=3))) is Code.INVALID


def test_unknown_chain_tables_are_refused(meta: Any) -> None:
    unknown = common_pb2.Layout(chain_table=9)
    meta.mkdir(b"dir")

    def make_directory() -> Any:
        at = meta_pb2.PathAt(dir=1, path=b"other")
        return meta.call("make_node", meta_pb2.MakeNodeRequest(at=at, mode=stat.S_IFDIR, layout=unknown))

    def make_file() -> Any:
        at = meta_pb2.PathAt(dir=1, path=b"file")
        return meta.call("open", meta_pb2.OpenRequest(at=at, flags=os.O_CREAT | os.O_WRONLY, layout=unknown))

    for attempt in (make_directory, make_file, lambda: meta.set_attr(b"dir", layout=unknown)):
        with pytest.raises(FfsError, match="no chain table 9; known in this cluster: 1") as caught:
            attempt()
        assert caught.value.code is Code.INVALID
    assert meta.names() == [b"dir"]


def test_a_chain_table_that_arrives_meanwhile_is_used(meta: Any) -> None:
    source = meta.routing
    tables = {9: mgmtd_pb2.ChainTableInfo(table_id=9, version=1, chains=[2])}
    source.next = dataclasses.replace(source.routing, version=2, chain_tables=source.routing.chain_tables | tables)
    meta.mkdir(b"dir")
    meta.set_attr(b"dir", layout=common_pb2.Layout(chain_table=9))
    assert meta.create(b"dir/f").layout.chains == [2]


def test_without_any_chain_table_clients_come_again(meta: Any) -> None:
    meta.routing.routing = dataclasses.replace(meta.routing.routing, version=2, chain_tables={})
    assert meta.code(lambda: meta.create(b"f")) is Code.NO_CHAIN


def test_statfs(meta: Any) -> None:
    meta.wait(meta.parts.space.count_files())
    meta.create(b"a")
    meta.mkdir(b"b")
    reply = meta.call("stat_fs", meta_pb2.StatFsRequest())
    assert (reply.files, reply.capacity_bytes, reply.free_bytes) == (3, 3000, 1500)
    meta.remove(b"a")
    meta.clock.advance(10)
    reply = meta.call("stat_fs", meta_pb2.StatFsRequest())
    assert (reply.files, reply.garbage_files) == (2, 1)


@pytest.mark.parametrize("flags", [os.O_CREAT, os.O_CREAT | os.O_WRONLY])
def test_open_errno(meta: Any, flags: int) -> None:
    meta.mkdir(b"dir")
    meta.create(b"file")
    assert meta.code(lambda: meta.open(b"dir", flags)) is Code.IS_DIRECTORY
    assert meta.code(lambda: meta.open(b"new/", flags)) is Code.IS_DIRECTORY
    assert meta.code(lambda: meta.open(b"file", flags | os.O_EXCL)) is Code.EXISTS
    assert meta.code(lambda: meta.open(b"dir", os.O_RDWR)) is Code.IS_DIRECTORY
    assert meta.code(lambda: meta.open(b"none")) is Code.NO_ENTRY
    assert meta.code(lambda: meta.open(b"file", os.O_DIRECTORY)) is Code.NOT_DIRECTORY
    assert not meta.open(b"dir", os.O_DIRECTORY).created


def test_a_slash_after_a_link_does_not_lead_removal_to_its_target(meta: Any) -> None:
    meta.mkdir(b"dir")
    meta.symlink(b"link", b"dir")
    meta.symlink(b"dangling", b"none")
    meta.create(b"file")
    assert meta.code(lambda: meta.rmdir(b"link/")) is Code.NOT_DIRECTORY
    assert meta.code(lambda: meta.remove(b"link/")) is Code.NOT_DIRECTORY
    assert meta.code(lambda: meta.remove(b"file/")) is Code.NOT_DIRECTORY
    assert meta.code(lambda: meta.remove(b"link/", meta_pb2.REMOVE_RECURSIVE)) is Code.NOT_DIRECTORY
    assert meta.code(lambda: meta.rename(b"link/", b"other")) is Code.NOT_DIRECTORY
    assert meta.code(lambda: meta.rename(b"file", b"link/")) is Code.NOT_DIRECTORY
    assert meta.code(lambda: meta.mkdir(b"dangling/")) is Code.EXISTS
    assert meta.code(lambda: meta.mkdir(b"file/")) is Code.EXISTS
    meta.rename(b"dir/", b"moved/")
    assert meta.names() == [b"dangling", b"file", b"link", b"moved"]


def test_opening_to_read_without_a_session_writes_nothing(meta: Any) -> None:
    meta.create(b"file")
    before = meta.records(b"O")
    assert meta.open(b"file").inode == meta.stat(b"file")
    assert meta.records(b"O") == before
