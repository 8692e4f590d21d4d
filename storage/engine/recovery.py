"""Opening a store: what the last process left, and after a power cut what the disk left of that.

One scan over the records rebuilds the allocation bitmaps and the counts (1.5 us a chunk). After a kill nothing else is
needed: the page cache is whole. After a power cut (another boot id) every chunk committed in an epoch that was not
durable is verified: one whose bytes did not arrive goes back to what its undo record says, which an fsync covered.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.storage.engine.blocks import BlockStore
from fireflyfs.storage.engine.damage import DAMAGED_NOW, unpack_quarantined
from fireflyfs.storage.engine.interface import ChunkKey
from fireflyfs.storage.engine.metadata import MetaStore, new_batch
from fireflyfs.storage.engine.reader import Mismatch, VerifiedReader
from fireflyfs.storage.engine.record import (
    COMMITTED,
    DELTA,
    META,
    PENDING,
    QUARANTINE,
    UNDO,
    Record,
    block_of,
    blocks_of,
    chunk_key,
    has_deltas,
    is_damaged,
    key_of,
    unpack,
)
from fireflyfs.storage.engine.writers import forget_chunks

FORMAT_KEY = META + b"format"
BOOT_KEY = META + b"boot"
DISK_ID_KEY = META + b"disk"  # 16 hex digits, from the first opening
LOST_POWER_KEY = META + b"lost power"  # there while what was not synced may be missing
STORE_FORMAT = 4
# 1: without patches, 1 and 2: without damaged records, 1 to 3: without named ones; opened, they become the newest
STORE_FORMAT_READ_MIN = 1
_KEY_BYTES = 17


HeldBack = tuple[int, list[tuple[int, int]], tuple[bytes, ...]]  # epoch; blocks and keys that wait until it is durable


class Found(NamedTuple):
    """What the scan of a store found."""

    chunks: int
    pending: list[ChunkKey]
    with_deltas: list[tuple[ChunkKey, Record]]
    held: list[HeldBack]
    damaged: list[ChunkKey]
    kept: int  # records of damaged bytes that nothing else names
    rolled_back: int


def end_of(prefix: bytes) -> bytes:
    """The first key after all that begin with prefix."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def check_format(meta: MetaStore) -> bool:
    """Whether the store is new. Raises VERSION_MISMATCH."""
    raw = meta.get(FORMAT_KEY)
    if raw is None:
        meta.put(FORMAT_KEY, struct.pack("<I", STORE_FORMAT))
        return True
    stored = struct.unpack("<I", raw)[0]
    if not STORE_FORMAT_READ_MIN <= stored <= STORE_FORMAT:
        raise error(
            Code.VERSION_MISMATCH,
            f"chunk store has format {stored}, this release reads {STORE_FORMAT_READ_MIN} to {STORE_FORMAT}",
        )
    if stored < STORE_FORMAT:
        meta.put(FORMAT_KEY, struct.pack("<I", STORE_FORMAT))
    return False


def intact(reader: VerifiedReader, key: ChunkKey, raw: bytes) -> bool:
    """Whether the bytes that a record describes are all there."""
    try:
        record = unpack(raw)
        if record.length and not record.damaged:  # a damaged one says that there is nothing to look at
            reader.units(key, record, 0, record.length)
    except (Mismatch, FfsError):
        return False
    return True


def roll_back(meta: MetaStore, reader: VerifiedReader, durable: int) -> list[ChunkKey]:
    """After a power cut: undo commits whose bytes did not reach the disk; of which chunks."""
    undo: dict[ChunkKey, list[bytes]] = {}
    first = UNDO + (durable + 1).to_bytes(8, "big")
    for raw_key, raw in meta.range(first, end_of(UNDO)):
        undo.setdefault(key_of(raw_key, 9), []).insert(0, raw)
    rolled_back: list[ChunkKey] = []
    for key, older in undo.items():
        current = meta.get(chunk_key(COMMITTED, key))
        if current is None or intact(reader, key, current):
            continue
        for raw in older:
            if not raw or intact(reader, key, raw):
                batch = new_batch()
                if raw:
                    batch.put(chunk_key(COMMITTED, key), raw)
                else:
                    batch.delete(chunk_key(COMMITTED, key))
                meta.write(batch)
                rolled_back.append(key)
                break
    for raw_key, raw in list(meta.range(PENDING, end_of(PENDING))):
        if not intact(reader, key_of(raw_key), raw):
            batch = new_batch()
            batch.delete(raw_key)
            meta.write(batch)
    forget_chunks(meta, rolled_back)
    return rolled_back


def scan(meta: MetaStore, blocks: BlockStore, durable: int, rolled_back: int) -> Found:
    """Rebuild bitmaps and counts, and delete what no record names any more."""
    chunks = 0
    mark = blocks.mark_used
    with_deltas: list[tuple[ChunkKey, Record]] = []
    damaged: list[ChunkKey] = []
    for raw_key, raw in meta.range(COMMITTED, end_of(COMMITTED)):
        chunks += 1
        if is_damaged(raw):
            damaged.append(key_of(raw_key))
        elif has_deltas(raw):
            with_deltas.append((key_of(raw_key), unpack(raw)))
        if has_deltas(raw):
            for place in blocks_of(raw):
                mark(*place)
            continue
        shift, block = block_of(raw)
        if shift:
            mark(shift, block)
    pending: list[ChunkKey] = []
    for raw_key, raw in meta.range(PENDING, end_of(PENDING)):
        pending.append(key_of(raw_key))
        for place in blocks_of(raw):
            mark(*place)
    kept = 0
    kept_deltas: dict[ChunkKey, set[int]] = {}
    for raw_key, raw in meta.range(QUARANTINE, end_of(QUARANTINE)):
        kept += int.from_bytes(raw_key[_KEY_BYTES:], "big") != DAMAGED_NOW
        _, record = unpack_quarantined(raw)
        for place in blocks_of(record):
            mark(*place)
        if has_deltas(record):
            kept_deltas.setdefault(key_of(raw_key), set()).update(ref.id for ref in unpack(record).deltas)
    held: list[HeldBack] = []
    for raw_key, raw in meta.range(UNDO, end_of(UNDO)):
        epoch = int.from_bytes(raw_key[1:9], "big")
        # Named by no newer record: free once the epoch is durable.
        old = [place for place in blocks_of(raw) if mark(*place)] if raw and epoch > durable else []
        held.append((epoch, old, (raw_key,)))
    only_undo, orphans = _deltas(meta, durable, kept_deltas)
    last_epoch = max((epoch for epoch, _, _ in held), default=0)
    held.extend((last_epoch, [], (raw_key,)) for raw_key in only_undo)
    if orphans:
        batch = new_batch()
        for raw_key in orphans:
            batch.delete(raw_key)
        meta.write(batch)
    return Found(chunks, pending, with_deltas, held, damaged, kept, rolled_back)


def _deltas(meta: MetaStore, durable: int, kept: Mapping[ChunkKey, set[int]]) -> tuple[list[bytes], list[bytes]]:
    """Keys of logged deltas that only undo records name; keys that nothing names. `kept`: in quarantine."""
    undone: dict[ChunkKey, set[int]] = {}
    for raw_key, raw in meta.range(UNDO + (durable + 1).to_bytes(8, "big"), end_of(UNDO)):
        if raw and has_deltas(raw):
            undone.setdefault(key_of(raw_key, 9), set()).update(ref.id for ref in unpack(raw).deltas)
    only_undo: list[bytes] = []
    orphans: list[bytes] = []
    current: ChunkKey | None = None
    named: set[int] = set()
    for raw_key, _ in meta.range(DELTA, end_of(DELTA)):
        key = key_of(raw_key)
        if key != current:
            current = key
            stored = [meta.get(chunk_key(prefix, key)) for prefix in (COMMITTED, PENDING)]
            named = {ref.id for raw in stored if raw is not None for ref in unpack(raw).deltas}
            named |= kept.get(key, set())
        delta_id = int.from_bytes(raw_key[_KEY_BYTES:], "big")
        if delta_id not in named:
            (only_undo if delta_id in undone.get(key, ()) else orphans).append(raw_key)
    return only_undo, orphans
