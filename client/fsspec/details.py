"""What fsspec calls `info`: the attributes of a file as a dictionary. Pure."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from typing import Any

from fireflyfs.proto import meta_pb2

Info = dict[str, Any]
_STATE = ("ino", "size", "mtime_ns", "truncate_version")  # change whenever the bytes do


def info_of(path: str, inode: meta_pb2.Inode, length: int) -> Info:
    """Of what has no link at its end. Times are seconds since the epoch, `mtime_ns` and `ctime_ns` nanoseconds."""
    return {
        "name": path,
        "size": length if stat.S_ISREG(inode.mode) else 0,
        "type": kind_of(inode.mode),
        "created": inode.btime_ns / 1e9,
        "islink": False,
        "mode": inode.mode,
        "uid": inode.uid,
        "gid": inode.gid,
        "ino": inode.id,
        "nlink": inode.nlink,
        "atime": inode.atime_ns / 1e9,
        "mtime": inode.mtime_ns / 1e9,
        "mtime_ns": inode.mtime_ns,
        "ctime_ns": inode.ctime_ns,
        "truncate_version": inode.truncate_version,
    }


def link_of(link: Info, destination: str, target: Info | None) -> Info:
    """Of a symbolic link: what it leads to, under its own name. A link that leads nowhere has the type "other"."""
    found = link if target is None else {**target, "name": link["name"]}
    return {**found, "islink": True, "destination": destination}


def kind_of(mode: int) -> str:
    """As fsspec names it."""
    if stat.S_ISDIR(mode):
        return "directory"
    return "file" if stat.S_ISREG(mode) else "other"


def fingerprint(info: Mapping[str, Any]) -> str:
    """Another one when the file has other bytes: by its inode, length, time of change and truncations."""
    return hashlib.sha256(repr([info[name] for name in _STATE]).encode()).hexdigest()
