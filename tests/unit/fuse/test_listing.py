"""Passes over directories of which pages are asked for again."""

from __future__ import annotations

import pytest

from fireflyfs.fuse.listing import Budget, Listing
from fireflyfs.proto import meta_pb2 as m


class Directory:
    """Names, in pages of at most `page` entries, as meta gives them."""

    def __init__(self, count, page):
        self.names = {b"%04d" % number: number + 10 for number in range(count)}
        self.page = page
        self.fetched = []

    def fetch(self, after, attributes):
        self.fetched.append((after, attributes))
        names = sorted(name for name in self.names if name > after)
        reply = m.ListReply(more=len(names) > self.page, parent=7)
        for name in names[: self.page]:
            entry = reply.entries.add(name=name, inode=self.names[name], mode=0o100644)
            if attributes:
                entry.attributes.id = entry.inode
        return reply


def read(listing, directory, number=0, *, attributes=False):
    seen = []
    while True:
        number, found = listing.entries_from(number, directory.fetch, attributes=attributes)
        if not found:
            return seen
        seen += [entry.name for entry in found]
        number += len(found)


def page(listing, directory, number, *, attributes):
    return listing.entries_from(number, directory.fetch, attributes=attributes)[1]


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 25, 30])
@pytest.mark.parametrize("attributes", [False, True])
def test_every_entry_once(count, attributes):
    directory = Directory(count, 10)
    listing = Listing(1, Budget())
    assert read(listing, directory, attributes=attributes) == sorted(directory.names)
    assert len(directory.fetched) == max(1, -(-count // 10))
    if count:
        assert listing.parent == 7


def test_going_back_asks_nobody_and_finds_the_same_entries():
    directory = Directory(35, 10)
    listing = Listing(1, Budget())
    order = read(listing, directory)
    asked = len(directory.fetched)
    for name in order[3:30]:
        del directory.names[name]
    for number in (0, 5, 10, 19, 29, 34):
        assert read(listing, directory, number) == order[number:]
    assert len(directory.fetched) == asked


def test_pages_that_end_early_are_followed_by_the_next():
    directory = Directory(30, 10)
    listing = Listing(1, Budget())
    assert len(page(listing, directory, 0, attributes=False)) == 10
    directory.page = 3  # meta ends a page by bytes too
    assert read(listing, directory, 10) == sorted(directory.names)[10:]
    assert read(listing, directory, 12) == sorted(directory.names)[12:]


def test_without_room_to_remember_pages_are_asked_for_again():
    directory = Directory(35, 10)
    budget = Budget(250)  # one page of ten names
    listing = Listing(1, budget)
    order = read(listing, directory)
    asked = len(directory.fetched)
    assert read(listing, directory, 12) == order[12:]
    assert len(directory.fetched) > asked
    for name in order[10:20]:
        del directory.names[name]
    assert read(listing, directory, 12) == order[20:]  # a whole page is gone, and the pass still comes to its end
    listing.close()
    assert budget.take(250)  # all of it was given back


def test_rewinding_shows_what_is_there_now():
    directory = Directory(15, 10)
    listing = Listing(1, Budget())
    read(listing, directory)
    directory.names[b"zzz"] = 99
    listing.rewind()
    assert not listing.begun
    assert read(listing, directory) == sorted(directory.names)


def test_attributes_are_added_to_a_page_read_without():
    directory = Directory(10, 10)
    listing = Listing(1, Budget())
    assert not page(listing, directory, 0, attributes=False)[0].HasField("attributes")
    del directory.names[b"0003"]
    found = page(listing, directory, 0, attributes=True)
    assert [entry.name for entry in found if not entry.HasField("attributes")] == [b"0003"]


def test_a_failed_page_leaves_the_pass_as_it_was():
    directory = Directory(25, 10)
    listing = Listing(1, Budget())
    listing.entries_from(0, directory.fetch, attributes=False)

    def fail(after, attributes):
        raise OSError(5, "away")

    with pytest.raises(OSError, match="away"):
        listing.entries_from(10, fail, attributes=False)
    assert read(listing, directory, 10) == sorted(directory.names)[10:]
