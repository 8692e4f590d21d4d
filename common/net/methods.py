"""Numbers of all methods on the data link. A number is never used again for something else."""

from __future__ import annotations

from enum import IntEnum


class Method(IntEnum):
    """High byte: service; low byte: method. A comment names the body: packed arrays or protobuf messages."""

    PING = 0x0001  # any body, echoed; pulled data is counted, pushes are filled with zeros

    # Storage, packed (proto/storage_wire.py)
    STORAGE_READ = 0x0101
    STORAGE_WRITE = 0x0102  # client to head
    STORAGE_UPDATE = 0x0103  # replica to successor
    STORAGE_SYNC_READ = 0x0104  # predecessor to SYNCING successor: the body of STORAGE_READ
    # Storage, protobuf (proto/storage.proto, the method of the same name)
    STORAGE_QUERY_LAST_CHUNK = 0x0110
    STORAGE_REMOVE_CHUNKS = 0x0111
    STORAGE_TRUNCATE_CHUNK = 0x0112
    STORAGE_SYNC_CHAINS = 0x0113
    STORAGE_SYNC_START = 0x0114
    STORAGE_SYNC_DONE = 0x0115
    STORAGE_QUERY_CHUNK = 0x0116
    STORAGE_SPACE = 0x0117
    STORAGE_STATS = 0x0118
    STORAGE_REMOVE_FILES = 0x0119
    STORAGE_SCRUB = 0x011A
    STORAGE_SYNC_WRITERS = 0x0122
    STORAGE_LIST_CHUNKS = 0x0120
    STORAGE_DROP_CHUNKS = 0x0121
    STORAGE_SEE_CHUNKS = 0x0123
    STORAGE_LIST_RANGE = 0x0130
    STORAGE_COPY_CHUNKS = 0x0131
    # The KV cache: the first two packed, the others protobuf
    STORAGE_CACHE_GET = 0x0140
    STORAGE_CACHE_EXISTS = 0x0141
    STORAGE_DROP_BLOCKS = 0x0142
    STORAGE_BLOCK_STATS = 0x0143

    # Metadata, protobuf (proto/meta.proto)
    META_STAT = 0x0201
    META_BATCH_STAT = 0x0202
    META_BATCH_STAT_PATH = 0x0203
    META_LOOKUP = 0x0204
    META_OPEN = 0x0205
    META_CLOSE = 0x0206
    META_SYNC = 0x0207
    META_MAKE_NODE = 0x0208
    META_SYMLINK = 0x0209
    META_LINK = 0x020A
    META_READLINK = 0x020B
    META_REMOVE = 0x020C
    META_RENAME = 0x020D
    META_LIST = 0x020E
    META_SET_ATTR = 0x020F
    META_STAT_FS = 0x0210
    META_REAL_PATH = 0x0211
    META_ACCESS = 0x0212
    META_END_SESSIONS = 0x0213
    META_LIST_FILES = 0x0220
    META_GET_XATTR = 0x0230
    META_LIST_XATTR = 0x0231
    META_SET_XATTR = 0x0232
    META_REMOVE_XATTR = 0x0233
    META_LIST_TRASH = 0x0240
    META_RESTORE_TRASH = 0x0241
    META_EMPTY_TRASH = 0x0242
    META_GET_LOCK = 0x0250
    META_SET_LOCK = 0x0251
    META_AWAIT_LOCKS = 0x0252
    META_CANCEL_LOCK = 0x0253
    META_APPEND = 0x0254
    META_DELEGATE = 0x0255
    META_AWAIT_RECALLS = 0x0256
    META_STATS = 0x0260
    META_GET_USAGE = 0x0270
    META_SET_QUOTA = 0x0271
    META_LIST_QUOTAS = 0x0272
    META_CHECK_USAGE = 0x0273


def service_methods(prefix: str) -> dict[str, Method]:
    """Protobuf method name to number for one service: service_methods("META")["BatchStat"] is META_BATCH_STAT."""
    return {
        "".join(part.capitalize() for part in method.name.removeprefix(prefix + "_").split("_")): method
        for method in Method
        if method.name.startswith(prefix + "_")
    }
