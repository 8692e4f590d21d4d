"""Entries that are asked for before they are looked up: when, how many, and that no old one outlives a change here."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from fireflyfs.common.clock import ManualClock
from fireflyfs.common.errors import Code, error
from fireflyfs.fuse import change_log, look_ahead
from fireflyfs.fuse.change_log import ChangeLog
from fireflyfs.fuse.inodes import InodeTable
from fireflyfs.fuse.look_ahead import ENTRIES_MAX, MISSES, PAGE_MAX, PAGE_MIN, LookAhead
from fireflyfs.proto import common_pb2
from fireflyfs.proto import meta_pb2 as m
from fireflyfs.proto.common_pb2 import Layout

DIR = 7
VALID_S = 1.0


class Meta:
    """One directory of files `f0000` and so on, with inodes from 1000; `during` runs while a page is under way."""

    def __init__(self, count: int) -> None:
        self.names = [b"f%04d" % number for number in range(count)]
        self.pages: list[tuple[bytes, int]] = []
        self.during: Callable[[], object] = lambda: None
        self.fails = False
        self.nlink = 1

    def inode(self, name: bytes) -> int:
        return 1000 + int(name[1:])

    def list(self, request: m.ListRequest) -> m.ListReply:
        assert request.attributes
        self.pages.append((request.after, request.limit))
        found = [name for name in self.names if name > request.after]
        entries = [
            m.DirEntry(
                name=name,
                inode=self.inode(name),
                attributes=m.Inode(id=self.inode(name), mode=0o100644, nlink=self.nlink),
            )
            for name in found[: request.limit]
        ]
        self.during()
        if self.fails:
            raise error(Code.UNAVAILABLE)
        return m.ListReply(entries=entries, more=len(found) > request.limit)


class Looks:
    """A program that looks names up; `asked` are those that went to meta."""

    def __init__(self, meta: Meta) -> None:
        self.meta = meta
        self.table = InodeTable()
        self.changes = ChangeLog()
        self.clock = ManualClock()
        self.ahead = LookAhead(meta, common_pb2.Caller(), self.table, self.changes, self.clock, VALID_S)  # type: ignore[arg-type]
        self.asked: list[bytes] = []

    def up(self, name: bytes) -> m.Inode | None:
        found = self.ahead.take(DIR, name)
        if found is not None:
            return found[0]
        self.asked.append(name)
        self.ahead.missed(DIR, name)
        return None

    def some(self, count: int = MISSES) -> None:
        for name in self.meta.names[:count]:
            self.up(name)


@pytest.fixture
def looks() -> Looks:
    return Looks(Meta(3000))


def test_names_in_order_are_asked_for_in_pages_that_grow(looks: Looks) -> None:
    looks.some(3000)
    sizes = [size for _, size in looks.meta.pages]
    assert sizes[:5] == [PAGE_MIN, 128, 256, PAGE_MAX, PAGE_MAX]
    assert len(looks.asked) == MISSES * len(sizes)
    assert [looks.meta.names.index(after) for after, _ in looks.meta.pages[:3]] == [7, 15 + 64, 23 + 64 + 128]


def test_names_in_any_order_use_a_directory_up_page_by_page(looks: Looks) -> None:
    looks.meta.names = looks.meta.names[:500]
    for name in random.Random(1).sample(looks.meta.names, 500):
        looks.up(name)
    assert len(looks.asked) < 150
    assert len(looks.meta.pages) < 20


def test_who_looks_for_few_names_is_spared(looks: Looks) -> None:
    looks.some(MISSES - 1)
    looks.clock.advance(VALID_S + 0.1)
    looks.some(MISSES - 1)
    assert not looks.meta.pages


def test_pages_that_nobody_uses_do_not_grow_and_end_with_the_directory(looks: Looks) -> None:
    looks.meta.names = looks.meta.names[:100]
    for _ in range(100 * MISSES):
        looks.ahead.missed(DIR, b"a")
    assert {size for _, size in looks.meta.pages} == {PAGE_MIN}
    assert len(looks.meta.pages) <= 10


def test_an_entry_answers_once_and_not_for_longer_than_the_kernel_may_keep_it(looks: Looks) -> None:
    looks.some()
    assert looks.up(b"f0010") is not None
    assert looks.up(b"f0010") is None
    looks.clock.advance(VALID_S - 0.01)
    assert looks.up(b"f0011") is not None
    looks.clock.advance(0.01)
    assert looks.up(b"f0012") is None


def test_what_changed_here_is_asked_for(looks: Looks) -> None:
    looks.some()
    looks.ahead.forget(looks.meta.inode(b"f0010"))
    looks.ahead.forget_name(DIR, b"f0011")
    assert looks.up(b"f0010") is None
    assert looks.up(b"f0011") is None
    assert looks.up(b"f0012") is not None
    looks.ahead.forget(4711)
    looks.ahead.forget_name(DIR, b"unknown")


def test_what_changed_here_while_the_page_was_under_way_is_asked_for(looks: Looks) -> None:
    def change() -> None:
        looks.ahead.forget(looks.meta.inode(b"f0010"))
        looks.ahead.forget_name(DIR, b"f0011")

    looks.meta.during = change
    looks.some()
    assert looks.up(b"f0010") is None
    assert looks.up(b"f0011") is None
    assert looks.up(b"f0012") is not None


def test_too_many_changes_while_a_page_is_under_way_leave_nothing_of_it(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_log, "KEPT_MAX", 10)
    looks.meta.during = lambda: [looks.ahead.forget(number) for number in range(50)]
    looks.some()
    assert len(looks.ahead) == 0


def test_what_is_open_here_is_asked_for(looks: Looks) -> None:
    layout = Layout(chunk_size=65536, stripe_size=1, chains=[1])
    looks.table.enter(m.Inode(id=looks.meta.inode(b"f0010"), layout=layout), 0.0)
    looks.some()
    looks.table.enter(m.Inode(id=looks.meta.inode(b"f0011"), layout=layout), 0.0)
    assert looks.up(b"f0010") is None
    assert looks.up(b"f0011") is None
    assert looks.up(b"f0012") is not None


def test_a_file_with_several_names_is_asked_for(looks: Looks) -> None:
    looks.meta.nlink = 2
    looks.some()
    assert looks.meta.pages
    assert looks.up(b"f0010") is None


def test_a_page_that_fails_is_nobodys_error(looks: Looks) -> None:
    looks.meta.fails = True
    looks.some(3 * MISSES)
    assert len(looks.asked) == 3 * MISSES
    looks.meta.fails = False
    looks.some(2 * MISSES)
    assert len(looks.ahead) > 0


def test_a_bounded_number_of_entries(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look_ahead, "ENTRIES_MAX", 100)
    looks.some(2000)
    assert 0 < len(looks.ahead) <= 100 or looks.meta.pages[-1][1] > 100
    assert ENTRIES_MAX >= 4 * PAGE_MAX


def test_mounts_that_keep_nothing_look_nothing_up_ahead() -> None:
    looks = Looks(Meta(100))
    looks.ahead = LookAhead(looks.meta, common_pb2.Caller(), looks.table, looks.changes, looks.clock, 0.0)  # type: ignore[arg-type]
    looks.some(100)
    assert not looks.meta.pages


def rename(looks: Looks, name: bytes, inode: m.Inode, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Under way for a moment, in which `meanwhile` happens."""
    asked = looks.ahead.asking()
    looks.clock.advance(0.25)
    meanwhile()
    looks.ahead.forget_name(DIR, name)
    looks.ahead.renamed(DIR, name, inode, asked)


def test_what_was_renamed_here_is_known_under_its_new_name_once_and_for_a_moment(looks: Looks) -> None:
    renamed = m.Inode(id=5, mode=0o100644, nlink=1)
    rename(looks, b"f0001", renamed)
    rename(looks, b"f0002", renamed)
    assert looks.up(b"f0001") is None
    assert looks.up(b"f0002") == renamed
    assert looks.up(b"f0002") is None
    rename(looks, b"f0003", renamed)
    looks.clock.advance(VALID_S - 0.25)
    assert looks.up(b"f0003") is None


def test_what_was_renamed_is_asked_for_if_it_changed_meanwhile_or_is_open_or_has_more_names(looks: Looks) -> None:
    renamed = m.Inode(id=5, mode=0o100644, nlink=1, layout=Layout(chunk_size=1 << 20, chains=[1]))
    rename(looks, b"f0001", renamed, lambda: looks.ahead.forget(5))
    assert looks.up(b"f0001") is None
    rename(looks, b"f0001", m.Inode(id=5, mode=0o100644, nlink=2))
    assert looks.up(b"f0001") is None
    looks.table.enter(renamed, 0.0)
    rename(looks, b"f0001", renamed)
    assert looks.up(b"f0001") is None
    assert not len(looks.ahead)


def test_a_page_that_began_before_a_rename_does_not_bring_back_what_was_there(looks: Looks) -> None:
    renamed = m.Inode(id=looks.meta.inode(b"f0020"), mode=0o100600, nlink=1)
    looks.meta.during = lambda: rename(looks, b"f0010", renamed)
    looks.some()
    assert looks.up(b"f0010") == renamed
    assert looks.up(b"f0020") is None
    assert looks.up(b"f0021") is not None
