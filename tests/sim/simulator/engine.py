"""A chunk engine in memory with the faults of a disk; keeps the engine contract (see tests/conformance).

Fault model: `kill -9` loses nothing and comes between two chunks of one call. A power cut loses what was not synced:
each chunk goes back to any state that it had since the last sync. A full disk refuses what is stored, a failed one
everything, a rotten chunk is read as damaged. Calls that may not wait are refused at random.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from crc32c import crc32c

from fireflyfs.common.errors import Code, error
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.engine.cache_blocks import BlocksByState
from fireflyfs.storage.engine.extents import check_update
from fireflyfs.storage.engine.interface import (
    ChunkKey,
    ChunkState,
    Done,
    DoneChunk,
    LastChunk,
    Quarantined,
    ReadResult,
    Space,
    Update,
    Version,
    WouldBlock,
    Writer,
    check_distinct,
)


class Stored(NamedTuple):
    """One version and its bytes."""

    version: Version
    data: bytes


class Chunk(NamedTuple):
    """One chunk at one moment."""

    chunk_size: int
    committed: Stored | None
    pending: Stored | None


class SimEngine(BlocksByState):
    """Outlives the processes that use it. `chance` decides what is lost and refused."""

    def __init__(
        self, chance: random.Random | None = None, on_commit: Callable[[ChunkKey, Stored], None] | None = None
    ):
        self.chunks: dict[ChunkKey, Chunk] = {}
        self.chance = chance or random.Random(0)
        self.on_commit = on_commit or (lambda key, stored: None)
        self.between: Callable[[], None] = lambda: None  # called before each change of a chunk
        self.refuse_nowait = 0.0
        self.full = False
        self.failed = False
        self.rotten: set[ChunkKey] = set()
        self.reasons: dict[ChunkKey, str] = {}  # of damaged chunks
        self.kept: list[Quarantined] = []
        self.syncs = 0
        self.disk_id = "disk"
        self.lost_power = False
        self.writers: dict[tuple[bytes, int], tuple[int, dict[ChunkKey, DoneChunk]]] = {}
        self._since_sync: dict[ChunkKey, list[Chunk | None]] = {}

    # What happens to it

    def power_cut(self) -> None:
        """Each chunk that changed since the last sync goes back to any state since then."""
        self.lost_power = True
        for key, states in self._since_sync.items():
            state = self.chance.choice([*states, self.chunks.get(key)])
            if state is None:
                self.chunks.pop(key, None)
            else:
                self.chunks[key] = state
            for _, known in self.writers.values():
                known.pop(key, None)
        self._since_sync.clear()

    def wipe(self) -> None:
        """Another disk, or an empty one, stands where this one was."""
        self.disk_id = f"disk {self.chance.getrandbits(32):08x}"
        self.lost_power = False
        self.chunks.clear()
        self.writers.clear()
        self._since_sync.clear()
        self.rotten.clear()

    def _set(self, key: ChunkKey, chunk: Chunk | None) -> None:
        self.between()
        self._since_sync.setdefault(key, []).append(self.chunks.get(key))
        if chunk is None or (chunk.committed is None and chunk.pending is None):
            self.chunks.pop(key, None)
        else:
            self.chunks[key] = chunk

    def _check(self, nowait: bool = False) -> None:
        if self.failed:
            raise error(Code.DISK_FAILED, "the disk has failed")
        if nowait and self.chance.random() < self.refuse_nowait:
            raise WouldBlock

    # The contract

    def stat(self, key: ChunkKey) -> ChunkState | None:
        self._check()
        chunk = self.chunks.get(key)
        return None if chunk is None else _state(key, chunk)

    def read(
        self, key: ChunkKey, offset: int, into: memoryview, *, pending: bool = False, nowait: bool = False
    ) -> ReadResult:
        self._check(nowait)
        if offset < 0:
            raise error(Code.INVALID, f"read at {offset}")
        chunk = self.chunks.get(key)
        if chunk is None:
            raise error(Code.CHUNK_NOT_FOUND, f"chunk {key}")
        chosen = chunk.pending if pending and chunk.pending is not None else chunk.committed
        if chosen is None or chosen.version.removed:
            raise error(Code.CHUNK_NOT_FOUND, f"chunk {key}")
        if chosen.version.damaged or (key in self.rotten and chosen is chunk.committed):
            into[:] = bytes(len(into))
            raise error(Code.CHECKSUM, f"chunk {key} is rotten")
        data = chosen.data[offset : offset + len(into)]
        into[: len(data)] = data
        crc = crc32c(data) if data else 0
        return ReadResult(len(data), crc, chosen.version.version, len(chosen.data), chunk.pending is not None)

    def apply(self, updates: Sequence[Update], *, nowait: bool = False) -> list[Version]:
        for update in updates:
            check_update(update)
        if not check_distinct(update.key for update in updates):
            raise error(Code.INVALID, "one chunk is named twice in one batch of updates")
        self._check(nowait)
        versions = []
        for update in updates:
            chunk = self.chunks.get(update.key)
            new = self._changed(update, chunk.committed if chunk is not None else None)
            if self.full and not new.version.removed and update.kind is not UpdateKind.TRUNCATE:
                raise error(Code.NO_SPACE, "the disk is full")
            size = chunk.chunk_size if chunk is not None and chunk.committed is not None else update.chunk_size
            if update.kind in (UpdateKind.REPLACE, UpdateKind.PUT):
                size = update.chunk_size
            self._set(update.key, Chunk(size, chunk.committed if chunk is not None else None, new))
            versions.append(new.version)
        return versions

    def _changed(self, update: Update, committed: Stored | None) -> Stored:
        kind = update.kind
        if kind is UpdateKind.DAMAGED:
            lost = Version(
                update.version,
                update.chain_version,
                update.length,
                update.crc32c,
                update.writer,
                False,
                True,
                update.name,
            )
            return Stored(lost, b"")
        removed = kind is UpdateKind.REMOVE or (kind is UpdateKind.TRUNCATE and committed is None)
        rotten = committed is not None and (committed.version.damaged or update.key in self.rotten)
        if committed is not None and rotten and kind in (UpdateKind.WRITE, UpdateKind.TRUNCATE):
            length = committed.version.length
            written = sorted((extent.offset, extent.offset + len(extent.data)) for extent in update.extents)
            covered = 0
            for begin, end in written:
                covered = max(covered, end) if begin <= covered else covered
            emptied = kind is UpdateKind.TRUNCATE and update.length == 0
            if not emptied and covered < length:
                raise error(Code.CHECKSUM, f"chunk {update.key} is rotten")
        old = committed.data if committed is not None and kind in (UpdateKind.WRITE, UpdateKind.TRUNCATE) else b""
        data = bytearray(b"" if removed else old)
        if kind is UpdateKind.TRUNCATE:
            del data[update.length :]
        for extent in update.extents:
            if not len(extent.data):
                continue
            end = extent.offset + len(extent.data)
            data.extend(bytes(max(0, end - len(data))))
            data[extent.offset : end] = extent.data
        whole_crc = crc32c(bytes(data)) if data else 0
        return Stored(
            Version(
                update.version, update.chain_version, len(data), whole_crc, update.writer, removed, name=update.name
            ),
            bytes(data),
        )

    def done(self, after: Writer | None, limit: int) -> list[Done]:
        self._check()
        later = sorted(channel for channel in self.writers if after is None or channel > after[:2])
        return [
            Done(Writer(*channel, self.writers[channel][0]), tuple(self.writers[channel][1].values()))
            for channel in later[:limit]
        ]

    def adopt(self, done: Sequence[Done]) -> None:
        self._check()
        for writer, chunks in done:
            self.between()
            self._remember(writer, chunks)

    def _remember(self, writer: Writer, chunks: Sequence[DoneChunk]) -> None:
        sequence, known = self.writers.get(writer[:2], (-1, {}))
        if sequence > writer.sequence:
            return
        if sequence < writer.sequence:
            known = {}
        self.writers[writer[:2]] = writer.sequence, known | {chunk.key: chunk for chunk in chunks}

    def commit(
        self,
        keys: Sequence[tuple[ChunkKey, int]],
        chain_version: int,
        *,
        remember: bool = True,
        nowait: bool = False,
    ) -> None:
        self._check(nowait)
        for key, number in keys:
            chunk = self.chunks.get(key)
            if chunk is None:
                continue  # a removal that was committed before
            pending, committed = chunk.pending, chunk.committed
            if pending is not None and pending.version.version == number:
                new = pending._replace(version=pending.version._replace(chain_version=chain_version))
                self._set(key, Chunk(chunk.chunk_size, None if new.version.removed else new, None))
                self._replaced(key, committed, new)
                if remember:
                    version = new.version
                    done = DoneChunk(key, number, chain_version, version.length, version.crc32c)
                    self._remember(version.writer, [done])
                self.on_commit(key, new)
            elif committed is not None and committed.version.version >= number:
                if committed.version.version == number and committed.version.chain_version < chain_version:
                    stamped = committed._replace(version=committed.version._replace(chain_version=chain_version))
                    self._set(key, chunk._replace(committed=stamped))
            else:
                raise error(Code.INVALID, f"version {number} of chunk {key} is not pending")

    def apply_committed(
        self, updates: Sequence[Update], chain_version: int, *, remember: bool = True, nowait: bool = False
    ) -> list[Version]:
        versions = self.apply(updates, nowait=nowait)
        self.commit([(update.key, update.version) for update in updates], chain_version, remember=remember)
        return versions

    def last_chunk(self, inode: int, begin: int, end: int) -> LastChunk | None:
        states = [state for state in self.scan_inode(inode, begin, end, 1 << 30) if state.committed is not None]
        if not states or states[-1].committed is None:
            return None
        used = sum(state.committed.length for state in states if state.committed is not None)
        return LastChunk(states[-1].key.chunk_index, states[-1].committed.length, len(states), used)

    def scan(self, after: ChunkKey | None, limit: int) -> list[ChunkState]:
        self._check()
        keys = sorted(key for key in self.chunks if after is None or key > after)[:limit]
        return [_state(key, self.chunks[key]) for key in keys]

    def scan_inode(self, inode: int, begin: int, end: int, limit: int) -> list[ChunkState]:
        self._check()
        keys = [k for k in self.chunks if k.inode == inode and begin <= k.chunk_index and (not end or k[1] < end)]
        return [_state(key, self.chunks[key]) for key in sorted(keys)[:limit]]

    def pending(self, limit: int, after: ChunkKey | None = None) -> list[ChunkState]:
        return [state for state in self.scan(after, len(self.chunks)) if state.pending is not None][:limit]

    def verify(self, key: ChunkKey) -> int:
        self._check()
        chunk = self.chunks.get(key)
        if chunk is None or chunk.committed is None:
            raise error(Code.CHUNK_NOT_FOUND, f"chunk {key}")
        if chunk.committed.version.damaged or key in self.rotten:
            raise error(Code.CHECKSUM, f"chunk {key} is rotten")
        return len(chunk.committed.data)

    def quarantine(self, key: ChunkKey, reason: str) -> None:
        self._check()
        chunk = self.chunks.get(key)
        if chunk is None or chunk.committed is None or chunk.committed.version.damaged:
            return
        lost = Stored(chunk.committed.version._replace(damaged=True), chunk.committed.data)
        self._set(key, chunk._replace(committed=lost))
        self.rotten.discard(key)
        self.reasons[key] = reason

    def quarantined(self, limit: int) -> list[Quarantined]:
        now = [
            Quarantined(key, self.reasons.get(key, ""), c.version.version, c.version.length, 0, 0, False)
            for key, chunk in sorted(self.chunks.items())
            if (c := chunk.committed) is not None and c.version.damaged
        ]
        return (now + self.kept)[:limit]

    def _replaced(self, key: ChunkKey, old: Stored | None, new: Stored) -> None:
        """A new committed version takes the place of `old`: damaged bytes that are not back are kept."""
        self.rotten.discard(key)
        if old is None or not old.version.damaged:
            return
        same = (old.version.version, old.version.crc32c) == (new.version.version, new.version.crc32c)
        if old.data and not (same and not new.version.damaged):
            version, length = old.version.version, old.version.length
            self.kept.append(Quarantined(key, self.reasons.get(key, ""), version, length, 0, 0, True))

    def vouch(self) -> None:
        self.lost_power = False

    def sync(self) -> None:
        self._check()
        self.syncs += 1
        self._since_sync.clear()

    def space(self) -> Space:
        self._check()
        used = sum(chunk.chunk_size for chunk in self.chunks.values())
        free = 0 if self.full else 1 << 40
        held = [chunk.committed for chunk in self.chunks.values() if chunk.committed is not None]
        return Space(1 << 41, free, used, len(held), self.space_damaged())

    def space_damaged(self) -> int:
        held = [chunk.committed for chunk in self.chunks.values() if chunk.committed is not None]
        return sum(stored.version.damaged for stored in held)

    def stats(self) -> dict[str, float]:
        return {"chunks": float(len(self.chunks))}

    def close(self) -> None:
        pass


def _state(key: ChunkKey, chunk: Chunk) -> ChunkState:
    return ChunkState(
        key,
        chunk.chunk_size,
        chunk.committed.version if chunk.committed is not None else None,
        chunk.pending.version if chunk.pending is not None else None,
    )
