"""Bytes of many files by their paths: whole small files, or ranges of large ones, in a handful of requests for all.

Each path is looked up once, all ranges are read in one batch, and each file is looked at again: files are not held,
so one that changed or went meanwhile is read again. Errors are OSError, in the place of the bytes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fireflyfs.client.batch import inodes
from fireflyfs.client.handle import HandleContext
from fireflyfs.client.paths import StrPath, path_at
from fireflyfs.client.scratch import Unfilled
from fireflyfs.client.storage_client import ReadSpan
from fireflyfs.client.storage_codec import part_of, view_of
from fireflyfs.client.striping import FileLayout
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import BATCH_STAT_MAX, KiB, MiB
from fireflyfs.common.net.api import tainted
from fireflyfs.proto import meta_pb2

READ_BYTES_MAX = 64 * MiB  # read at once, except for one longer range
OWN_BYTES_MIN = 64 * KiB  # a range of a large batch that is read into its own result, instead of copied there
TRIES_MAX = 8  # when files change while they are read


class Range(NamedTuple):
    """Bytes [start, end) of a file as a slice takes them: None is its begin or end, negative counts from the end."""

    path: StrPath
    start: int | None = None
    end: int | None = None


class _Wanted(NamedTuple):
    number: int  # in the caller's list
    inode: meta_pb2.Inode
    offset: int
    length: int


def read_files(context: HandleContext, paths: Sequence[StrPath]) -> list[bytes | OSError]:
    """All of each file, or why not."""
    return read_ranges(context, [Range(path) for path in paths])


def read_ranges(context: HandleContext, ranges: Sequence[Range]) -> list[bytes | OSError]:
    """The bytes of each range, or why not."""
    results: list[bytes | OSError] = [OSError(0, "")] * len(ranges)
    todo = list(range(len(ranges)))
    for _ in range(TRIES_MAX):
        again: list[int] = []
        for part in _with_few_paths(ranges, todo):
            for group in _groups(_look_up(context, ranges, part, results)):
                again += _read_group(context, ranges, group, results)
        todo = again
        if not todo:
            return results
    for number in todo:
        results[number] = error(Code.BUSY, "the file keeps changing").to_oserror(os.fspath(ranges[number].path))
    return results


def _with_few_paths(ranges: Sequence[Range], numbers: list[int]) -> Iterator[list[int]]:
    """`numbers` in parts, each of no more different paths than one request takes."""
    part: list[int] = []
    paths: set[StrPath] = set()
    for number in numbers:
        path = ranges[number].path
        if path not in paths and len(paths) == BATCH_STAT_MAX:
            yield part
            part, paths = [], set()
        part.append(number)
        paths.add(path)
    if part:
        yield part


def _look_up(
    context: HandleContext, ranges: Sequence[Range], part: list[int], results: list[bytes | OSError]
) -> Iterator[_Wanted]:
    """Where the ranges of regular files are; what is wrong with the others goes to `results`."""
    paths = list(dict.fromkeys(ranges[number].path for number in part))
    found = dict(zip(paths, inodes(context, paths, follow=True), strict=True))
    for number in part:
        path, start, end = ranges[number]
        inode = found[path]
        if isinstance(inode, OSError):
            results[number] = inode
        elif stat.S_ISDIR(inode.mode):
            results[number] = error(Code.IS_DIRECTORY).to_oserror(os.fspath(path))
        elif not stat.S_ISREG(inode.mode):
            results[number] = error(Code.INVALID).to_oserror(os.fspath(path))
        elif not _may_read(context, inode, path):
            results[number] = error(Code.ACCESS_DENIED).to_oserror(os.fspath(path))
        else:
            first, last, _ = slice(start, end).indices(context.inodes.length_of(inode))
            yield _Wanted(number, inode, first, max(0, last - first))


def _may_read(context: HandleContext, inode: meta_pb2.Inode, path: StrPath) -> bool:
    """Whether opening would be allowed. By the mode where that says yes; meta is asked otherwise: it knows the ACLs."""
    caller = context.meta.caller
    if caller.uid == 0:
        return True
    if not inode.acl:
        owner, group = inode.uid == caller.uid, inode.gid == caller.gid or inode.gid in caller.gids
        bit = stat.S_IRUSR if owner else stat.S_IRGRP if group else stat.S_IROTH
        if inode.mode & bit:
            return True
    try:
        context.meta.access(meta_pb2.AccessRequest(at=path_at(path), mask=os.R_OK))
    except FfsError as exc:
        if exc.code in (Code.ACCESS_DENIED, Code.NOT_PERMITTED):
            return False
        raise exc.to_oserror(os.fspath(path)) from exc
    return True


def _groups(wanted: Iterator[_Wanted]) -> Iterator[list[_Wanted]]:
    """What is read at once: bounded in bytes."""
    group: list[_Wanted] = []
    nbytes = 0
    for one in wanted:
        if group and nbytes + one.length > READ_BYTES_MAX:
            yield group
            group, nbytes = [], 0
        group.append(one)
        nbytes += one.length
    if group:
        yield group


def _read_group(
    context: HandleContext, ranges: Sequence[Range], group: list[_Wanted], results: list[bytes | OSError]
) -> list[int]:
    """Read ranges at once; those to look at again, because their file changed or went while it was read, or because a
    server that did not answer may still write to their memory."""
    total = sum(one.length for one in group)
    own_least = total + 1 if context.scratch.shares(total) else OWN_BYTES_MIN
    wholes = [Unfilled(one.length) if one.length >= own_least else None for one in group]
    shared = sum(one.length for one, whole in zip(group, wholes, strict=True) if whole is None)
    with context.scratch.take(max(1, shared)) as piece:
        spans: list[ReadSpan] = []
        places: list[int] = []
        starts: list[int] = []
        at = 0
        for place, (one, whole) in enumerate(zip(group, wholes, strict=True)):
            starts.append(at)
            if one.length:
                layout = FileLayout.of(one.inode.id, one.inode.layout)
                into = part_of(piece, at, one.length) if whole is None else whole.view
                spans.append(ReadSpan(layout, one.offset, into))
                places.append(place)
            at += one.length if whole is None else 0
        failed = {places[number]: exc for number, exc in context.storage.read(spans).items()}
        gone = _changed(context, group)
        again: list[int] = []
        late = tainted(piece)
        view = view_of(piece)
        for place, (one, whole, start) in enumerate(zip(group, wholes, starts, strict=True)):
            if one.inode.id in gone or (late and whole is None):
                again.append(one.number)
            elif place in failed:
                results[one.number] = failed[place].to_oserror(os.fspath(ranges[one.number].path))
            else:
                results[one.number] = bytes(view[start : start + one.length]) if whole is None else whole.filled()
    return again


def _changed(context: HandleContext, group: list[_Wanted]) -> set[int]:
    """Files that were cut or removed since they were looked up: they may have been read as holes."""
    seen = {one.inode.id: one.inode for one in group}
    try:
        reply = context.meta.batch_stat(meta_pb2.BatchStatRequest(inodes=list(seen)))
    except FfsError as exc:
        raise exc.to_oserror() from exc
    return {
        before.id
        for before, now in zip(seen.values(), reply.inodes, strict=True)
        if now.id != before.id or not now.nlink or now.truncate_version != before.truncate_version
    }
