"""Files listed in id order for a check of the cluster."""

from __future__ import annotations

import os
from typing import Any

from fireflyfs.common.errors import Code
from fireflyfs.proto import meta_pb2

CHUNK = 65536
ONE, TWO = b"1" * 16, b"2" * 16


def listed(meta: Any, **options: Any) -> meta_pb2.ListFilesReply:
    reply: meta_pb2.ListFilesReply = meta.call("list_files", meta_pb2.ListFilesRequest(**options))
    return reply


def test_only_root_may_ask(meta: Any) -> None:
    assert meta.code(lambda: meta.call("list_files", meta_pb2.ListFilesRequest(), uid=1000)) is Code.NOT_PERMITTED


def test_pages_hold_regular_files_and_pass_over_the_rest(meta: Any) -> None:
    files = []
    for number in range(10):
        meta.mkdir(b"d%d" % number)
        meta.symlink(b"l%d" % number, b"x")
        files.append(meta.create(b"f%d" % number).id)
    seen: list[int] = []
    after, pages = 0, 0
    while True:
        reply = listed(meta, after=after, limit=4)
        seen += [file.inode for file in reply.files]
        assert all(file.chunk_size == CHUNK and len(file.chains) == 2 for file in reply.files)
        pages += 1
        if not reply.more:
            break
        assert reply.last > after
        after = reply.last
    assert seen == files
    assert pages == 8  # the root and thirty more inodes


def test_what_is_open_for_writing_trimmed_or_removed_is_marked(meta: Any) -> None:
    plain = meta.create(b"plain").id
    written = meta.create(b"written", session=ONE).id
    read = meta.create(b"read").id
    meta.open(b"read", os.O_RDONLY, session=TWO)
    gone = meta.create(b"gone", session=TWO).id
    meta.remove(b"gone")
    meta.close(plain, b"", 5)
    for files in (listed(meta).files, listed(meta, inodes=[gone, read, 99, 1, written, plain]).files):
        marks = {file.inode: (file.length, file.writing, file.trimming, file.removed) for file in files}
        assert marks == {
            plain: (5, False, False, False),
            written: (0, True, False, False),
            read: (0, False, False, False),
            gone: (0, True, False, True),
        }
    meta.close(gone, TWO)
    meta.collect()
    assert gone not in [file.inode for file in listed(meta).files]


def test_a_trim_that_waits_for_storage_is_marked(meta: Any, unavailable: Any) -> None:
    inode = meta.create(b"f", session=ONE).id
    meta.close(inode, ONE, 5 * CHUNK)
    meta.storage.fail = unavailable
    meta.code(lambda: meta.set_attr(b"f", length=1))
    (file,) = listed(meta).files
    assert (file.trimming, file.length, file.truncate_version) == (True, 5 * CHUNK, 0)  # until it is done


def test_ids_below_the_next_one_were_given_out(meta: Any) -> None:
    first = listed(meta).next_inode
    made = meta.create(b"a").id
    assert made >= first
    assert listed(meta).next_inode == made + 1
    again = meta.restarted()
    again.requests = meta.requests
    floor = listed(again).next_inode
    assert floor > made
    assert again.create(b"b").id >= floor
    again.loop.close()


def test_too_many_at_once_are_refused(meta: Any) -> None:
    assert meta.code(lambda: listed(meta, inodes=list(range(5000)))) is Code.TOO_LARGE
