"""`FileSystem.walk` over links that lead nowhere."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

import pytest

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.paths import DirEntry
from fireflyfs.proto import meta_pb2


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
