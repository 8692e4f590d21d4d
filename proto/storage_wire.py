"""Packed bodies of the bulk storage methods: little-endian, fixed width, one numpy structured array a batch.

All offsets and lengths are bytes. `status` is a `common.errors.Code`. docs/format/data_link.md has the byte pictures.

STORAGE_READ      body: READ_IO[n], `into`: n pieces of the lengths asked for
                  reply: READ_RESULT[n]; piece i holds `length` bytes (short where the chunk ends)
STORAGE_SYNC_READ the same, from a predecessor to its SYNCING successor
STORAGE_WRITE     body: UPDATE_HEADER[1] UPDATE_ITEM[n] EXTENT[m], `out`: m pieces, one for each extent, in order;
                  with UpdateFlag.NAMED also UPDATE_NAME[n] NAMED_TAIL[1]
STORAGE_UPDATE    the same, from a replica to its successor
                  reply to both: UPDATE_RESULT[n]

STORAGE_CACHE_GET body: CACHE_HEADER[1] CACHE_BLOCK[n], `into`: the pieces of each block, one block after the other
                  reply: CACHE_RESULT[n]; `length` bytes are in the block's pieces, filled in order, and `crc32c` should
                  be of them all: with CacheFlag.VERIFY the server has made sure, else the client does, and asks again
                  with VERIFY where it is not; CHUNK_NOT_FOUND: a miss; TOO_LARGE: the block does not fit
                  with CacheFlag.PACKED: `into` is one piece, a block stands at `offset` of it, and `pieces` is how
                  many bytes a block may have
STORAGE_CACHE_EXISTS  body: CACHE_HEADER[1] CACHE_LOOKUP[n]
                  reply: one byte for each: 0 absent, 1 there, 2 not to be told here (another version of the chain)

An update request is about one chain. Its items are distinct chunks; each succeeds or fails by itself. (client_id,
channel, sequence) names the request: sent again with the same sequence, items that succeeded answer what they
answered, others run. A client has one request under way in each channel, and its sequences grow.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import numpy as np

READ_IO = np.dtype(
    [
        ("inode", "<u8"),
        ("index", "<u8"),
        ("chain_id", "<u4"),
        ("chain_version", "<u4"),
        ("offset", "<u4"),  # in the chunk
        ("length", "<u4"),
    ]
)  # 32 bytes

READ_RESULT = np.dtype(
    [
        ("status", "<u4"),
        ("length", "<u4"),  # bytes pushed; 0 with status OK: the chunk ends before offset
        ("version", "<u8"),  # committed version of the chunk that was read
        ("crc32c", "<u4"),  # of the pushed bytes
        ("chunk_length", "<u4"),
    ]
)  # 24 bytes; a missing chunk has status CHUNK_NOT_FOUND


class UpdateKind(IntEnum):
    """What an update item does to its chunk."""

    WRITE = 1  # extents replace or extend; a gap below the first byte written reads as zeros
    TRUNCATE = 2  # shorten to `length`; a shorter or missing chunk stays
    REMOVE = 3
    REPLACE = 4  # the whole chunk becomes the one extent: to a syncing successor
    DAMAGED = 5  # to a syncing successor: `length` bytes with checksum `crc32c` that no replica has any more
    PUT = 6  # the whole chunk becomes the extents, one after the other from 0, under a name: a block of the KV cache


CREATES = 1  # as `length` of a WRITE or PUT from replica to successor: the head had no such chunk


class UpdateFlag(IntEnum):
    """Bits of UPDATE_HEADER.flags. Their sums are plain integers: those of an IntFlag cost a microsecond each."""

    SYNCING = 1  # to a SYNCING successor: versions are set, not checked
    RESYNC = 2  # sent by recovery, not by a client's write
    NAMED = 4  # UPDATE_NAME and NAMED_TAIL follow the extents


UPDATE_HEADER = np.dtype(
    [
        ("chain_id", "<u4"),
        ("chain_version", "<u4"),
        ("client_id", "V16"),
        ("sequence", "<u8"),
        ("channel", "<u4"),
        ("items", "<u4"),
        ("extents", "<u4"),
        ("flags", "<u4"),
    ]
)  # 48 bytes

UPDATE_ITEM = np.dtype(
    [
        ("inode", "<u8"),
        ("index", "<u8"),
        ("version", "<u8"),  # 0 from a client: the head chooses; from a replica: the version that this becomes
        ("kind", "<u2"),
        ("extents", "<u2"),  # how many of the EXTENT array are this item's, in order
        ("chunk_size", "<u4"),  # bytes
        ("length", "<u4"),  # TRUNCATE: the new length; REPLACE, DAMAGED: the chunk's; a forwarded WRITE: CREATES or 0
        ("crc32c", "<u4"),  # from a replica: of the whole chunk after the update, checked by the successor
        ("base", "<u8"),  # a forwarded REPLACE: the committed version that it takes the place of; 0: there was none
    ]
)  # 48 bytes

EXTENT = np.dtype([("offset", "<u4"), ("length", "<u4"), ("crc32c", "<u4"), ("reserved", "<u4")])  # 16 bytes

UPDATE_RESULT = np.dtype(
    [
        ("status", "<u4"),
        ("chain_version", "<u4"),  # at which it was committed
        ("version", "<u8"),
        ("length", "<u4"),  # of the chunk afterwards
        ("crc32c", "<u4"),  # of the whole chunk afterwards; 0 after REMOVE
    ]
)  # 24 bytes

UPDATE_NAME = np.dtype(
    [
        ("key_length", "<u4"),  # 0: the item has no name; PUT always has one, REPLACE and DAMAGED may
        ("expires_unix_s", "<u4"),  # 0: never
        ("key", "V64"),  # zeros after key_length bytes
    ]
)  # 72 bytes

# Of the namespace on this chain: what its blocks may take, each counted once; 0: what the targets have
NAMED_TAIL = np.dtype([("capacity_bytes", "<u8")])  # 8 bytes

CACHE_HEADER = np.dtype([("inode", "<u8"), ("rows", "<u4"), ("flags", "<u4")])  # 16 bytes


class CacheFlag(IntFlag):
    """Bits of CACHE_HEADER.flags."""

    VERIFY = 1  # the server compares checksums, mends, and says CHECKSUM; slower
    PACKED = 2  # all blocks land in one piece


CACHE_BLOCK = np.dtype(
    [
        ("index", "<u8"),  # common.cache_hash of the key
        ("chain_id", "<u4"),
        ("chain_version", "<u4"),
        ("pieces", "<u4"),  # how many of the `into` pieces are this block's; PACKED: bytes that it may have
        ("key_length", "<u4"),
        ("key", "V64"),
    ]
)  # 88 bytes

CACHE_RESULT = np.dtype([("status", "<u4"), ("length", "<u4"), ("crc32c", "<u4"), ("offset", "<u4")])  # 16 bytes

CACHE_LOOKUP = np.dtype(
    [
        ("index", "<u8"),
        ("chain_id", "<u4"),
        ("chain_version", "<u4"),
        ("check", "<u4"),  # common.cache_hash of the key, the other half
        ("reserved", "<u4"),
    ]
)  # 24 bytes
