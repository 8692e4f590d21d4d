"""URLs of fsspec taken apart and put together, and what `info` says of a file."""

from __future__ import annotations

import stat

import pytest

from fireflyfs.client.fsspec import details, urls
from fireflyfs.proto import meta_pb2


@pytest.mark.parametrize(
    ("url", "managers", "path"),
    [
        ("ffs://host:7700/a/b", ("host:7700",), "/a/b"),
        ("ffs://10.0.0.1:7700,10.0.0.2:7700/a", ("10.0.0.1:7700", "10.0.0.2:7700"), "/a"),
        ("ffs://[::1]:7700/a", ("[::1]:7700",), "/a"),
        ("ffs://host:7700", ("host:7700",), "/"),
        ("ffs://host:7700/", ("host:7700",), "/"),
        ("ffs:///a/b/", (), "/a/b"),
        ("ffs://", (), "/"),
        ("ffs::a", (), "/a"),
        ("/a//b///c", (), "/a/b/c"),
        ("//a", (), "/a"),
        ("a/b", (), "/a/b"),
        ("", (), "/"),
        ("/host:7700/a", (), "/host:7700/a"),
        ("a?b*[c]", (), "/a?b*[c]"),
    ],
)
def test_split(url: str, managers: tuple[str, ...], path: str) -> None:
    assert urls.split(url) == (managers, path)
    assert urls.split(urls.join(managers, path)) == (managers, path)


def test_what_a_path_lies_in() -> None:
    assert list(urls.above("/a/b/c")) == ["/a/b", "/a", "/"]
    assert list(urls.above("/a")) == ["/"]
    assert list(urls.above("/")) == []


@pytest.mark.parametrize("authority", ["data", "host:", ":7700", "host:0", "host:70000", "host:77x", "a:1,", "u@h:1"])
def test_what_is_no_address(authority: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        urls.split(f"ffs://{authority}/path")


def inode(mode: int, **fields: int) -> meta_pb2.Inode:
    return meta_pb2.Inode(id=7, mode=mode, nlink=1, **fields)


def test_info_of_each_kind() -> None:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFIFO: "other", stat.S_IFLNK: "other"}
    for mode, kind in kinds.items():
        info = details.info_of("/x", inode(mode | 0o644), 10)
        assert (info["type"], info["size"]) == (kind, 10 if kind == "file" else 0)
    link = details.info_of("/link", inode(stat.S_IFLNK | 0o777), 3)
    target = details.info_of("/link", inode(stat.S_IFREG | 0o600), 10)
    found = details.link_of(link, "target", target)
    assert (found["type"], found["size"], found["islink"], found["destination"]) == ("file", 10, True, "target")
    assert details.link_of(link, "gone", None)["type"] == "other"


def test_a_fingerprint_changes_with_the_bytes_alone() -> None:
    before = details.fingerprint(details.info_of("/x", inode(stat.S_IFREG, mtime_ns=5), 10))
    same = details.info_of("/renamed", inode(stat.S_IFREG | 0o600, mtime_ns=5, atime_ns=9, ctime_ns=9), 10)
    assert details.fingerprint(same) == before
    changes = [({"mtime_ns": 6}, 10), ({"mtime_ns": 5}, 11), ({"mtime_ns": 5, "truncate_version": 1}, 10)]
    for fields, length in changes:
        assert details.fingerprint(details.info_of("/x", inode(stat.S_IFREG, **fields), length)) != before
