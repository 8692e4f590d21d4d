"""INIT: the first request of a session settles versions, sizes and capabilities."""

from __future__ import annotations

import errno
import logging
import os
from typing import Final, NamedTuple

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import KiB
from fireflyfs.fuse import protocol
from fireflyfs.fuse.protocol import InitFlag, Opcode

log = logging.getLogger(__name__)

# What we take when the kernel offers it. Left out on purpose:
# WRITEBACK_CACHE: the kernel would decide about length and mtime, and close-to-open could not be held.
# HANDLE_KILLPRIV: its second version says who may keep set-id bits; without it a writer who is not the owner would have
# to change the mode.
# AUTO_INVAL_DATA: our own writes change mtime too; pages are checked at open instead.
WANTED: Final = (
    InitFlag.ASYNC_READ
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.BIG_WRITES
    | InitFlag.DO_READDIRPLUS
    | InitFlag.READDIRPLUS_AUTO
    | InitFlag.ASYNC_DIO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.POSIX_ACL  # the kernel asks for ACLs and checks them
    | InitFlag.DONT_MASK  # with default ACLs only meta knows whether the umask counts
    | InitFlag.HANDLE_KILLPRIV_V2
    | InitFlag.SETXATTR_EXT
    | InitFlag.INIT_EXT
    | InitFlag.DIRECT_IO_ALLOW_MMAP
)
# Left out where locks need hold among the programs of one mount only: they are the kernel's then.
LOCKS: Final = InitFlag.POSIX_LOCKS | InitFlag.FLOCK_LOCKS
BACKGROUND_MAX: Final = 64  # asynchronous requests (readahead, writing mapped pages) under way
CONGESTED: Final = 48
PAGE_BYTES: Final = 4 * KiB


class Session(NamedTuple):
    """What was settled."""

    minor: int
    flags: InitFlag
    request_bytes_max: int


def negotiate(
    offer: protocol.InitRequest, request_bytes_max: int, *, local_locks: bool = False
) -> tuple[bytes, Session]:
    """The reply's message to `offer`, and what holds from then on. Raises VERSION_MISMATCH for a kernel too old."""
    if offer.major != protocol.KERNEL_MAJOR or offer.minor < protocol.KERNEL_MINOR_MIN:
        raise error(
            Code.VERSION_MISMATCH,
            f"the kernel speaks FUSE {offer.major}.{offer.minor}, "
            f"{protocol.KERNEL_MAJOR}.{protocol.KERNEL_MINOR_MIN} is the least that works",
        )
    offered = InitFlag(offer.flags)
    flags = (WANTED if local_locks else WANTED | LOCKS) & offered
    if not flags & InitFlag.HANDLE_KILLPRIV_V2:  # before Linux 5.11: the mount tells by itself whose write it is
        flags |= offered & InitFlag.HANDLE_KILLPRIV
    reply = protocol.encode_init(
        max_readahead=max(request_bytes_max, offer.max_readahead),
        flags=int(flags),
        max_background=BACKGROUND_MAX,
        congestion_threshold=CONGESTED,
        max_write=request_bytes_max,
        max_pages=request_bytes_max // PAGE_BYTES,
    )
    return reply, Session(min(offer.minor, protocol.KERNEL_MINOR), flags, request_bytes_max)


def handshake(fd: int, request_bytes_max: int, *, local_locks: bool = False) -> Session:
    """Answer INIT on a fresh session's descriptor."""
    buffer = bytearray(request_bytes_max + protocol.REQUEST_EXTRA_BYTES)
    while True:
        length = os.readv(fd, [buffer])
        _, opcode, unique, *_ = protocol.IN_HEADER.unpack_from(buffer)
        if opcode != Opcode.INIT:
            os.write(fd, protocol.reply_header(unique, 0, errno.EIO))
            continue
        offer = protocol.decode_init(memoryview(buffer)[protocol.IN_HEADER_BYTES : length])
        if offer.major > protocol.KERNEL_MAJOR:  # it asks again with the major version that we name
            os.write(fd, protocol.reply_header(unique, 8) + protocol.INIT_IN.pack(7, protocol.KERNEL_MINOR, 0, 0)[:8])
            continue
        try:
            reply, session = negotiate(offer, request_bytes_max, local_locks=local_locks)
        except BaseException:
            os.write(fd, protocol.reply_header(unique, 0, errno.EPROTO))
            raise
        os.write(fd, protocol.reply_header(unique, len(reply)) + reply)
        log.info("FUSE 7.%d, capabilities %s", session.minor, session.flags)
        return session
