"""Blocks of the KV cache in the engine: read whole under their name, listed, and told of as they are committed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn, Protocol

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.storage.core.block_rows import SLOW, TOO_LARGE, BlockRows, Tally
from fireflyfs.storage.engine.commit import Change
from fireflyfs.storage.engine.interface import BlockObserver, ChunkKey, ChunkState, NamedBlock, ReadResult
from fireflyfs.storage.engine.metadata import MetaStore
from fireflyfs.storage.engine.reader import Mismatch, VerifiedReader, cut_to, spread
from fireflyfs.storage.engine.record import (
    COMMITTED,
    block_of,
    check,
    chunk_key,
    content_of,
    is_damaged,
    key_of,
    name_of,
    unpack,
)
from fireflyfs.storage.engine.recovery import end_of

ATTEMPTS = 4  # a block that is replaced so often under one reader is a miss


class CacheBlocks:
    """The named chunks of one store. Takes no locks, as every reader."""

    def __init__(
        self, meta: MetaStore, reader: VerifiedReader, committed_raw: Callable[[ChunkKey], bytes | None]
    ) -> None:
        self._meta = meta
        self._reader = reader
        self._committed_raw = committed_raw
        self._observer: BlockObserver | None = None
        self.counters = dict.fromkeys(("block_reads", "block_read_bytes", "block_checksum_errors"), 0)

    def observe(self, observer: BlockObserver) -> bool:
        self._observer = observer
        return True

    def note(self, changes: Iterable[Change]) -> None:
        """These changes are committed."""
        observer = self._observer
        if observer is None:
            return
        for key, _, new, _, old in changes:
            if new.name is not None and not new.removed:
                if new.damaged:
                    observer.damaged(key)
                else:
                    observer.stored(NamedBlock(key, new.name, new.length, new.crc, new.block_place))
            elif old is not None and old.name is not None:
                observer.gone(key)

    def note_damage(self, key: ChunkKey, raw: bytes) -> None:
        """The chunk with that record is damaged from now on."""
        if self._observer is not None and name_of(raw) is not None:
            self._observer.damaged(key)

    def read(
        self, key: ChunkKey, name: bytes, into: Sequence[memoryview], now_unix_s: int, *, nowait: bool
    ) -> ReadResult:
        """See `ChunkEngine.read_block`."""
        before: bytes | None = None
        for attempt in range(ATTEMPTS):
            raw = self._committed_raw(key)
            if raw is None:
                raise _missing(key)
            if raw == before and attempt > 1:
                break
            before = raw
            record = unpack(raw)
            found = record.name
            if found is None or found.key != name or 0 < found.expires_unix_s <= now_unix_s:
                raise _missing(key)
            if record.damaged:
                break
            parts = cut_to(into, record.length)
            if parts is None:
                return ReadResult(0, 0, record.version, record.length, False)
            try:
                # The second time through memory of our own: a client could be writing to its own all the while.
                place = self._reader.place_whole if attempt == 0 else self._reader.place_whole_private
                place(key, record, parts, nowait=nowait)
            except Mismatch:
                continue
            self.counters["block_reads"] += 1
            self.counters["block_read_bytes"] += record.length
            return ReadResult(record.length, record.crc, record.version, record.length, False)
        self.counters["block_checksum_errors"] += 1
        for view in into:
            view[:] = bytes(len(view))  # what was placed is wrong: nobody gets to see it
        raise error(Code.CHECKSUM, f"block {key.inode:#x}/{key.chunk_index:#x} does not match its checksum")

    def list(self, after: ChunkKey | None, limit: int) -> tuple[list[NamedBlock], ChunkKey | None]:
        """See `ChunkEngine.blocks_of_cache`."""
        begin = COMMITTED if after is None else chunk_key(COMMITTED, after) + b"\0"
        found: list[NamedBlock] = []
        for seen, (raw_key, raw) in enumerate(self._meta.range(begin, end_of(COMMITTED)), 1):
            name = name_of(raw)
            if name is not None and _is_whole(raw):
                length, crc = content_of(raw)
                found.append(NamedBlock(key_of(raw_key), name, length, crc, block_of(raw), is_damaged(raw)))
            if seen >= limit:
                return found, key_of(raw_key)
        return found, None


class _Engine(Protocol):
    def stat(self, key: ChunkKey) -> ChunkState | None: ...

    def scan(self, after: ChunkKey | None, limit: int) -> list[ChunkState]: ...

    def read(
        self, key: ChunkKey, offset: int, into: memoryview, *, pending: bool = False, nowait: bool = False
    ) -> ReadResult: ...


class BlocksByState:
    """The same over `stat`, `scan` and `read`, for an engine that keeps no records (those of tests); tells nobody."""

    def observe(self, observer: BlockObserver) -> bool:
        return False

    def read_rows(self, rows: BlockRows, begin: int, end: int, memory: memoryview, at: int) -> Tally:
        return read_rows(self.read_places, rows, begin, end, memory, at)

    def read_places(self, wanted: Sequence[tuple[tuple[int, int], list[memoryview]]], start: int) -> int:
        return start

    def reclaim(self) -> None:
        """Nothing is kept."""

    def read_block(
        self: _Engine, key: ChunkKey, name: bytes, into: Sequence[memoryview], now_unix_s: int, *, nowait: bool = False
    ) -> ReadResult:
        state = self.stat(key)
        committed = state.committed if state is not None else None
        found = committed.name if committed is not None else None
        if committed is None or found is None or found.key != name or 0 < found.expires_unix_s <= now_unix_s:
            raise _missing(key)
        parts = cut_to(into, committed.length)
        if parts is None:
            return ReadResult(0, 0, committed.version, committed.length, False)
        whole = memoryview(bytearray(committed.length))
        result = self.read(key, 0, whole, nowait=nowait)
        spread(whole, parts)
        return result

    def blocks_of_cache(self: _Engine, after: ChunkKey | None, limit: int) -> tuple[list[NamedBlock], ChunkKey | None]:
        page = self.scan(after, limit)
        found = [
            NamedBlock(
                state.key,
                state.committed.name,
                state.committed.length,
                state.committed.crc32c,
                (0, 0),
                state.committed.damaged,
            )
            for state in page
            if state.committed is not None and state.committed.name is not None
        ]
        return found, page[-1].key if len(page) == limit else None


def read_rows(
    read_places: Callable[[Sequence[tuple[tuple[int, int], list[memoryview]]], int], int],
    rows: BlockRows,
    begin: int,
    end: int,
    memory: memoryview,
    at: int,
) -> Tally:
    """See `ChunkEngine.read_rows`: by `read_places`."""
    rooms = rows.rooms(begin, end)
    places: list[tuple[tuple[int, int], list[memoryview]]] = []
    there: list[int] = []
    hit_bytes = slow = 0
    note, end_of_memory = rows.set, len(memory)
    for row, size, crc, place in rows.located(begin, end):
        if size > rooms[row - begin]:
            note(row, TOO_LARGE)
            continue
        if at + size > end_of_memory:
            no_room(memory)
        places.append((place, [memory[at : at + size]]))
        there.append(row)
        note(row, (0, size, crc, at))
        at += size
        hit_bytes += size
    done = read_places(places, 0)
    while done < len(places):  # it stopped here: some of what follows may be in memory
        (into,) = places[done][1]
        # It goes to the client up to its last block, and was another request's before: a block that does not come, or
        # comes shorter, leaves nothing of that.
        into[:] = bytes(len(into))
        (result,) = rows.results(there[done], there[done] + 1)
        rows.set(there[done], (SLOW, *result[1:]))
        hit_bytes -= len(into)
        slow += 1
        done = read_places(places, done + 1)
    return Tally(at, len(there) - slow, hit_bytes, slow)


def no_room(memory: memoryview) -> NoReturn:
    raise error(Code.PROTOCOL, f"the blocks do not fit the {len(memory)} bytes of memory that were offered")


def _missing(key: ChunkKey) -> FfsError:
    return error(Code.CHUNK_NOT_FOUND, f"block {key.inode:#x}/{key.chunk_index:#x}")


def _is_whole(raw: bytes) -> bool:
    """Whether a record can be read at all; a damaged record is found by who reads it."""
    try:
        check(raw)
    except FfsError:
        return False
    return True
