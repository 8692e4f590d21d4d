"""Committing: pending versions, or such as were never stored as pending, become the committed ones, in one batch.

The batch also keeps what a power cut may ask for (undo records), ends damage, and says whose request was done. Callers
hold the chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fireflyfs.storage.engine.checkpoint import Epochs
from fireflyfs.storage.engine.damage import Damage
from fireflyfs.storage.engine.interface import ChunkKey, DoneChunk, Writer
from fireflyfs.storage.engine.metadata import MetaStore, WriteBatch
from fireflyfs.storage.engine.newest import Committed
from fireflyfs.storage.engine.record import (
    COMMITTED,
    PENDING,
    Record,
    chunk_key,
    dead_deltas,
    pack,
    stamp,
    undo_key,
)
from fireflyfs.storage.engine.writers import WriterTable


class Change(NamedTuple):
    """One chunk of a commit: the version that is to be the committed one, and the one that it replaces."""

    key: ChunkKey
    raw: bytes | None  # as it is stored as pending; None: it is not
    new: Record
    raw_old: bytes | None
    old: Record | None


class Committer:
    """Writes commits, and counts them. `chunks`: how many are committed."""

    def __init__(
        self, meta: MetaStore, epochs: Epochs, damage: Damage, writers: WriterTable, newest: Committed, *, chunks: int
    ) -> None:
        self._meta = meta
        self._epochs = epochs
        self._damage = damage
        self._writers = writers
        self._newest = newest
        self.chunks = chunks
        self.commits = 0

    def write(self, batch: WriteBatch, changes: Sequence[Change], chain_version: int, remember: bool) -> None:
        """Add the changes to `batch` and write it."""
        added = 0
        held: list[tuple[list[tuple[int, int]], tuple[bytes, ...]]] = []
        stored: list[tuple[ChunkKey, bytes]] = []
        with self._epochs.gate:
            epoch = self._epochs.current
            for key, raw, new, raw_old, old in changes:
                if raw is not None:
                    batch.delete(chunk_key(PENDING, key))
                    raw_new = stamp(raw, epoch=epoch, chain_version=chain_version)
                else:
                    raw_new = pack(new._replace(epoch=epoch, chain_version=chain_version))
                self._newest.drop(key)  # nobody sees the old record once the new one may be seen
                if new.removed:
                    batch.delete(chunk_key(COMMITTED, key))
                else:
                    batch.put(chunk_key(COMMITTED, key), raw_new)
                    stored.append((key, raw_new))
                blocks: list[tuple[int, int]] = []
                names: list[bytes] = []
                if (old is None and not new.removed) or (old is not None and old.epoch != epoch):
                    # What an fsync may have covered, or that nothing was there: a power cut may ask for it.
                    names.append(undo_key(epoch, key))
                    batch.put(names[0], raw_old or b"")
                if old is not None and not (old.damaged and self._damage.end(batch, key, old, new)):
                    blocks, logged = dead_deltas(key, old, new)
                    names += logged
                    if old.block_shift and (new.removed or old.block_place != new.block_place):
                        blocks.append(old.block_place)
                if new.damaged:
                    self._damage.mark(batch, key, raw_new, "no other replica had its bytes either")
                held.append((blocks, tuple(names)))
                added += (not new.removed) - (old is not None)
            if remember:
                for writer, done in _by_writer(changes, chain_version).items():
                    self._writers.note(batch, writer, done)
            if len(batch):
                self._meta.write(batch)
            if changes:
                self._epochs.note_change()
            self._newest.put_all(stored)
            self.chunks += added
            self.commits += len(changes)
            for blocks, dead in held:
                self._epochs.replaced(blocks, dead)


def _by_writer(changes: Sequence[Change], chain_version: int) -> dict[Writer, list[DoneChunk]]:
    """What a commit does, for each of its requests: nearly always one."""
    if len(changes) == 1:
        key, _, new, _, _ = changes[0]
        done = DoneChunk(key, new.version, chain_version, new.length, new.crc)
        return {Writer(new.client_id, new.channel, new.sequence): [done]}
    found: dict[Writer, list[DoneChunk]] = {}
    for change in changes:
        new = change.new
        writer = Writer(new.client_id, new.channel, new.sequence)
        found.setdefault(writer, []).append(DoneChunk(change.key, new.version, chain_version, new.length, new.crc))
    return found
