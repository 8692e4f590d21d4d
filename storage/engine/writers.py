"""Which requests were done, across restarts: for each (client, channel), the newest request and the chunks it changed.

A chunk's record names the writer of its newest version only. When every replica was restarted and others wrote to the
chunk meanwhile, that is not enough to know a repeated request again; so each commit stores its writer's request here,
in the same batch. Bounded: the channels that were longest without a commit are forgotten.

Stored under key (w, client id, channel): "format, count, sequence", then for each chunk "inode, index, version, chain
version, length, crc32c", then a CRC32C over all of it. docs/format/chunk_store.md has the byte picture.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from crc32c import crc32c
from rocksdict import WriteBatch

from fireflyfs.common.errors import Code, error
from fireflyfs.storage.engine.interface import ChunkKey, Done, DoneChunk, Writer
from fireflyfs.storage.engine.metadata import MetaStore, new_batch
from fireflyfs.storage.engine.record import WRITERS

CHANNELS_MAX = 16_384
CHUNKS_MAX = 1024  # of one request; as many as an update may have
DONE_FORMAT = 1

_HEAD = struct.Struct("<HHIQ")
_CHUNK = struct.Struct("<QQQIII")
_CRC = struct.Struct("<I")
_CHANNEL = struct.Struct(">I")
_KEY_BYTES = 21

Channel = tuple[bytes, int]


def writer_key(client_id: bytes, channel: int) -> bytes:
    return WRITERS + client_id + _CHANNEL.pack(channel)


def pack_done(sequence: int, chunks: Sequence[DoneChunk]) -> bytes:
    parts = [_HEAD.pack(DONE_FORMAT, len(chunks), 0, sequence)]
    parts += [_CHUNK.pack(*chunk.key, *chunk[1:]) for chunk in chunks]
    body = b"".join(parts)
    return body + _CRC.pack(crc32c(body))


def unpack_done(raw_key: bytes, raw: bytes) -> Done:
    """Raises VERSION_MISMATCH and DISK_FAILED."""
    if len(raw) < _HEAD.size + _CRC.size or len(raw_key) != _KEY_BYTES:
        raise error(Code.DISK_FAILED, "a record of what a writer has done is cut short")
    found_format, count, _, sequence = _HEAD.unpack_from(raw)
    if found_format != DONE_FORMAT:
        raise error(
            Code.VERSION_MISMATCH, f"a writer's record has format {found_format}, this release reads {DONE_FORMAT}"
        )
    if len(raw) != _HEAD.size + count * _CHUNK.size + _CRC.size or raw[-_CRC.size :] != _CRC.pack(
        crc32c(raw[: -_CRC.size])
    ):
        raise error(Code.DISK_FAILED, "a record of what a writer has done does not match its checksum")
    rows = _CHUNK.iter_unpack(raw[_HEAD.size : -_CRC.size])
    chunks = tuple(DoneChunk(ChunkKey(inode, index), *rest) for inode, index, *rest in rows)
    return Done(Writer(raw_key[1:17], _CHANNEL.unpack_from(raw_key, 17)[0], sequence), chunks)


class WriterTable:
    """The stored table and, in memory, each channel's newest sequence. The caller orders the calls."""

    def __init__(self, meta: MetaStore, channels_max: int = CHANNELS_MAX) -> None:
        self._meta = meta
        self._channels_max = channels_max
        self._sequences: OrderedDict[Channel, int] = OrderedDict()
        for raw_key, raw in meta.range(WRITERS, WRITERS[:-1] + bytes([WRITERS[-1] + 1])):
            writer = unpack_done(raw_key, raw).writer
            self._sequences[writer.client_id, writer.channel] = writer.sequence

    def __len__(self) -> int:
        return len(self._sequences)

    def note(self, batch: WriteBatch, writer: Writer, chunks: Sequence[DoneChunk]) -> None:
        """Add to `batch` that `writer` changed `chunks`. An older request than the channel's newest is ignored."""
        channel = (writer.client_id, writer.channel)
        newest = self._sequences.get(channel)
        if newest is not None:
            if newest > writer.sequence:
                return
            if newest == writer.sequence:
                chunks = self._merged(channel, chunks)
        name = writer_key(*channel)
        batch.put(name, pack_done(writer.sequence, chunks[:CHUNKS_MAX]))
        self._sequences[channel] = writer.sequence
        self._sequences.move_to_end(channel)
        while len(self._sequences) > self._channels_max:
            oldest, _ = self._sequences.popitem(last=False)
            batch.delete(writer_key(*oldest))

    def _merged(self, channel: Channel, chunks: Sequence[DoneChunk]) -> Sequence[DoneChunk]:
        name = writer_key(*channel)
        raw = self._meta.get(name)
        if raw is None:
            return chunks
        known = {chunk.key: chunk for chunk in unpack_done(name, raw).chunks}
        known.update((chunk.key, chunk) for chunk in chunks)
        return list(known.values())

    def page(self, after: Writer | None, limit: int) -> list[Done]:
        """Records in the order of (client, channel), strictly after that of `after`."""
        begin = WRITERS if after is None else writer_key(after.client_id, after.channel) + b"\0"
        found: list[Done] = []
        for raw_key, raw in self._meta.range(begin, WRITERS[:-1] + bytes([WRITERS[-1] + 1])):
            if len(found) >= limit:
                break
            found.append(unpack_done(raw_key, raw))
        return found


def forget_chunks(meta: MetaStore, keys: Iterable[ChunkKey]) -> None:
    """After a power cut took versions of these chunks back: what was done to them may not have been."""
    lost = set(keys)
    if not lost:
        return
    batch = new_batch()
    for raw_key, raw in list(meta.range(WRITERS, WRITERS[:-1] + bytes([WRITERS[-1] + 1]))):
        done = unpack_done(raw_key, raw)
        kept = [chunk for chunk in done.chunks if chunk.key not in lost]
        if len(kept) < len(done.chunks):
            batch.put(raw_key, pack_done(done.writer.sequence, kept))
    meta.write(batch)
