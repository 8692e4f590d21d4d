"""Many reads or writes over many open files in one go: one request to each storage worker, all under way at once.

Buffers are any contiguous buffers, or `Slice`s of memory from `FileSystem.allocate`, which servers of the same host
fill directly. Errors are OSError with the file's name. For thousands of blocks of one file use `read_blocks`: the whole
batch is placed in numpy.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fireflyfs.client.file import BufferedFile, File, as_piece
from fireflyfs.client.handle import HandleContext
from fireflyfs.client.paths import StrPath, path_at, stat_result
from fireflyfs.client.storage_client import ReadSpan, WriteSpan
from fireflyfs.client.storage_codec import length_of, part_of
from fireflyfs.client.striping import FileLayout, place
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import BATCH_STAT_MAX, MiB
from fireflyfs.common.net.api import Piece, Slice
from fireflyfs.proto import meta_pb2

FILES_BYTES_MAX = 64 * MiB  # read at once by read_files
READ_FILES_TRIES_MAX = 8  # when files change while they are read

AnyFile = File | BufferedFile


def raw_of(file: AnyFile) -> File:
    """The raw file, with what was buffered written first."""
    if isinstance(file, File):
        return file
    if file.raw.writable():
        file.flush()
    return file.raw


def read_batch(context: HandleContext, requests: Sequence[tuple[AnyFile, int, Any]]) -> list[int]:
    """Fill each (file, offset, buffer); how many bytes each got: fewer than asked at the end of its file."""
    spans: list[ReadSpan] = []
    owners: list[File] = []
    counts: list[int] = []
    for file, offset, buffer in requests:
        raw = raw_of(file)
        into = as_piece(buffer)
        wanted = length_of(into)
        try:
            raw.handle.check_readable()
            count = raw.handle.room(offset, wanted)
        except FfsError as exc:
            raise exc.to_oserror(raw.name) from exc
        counts.append(count)
        if count:
            spans.append(ReadSpan(raw.handle.file, offset, into if count == wanted else part_of(into, 0, count)))
            owners.append(raw)
    _raise_first(context.storage.read(spans), owners)
    return counts


def write_batch(context: HandleContext, requests: Sequence[tuple[AnyFile, int, Any]]) -> list[int]:
    """Store each (file, offset, data), each chunk updated once; overlapping ones in order."""
    spans: list[WriteSpan] = []
    owners: list[File] = []
    counts: list[int] = []
    for file, offset, data in requests:
        raw = raw_of(file)
        piece = as_piece(data)
        count = length_of(piece)
        try:
            raw.handle.check_writable()
            if offset < 0:
                raise error(Code.INVALID, "negative offset")
            if count:
                raw.handle.ensure_room(offset + count)
        except FfsError as exc:
            raise exc.to_oserror(raw.name) from exc
        counts.append(count)
        if count:
            spans.append(WriteSpan(raw.handle.file, offset, piece))
            owners.append(raw)
    versions = [owner.handle.truncate_version for owner in owners]
    failed = context.storage.write(spans)
    for number, (span, owner, version) in enumerate(zip(spans, owners, versions, strict=True)):
        if number not in failed:
            owner.handle.wrote(span.offset + length_of(span.data), version)
    _raise_first(failed, owners)
    return counts


def read_blocks(
    context: HandleContext, file: AnyFile, offsets: npt.ArrayLike, length: int, into: Any
) -> npt.NDArray[np.int64]:
    """`length` bytes from each of `offsets`, block i at `into[i * length]`; how many bytes each got.

    `into` holds at least len(offsets) * length bytes; what lies behind the file's end is not touched.
    """
    raw = raw_of(file)
    wanted = np.ascontiguousarray(offsets, dtype=np.int64)
    whole = as_piece(into)
    if wanted.ndim != 1 or length <= 0 or length_of(whole) < len(wanted) * length:
        raise ValueError(f"{len(wanted)} blocks of {length} bytes do not fit a buffer of {length_of(whole)}")
    try:
        raw.handle.check_readable()
        if len(wanted) and int(wanted.min()) < 0:
            raise error(Code.INVALID, "negative offset")
        counts = np.clip(raw.handle.length - wanted, 0, length)
        ios = place(raw.handle.file, wanted, length) if len(wanted) and int(counts.min()) == length else None
        if ios is not None:
            pieces = _cut(whole, len(wanted), length)
            failed = context.storage.read_rows(ios, pieces)
        else:  # a block crosses a chunk border or the end of the file
            layout = raw.handle.file
            failed = context.storage.read(
                [
                    ReadSpan(layout, offset, part_of(whole, number * length, count))
                    for number, (offset, count) in enumerate(zip(wanted.tolist(), counts.tolist(), strict=True))
                    if count
                ]
            )
        if failed:
            raise next(iter(failed.values()))
    except FfsError as exc:
        raise exc.to_oserror(raw.name) from exc
    return counts


def read_files(context: HandleContext, paths: Sequence[StrPath]) -> list[bytes | OSError]:
    """All of each file, or why not. Files are not held open: one that changes or goes meanwhile is looked at again."""
    results: list[bytes | OSError] = [OSError(0, "")] * len(paths)
    todo = list(range(len(paths)))
    for _ in range(READ_FILES_TRIES_MAX):
        again: list[int] = []
        while todo:
            part, todo = todo[:BATCH_STAT_MAX], todo[BATCH_STAT_MAX:]
            inodes = _stat_paths(context, paths, part, results)
            while inodes:
                group: list[tuple[int, meta_pb2.Inode]] = []
                nbytes = 0
                while inodes and (not group or nbytes + inodes[-1][1].length <= FILES_BYTES_MAX):
                    group.append(inodes.pop())
                    nbytes += group[-1][1].length
                again += _read_group(context, paths, group, results)
        todo = again
        if not todo:
            return results
    for number in todo:
        results[number] = error(Code.BUSY, "the file keeps changing").to_oserror(os.fspath(paths[number]))
    return results


def stat_or_error(context: HandleContext, path: StrPath, result: meta_pb2.InodeOrError) -> os.stat_result | OSError:
    """One answer of BatchStatPath as `os.stat` would give or raise it."""
    if result.status:
        return error(result.status).to_oserror(os.fspath(path))
    return stat_result(result.inode, context.inodes.length_of(result.inode))


def _stat_paths(
    context: HandleContext, paths: Sequence[StrPath], part: list[int], results: list[bytes | OSError]
) -> list[tuple[int, meta_pb2.Inode]]:
    """Regular files among `part` with their attributes; what is wrong with the others goes to `results`."""
    found: list[tuple[int, meta_pb2.Inode]] = []
    try:
        reply = context.meta.batch_stat_path(
            meta_pb2.BatchStatPathRequest(paths=[path_at(paths[number]) for number in part])
        )
    except FfsError as exc:
        raise exc.to_oserror() from exc
    for number, result in zip(part, reply.results, strict=True):
        if result.status:
            results[number] = error(result.status).to_oserror(os.fspath(paths[number]))
        elif stat.S_ISDIR(result.inode.mode):
            results[number] = error(Code.IS_DIRECTORY).to_oserror(os.fspath(paths[number]))
        elif not stat.S_ISREG(result.inode.mode):
            results[number] = error(Code.INVALID).to_oserror(os.fspath(paths[number]))
        else:
            found.append((number, result.inode))
    return found


def _read_group(
    context: HandleContext,
    paths: Sequence[StrPath],
    group: list[tuple[int, meta_pb2.Inode]],
    results: list[bytes | OSError],
) -> list[int]:
    """Read files at once; those to look at again, because they changed or went while they were read."""
    spans: list[ReadSpan] = []
    places: list[int] = []
    total = sum(context.inodes.length_of(inode) for _, inode in group)
    with context.scratch.take(max(total, 1)) as piece:
        at = 0
        cuts: list[tuple[int, int]] = []
        for place_, (_, inode) in enumerate(group):
            length = context.inodes.length_of(inode)
            cuts.append((at, length))
            if length:
                spans.append(ReadSpan(FileLayout.of(inode.id, inode.layout), 0, part_of(piece, at, length)))
                places.append(place_)
            at += length
        failed = {places[number]: exc for number, exc in context.storage.read(spans).items()}
        # A file that is gone by now may have been read as holes: only what is still there was read for sure.
        try:
            after = context.meta.batch_stat(meta_pb2.BatchStatRequest(inodes=[inode.id for _, inode in group])).inodes
        except FfsError as exc:
            raise exc.to_oserror() from exc
        again: list[int] = []
        for place_, ((number, inode), (start, length), now) in enumerate(zip(group, cuts, after, strict=True)):
            if now.id != inode.id or not now.nlink or now.truncate_version != inode.truncate_version:
                again.append(number)
            elif place_ in failed:
                results[number] = failed[place_].to_oserror(os.fspath(paths[number]))
            else:
                part = part_of(piece, start, length)
                results[number] = bytes(part.view if isinstance(part, Slice) else part)
    return again


def _cut(whole: Piece, count: int, length: int) -> list[Piece]:
    if isinstance(whole, Slice):
        memory, base = whole.memory, whole.offset
        return [Slice(memory, at, length) for at in range(base, base + count * length, length)]
    return [whole[at : at + length] for at in range(0, count * length, length)]


def _raise_first(failed: dict[int, FfsError], owners: Sequence[File]) -> None:
    if failed:
        number, exc = min(failed.items())
        raise exc.to_oserror(owners[number].name) from exc
