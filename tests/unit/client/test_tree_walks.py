"""Listings: links that lead nowhere, and files that are being written."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.paths import DirEntry
from fireflyfs.proto import meta_pb2

if TYPE_CHECKING:
    from conftest import FakeContext


def follow(path: str, **_: Any) -> os.stat_result:
    number = {"loop": errno.ELOOP, "shut": errno.EACCES, "through": errno.ENOTDIR, "gone": errno.ENOENT}
    name = os.path.basename(path)
    raise OSError(number[name], os.strerror(number[name]), path)


def test_links_that_lead_nowhere_are_files_of_a_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(_: FileSystem, path: str) -> list[DirEntry[str]]:
        if path != "/":
            return []
        kinds = {"d": stat.S_IFDIR, "f": stat.S_IFREG} | dict.fromkeys(
            ["gone", "loop", "shut", "through"], stat.S_IFLNK
        )
        return [DirEntry(name, path + name, meta_pb2.DirEntry(mode=mode), follow) for name, mode in kinds.items()]

    monkeypatch.setattr(FileSystem, "scandir", scandir)
    fs = FileSystem.__new__(FileSystem)
    assert list(fs.walk("/")) == [("/", ["d"], ["f", "gone", "loop", "shut", "through"]), ("/d", [], [])]


def test_an_entry_is_as_long_as_the_file_is_for_this_client(
    client: FakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = client.open(b"/a")
    handle.pwrite(0, memoryview(b"hello"))
    told = meta_pb2.DirEntry(name=b"a", mode=handle.inode.mode, inode=handle.inode.id, attributes=handle.inode)
    monkeypatch.setattr(FileSystem, "_entries", lambda *_, **__: iter([told]))
    fs = FileSystem.__new__(FileSystem)
    fs.context = client  # type: ignore[assignment]
    (entry,) = fs.scandir("/")
    assert told.attributes.length == 0
    assert entry.stat().st_size == 5
