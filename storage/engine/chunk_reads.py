"""Reads of chunks: the record of the moment, and bytes that match it. They take no locks."""

from __future__ import annotations

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.storage.engine.chunks import Chunks
from fireflyfs.storage.engine.interface import ChunkKey, ReadResult
from fireflyfs.storage.engine.reader import Mismatch, VerifiedReader
from fireflyfs.storage.engine.record import unpack

READ_ATTEMPTS = 8  # a record replaced under a reader is read again; so often only under a storm of commits


class ChunkReads:
    """Whole answers to `ChunkEngine.read` and `verify`: what was replaced under a reader is looked at again."""

    def __init__(self, chunks: Chunks, reader: VerifiedReader) -> None:
        self._chunks = chunks
        self._reader = reader
        self.counters = dict.fromkeys(("reads", "read_bytes", "checksum_errors", "retried_reads"), 0)

    def read(self, key: ChunkKey, offset: int, into: memoryview, *, pending: bool, nowait: bool) -> ReadResult:
        """See `ChunkEngine.read`."""
        if offset < 0:
            raise error(Code.INVALID, f"read at {offset}")
        before: bytes | None = None
        for attempt in range(READ_ATTEMPTS):
            # Asked before the record is read: a version that is committed in between is then read, not missed.
            has_pending = key in self._chunks.waiting
            raw = self._chunks.pending_raw(key) if pending and has_pending else None
            if raw is None:
                raw = self._chunks.committed_raw(key)
            if raw is None:
                raise _missing(key, "")
            if raw == before and attempt > 1:
                break
            before = raw
            record = unpack(raw)
            if record.removed:
                raise _missing(key, " is being removed")
            if record.damaged:
                break
            count = min(len(into), record.length - offset)
            if count <= 0:
                return ReadResult(0, 0, record.version, record.length, has_pending)
            wanted = into if count == len(into) else into[:count]
            try:
                # The second time through memory of our own: a client could be writing to `into` all the while.
                place = self._reader.place if attempt == 0 else self._reader.place_private
                crc = place(key, record, offset, wanted, nowait=nowait)
            except Mismatch:
                self.counters["retried_reads"] += 1
                continue
            self.counters["reads"] += 1
            self.counters["read_bytes"] += count
            return ReadResult(count, crc, record.version, record.length, has_pending)
        into[:] = bytes(len(into))  # what was placed is wrong: nobody gets to see it
        raise self.damaged(key)

    def verify(self, key: ChunkKey) -> int:
        """See `ChunkEngine.verify`."""
        before: bytes | None = None
        for attempt in range(READ_ATTEMPTS):
            raw = self._chunks.committed_raw(key)
            if raw is None:
                raise _missing(key, "")
            record = unpack(raw)
            if record.damaged or (raw == before and attempt > 1):
                break
            before = raw
            try:
                self._reader.verify(key, record)
            except Mismatch:
                continue  # it was replaced meanwhile, or it is looked at once more
            return record.length
        raise self.damaged(key)

    def damaged(self, key: ChunkKey) -> FfsError:
        """The error for a chunk whose bytes do not match; counted."""
        self.counters["checksum_errors"] += 1
        return error(Code.CHECKSUM, f"chunk {key.inode:#x}/{key.chunk_index} does not match its checksum")


def _missing(key: ChunkKey, why: str) -> FfsError:
    return error(Code.CHUNK_NOT_FOUND, f"chunk {key.inode:#x}/{key.chunk_index}{why}")
