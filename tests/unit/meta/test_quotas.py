"""Quotas: who is refused what, how much a writer may still take, and what nobody refuses."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from fireflyfs.common.errors import Code
from fireflyfs.common.limits import MiB
from fireflyfs.meta.core.usage import Kind
from fireflyfs.proto import meta_pb2

SESSION = b"s" * 16
ME = {"uid": 7, "gid": 8}


def set_quota(meta: Any, path: bytes = b"", *, user: int = -1, group: int = -1, **limits: int) -> Any:
    request = meta_pb2.SetQuotaRequest(quota=meta_pb2.QuotaLimits(**limits))
    if path:
        request.at.CopyFrom(meta_pb2.PathAt(dir=1, path=path))
    elif user >= 0:
        request.kind, request.id = meta_pb2.USAGE_USER, user
    else:
        request.kind, request.id = meta_pb2.USAGE_GROUP, group
    return meta.call("set_quota", request)


def written(meta: Any, path: bytes, length: int, **who: Any) -> int:
    inode = meta.create(path, session=SESSION, **who)
    meta.storage.chunks[inode.id, 0] = length
    meta.close(inode.id, SESSION, length, **who)
    return int(inode.id)


def refused(meta: Any, body: Callable[[], object]) -> bool:
    return bool(meta.code(body) is Code.QUOTA_EXCEEDED)


def test_inodes_of_a_directory_are_exact_for_everybody(meta: Any) -> None:
    meta.mkdir(b"a")
    meta.mkdir(b"a/b")
    meta.mkdir(b"other")
    set_quota(meta, b"a", inodes_max=4)
    meta.create(b"a/1")
    meta.symlink(b"a/b/2", b"x")
    meta.mkdir(b"a/b/3")
    for body in (
        lambda: meta.create(b"a/b/4"),
        lambda: meta.mkdir(b"a/4"),
        lambda: meta.symlink(b"a/4", b"x"),
        lambda: meta.rename(b"other", b"a/4"),
    ):
        assert refused(meta, body)
    meta.link(b"a/1", b"a/b/4")  # a file counts once
    meta.rename(b"a/1", b"a/b/5")  # and inside it moves freely
    meta.remove(b"a/b/3", meta_pb2.REMOVE_RMDIR)
    meta.rename(b"other", b"a/4")
    assert refused(meta, lambda: meta.create(b"a/6"))
    set_quota(meta, b"a")
    meta.create(b"a/6")


def test_a_directory_that_comes_in_brings_what_nobody_has_folded_yet(meta: Any) -> None:
    meta.mkdir(b"a")
    meta.mkdir(b"b")
    set_quota(meta, b"a", inodes_max=5)
    for number in range(5):
        meta.create(b"b/%d" % number)
    assert refused(meta, lambda: meta.rename(b"b", b"a/b"))
    meta.remove(b"b/0")
    meta.rename(b"b", b"a/b")


def test_lengths_are_limited_where_meta_sets_them(meta: Any) -> None:
    meta.mkdir(b"a")
    set_quota(meta, b"a", bytes_max=10_000)
    inode = written(meta, b"a/f", 4096)
    meta.set_attr(b"a/f", length=8192)
    assert refused(meta, lambda: meta.set_attr(b"a/f", length=8193))
    assert meta.stat(b"a/f").length == 8192
    append = meta_pb2.AppendRequest(inode=inode, session=SESSION, size=1)
    assert refused(meta, lambda: meta.call("append", append))
    meta.set_attr(b"a/f", length=0)
    append = meta_pb2.AppendRequest(inode=inode, session=SESSION, size=8192)
    assert meta.call("append", append).offset == 0


def test_a_writer_is_told_how_far_it_may_go(meta: Any) -> None:
    meta.mkdir(b"a")
    assert not meta.create(b"a/free", session=SESSION).HasField("end_max")
    set_quota(meta, b"a", bytes_max=200 * MiB)
    inode = meta.create(b"a/f", session=SESSION)
    assert inode.end_max == 64 * MiB
    request = meta_pb2.SyncRequest(inode=inode.id, wanted_end=150 * MiB)
    assert meta.call("sync", request).inode.end_max == 150 * MiB
    request = meta_pb2.SyncRequest(inode=inode.id, wanted_end=300 * MiB)
    assert meta.call("sync", request).inode.end_max == 200 * MiB
    report = meta_pb2.LengthHint(length=150 * MiB)
    request = meta_pb2.SyncRequest(inode=inode.id, hint=report, wanted_end=170 * MiB)
    assert meta.call("sync", request).inode.end_max == 200 * MiB
    assert meta.create(b"a/g", session=SESSION).end_max == 50 * MiB
    # What is stored already is recorded, however much it is: it would be lost, or stay behind in storage.
    meta.storage.chunks[inode.id, 0] = 10
    assert meta.close(inode.id, SESSION, 300 * MiB).length == 300 * MiB
    assert meta.create(b"a/h", session=SESSION).end_max == 0


def test_users_and_groups_are_limited_by_who_owns(meta: Any) -> None:
    meta.set_attr(b"/", mode=0o777)
    set_quota(meta, user=7, inodes_max=2, bytes_max=8192)
    set_quota(meta, group=30, inodes_max=1)
    meta.create(b"1", **ME)
    written(meta, b"2", 8000, **ME)
    assert refused(meta, lambda: meta.create(b"3", **ME))
    meta.create(b"3", uid=9)
    assert refused(meta, lambda: meta.set_attr(b"3", owner=7))
    assert refused(meta, lambda: meta.set_attr(b"2", length=8193, uid=7))
    many = {"uid": 7, "gid": 8, "gids": (30,)}
    meta.set_attr(b"1", group=30, **many)
    assert refused(meta, lambda: meta.set_attr(b"2", group=30, **many))
    meta.remove(b"2", **ME)
    meta.collect()
    meta.create(b"2", **ME)


def test_who_may_see_and_set(meta: Any) -> None:
    meta.mkdir(b"a", mode=0o700)
    set_quota(meta, b"a", bytes_max=1 << 40)
    set_quota(meta, user=7, inodes_max=5)
    set_quota(meta, group=8, inodes_max=6)
    set_quota(meta, user=9, inodes_max=7)

    def listed(**who: Any) -> list[tuple[int, int, bytes]]:
        reply = meta.call("list_quotas", meta_pb2.ListQuotasRequest(), **who)
        return [(quota.kind, quota.id, quota.path) for quota in reply.quotas]

    assert listed() == [(0, meta.stat(b"a").id, b"/a"), (1, 7, b""), (1, 9, b""), (2, 8, b"")]
    assert listed(**ME) == [(1, 7, b""), (2, 8, b"")]
    page = meta.call("list_quotas", meta_pb2.ListQuotasRequest(limit=2))
    assert (len(page.quotas), page.more) == (2, True)
    rest = meta_pb2.ListQuotasRequest(begun=True, after_kind=page.quotas[-1].kind, after_id=page.quotas[-1].id)
    assert [quota.id for quota in meta.call("list_quotas", rest).quotas] == [9, 8]
    one = meta_pb2.SetQuotaRequest(kind=meta_pb2.USAGE_USER, id=7)
    assert meta.code(lambda: meta.call("set_quota", one, **ME)) is Code.NOT_PERMITTED
    other = meta_pb2.GetUsageRequest(kind=meta_pb2.USAGE_USER, id=9)
    assert meta.code(lambda: meta.call("get_usage", other, **ME)) is Code.NOT_PERMITTED
    directory = meta_pb2.GetUsageRequest(at=meta_pb2.PathAt(dir=1, path=b"a"))
    assert meta.code(lambda: meta.call("get_usage", directory, **ME)) is Code.ACCESS_DENIED
    nobody = meta_pb2.SetQuotaRequest(kind=meta_pb2.USAGE_USER, id=0xFFFFFFFF, quota={"inodes_max": 1})
    assert meta.code(lambda: meta.call("set_quota", nobody)) is Code.INVALID
    file = written(meta, b"f", 1)
    of_file = meta_pb2.SetQuotaRequest(at=meta_pb2.PathAt(dir=file), quota={"inodes_max": 1})
    assert meta.code(lambda: meta.call("set_quota", of_file)) is Code.NOT_DIRECTORY


def test_df_shows_the_tightest_quota(meta: Any) -> None:
    meta.mkdir(b"a")
    meta.mkdir(b"a/b")
    written(meta, b"a/b/f", 100)
    whole = meta.call("stat_fs", meta_pb2.StatFsRequest(inode=meta.stat(b"a/b").id))
    assert whole.capacity_bytes == 3000
    set_quota(meta, b"a", bytes_max=4500, inodes_max=10)
    inside = meta.call("stat_fs", meta_pb2.StatFsRequest(inode=meta.stat(b"a/b").id))
    assert (inside.capacity_bytes, inside.free_bytes) == (4500, 404)
    assert (inside.files, inside.free_files) == (2, 8)
    assert meta.call("stat_fs", meta_pb2.StatFsRequest(inode=1)).capacity_bytes == 3000


def test_a_removed_directory_takes_its_quota_along(meta: Any) -> None:
    meta.mkdir(b"a")
    set_quota(meta, b"a", inodes_max=4)
    set_quota(meta, user=1, inodes_max=4)
    assert meta.parts.accounting.drop_stale() == 0
    meta.remove(b"a", meta_pb2.REMOVE_RMDIR)
    assert meta.parts.accounting.drop_stale() == 1
    assert meta.records(b"Q") == 1


def test_another_server_enforces_what_was_set_and_written_elsewhere(make_meta: Callable[..., Any], meta: Any) -> None:
    meta.mkdir(b"a")
    other = make_meta(meta.kv, meta.storage)
    other.requests = 10_000
    set_quota(meta, b"a", inodes_max=3)
    other.parts.runner.quotas.reload()
    meta.create(b"a/1")
    other.create(b"a/2")
    other.wait(other.parts.folder.catch_up())
    other.create(b"a/3")
    assert refused(other, lambda: other.create(b"a/4"))
    other.loop.close()


def test_kinds_have_the_numbers_of_the_protocol() -> None:
    assert [int(kind) for kind in Kind] == [0, 1, 2]
    assert tuple(Kind) == (meta_pb2.USAGE_DIRECTORY, meta_pb2.USAGE_USER, meta_pb2.USAGE_GROUP)


def test_a_name_is_removed_even_where_its_file_then_counts_in_a_full_directory(meta: Any) -> None:
    meta.mkdir(b"full")
    meta.mkdir(b"out")
    written(meta, b"out/file", 5 * MiB)
    meta.link(b"out/file", b"full/file")
    set_quota(meta, b"full", bytes_max=MiB, inodes_max=1)
    meta.create(b"full/other")
    meta.remove(b"out/file")
    meta.remove(b"full/file")  # which makes room again
    assert meta.names(b"full") == [b"other"]


def test_a_further_name_needs_room_for_the_file_where_its_other_names_are_not_below(meta: Any) -> None:
    meta.mkdir(b"small")
    meta.mkdir(b"small/below")
    written(meta, b"file", 5 * MiB)
    set_quota(meta, b"small", bytes_max=MiB)
    assert refused(meta, lambda: meta.link(b"file", b"small/below/file"))
    written(meta, b"small/own", MiB)
    meta.link(b"small/own", b"small/below/own")  # counts there already


def test_a_name_is_replaced_even_where_its_file_then_counts_in_a_full_directory(meta: Any) -> None:
    for name in (b"full", b"out", b"small"):
        meta.mkdir(name)
    written(meta, b"out/file", 5 * MiB)
    meta.link(b"out/file", b"full/file")
    set_quota(meta, b"full", bytes_max=MiB, inodes_max=1)
    meta.create(b"full/other")
    written(meta, b"new", MiB)
    meta.rename(b"new", b"out/file")
    assert meta.stat(b"full/file").nlink == 1
    # What moves in is still asked for room, and gets what it makes room for.
    set_quota(meta, b"small", bytes_max=2 * MiB, inodes_max=1)
    written(meta, b"small/file", 2 * MiB)
    meta.link(b"small/file", b"link")
    written(meta, b"larger", 3 * MiB)
    assert refused(meta, lambda: meta.rename(b"larger", b"small/file"))
    meta.rename(b"out/file", b"small/file")
    assert refused(meta, lambda: meta.rename(b"larger", b"small/other"))
    meta.remove(b"small/file")
    set_quota(meta, b"small", bytes_max=3 * MiB, inodes_max=1)
    meta.rename(b"larger", b"small/other")


def test_a_further_name_that_is_moved_needs_the_room_that_a_new_one_does(meta: Any) -> None:
    for name in (b"out", b"small", b"small/below"):
        meta.mkdir(name)
    written(meta, b"file", 5 * MiB)
    meta.link(b"file", b"out/file")
    written(meta, b"small/own", 5 * MiB)
    set_quota(meta, b"small", bytes_max=6 * MiB, inodes_max=5)
    assert refused(meta, lambda: meta.rename(b"out/file", b"small/file"))
    meta.rename(b"out/file", b"small/own")  # which makes the room
    meta.rename(b"small/own", b"small/below/file")
    set_quota(meta, b"small", bytes_max=MiB)
    meta.rename(b"small/below/file", b"small/file")  # it stays inside


def test_what_is_committed_while_changes_are_folded_counts_once(meta: Any) -> None:
    meta.mkdir(b"a")
    set_quota(meta, b"a", bytes_max=20 * 4096)
    for name in (b"a/x", b"a/y", b"a/gone"):
        meta.create(name)
    meta.set_attr(b"a/gone", length=9 * 4096)
    meta.remove(b"a/gone")

    def lengthen(name: bytes, blocks: int) -> Any:
        meta.requests += 1
        request = meta_pb2.SetAttrRequest(at=meta_pb2.PathAt(dir=1, path=name), length=blocks * 4096)
        request.mutation.request_id = meta.requests.to_bytes(16, "big")
        return meta.handlers.set_attr(request)

    async def both() -> None:
        waits = asyncio.ensure_future(lengthen(b"a/x", 12))  # there seem to be 9, so it has changes folded
        await asyncio.sleep(0)
        assert not inspect.isawaitable(lengthen(b"a/y", 8)), "fits in any case"
        await waits

    meta.wait(both())
    assert meta.stat(b"a/x").length == 12 * 4096
    meta.create(b"a/z")
    assert refused(meta, lambda: meta.set_attr(b"a/z", length=1))


def test_changes_of_this_server_are_folded_at_once_where_the_clock_of_another_is_ahead(
    make_meta: Callable[..., Any], meta: Any
) -> None:
    other = make_meta(meta.kv, meta.storage)
    other.requests = 10_000
    meta.clock.advance(3)
    other.create(b"ahead")
    meta.clock.advance(-3)
    meta.wait(meta.parts.folder.catch_up())
    meta.create(b"behind")
    meta.wait(meta.parts.folder.catch_up(look_back=False))
    assert meta.records(b"C") == 0
    other.loop.close()
