"""Every bound that both ends of a conversation must agree on, in one place.

Bounds that only one process cares about stand in its configuration or beside the code they bound.
"""

from __future__ import annotations

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30

# Files and names
NAME_BYTES_MAX = 255
PATH_BYTES_MAX = 4095
SYMLINK_DEPTH_MAX = 40
LINKS_MAX = 65_000
FILE_BYTES_MAX = (1 << 63) - 1
CHUNK_BYTES_MIN = 64 * KiB
CHUNK_BYTES_MAX = 64 * MiB
CHUNK_BYTES_DEFAULT = MiB
STRIPE_MAX = 1024
LIST_ENTRIES_MAX = 4096
BATCH_STAT_MAX = 4096
GROUPS_MAX = 256
XATTR_NAME_BYTES_MAX = 255  # with its namespace; this and the two below are Linux's own limits
XATTR_VALUE_BYTES_MAX = 64 * KiB
XATTR_LIST_BYTES_MAX = 64 * KiB  # all names of one inode, a NUL after each
XATTRS_BYTES_MAX = 256 * KiB  # all extended attributes of one inode: they are one record
ACL_BYTES_MAX = 4096  # of one ACL as an extended attribute, 511 entries: what the kernel passes through FUSE
SESSIONS_ENDED_MAX = 40  # in one request: each is three operations of one transaction
LOCKS_INODE_MAX = 8192  # locked ranges of one inode, of all its owners
LOCKS_CLIENT_MAX = 65_536  # locked ranges and queued requests of one client
LOCKS_QUEUED_MAX = 1024  # requests that wait for locks of one inode
LOCKS_AWAITED_MAX = 4096  # requests of one client that may wait at a time

# The data link
FRAME_BODY_BYTES_MAX = 4 * MiB  # the packed or protobuf part of a frame
FRAME_DATA_BYTES_MAX = 80 * MiB  # payload that follows, or is moved for, one frame
FRAME_SEGMENTS_MAX = 4096  # pulled or pushed pieces of one request
CONNECTION_REQUESTS_MAX = 256  # in flight on one connection
CONNECTION_DATA_BYTES_MAX = 128 * MiB  # payload held by a server for one connection
REGIONS_MAX = 256  # shared-memory regions of one connection
REGION_BYTES_MAX = 4 * GiB
DEADLINE_S_MAX = 300.0

# The control lane
GRPC_MESSAGE_BYTES_MAX = 16 * MiB

# Storage
CHUNK_EXTENTS_MAX = 256  # pieces of one chunk that one update may change
UPDATE_ITEMS_MAX = 1024  # chunks in one update request
READ_ITEMS_MAX = 4096
RANGE_CHUNKS_MAX = 4096  # chunks listed in one answer
COPY_PIECES_MAX = 256  # of one request to copy
COPY_BYTES_MAX = 8 * MiB  # the same
REPLICAS_MAX = 16

# The KV cache
CACHE_KEY_BYTES_MIN = 8
CACHE_KEY_BYTES_MAX = 64
CACHE_BLOCK_BYTES_MIN = 4 * KiB
CACHE_BLOCK_BYTES_MAX = 16 * MiB
CACHE_LOOKUPS_MAX = 16_384  # keys looked up in one request
