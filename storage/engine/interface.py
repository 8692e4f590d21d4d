"""What a chunk engine offers; the engine of one target directory, and the simulator's, keep this contract.

A chunk is (inode, index), at most `chunk_size` bytes, with a committed version and at most one pending version above
it. `apply` stores a pending version (durable across `kill -9`, the committed one stays readable), `commit` makes it the
committed one. The caller holds the chunk's lock from before `stat` to after `commit`; reads need no lock. All methods
block; they are safe to call from several threads for different chunks.

A *damaged* chunk is one whose committed bytes are known to be lost here. It is no hole: it is listed and counted with
its version, length and checksum, and answers CHECKSUM to reads and to updates that would build on its bytes, until it
is replaced whole (REPLACE, a WRITE over all of it, a truncation to nothing) or removed.

Errors: CHECKSUM when stored bytes do not match (nothing is returned), NO_SPACE (nothing changed), DISK_FAILED on an
I/O error (the target must go offline), INVALID for arguments out of bounds, CHUNK_NOT_FOUND.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.core.block_rows import BlockRows, Tally


class ChunkKey(NamedTuple):
    """Sorted as (inode, chunk index), which is also the order of `scan`."""

    inode: int
    chunk_index: int


class Writer(NamedTuple):
    """Whose update a version is: for exactly-once across restarts. Stored with the chunk."""

    client_id: bytes  # 16 bytes
    channel: int
    sequence: int


class CacheName(NamedTuple):
    """The name of a block of the KV cache: its chunk is found by a hash of the key, and is only what the key says."""

    key: bytes  # 8 to 64 bytes
    expires_unix_s: int  # from then on it is a miss; 0: never


class Version(NamedTuple):
    """One version of a chunk's content."""

    version: int  # from 1
    chain_version: int  # of the chain when it was applied, then when it was committed
    length: int
    crc32c: int  # of all bytes [0, length)
    writer: Writer
    removed: bool  # a pending removal
    damaged: bool = False  # the bytes are lost here; length and checksum say what they were
    name: CacheName | None = None  # None: a chunk of a file


class ChunkState(NamedTuple):
    """What is known of a chunk without reading its data."""

    key: ChunkKey
    chunk_size: int
    committed: Version | None
    pending: Version | None


class Extent(NamedTuple):
    """Bytes to place at `offset` of the chunk. `crc32c` was verified by the caller over `data`."""

    offset: int
    data: memoryview
    crc32c: int


class Update(NamedTuple):
    """A change of one chunk, to become `version`."""

    key: ChunkKey
    kind: UpdateKind
    version: int
    chain_version: int
    chunk_size: int
    length: int  # TRUNCATE, REPLACE and DAMAGED
    extents: Sequence[Extent]
    writer: Writer
    crc32c: int = 0  # DAMAGED: of the bytes that are lost
    name: CacheName | None = None  # of a block of the KV cache: PUT, REPLACE, DAMAGED; others make a file's chunk


class DoneChunk(NamedTuple):
    """What a request made of one chunk."""

    key: ChunkKey
    version: int
    chain_version: int
    length: int
    crc32c: int


class Done(NamedTuple):
    """The newest request of a writer's channel, and the chunks of it that are committed here."""

    writer: Writer
    chunks: tuple[DoneChunk, ...]


class ReadResult(NamedTuple):
    """`length` bytes were placed; they matched the stored checksums."""

    length: int
    crc32c: int  # of the bytes placed
    version: int
    chunk_length: int
    pending: bool  # a newer version is pending: the caller asks the tail before it answers


class Space(NamedTuple):
    """Of the file system that holds the target."""

    capacity_bytes: int
    free_bytes: int
    used_bytes: int  # by this target's chunks: their blocks
    chunks: int
    damaged: int = 0  # of them


class LastChunk(NamedTuple):
    """Summary of a range of chunk indexes of one inode: committed chunks only."""

    chunk_index: int
    length: int
    chunks: int
    used_bytes: int


class Quarantined(NamedTuple):
    """Bytes that did not match their checksum and are kept for a person to look at."""

    key: ChunkKey
    reason: str
    version: int
    length: int
    block_shift: int  # log2 of the block's size; 0: there are no bytes
    block: int
    replaced: bool  # the chunk has good content again, or was removed; else it is damaged now


class NamedBlock(NamedTuple):
    """A committed block of the KV cache, and where its bytes are until another version of it is committed."""

    key: ChunkKey
    name: CacheName
    length: int
    crc32c: int
    place: tuple[int, int]  # for `read_places`
    damaged: bool = False


class BlockObserver(Protocol):
    """Is told of every commit that concerns a block of the KV cache, by whichever thread commits. Never raises."""

    def stored(self, block: NamedBlock) -> None:
        """A block is committed, perhaps in another one's place."""

    def gone(self, key: ChunkKey) -> None:
        """It is no block of the KV cache any more."""

    def damaged(self, key: ChunkKey) -> None:
        """Its bytes are lost here."""


class WouldBlock(Exception):
    """A call with `nowait` would have waited for the disk or for a thread, or worked for long; nothing was changed."""


class ChunkEngine(Protocol):
    """One target's chunks."""

    @property
    def disk_id(self) -> str:
        """Chosen when the target was made: another disk in its place, or one that was wiped, has another."""

    @property
    def lost_power(self) -> bool:
        """The machine lost power since `vouch`: what was committed and not synced may be gone."""

    def vouch(self) -> None:
        """What is stored here is known to be complete: `lost_power` is false from now on."""

    def stat(self, key: ChunkKey) -> ChunkState | None: ...

    def read(
        self, key: ChunkKey, offset: int, into: memoryview, *, pending: bool = False, nowait: bool = False
    ) -> ReadResult:
        """Place bytes [offset, offset + len(into)) of the committed (or the pending, if any) version; short at its end.

        Raises CHUNK_NOT_FOUND, CHECKSUM, and WouldBlock.
        """

    def read_block(
        self, key: ChunkKey, name: bytes, into: Sequence[memoryview], now_unix_s: int, *, nowait: bool = False
    ) -> ReadResult:
        """Place the whole committed block into the pieces, one after the other, if it is the one of that name.

        `crc32c` is of all of it. With too little room nothing is placed: length 0, `chunk_length` says how much it is.
        Raises CHUNK_NOT_FOUND (expired ones too), CHECKSUM, and WouldBlock.
        """

    def read_rows(self, rows: BlockRows, begin: int, end: int, memory: memoryview, at: int) -> Tally:
        """Fill `memory` from `at` on with what `BlockTable.locate_rows` found for these rows, one behind the other, as
        `read_places` would, and make their `results`: TOO_LARGE for more than a row's room, SLOW for what must be
        waited for, whose place stays its own and is zero. Raises PROTOCOL where memory ends too soon.
        """

    def read_places(self, wanted: Sequence[tuple[tuple[int, int], list[memoryview]]], start: int) -> int:
        """Fill the pieces with what blocks' places hold *now*, unverified: who looked a place up a moment ago and
        compares the checksum of all of it has the block, or knows that it has been replaced.

        One after the other, from `wanted[start]` on; which one it stopped at, because the disk must be waited for or
        gives nothing: `read_block` says which. Raises nothing.
        """

    def blocks_of_cache(self, after: ChunkKey | None, limit: int) -> tuple[list[NamedBlock], ChunkKey | None]:
        """Committed blocks among the next `limit` chunks after `after`, and where to go on; None: that was all."""

    def observe(self, observer: BlockObserver) -> bool:
        """From now on tell `observer`; what is there already `blocks_of_cache` lists. False: nobody is ever told."""

    def apply(self, updates: Sequence[Update], *, nowait: bool = False) -> list[Version]:
        """Store each as the chunk's pending version, replacing a pending one. All or nothing for each chunk.

        The updates are of distinct chunks. On an error for one, raises; chunks before it in order may be applied
        (applying again is harmless). With `nowait`, raises WouldBlock instead of reading the disk or copying much.
        """

    def commit(
        self,
        keys: Sequence[tuple[ChunkKey, int]],
        chain_version: int,
        *,
        remember: bool = True,
        nowait: bool = False,
    ) -> None:
        """Make pending version `n` of each (key, n) the committed one, stamped with `chain_version`.

        A version already committed is no error (its chain version is raised); another pending version is INVALID.
        With `remember`, the writers' requests are known from now on (`done`). With `nowait`, raises WouldBlock instead
        of waiting.
        """

    def apply_committed(
        self, updates: Sequence[Update], chain_version: int, *, remember: bool = True, nowait: bool = False
    ) -> list[Version]:
        """`apply` and `commit` in one step: for a replica that has nobody to wait for. Errors as `apply`; a chunk whose
        update was not committed may have it pending. The versions are as applied: stored is `chain_version`.
        """

    def done(self, after: Writer | None, limit: int) -> list[Done]:
        """The newest request of each channel, in the order of (client, channel), strictly after that of `after`.

        Survives what the commits survive. Bounded: the channels longest without a commit are forgotten.
        """

    def adopt(self, done: Sequence[Done]) -> None:
        """Remember also what another replica remembers. What is newer here stays."""

    def last_chunk(self, inode: int, begin: int, end: int) -> LastChunk | None:
        """The highest committed chunk of inode in [begin, end) (end 0: no end), or None."""

    def scan(self, after: ChunkKey | None, limit: int) -> list[ChunkState]:
        """States in key order, strictly after `after`."""

    def scan_inode(self, inode: int, begin: int, end: int, limit: int) -> list[ChunkState]:
        """States of one inode with begin <= index < end (end 0: no end), lowest index first."""

    def pending(self, limit: int, after: ChunkKey | None = None) -> list[ChunkState]:
        """Chunks with a pending version (what a restart or a chain change must resolve), as `scan`; fewer: no more."""

    def verify(self, key: ChunkKey) -> int:
        """Read the whole committed version, from the disk rather than from a cache where that can be; its length.

        Raises CHUNK_NOT_FOUND, and CHECKSUM when it is damaged. What it read does not stay in the page cache.
        """

    def quarantine(self, key: ChunkKey, reason: str) -> None:
        """The committed bytes are lost: the chunk is damaged from here on, and its bytes are kept. The caller holds it.

        A pending version stays. Nothing happens where nothing is committed, or it is damaged already.
        """

    def quarantined(self, limit: int) -> list[Quarantined]:
        """What is damaged now, and what else was kept."""

    def sync(self) -> None:
        """Returns when everything committed so far survives a power cut. Blocks; several callers share one."""

    def reclaim(self) -> None:
        """Give free blocks back to the file system, for others that share it."""

    def space(self) -> Space: ...

    def stats(self) -> dict[str, float]: ...

    def close(self) -> None: ...


def check_distinct(keys: Iterable[ChunkKey]) -> bool:
    """Whether no chunk is named twice."""
    listed = list(keys)
    return len(set(listed)) == len(listed)
