"""The chunk engine of one target directory: `open_engine`. The contract is in interface.py, the format in
docs/format/chunk_store.md.

Who may do what at the same time: the caller holds a chunk from `stat` to after `commit`. Inside, one of ChunkLocks
guards each chunk against folding and quarantine; `Epochs.gate` orders commits against the closing of an epoch. Order of
taking them: chunk lock, gate. Reads take neither.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from fireflyfs.common import native
from fireflyfs.common.clock import Clock, SystemClock
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.net.host import host_id
from fireflyfs.storage.core.block_rows import BlockRows, Tally
from fireflyfs.storage.engine.block_space import KEPT_BYTES_DEFAULT
from fireflyfs.storage.engine.blocks import BlockStore
from fireflyfs.storage.engine.cache_blocks import CacheBlocks, no_room, read_rows
from fireflyfs.storage.engine.checkpoint import HELD_ITEMS_MAX, Background, Epochs, read_epochs
from fireflyfs.storage.engine.chunk_locks import ChunkLocks
from fireflyfs.storage.engine.chunk_reads import ChunkReads
from fireflyfs.storage.engine.chunks import Chunks
from fireflyfs.storage.engine.commit import Change, Committer
from fireflyfs.storage.engine.damage import Damage
from fireflyfs.storage.engine.extents import check_update
from fireflyfs.storage.engine.fold import FOLD_CHUNKS_MAX, WAITING_CHUNKS_MAX, Folder
from fireflyfs.storage.engine.identity import create_target, require_identity
from fireflyfs.storage.engine.interface import (
    BlockObserver,
    ChunkKey,
    ChunkState,
    Done,
    LastChunk,
    NamedBlock,
    Quarantined,
    ReadResult,
    Space,
    Update,
    Version,
    WouldBlock,
    Writer,
    check_distinct,
)
from fireflyfs.storage.engine.listing import Listing
from fireflyfs.storage.engine.metadata import MetaStore, WriteBatch, new_batch
from fireflyfs.storage.engine.newest import Committed
from fireflyfs.storage.engine.reader import Mismatch, VerifiedReader
from fireflyfs.storage.engine.record import (
    COMMITTED,
    FLAG_DAMAGED,
    PENDING,
    Record,
    chunk_key,
    dead_deltas,
    is_damaged,
    pack,
    stamp,
    unpack,
)
from fireflyfs.storage.engine.recovery import (
    BOOT_KEY,
    DISK_ID_KEY,
    LOST_POWER_KEY,
    check_format,
    roll_back,
    scan,
)
from fireflyfs.storage.engine.stage import Staged, Stager
from fireflyfs.storage.engine.writers import WriterTable

FOLD_ROUNDS_MAX = WAITING_CHUNKS_MAX // FOLD_CHUNKS_MAX  # to fold all that may wait
CHECKPOINT_INTERVAL_S = 5.0

__all__ = ["Engine", "create_target", "open_engine"]


def _boot_id() -> str:
    found = host_id()
    if not found:
        raise error(Code.CONFIG, "the kernel's boot id cannot be read: a power cut would pass for a restart")
    return found


def _disk_id(meta: MetaStore) -> str:
    raw = meta.get(DISK_ID_KEY)
    if raw is None:
        raw = secrets.token_hex(8).encode()
        meta.put(DISK_ID_KEY, raw)
        meta.flush()
    return raw.decode()


def open_engine(
    path: Path,
    *,
    capacity_bytes: int = 0,
    cluster_id: str | None = None,
    target_id: int | None = None,
    checkpoint_interval_s: float = CHECKPOINT_INTERVAL_S,
    kept_bytes: int = KEPT_BYTES_DEFAULT,
    boot_id: str | None = None,
    clock: Clock | None = None,
) -> Engine:
    """Open the target at path; one process at a time.

    capacity_bytes bounds its blocks (0: the file system does). With cluster_id and target_id, a directory that is
    another target is refused. checkpoint_interval_s 0: no background thread; the caller calls `checkpoint`.
    Raises CONFIG, WRONG_CLUSTER, VERSION_MISMATCH, BUSY (another process has it), DISK_FAILED.
    """
    if cluster_id is not None and target_id is not None:
        require_identity(path, cluster_id, target_id)
    return Engine(
        path, capacity_bytes, checkpoint_interval_s, kept_bytes, boot_id or _boot_id(), clock or SystemClock()
    )


class Engine:
    """A `ChunkEngine`."""

    def __init__(
        self,
        path: Path,
        capacity_bytes: int,
        checkpoint_interval_s: float,
        kept_bytes: int,
        boot_id: str,
        clock: Clock,
    ) -> None:
        self._meta = MetaStore(path / "meta")
        try:
            check_format(self._meta)
            self._blocks = BlockStore(path / "blocks", capacity_bytes, kept_bytes)
            self._reader = VerifiedReader(self._blocks, self._meta)
            durable, current = read_epochs(self._meta)
            last_boot = self._meta.get(BOOT_KEY)
            power_cut = last_boot is not None and last_boot != boot_id.encode()
            rolled_back = roll_back(self._meta, self._reader, durable) if power_cut else []
            found = scan(self._meta, self._blocks, durable, len(rolled_back))
            # One beyond what the last process may have used: it stores a new epoch after it begins to use it.
            self._epochs = Epochs(self._meta, self._blocks, durable, current + 2)
            self._disk_id = _disk_id(self._meta)
            if rolled_back or power_cut:
                self._meta.put(LOST_POWER_KEY, b"1")
            self._lost_power = self._meta.get(LOST_POWER_KEY) is not None
            self._meta.put(BOOT_KEY, boot_id.encode())
            self._writers = WriterTable(self._meta)
        except BaseException:
            self._meta.close()
            raise
        self._locks = ChunkLocks()
        self._damage = Damage(self._meta, self._epochs.next_delta_id, len(found.damaged), found.kept)
        self._damage.mark_unlisted(found.damaged)
        self._rolled_back = found.rolled_back
        self._closed = False
        for epoch, held_blocks, keys in found.held:
            self._epochs.hold(held_blocks, keys, epoch)
        self._newest = Committed()
        self._chunks = Chunks(self._meta, self._newest, found.pending)
        self._reads = ChunkReads(self._chunks, self._reader)
        self._committer = Committer(
            self._meta, self._epochs, self._damage, self._writers, self._newest, chunks=found.chunks
        )
        self._cache = CacheBlocks(self._meta, self._reader, self._chunks.committed_raw)
        self._listing = Listing(self._meta, self._chunks)
        self._folder = Folder(
            self._meta, self._blocks, self._epochs, self._chunks.waiting, self._newest, self._locks.of, clock
        )
        for key, record in found.with_deltas:
            self._folder.note(key, record)
        self._stager = Stager(self._blocks, self._reader, self._epochs.next_delta_id)
        if power_cut:
            self._epochs.sync()
        self._background = Background(self._tick, checkpoint_interval_s, f"checkpoint {path.name}")

    @property
    def disk_id(self) -> str:
        return self._disk_id

    @property
    def lost_power(self) -> bool:
        return self._lost_power

    def vouch(self) -> None:
        if self._lost_power:
            batch = new_batch()
            batch.delete(LOST_POWER_KEY)
            self._meta.write(batch)
            self._lost_power = False

    # -- looking

    def stat(self, key: ChunkKey) -> ChunkState | None:
        return self._chunks.stat(key)

    def read(
        self, key: ChunkKey, offset: int, into: memoryview, *, pending: bool = False, nowait: bool = False
    ) -> ReadResult:
        return self._reads.read(key, offset, into, pending=pending, nowait=nowait)

    def read_block(
        self, key: ChunkKey, name: bytes, into: Sequence[memoryview], now_unix_s: int, *, nowait: bool = False
    ) -> ReadResult:
        return self._cache.read(key, name, into, now_unix_s, nowait=nowait)

    def read_rows(self, rows: BlockRows, begin: int, end: int, memory: memoryview, at: int) -> Tally:
        library = native.blocks
        if library is None:
            return read_rows(self.read_places, rows, begin, end, memory, at)
        tally = self._blocks.read_rows_cached(library, rows, begin, end, memory, at)
        if tally is None:
            no_room(memory)
        return tally

    def read_places(self, wanted: Sequence[tuple[tuple[int, int], list[memoryview]]], start: int) -> int:
        return self._blocks.read_cached(wanted, start)

    def blocks_of_cache(self, after: ChunkKey | None, limit: int) -> tuple[list[NamedBlock], ChunkKey | None]:
        return self._cache.list(after, limit)

    def observe(self, observer: BlockObserver) -> bool:
        return self._cache.observe(observer)

    def reclaim(self) -> None:
        self._blocks.reclaim()

    def verify(self, key: ChunkKey) -> int:
        return self._reads.verify(key)

    def last_chunk(self, inode: int, begin: int, end: int) -> LastChunk | None:
        return self._listing.last_chunk(inode, begin, end)

    def scan(self, after: ChunkKey | None, limit: int) -> list[ChunkState]:
        return self._listing.scan(after, limit)

    def scan_inode(self, inode: int, begin: int, end: int, limit: int) -> list[ChunkState]:
        return self._listing.scan_inode(inode, begin, end, limit)

    def pending(self, limit: int, after: ChunkKey | None = None) -> list[ChunkState]:
        return self._listing.pending(limit, after)

    # -- changing

    def apply(self, updates: Sequence[Update], *, nowait: bool = False) -> list[Version]:
        return self._with_room(updates, nowait, self._apply)

    def apply_committed(
        self, updates: Sequence[Update], chain_version: int, *, remember: bool = True, nowait: bool = False
    ) -> list[Version]:
        self._admit_commit(nowait)

        def apply(updates: Sequence[Update], nowait: bool) -> list[Version]:
            return self._apply(
                updates, nowait, lambda b, changes: self._write_commit(b, changes, chain_version, remember)
            )

        versions = self._with_room(updates, nowait, apply)
        self._committed(nowait)
        return versions

    def _with_room(
        self, updates: Sequence[Update], nowait: bool, apply: Callable[[Sequence[Update], bool], list[Version]]
    ) -> list[Version]:
        """Check and apply; where the disk is full, make room and try once more."""
        for update in updates:
            check_update(update)
        if not check_distinct(update.key for update in updates):
            raise error(Code.INVALID, "one chunk is named twice in one batch of updates")
        self._epochs.require_working()
        try:
            return apply(updates, nowait)
        except FfsError as exc:
            self._epochs.fail(exc)
            held = self._epochs.held_items or self._folder.patched_bytes or self._blocks.backed_free_bytes
            if exc.code != Code.NO_SPACE or not held:
                raise
            if nowait:
                raise WouldBlock from None
        self._make_room()  # nothing changed so far
        return apply(updates, False)

    def _make_room(self) -> None:
        """Give up all that may be: patches, what replaced versions still hold, and free blocks of other sizes."""
        for _ in range(FOLD_ROUNDS_MAX):
            if not self._folder.patched_bytes or not self._checkpoint(self._folder.fold):
                break
        self._epochs.sync()
        self._blocks.reclaim()

    def _apply(
        self,
        updates: Sequence[Update],
        nowait: bool,
        commit: Callable[[WriteBatch, Sequence[Change]], None] | None = None,
    ) -> list[Version]:
        """Store the updates as pending versions, or give them to `commit` with the batch that holds their deltas."""
        with self._locks.holding([update.key for update in updates], nowait):
            batch = new_batch()
            superseded: list[tuple[int, int]] = []
            allocated: list[tuple[int, int]] = []
            changes: list[Change] = []
            try:
                for update in updates:
                    raw_old = self._chunks.committed_raw(update.key)
                    committed = unpack(raw_old) if raw_old is not None else None
                    raw_waiting = self._chunks.pending_raw(update.key)
                    waiting = unpack(raw_waiting) if raw_waiting is not None else None
                    now = self._stage(update, committed, waiting, nowait)
                    allocated += now.allocated
                    for raw_key, value in now.deltas:
                        batch.put(raw_key, value)
                    if commit is None:
                        raw = pack(now.record)
                        batch.put(chunk_key(PENDING, update.key), raw)
                        changes.append(Change(update.key, raw, now.record, raw_old, committed))
                    else:
                        changes.append(Change(update.key, None, now.record, raw_old, committed))
                        if waiting is not None:
                            batch.delete(chunk_key(PENDING, update.key))
                    if waiting is not None:
                        patches, logged = dead_deltas(update.key, waiting, committed)
                        superseded += patches
                        for raw_key in logged:
                            batch.delete(raw_key)
                        if waiting.block_shift and (committed is None or waiting.block_place != committed.block_place):
                            superseded.append(waiting.block_place)
                self._blocks.require_reserve(batch.size_in_bytes())
            except BaseException:
                for place in allocated:
                    self._blocks.free(*place)
                raise
            if commit is None:
                self._chunks.expect(changes)
                self._meta.write(batch)
                self._chunks.keep_pending(changes)
            else:
                commit(batch, changes)
            self._epochs.hold(superseded, ())
        return [change.new.to_version() for change in changes]

    def _stage(self, update: Update, committed: Record | None, waiting: Record | None, nowait: bool) -> Staged:
        try:
            return self._stager.stage(update, committed, waiting, self._folder.room, nowait=nowait)
        except Mismatch:
            raise self._reads.damaged(update.key) from None

    def commit(
        self,
        keys: Sequence[tuple[ChunkKey, int]],
        chain_version: int,
        *,
        remember: bool = True,
        nowait: bool = False,
    ) -> None:
        self._admit_commit(nowait)
        with self._locks.holding([key for key, _ in keys], nowait):
            self._commit(keys, chain_version, remember)
        self._committed(nowait)

    def _admit_commit(self, nowait: bool) -> None:
        self._epochs.require_working()
        if nowait and self._epochs.held_items > 4 * HELD_ITEMS_MAX:
            raise WouldBlock

    def _committed(self, nowait: bool) -> None:
        if self._epochs.due or self._folder.due:
            self._background.wake()
        if self._epochs.held_items > 4 * HELD_ITEMS_MAX and not nowait:
            self.sync()

    def _commit(self, keys: Sequence[tuple[ChunkKey, int]], chain_version: int, remember: bool) -> None:
        """One batch for all. Raises INVALID with nothing changed."""
        batch = new_batch()
        changes: list[Change] = []
        for key, version in keys:
            raw = self._chunks.pending_raw(key)
            raw_old = self._chunks.committed_raw(key)
            old = unpack(raw_old) if raw_old is not None else None
            new = unpack(raw) if raw is not None else None
            if raw is not None and new is not None and new.version == version:
                changes.append(Change(key, raw, new, raw_old, old))
            elif old is not None and raw_old is not None and old.version >= version:
                if old.version == version and old.chain_version < chain_version:
                    batch.put(chunk_key(COMMITTED, key), stamp(raw_old, chain_version=chain_version))
                    self._newest.drop(key)
            elif old is not None or new is not None:  # where there is nothing, a removal was committed before
                raise error(Code.INVALID, f"version {version} of chunk {key} is not pending")
        self._write_commit(batch, changes, chain_version, remember)

    def _write_commit(self, batch: WriteBatch, changes: Sequence[Change], chain_version: int, remember: bool) -> None:
        self._committer.write(batch, changes, chain_version, remember)
        for key, _, new, _, _ in changes:
            self._chunks.settle(key)
            self._folder.note(key, None if new.removed else new)
        self._cache.note(changes)

    def done(self, after: Writer | None, limit: int) -> list[Done]:
        return self._writers.page(after, limit)

    def adopt(self, done: Sequence[Done]) -> None:
        self._epochs.require_working()
        batch = new_batch()
        with self._epochs.gate:
            for writer, chunks in done:
                self._writers.note(batch, writer, chunks)
            self._meta.write(batch)
            self._epochs.note_change()

    def quarantine(self, key: ChunkKey, reason: str) -> None:
        self._epochs.require_working()
        with self._locks.holding([key]):
            raw = self._meta.get(chunk_key(COMMITTED, key))
            if raw is None or is_damaged(raw):
                return
            batch = new_batch()
            batch.put(chunk_key(COMMITTED, key), stamp(raw, flags=raw[1] | FLAG_DAMAGED))
            self._damage.mark(batch, key, raw, reason)
            with self._epochs.gate:
                self._newest.drop(key)
                self._meta.write(batch)
                self._epochs.note_change()
            self._folder.note(key, None)
            self._cache.note_damage(key, raw)

    def quarantined(self, limit: int) -> list[Quarantined]:
        return self._damage.listed(limit)

    # -- keeping

    def sync(self) -> None:
        self._epochs.sync()

    def checkpoint(self) -> None:
        """Sync, fold what became durable, give space back. Bounded: one round of each."""
        self._checkpoint(self._folder.fold)
        self._blocks.trim()

    def _tick(self) -> None:
        """As `checkpoint`, but what may soon be overwritten again is not folded yet, and space is given back slowly."""
        if self._checkpoint(self._folder.fold_quiet) and self._folder.due:
            self._background.wake()
        self._blocks.trim_some()

    def _checkpoint(self, fold: Callable[[], int]) -> int:
        self._epochs.sync()
        try:
            folded = fold()
        except FfsError as exc:
            self._epochs.fail(exc)
            raise
        return folded

    def space(self) -> Space:
        blocks = self._blocks
        return Space(
            blocks.capacity_bytes(), blocks.free_bytes(), blocks.used_bytes, self._committer.chunks, self._damage.count
        )

    def stats(self) -> dict[str, float]:
        own: dict[str, float] = {
            "chunks": self._committer.chunks,
            "commits": self._committer.commits,
            "pending": len(self._chunks.waiting),
            "rolled_back": self._rolled_back,
            "damaged": self._damage.count,
            "quarantined": self._damage.count + self._damage.kept,
            "sync_rounds": self._epochs.rounds,
            "held": self._epochs.held_items,
            "delta_bytes_waiting": self._folder.logged_bytes,
            "patch_bytes_waiting": self._folder.patched_bytes,
            "delta_bytes_folded": self._folder.folded_bytes,
        }
        staged = {f"staged_{name}": float(value) for name, value in self._stager.counters.items()}
        return own | self._reads.counters | self._cache.counters | staged | self._blocks.stats() | self._meta.stats()

    def close(self) -> None:
        """Sync and close. After a failed disk: close only."""
        if self._closed:
            return
        self._closed = True
        self._background.close()
        with contextlib.suppress(FfsError):
            self.checkpoint()
        self._meta.close()
        self._blocks.close()
