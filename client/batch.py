"""Many reads or writes over many open files in one go: one request to each storage worker, all under way at once.

Buffers are any contiguous buffers, or `Slice`s of memory from `FileSystem.allocate`, which servers of the same host
fill directly. Errors are OSError with the file's name. For thousands of blocks of one file use `read_blocks`: the whole
batch is placed in numpy.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fireflyfs.client.file import BufferedFile, File, as_piece
from fireflyfs.client.handle import HandleContext
from fireflyfs.client.paths import StrPath, path_at
from fireflyfs.client.storage_client import ReadSpan, WriteSpan
from fireflyfs.client.storage_codec import length_of, part_of
from fireflyfs.client.striping import place
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import BATCH_STAT_MAX
from fireflyfs.common.net.api import Piece, Slice
from fireflyfs.proto import meta_pb2

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
    try:
        failed = context.storage.write(spans)
    except BaseException:
        for owner in owners:
            owner.handle.torn()
        raise
    for number, (span, owner, version) in enumerate(zip(spans, owners, versions, strict=True)):
        if number not in failed:
            owner.handle.wrote(span.offset + length_of(span.data), version)
        else:
            owner.handle.torn()
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


def inodes(context: HandleContext, paths: Sequence[StrPath], follow: bool) -> list[meta_pb2.Inode | OSError]:
    """What is recorded of each path, or why not. `follow`: a symbolic link at the end of a path."""
    found: list[meta_pb2.Inode | OSError] = []
    for start in range(0, len(paths), BATCH_STAT_MAX):
        part = paths[start : start + BATCH_STAT_MAX]
        try:
            request = meta_pb2.BatchStatPathRequest(paths=[path_at(path, follow=follow) for path in part])
            reply = context.meta.batch_stat_path(request)
        except FfsError as exc:
            raise exc.to_oserror() from exc
        for path, result in zip(part, reply.results, strict=True):
            found.append(error(result.status).to_oserror(os.fspath(path)) if result.status else result.inode)
    return found


def _cut(whole: Piece, count: int, length: int) -> list[Piece]:
    if isinstance(whole, Slice):
        memory, base = whole.memory, whole.offset
        return [Slice(memory, at, length) for at in range(base, base + count * length, length)]
    return [whole[at : at + length] for at in range(0, count * length, length)]


def _raise_first(failed: dict[int, FfsError], owners: Sequence[File]) -> None:
    if failed:
        number, exc = min(failed.items())
        raise exc.to_oserror(owners[number].name) from exc
