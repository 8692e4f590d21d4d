"""LSEEK, FALLOCATE, COPY_FILE_RANGE: ranges of a file as a whole, done by storage without moving bytes through here."""

from __future__ import annotations

import errno
import os
from typing import Final

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import FILE_BYTES_MAX, MiB
from fireflyfs.fuse import protocol
from fireflyfs.fuse.inodes import LiveInode
from fireflyfs.fuse.operations.files import length_now
from fireflyfs.fuse.request import Reply, Request
from fireflyfs.fuse.volume import Volume
from fireflyfs.proto import meta_pb2 as m

KEEP_SIZE: Final = 0x01  # FALLOC_FL_*
PUNCH_HOLE: Final = 0x02
ZERO_RANGE: Final = 0x10
MODES: Final = (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE)
COPY_BYTES_MAX: Final = 64 * MiB  # by one request: a caller who wants more asks again, and can be interrupted between
LENGTHEN_TRIES: Final = 4  # of a file that others truncate meanwhile: what they say last counts


def lseek(volume: Volume, request: Request) -> Reply:
    """SEEK_DATA and SEEK_HOLE: what storage has no chunk of, or not to its end, is a hole."""
    fh, offset, whence, _ = protocol.LSEEK_IN.unpack_from(request.body)
    live = volume.handles.file(fh).live
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise error(Code.INVALID, f"lseek with whence {whence}")
    volume.write_behind.flush(live.id)
    length = length_now(volume, live)
    if offset >= length:
        raise OSError(errno.ENXIO, "nothing behind the end")
    if whence == os.SEEK_DATA:
        for found in volume.data.ranges(live.file, offset, length, few=True):
            return protocol.LSEEK_OUT.pack(found.start)
        raise OSError(errno.ENXIO, "no data from here to the end")
    for found in volume.data.ranges(live.file, offset, length):
        if found.start > offset:
            break
        offset = found.end
    return protocol.LSEEK_OUT.pack(offset)


def fallocate(volume: Volume, request: Request) -> Reply:
    fh, offset, length, mode, _ = protocol.FALLOCATE_IN.unpack_from(request.body)
    if mode not in MODES:
        raise error(Code.NOT_SUPPORTED, f"fallocate with mode {mode:#x}")
    if not length:
        raise error(Code.INVALID, "fallocate of no bytes")
    end = offset + length
    if end > FILE_BYTES_MAX:
        raise error(Code.TOO_BIG)
    live = volume.handles.file(fh).live
    volume.locks.held.check(live.id, fh)
    with live.lock:
        volume.ensure_session(live)
        volume.flush(live)
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            volume.data.punch(live.file, offset, length)
            live.mtime_ns = volume.clock.unix_ns()
        else:
            _check_room(volume, live, offset, end)
        if not mode & KEEP_SIZE:
            _lengthen(volume, live, end)
    if volume.options.strict:
        volume.record(live, keep=True)
    return b""


def _lengthen(volume: Volume, live: LiveInode, end: int) -> None:
    """As a write of no bytes would. Setting the length would cut off what others have written beyond `end` and not
    recorded yet. Called under `live.lock`, with a session."""
    for _ in range(LENGTHEN_TRIES):
        if end <= length_now(volume, live):
            return
        volume.ensure_room(live, end)
        live.written_end = end
        live.mtime_ns = volume.clock.unix_ns()
        volume.record(live, keep=True)  # says nothing where the file was truncated elsewhere: then once more


def _check_room(volume: Volume, live: LiveInode, offset: int, end: int) -> None:
    """Raises NO_SPACE when what is not there yet would not fit. Nothing is reserved: space is taken by writing."""
    free = volume.meta.stat_fs(m.StatFsRequest(caller=volume.callers.root)).free_bytes
    if end - offset <= free:
        return
    there = sum(found.end - found.start for found in volume.data.ranges(live.file, offset, end))
    if end - offset - there > free:
        raise error(Code.NO_SPACE, f"{free} bytes are free")


def copy_file_range(volume: Volume, request: Request) -> Reply:
    """Chunk by chunk from storage to storage. May copy less than was asked for."""
    fh, offset, _, into_fh, into_offset, length, flags = protocol.COPY_FILE_RANGE_IN.unpack_from(request.body)
    if flags:
        raise error(Code.INVALID, f"copy_file_range with flags {flags:#x}")
    source, into = volume.handles.file(fh).live, volume.handles.file(into_fh).live
    volume.locks.held.check(source.id, fh)
    volume.locks.held.check(into.id, into_fh)
    volume.flush(source)
    size = max(0, min(length, COPY_BYTES_MAX, length_now(volume, source) - offset))
    if into_offset + size > FILE_BYTES_MAX:
        raise error(Code.TOO_BIG)
    if not size:
        return protocol.WRITE_OUT.pack(0, 0)
    with into.lock:
        volume.ensure_session(into)
        volume.ensure_room(into, into_offset + size)
        volume.flush(into)  # what was written before must not come after the copy
        try:
            volume.data.copy(source.file, offset, into.file, into_offset, size)
        except FfsError:
            into.mtime_ns = volume.clock.unix_ns()
            into.unsure = True  # a part may be there, beyond the end: storage knows
            raise
        into.written_end = max(into.written_end, into_offset + size)
        into.mtime_ns = volume.clock.unix_ns()
    if volume.options.strict:
        volume.record(into, keep=True)
    return protocol.WRITE_OUT.pack(size, 0)
