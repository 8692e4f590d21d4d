"""What a mount tells meta of a file's length after a truncation elsewhere."""

from __future__ import annotations

from fireflyfs.client.inode_state import UNKNOWN_VERSION
from fireflyfs.fuse.inodes import LiveInode
from fireflyfs.proto import meta_pb2
from fireflyfs.proto.common_pb2 import Layout

LAYOUT = Layout(chunk_size=1 << 20, stripe_size=1, chains=[1])


def _inode(length: int, truncate_version: int) -> meta_pb2.Inode:
    return meta_pb2.Inode(id=2, length=length, truncate_version=truncate_version, layout=LAYOUT)


def _live() -> LiveInode:
    return LiveInode(_inode(10, 1), 0.0)


def test_unrecorded_writes_are_left_to_storage_after_a_truncation_elsewhere() -> None:
    live = _live()
    live.written_end, live.mtime_ns = 1000, 5
    live.learn(_inode(0, 2), 1.0)
    hint = live.hint()
    assert hint is not None
    assert hint.truncate_version == UNKNOWN_VERSION
    live.written_end, live.mtime_ns = 5, 6  # written since: says nothing of the first write
    hint = live.hint()
    assert hint is not None
    assert hint.truncate_version == UNKNOWN_VERSION


def test_recorded_writes_need_no_word_of_storage() -> None:
    live = _live()
    live.learn(_inode(0, 2), 1.0)
    assert live.hint() is None
    live.written_end, live.mtime_ns = 5, 6
    assert live.hint() == meta_pb2.LengthHint(length=5, truncate_version=2)


def test_an_answer_that_was_overtaken_does_not_shorten_the_file() -> None:
    live = _live()
    live.learn(_inode(100, 1), 1.0)  # a record of what was written here
    live.learn(_inode(10, 1), 1.1)  # a stat that was asked before it
    assert live.length == 100
    live.learn(_inode(0, 2), 1.2)
    assert live.length == 0
