"""What was removed is kept for a while, and comes back whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fireflyfs.common.clock import ManualClock
from fireflyfs.common.errors import Code
from fireflyfs.meta.background.sessions import SessionReaper
from fireflyfs.proto import meta_pb2, mgmtd_pb2

HOUR_S = 3600.0


@pytest.fixture
def keeping(make_meta: Callable[..., Any]) -> Iterator[Any]:
    """A service that keeps trash for an hour."""
    service = make_meta(trash_keep_s=HOUR_S)
    yield service
    service.loop.close()


def trash_of(meta: Any, **who: Any) -> list[Any]:
    return list(meta.call("list_trash", meta_pb2.ListTrashRequest(), **who).entries)


def restore(meta: Any, ref: Any, to: bytes = b"", **who: Any) -> Any:
    request = meta_pb2.RestoreTrashRequest(ref=ref)
    if to:
        request.to.CopyFrom(meta_pb2.PathAt(dir=1, path=to))
    return meta.call("restore_trash", request, **who).inode


def written(meta: Any, path: bytes, **who: Any) -> int:
    inode = meta.create(path, session=b"s" * 16, **who).id
    meta.storage.chunks[inode, 0] = 100
    meta.close(inode, b"s" * 16, length=100, **who)
    return int(inode)


def test_a_file_comes_back_as_it_was(keeping: Any) -> None:
    keeping.mkdir(b"/d")
    inode = written(keeping, b"/d/file")
    before = keeping.stat(b"/d/file")
    keeping.remove(b"/d/file")
    assert keeping.names(b"/d") == []
    assert keeping.fstat(inode).nlink == 0
    keeping.collect()
    assert keeping.storage.chunks == {(inode, 0): 100}
    (entry,) = trash_of(keeping)
    assert (entry.name, entry.directory, entry.uid, entry.length) == (b"file", b"/d", 0, 100)
    restore(keeping, entry.ref)
    after = keeping.stat(b"/d/file")
    after.ctime_ns = before.ctime_ns
    assert after == before
    assert trash_of(keeping) == []
    assert keeping.records(b"R") == 0


def test_a_tree_comes_back_with_all_that_is_in_it(keeping: Any) -> None:
    keeping.mkdir(b"/a/b/c", parents=True)
    inode = written(keeping, b"/a/b/c/file")
    links = keeping.stat(b"/").nlink
    keeping.remove(b"/a", kind=meta_pb2.REMOVE_RECURSIVE)
    assert keeping.names() == []
    assert keeping.stat(b"/").nlink == links - 1
    (entry,) = trash_of(keeping)
    assert keeping.code(lambda: restore(keeping, entry.ref, b"/gone/x")) is Code.NO_ENTRY
    keeping.mkdir(b"/else")
    restore(keeping, entry.ref, b"/else/again")
    assert keeping.stat(b"/else/again/b/c/file").id == inode
    assert keeping.stat(b"/else/again").nlink == 3
    assert keeping.stat(b"/else/again/..").id == keeping.stat(b"/else").id
    assert keeping.stat(b"/else").nlink == 3


def test_what_a_rename_replaces_is_kept_and_links_are_not_lost(keeping: Any) -> None:
    old = written(keeping, b"/old")
    written(keeping, b"/new")
    keeping.link(b"/old", b"/other")
    keeping.rename(b"/new", b"/old")
    assert trash_of(keeping) == [], "it has another name"
    keeping.remove(b"/other")
    (entry,) = trash_of(keeping)
    assert (entry.ref.inode, entry.name) == (old, b"other")
    assert keeping.code(lambda: restore(keeping, entry.ref, b"/old")) is Code.EXISTS
    restore(keeping, entry.ref)
    assert keeping.stat(b"/other").nlink == 1


def test_its_time_runs_out(keeping: Any, clock: ManualClock) -> None:
    inode = written(keeping, b"/file")
    keeping.mkdir(b"/tree/below", parents=True)
    written(keeping, b"/tree/below/file")
    keeping.symlink(b"/link", b"target")
    keeping.remove(b"/file")
    clock.advance(HOUR_S / 2)
    keeping.remove(b"/tree", kind=meta_pb2.REMOVE_RECURSIVE)
    keeping.remove(b"/link")
    clock.advance(HOUR_S / 2 - 1)
    assert keeping.wait(keeping.parts.trash.expire()) == 0
    clock.advance(2)
    assert keeping.wait(keeping.parts.trash.expire()) == 1
    keeping.collect()
    assert (inode, 0) not in keeping.storage.chunks
    assert len(trash_of(keeping)) == 2
    clock.advance(HOUR_S)
    assert keeping.wait(keeping.parts.trash.expire()) == 2
    keeping.collect()
    assert keeping.storage.chunks == {}
    assert (keeping.records(b"R"), keeping.records(b"G")) == (0, 0)
    assert keeping.records(b"I") == 1, "the root alone"


def test_everybody_has_a_trash_of_his_own(keeping: Any) -> None:
    keeping.set_attr(b"/", mode=0o1777)
    alice, bob = {"uid": 5, "gid": 5}, {"uid": 6, "gid": 6}
    for name, who in ((b"/hers", alice), (b"/his", bob)):
        written(keeping, name, **who)
        keeping.remove(name, **who)
    assert [entry.name for entry in trash_of(keeping, **alice)] == [b"hers"]
    assert [entry.name for entry in trash_of(keeping)] == [b"hers", b"his"]
    (hers,) = trash_of(keeping, **alice)
    assert keeping.code(lambda: restore(keeping, hers.ref, **bob)) is Code.NOT_PERMITTED
    refuse = meta_pb2.EmptyTrashRequest(refs=[hers.ref])
    assert keeping.code(lambda: keeping.call("empty_trash", refuse, **bob)) is Code.NOT_PERMITTED
    # Where it was must still be writable for her.
    keeping.set_attr(b"/", mode=0o755)
    assert keeping.code(lambda: restore(keeping, hers.ref, **alice)) is Code.ACCESS_DENIED
    keeping.call("empty_trash", meta_pb2.EmptyTrashRequest(refs=[hers.ref]), **alice)
    keeping.call("empty_trash", meta_pb2.EmptyTrashRequest(refs=[hers.ref]), **alice)
    keeping.collect()
    assert [entry.name for entry in trash_of(keeping)] == [b"his"]
    assert keeping.code(lambda: restore(keeping, hers.ref, **alice)) is Code.NO_ENTRY


def test_a_file_that_is_open_lives_on_in_the_trash(keeping: Any) -> None:
    inode = keeping.create(b"/file", session=b"s" * 16).id
    keeping.remove(b"/file")
    keeping.storage.chunks[inode, 0] = 50
    keeping.close(inode, b"s" * 16, length=50)
    keeping.collect()
    (entry,) = trash_of(keeping)
    assert entry.length == 50
    restore(keeping, entry.ref)
    assert keeping.stat(b"/file").length == 50


def test_a_directory_cannot_be_restored_into_itself_or_other_trash(keeping: Any) -> None:
    top = keeping.mkdir(b"/top").id
    below = keeping.mkdir(b"/top/below").id
    other = keeping.mkdir(b"/other").id
    keeping.remove(b"/top", kind=meta_pb2.REMOVE_RECURSIVE)
    keeping.mkdir(b"/other/x")
    keeping.remove(b"/other", kind=meta_pb2.REMOVE_RECURSIVE)
    ref = next(entry.ref for entry in trash_of(keeping) if entry.ref.inode == top)
    for place, code in ((below, Code.INVALID), (other, Code.NO_ENTRY)):
        request = meta_pb2.RestoreTrashRequest(ref=ref, to=meta_pb2.PathAt(dir=place, path=b"again"))
        assert keeping.code(lambda request=request: keeping.call("restore_trash", request)) is code


def test_without_a_time_nothing_is_kept_and_what_was_kept_goes(
    keeping: Any, make_meta: Callable[..., Any], clock: ManualClock
) -> None:
    written(keeping, b"/file")
    keeping.remove(b"/file")
    plain = make_meta(kv=keeping.kv, storage=keeping.storage)
    written(plain, b"/second")
    plain.remove(b"/second")
    assert len(trash_of(plain)) == 1
    clock.advance(1)
    assert plain.wait(plain.parts.trash.expire()) == 1
    plain.collect()
    assert plain.storage.chunks == {}
    assert plain.records(b"I") == 1
    plain.loop.close()


def test_a_long_list_comes_in_pages(keeping: Any) -> None:
    names = [b"/f%d" % number for number in range(7)]
    for name in names:
        written(keeping, name)
        keeping.remove(name)
    seen: list[bytes] = []
    request, more = meta_pb2.ListTrashRequest(limit=3), True
    while more:
        reply = keeping.call("list_trash", request)
        assert len(reply.entries) <= 3
        seen += [b"/" + entry.name for entry in reply.entries]
        request, more = meta_pb2.ListTrashRequest(limit=3, after=reply.after), reply.more
    assert seen == names


def test_a_name_that_a_removed_file_gets_by_its_open_descriptor_is_refused_while_the_trash_has_it(keeping: Any) -> None:
    inode = written(keeping, b"/file")
    keeping.open(b"/file", session=b"t" * 16)
    keeping.remove(b"/file")
    (entry,) = trash_of(keeping)
    request = meta_pb2.LinkRequest(old=meta_pb2.PathAt(dir=inode), new=meta_pb2.PathAt(dir=1, path=b"/again"))
    assert keeping.code(lambda: keeping.call("link", request)) is Code.NO_ENTRY
    assert restore(keeping, entry.ref).nlink == 1
    assert keeping.names(b"/") == [b"file"]


def test_what_a_dead_client_wrote_to_a_trashed_file_is_in_the_file_that_comes_back(keeping: Any) -> None:
    inode = keeping.create(b"/file", session=b"s" * 16).id
    keeping.storage.chunks[inode, 0] = 100
    keeping.remove(b"/file")

    async def nobody() -> mgmtd_pb2.ListSessionsReply:
        return mgmtd_pb2.ListSessionsReply(complete=True)

    keeping.clock.advance(120)
    assert keeping.wait(SessionReaper(keeping.parts.runner, nobody).reap()) == 1
    (entry,) = trash_of(keeping)
    assert restore(keeping, entry.ref).length == 100


def test_nothing_leaves_a_directory_that_is_in_the_trash(keeping: Any) -> None:
    keeping.mkdir(b"/top")
    for name in (b"a", b"b", b"c"):
        keeping.mkdir(b"/top/" + name)
    top = keeping.stat(b"/top").id
    keeping.remove(b"/top", meta_pb2.REMOVE_RECURSIVE)
    (entry,) = trash_of(keeping)
    inside, outside = meta_pb2.PathAt(dir=top, path=b"a"), meta_pb2.PathAt(dir=1, path=b"/b")
    back = meta_pb2.PathAt(dir=top, path=b"b")
    keeping.mkdir(b"/b")
    for method, request in (
        ("remove", meta_pb2.RemoveRequest(at=inside, kind=meta_pb2.REMOVE_RMDIR)),
        ("rename", meta_pb2.RenameRequest(old=inside, new=meta_pb2.PathAt(dir=1, path=b"/a"))),
        ("rename", meta_pb2.RenameRequest(old=inside, new=outside)),
        ("rename", meta_pb2.RenameRequest(old=outside, new=inside)),
        ("rename", meta_pb2.RenameRequest(old=inside, new=outside, flags=2)),
        ("rename", meta_pb2.RenameRequest(old=inside, new=back)),
    ):
        assert keeping.code(lambda method=method, request=request: keeping.call(method, request)) is Code.NO_ENTRY
    assert restore(keeping, entry.ref).nlink == 5
    assert keeping.names(b"/top") == [b"a", b"b", b"c"]
    keeping.remove(b"/top/c", meta_pb2.REMOVE_RMDIR)
    assert keeping.stat(b"/top").nlink == 4
