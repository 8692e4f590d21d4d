"""Usage: after any sequence of operations, folded whenever, the records are what a walk counts."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fireflyfs.common.errors import FfsError
from fireflyfs.common.kv.interface import read, run
from fireflyfs.common.limits import FILE_BYTES_MAX
from fireflyfs.meta.core import keys
from fireflyfs.meta.core.records import Inode
from fireflyfs.meta.core.usage import Kind, Usage, of_new, pack_new, rounded, summed
from fireflyfs.meta.store import accounts, usage_check
from fireflyfs.proto import meta_pb2

INT64_MAX = (1 << 63) - 1
PATHS = st.sampled_from([b"a", b"b", b"a/b", b"a/f", b"a/g", b"b/f", b"a/b/f", b"a/b/c", b"b/b", b"f"])
BEGIN: list[tuple[Any, ...]] = [
    ("mkdir", b"a"),
    ("mkdir", b"b"),
    ("mkdir", b"a/b"),
    ("write", b"a/f", 5000),
    ("link", b"a/f", b"b/f"),
]
STEPS = st.one_of(
    st.tuples(st.just("mkdir"), PATHS),
    st.tuples(st.just("mkdirs"), PATHS),
    st.tuples(st.just("write"), PATHS, st.sampled_from([1, 5000, 70_000])),
    st.tuples(st.just("truncate"), PATHS, st.sampled_from([0, 4096, 9000, FILE_BYTES_MAX])),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("unlink"), PATHS),
    st.tuples(st.just("unlink"), PATHS),
    st.tuples(st.just("remove"), PATHS),
    st.tuples(st.just("rename"), PATHS, PATHS, st.sampled_from([0, 0, 2])),
    st.tuples(st.just("chown"), PATHS, st.sampled_from([0, 7])),
    st.tuples(st.just("symlink"), PATHS),
    st.tuples(st.just("restore"), st.integers(0, 3)),
    st.tuples(st.just("fold")),
    st.tuples(st.just("fold one")),
    st.tuples(st.just("collect")),
)


class Play:
    """Steps on one service. What the service refuses is no step."""

    def __init__(self, meta: Any) -> None:
        self.meta = meta
        self.sessions = 0

    def __call__(self, step: tuple[Any, ...]) -> None:
        what, *rest = step
        try:
            getattr(self, what.replace(" ", "_"))(*rest)
        except FfsError:
            pass

    def mkdir(self, path: bytes) -> None:
        self.meta.mkdir(path)

    def mkdirs(self, path: bytes) -> None:
        self.meta.mkdir(path, parents=True)

    def write(self, path: bytes, length: int) -> None:
        self.sessions += 1
        session = self.sessions.to_bytes(16, "big")
        inode = self.meta.create(path, session=session)
        self.meta.storage.chunks[inode.id, 0] = length
        self.meta.close(inode.id, session, length, inode.truncate_version)

    def truncate(self, path: bytes, length: int) -> None:
        self.meta.set_attr(path, length=length)

    def link(self, old: bytes, new: bytes) -> None:
        self.meta.link(old, new)

    def unlink(self, path: bytes) -> None:
        self.meta.remove(path)

    def remove(self, path: bytes) -> None:
        self.meta.remove(path, meta_pb2.REMOVE_RECURSIVE)

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        self.meta.rename(old, new, flags)

    def chown(self, path: bytes, owner: int) -> None:
        self.meta.set_attr(path, owner=owner, group=owner + 1)

    def symlink(self, path: bytes) -> None:
        self.meta.symlink(path, b"x")

    def restore(self, number: int) -> None:
        entries = self.meta.call("list_trash", meta_pb2.ListTrashRequest()).entries
        if entries:
            ref = entries[number % len(entries)].ref
            self.meta.call("restore_trash", meta_pb2.RestoreTrashRequest(ref=ref))

    def fold(self) -> None:
        fold(self.meta)

    def fold_one(self) -> None:
        """What a server does that dies in the middle."""
        key = self.meta.parts.runner.change_keys.next(self.meta.clock.unix_ns())
        run(self.meta.kv, lambda txn: accounts.fold(txn, keys.changes_from(0), key))

    def collect(self) -> None:
        self.meta.collect()


def fold(meta: Any) -> int:
    return int(meta.wait(meta.parts.folder.catch_up()))


def recorded(meta: Any) -> dict[tuple[int, int], Usage]:
    def body(txn: Any) -> dict[tuple[int, int], Usage]:
        found = {keys.subject_of(key) for key, _ in txn.scan(*keys.table(b"U"))}
        return {subject: accounts.usage(txn, *subject) for subject in found}

    return read(meta.kv, body)


def inodes_of(meta: Any) -> dict[int, Inode]:
    def body(txn: Any) -> dict[int, Inode]:
        return {keys.id_of(key): Inode.unpack(keys.id_of(key), value) for key, value in txn.scan(*keys.table(b"I"))}

    return read(meta.kv, body)


def counted_by_walking(meta: Any) -> dict[tuple[int, int], Usage]:
    """What the records must say, by looking at names and inodes alone."""
    inodes = inodes_of(meta)
    total: dict[tuple[int, int], Usage] = {}

    def add(kind: Kind, subject: int, amount: Usage) -> None:
        total[kind, subject] = total.get((kind, subject), Usage()).plus(amount)

    def names(directory: int) -> list[int]:
        begin, end = keys.dentries(directory)
        return [
            int.from_bytes(value[3:11], "little") for _, value in read(meta.kv, lambda txn: list(txn.scan(begin, end)))
        ]

    def amount_of(inode: Inode) -> Usage:
        return Usage(rounded(inode.length) if stat.S_ISREG(inode.mode) else 0, 1)

    where = {number: names(number) for number, inode in inodes.items() if inode.is_dir}
    for number, inode in inodes.items():
        if number == 1:
            continue
        add(Kind.USER, inode.uid, amount_of(inode))
        add(Kind.GROUP, inode.gid, amount_of(inode))
        homes = [directory for directory, entries in where.items() if number in entries]
        if not homes:
            continue
        assert inode.parent in homes
        at: int | None = inode.parent
        while at is not None:
            add(Kind.DIRECTORY, at, amount_of(inode))
            above = [directory for directory, entries in where.items() if at in entries]
            at = above[0] if above else None
    return {subject: usage for subject, usage in total.items() if usage != Usage()}


def checked(meta: Any) -> dict[tuple[int, int], Usage]:
    """What the product's own check finds wrong."""
    directories = read(meta.kv, lambda txn: usage_check.directories(txn, 0))
    return {**directories.missing, **read(meta.kv, usage_check.owners).missing}


@pytest.mark.parametrize("trash_keep_s", [0.0, 3600.0])
def test_records_are_what_a_walk_counts(make_meta: Callable[..., Any], trash_keep_s: float) -> None:
    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(STEPS, min_size=3, max_size=40))
    def play(steps: list[tuple[Any, ...]]) -> None:
        meta = make_meta(trash_keep_s=trash_keep_s)
        try:
            perform = Play(meta)
            for step in BEGIN + steps:
                perform(step)
            assert checked(meta) == {}  # before folding too
            fold(meta)
            assert meta.records(b"C") == 0
            assert recorded(meta) == counted_by_walking(meta)
            assert checked(meta) == {}
            meta.collect()
            fold(meta)
            assert recorded(meta) == counted_by_walking(meta)
            several = {number for number, inode in inodes_of(meta).items() if not inode.is_dir and inode.nlink > 1}
            named = {keys.id_of(key) for key, _ in read(meta.kv, lambda txn: list(txn.scan(*keys.table(b"P"))))}
            assert named == several
        finally:
            meta.loop.close()

    play()


def usage_of(meta: Any, path: bytes, **who: Any) -> tuple[int, int]:
    at = meta_pb2.PathAt(dir=1, path=path)
    usage = meta.call("get_usage", meta_pb2.GetUsageRequest(at=at), **who).usage
    return usage.bytes, usage.inodes


def test_usage_is_asked_for_without_waiting(meta: Any) -> None:
    play = Play(meta)
    play.mkdir(b"a")
    play.mkdir(b"a/b")
    play.write(b"a/b/f", 5000)
    play.write(b"a/g", 1)
    assert usage_of(meta, b"a") == (12288, 3)
    assert usage_of(meta, b"a/b") == (8192, 1)
    assert usage_of(meta, b"/") == (12288, 4)
    meta.rename(b"a/b", b"b")
    assert (usage_of(meta, b"a"), usage_of(meta, b"b"), usage_of(meta, b"/")) == ((4096, 1), (8192, 1), (12288, 4))
    meta.remove(b"b", meta_pb2.REMOVE_RECURSIVE)
    assert usage_of(meta, b"/") == (4096, 2)  # at once, before anything was collected
    meta.collect()
    assert usage_of(meta, b"/") == (4096, 2)


def test_files_as_long_as_files_can_be(meta: Any) -> None:
    """Their sum is more than 64 bits say: nobody may stop the counting of all others with a few sparse files."""
    play = Play(meta)
    play.mkdir(b"a")
    for name in (b"a/f", b"a/g", b"a/h"):
        meta.create(name)
        meta.set_attr(name, length=FILE_BYTES_MAX)
    assert usage_of(meta, b"a") == (INT64_MAX, 3)  # as much as a message says
    for name in (b"a/f", b"a/g", b"a/h"):
        meta.set_attr(name, length=5000)
    assert usage_of(meta, b"a") == (3 * 8192, 3)


def test_a_file_of_several_names_counts_once_and_moves_on(meta: Any) -> None:
    play = Play(meta)
    for directory in (b"a", b"b", b"c"):
        play.mkdir(directory)
    play.write(b"a/f", 9000)
    meta.link(b"a/f", b"b/f")
    meta.link(b"a/f", b"c/f")
    assert [usage_of(meta, path) for path in (b"a", b"b", b"c")] == [(12288, 1), (0, 0), (0, 0)]
    meta.remove(b"a/f")
    assert [usage_of(meta, path) for path in (b"a", b"b", b"c")] == [(0, 0), (12288, 1), (0, 0)]
    meta.remove(b"b", meta_pb2.REMOVE_RECURSIVE)
    assert usage_of(meta, b"/") == (0, 2)  # the tree's total left with it,
    meta.collect()
    assert usage_of(meta, b"/") == (12288, 3)  # and the name that is left brings the file back
    assert meta.records(b"P") == 0


def test_owners_count_until_the_space_is_given_back(make_meta: Callable[..., Any]) -> None:
    meta = make_meta(trash_keep_s=10.0)
    play = Play(meta)
    play.write(b"f", 5000)
    play.chown(b"f", 7)

    def of_user() -> tuple[int, int]:
        usage = meta.call("get_usage", meta_pb2.GetUsageRequest(kind=meta_pb2.USAGE_USER, id=7)).usage
        return usage.bytes, usage.inodes

    assert of_user() == (8192, 1)
    meta.remove(b"f")
    assert usage_of(meta, b"/") == (0, 0)
    assert of_user() == (8192, 1)
    meta.clock.advance(20.0)
    assert meta.wait(meta.parts.trash.expire()) == 1
    meta.collect()
    assert of_user() == (0, 0)
    meta.loop.close()


def test_a_deep_tree_is_folded_in_steps(meta: Any) -> None:
    path = b""
    for _ in range(300):
        parent = meta.stat(path).id if path else 1
        request = meta_pb2.MakeNodeRequest(at=meta_pb2.PathAt(dir=parent, path=b"d"), mode=stat.S_IFDIR | 0o755)
        meta.call("make_node", request)
        path += b"/d"
    Play(meta).write(path + b"/f", 1)
    assert fold(meta) > 3
    assert usage_of(meta, b"/") == (4096, 301)
    assert usage_of(meta, path) == (4096, 1)
    assert checked(meta) == {}


def test_servers_fold_beside_each_other(make_meta: Callable[..., Any], meta: Any) -> None:
    other = make_meta(meta.kv, meta.storage)
    other.requests = 10_000  # the ids of its requests are others
    play = Play(meta)
    play.mkdir(b"a")
    for number in range(200):
        (play if number % 2 else Play(other)).mkdir(b"a/%d" % number)

    async def both() -> None:
        await asyncio.gather(meta.parts.folder.catch_up(), other.parts.folder.catch_up())

    meta.wait(both())
    assert usage_of(meta, b"/") == (0, 201)
    assert usage_of(other, b"a") == (0, 200)
    assert checked(meta) == {}
    other.loop.close()


def as_an_older_release_left_it(meta: Any) -> None:
    """No usage, no names of several, and inode records of the version before."""

    def body(txn: Any) -> None:
        for letter in (b"U", b"C", b"P"):
            for key, _ in txn.scan(*keys.table(letter)):
                txn.delete(key)
        for number, inode in inodes_of(meta).items():
            inode.counted = False
            if not inode.is_dir:
                inode.parent = 0
            txn.put(keys.inode(number), inode.pack())
        txn.put(keys.FORMAT, (2).to_bytes(4, "big"))

    run(meta.kv, body)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(before=st.lists(STEPS, max_size=25), during=st.lists(STEPS, max_size=15), after=st.lists(STEPS, max_size=15))
def test_an_older_store_is_counted_while_it_is_used(
    make_meta: Callable[..., Any], before: list[Any], during: list[Any], after: list[Any]
) -> None:
    meta = make_meta(trash_keep_s=0.0)
    play = Play(meta)
    for step in BEGIN + before:
        play(step)
    meta.collect()
    as_an_older_release_left_it(meta)
    again = meta.restarted()
    assert again.parts.counter.is_wanted()
    play = Play(again)
    play.sessions = 1000
    for step in during:
        play(step)
    run(again.kv, again.parts.counter._step)
    for step in after:
        play(step)
    again.wait(again.parts.counter.count_all())
    fold(again)
    again.collect()
    again.wait(again.parts.counter.count_all())
    fold(again)
    assert not again.parts.counter.is_wanted()
    assert recorded(again) == counted_by_walking(again)
    assert checked(again) == {}
    again.loop.close()


def test_a_check_repairs_what_is_wrong_and_nothing_else(meta: Any) -> None:
    play = Play(meta)
    play.mkdir(b"a")
    play.mkdir(b"a/b")
    play.write(b"a/b/f", 5000)
    fold(meta)
    right = recorded(meta)
    inner, outer = meta.stat(b"a/b").id, meta.stat(b"a").id

    def spoil(txn: Any) -> None:
        txn.put(keys.usage(Kind.DIRECTORY, inner), accounts.pack_usage(Usage(1 << 40, -3)))
        txn.delete(keys.usage(Kind.DIRECTORY, outer))
        txn.put(keys.usage(Kind.USER, 99), accounts.pack_usage(Usage(4096, 1)))

    run(meta.kv, spoil)
    play.write(b"a/g", 4096)  # not folded when it is looked at
    found = meta.call("check_usage", meta_pb2.CheckUsageRequest())
    assert [(entry.id, entry.path) for entry in found.differences] == [(1, b"/"), (outer, b"/a"), (inner, b"/a/b")]
    assert meta.code(lambda: meta.call("check_usage", meta_pb2.CheckUsageRequest(), uid=7)).name == "NOT_PERMITTED"
    repaired = meta.call("check_usage", meta_pb2.CheckUsageRequest(repair=True))
    assert repaired.differences == found.differences
    owners = meta.call("check_usage", meta_pb2.CheckUsageRequest(repair=True, owners=True))
    assert [(entry.kind, entry.id, entry.bytes, entry.inodes) for entry in owners.differences] == [
        (meta_pb2.USAGE_USER, 99, -4096, -1)
    ]
    assert not meta.call("check_usage", meta_pb2.CheckUsageRequest()).differences
    meta.remove(b"a/g")
    meta.collect()
    fold(meta)
    assert recorded(meta) == right


def test_a_change_record_at_a_glance_is_the_one_that_is_worked_out() -> None:
    for inode in (
        Inode(9, stat.S_IFREG | 0o644, uid=7, gid=8, parent=3, length=5000),
        Inode(9, stat.S_IFDIR | 0o755, nlink=2, uid=0, gid=(1 << 32) - 2, parent=1 << 40),
        Inode(9, stat.S_IFLNK | 0o777, uid=7, gid=7, parent=7, length=11, target=b"x" * 11),
    ):
        assert summed([pack_new(inode)] * 3) == {
            subject: Usage(3 * change.bytes, 3 * change.inodes) for subject, change in of_new(inode).items()
        }
