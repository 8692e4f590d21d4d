"""Damaged chunks of one store: which there are, and the bytes that are kept of them for a person to look at.

A chunk is damaged while its committed record has FLAG_DAMAGED; a `q` record with number DAMAGED_NOW then says why, and
what the record was. When good content takes its place, or it is removed, that `q` record gets a number of its own: it
owns the blocks from there on, so that nobody writes over them. When the very content that was lost has come back there
is nothing to look at, and the blocks are given up as those of any replaced version.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

from fireflyfs.storage.engine.interface import ChunkKey, Quarantined
from fireflyfs.storage.engine.metadata import MetaStore, WriteBatch, new_batch
from fireflyfs.storage.engine.record import (
    COMMITTED,
    QUARANTINE,
    Record,
    block_of,
    blocks_of,
    chunk_key,
    key_of,
    unpack,
)

DAMAGED_NOW = 0  # no delta id is 0: the first epoch that is used is 2
KEPT_MAX = 1024  # records of bytes that were replaced since; what is damaged now is kept without a bound
REASON_BYTES_MAX = 512
_KEY_BYTES = 17
_END = QUARANTINE[:-1] + bytes([QUARANTINE[-1] + 1])


def unpack_quarantined(raw: bytes) -> tuple[str, bytes]:
    """(reason, stored form of the record)."""
    size = int.from_bytes(raw[:2], "little")
    return raw[2 : 2 + size].decode(errors="replace"), raw[2 + size :]


def _name(key: ChunkKey, number: int) -> bytes:
    return chunk_key(QUARANTINE, key) + number.to_bytes(8, "big")


class Damage:
    """The `q` records. Callers hold the chunk; what is put into a batch is true when that is written."""

    def __init__(self, meta: MetaStore, next_id: Callable[[], int], count: int, kept: int) -> None:
        self._meta = meta
        self._next_id = next_id
        self.count = count  # chunks that are damaged now
        self.kept = kept  # records of bytes whose chunk has been replaced or removed

    def mark(self, batch: WriteBatch, key: ChunkKey, raw: bytes, reason: str) -> None:
        """The chunk is damaged from here on; `raw` is its committed record."""
        text = reason.encode()[:REASON_BYTES_MAX]
        batch.put(_name(key, DAMAGED_NOW), len(text).to_bytes(2, "little") + text + raw)
        self.count += 1

    def mark_unlisted(self, damaged: Iterable[ChunkKey]) -> None:
        """At open: a power cut may bring a damaged record back whose `q` record went with its replacement."""
        for key in damaged:
            raw = self._meta.get(chunk_key(COMMITTED, key))
            if raw is not None and self._meta.get(_name(key, DAMAGED_NOW)) is None:
                batch = new_batch()
                self.mark(batch, key, raw, "it was damaged before a power cut")
                self._meta.write(batch)
                self.count -= 1  # it was counted by its record

    def end(self, batch: WriteBatch, key: ChunkKey, old: Record, new: Record) -> bool:
        """`new` takes the place of the damaged `old`. Whether the bytes of `old` are kept: then nothing is given up."""
        self.count -= 1
        stored = self._meta.get(_name(key, DAMAGED_NOW))
        batch.delete(_name(key, DAMAGED_NOW))
        if stored is None or not blocks_of(unpack_quarantined(stored)[1]):
            return False
        if self._named_elsewhere(key, old):
            return True
        lost = new.removed or new.damaged
        same = not lost and (new.version, new.length, new.crc) == (old.version, old.length, old.crc)
        shared = not lost and new.block_place == old.block_place
        if same or shared or self.kept >= KEPT_MAX:
            return False
        batch.put(_name(key, self._next_id()), stored)
        self.kept += 1
        return True

    def _named_elsewhere(self, key: ChunkKey, old: Record) -> bool:
        """Whether another `q` record of the chunk owns these blocks: a power cut has undone an earlier replacement."""
        begin = _name(key, DAMAGED_NOW + 1)
        others = self._meta.range(begin, chunk_key(QUARANTINE, key) + b"\xff" * 9)
        return any(block_of(unpack_quarantined(raw)[1]) == old.block_place for _, raw in others)

    def listed(self, limit: int) -> list[Quarantined]:
        found = []
        for raw_key, raw in itertools.islice(self._meta.range(QUARANTINE, _END), limit):
            reason, stored = unpack_quarantined(raw)
            record = unpack(stored)
            replaced = int.from_bytes(raw_key[_KEY_BYTES:], "big") != DAMAGED_NOW
            place = record.block_place
            found.append(Quarantined(key_of(raw_key), reason, record.version, record.length, *place, replaced))
        return found
