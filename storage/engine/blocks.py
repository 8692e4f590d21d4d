"""The block files' bytes: reads, writes and syncs of blocks, in the space that block_space.py keeps. Thread-safe."""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from fireflyfs.common import native
from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import KiB
from fireflyfs.common.net.scatter import advance
from fireflyfs.storage.core.block_rows import BlockRows, Tally
from fireflyfs.storage.engine.block_space import KEPT_BYTES_DEFAULT, STRIPES, BlockSpace, disk_error
from fireflyfs.storage.engine.interface import WouldBlock

# Written at once this much goes to the disk right away and leaves the page cache when it is there (Linux 6.14, ext4 and
# XFS): such data is seldom read again soon, its pages would push out others, and a later fsync finds little to do.
UNCACHED_BYTES_MIN = 512 * KiB
_DONTCACHE = 0x80  # RWF_DONTCACHE
_DIRECT_ALIGN = 4096  # of offsets, lengths and memory; every block begins and ends so
_IOV_MAX = 512
_NOWAIT = os.RWF_NOWAIT


class BlockStore(BlockSpace):
    """The blocks of one target."""

    def __init__(self, path: Path, capacity_bytes: int = 0, kept_bytes: int = KEPT_BYTES_DEFAULT) -> None:
        super().__init__(path, capacity_bytes, kept_bytes)
        self._syncing = threading.Lock()
        self._lost = ""  # why a sync failed: what the kernel dropped then is not found by asking again
        self._uncached = True  # until the file system says that it cannot
        self._direct = True  # the same

    def write(
        self, shift: int, block: int, offset: int, parts: list[memoryview], *, uncached_from: int = UNCACHED_BYTES_MIN
    ) -> None:
        """Write parts one after another from `offset` of the block. Raises NO_SPACE and DISK_FAILED.

        They do not stay in the page cache when they are `uncached_from` bytes or more.
        """
        try:
            fd, start = self._place(shift, block)
            at = start + offset
            size = sum([len(part) for part in parts])
            uncached = self._uncached and size >= uncached_from
            done = self._pwritev(fd, parts[:_IOV_MAX], at, uncached) if size else 0
            if done < size:
                rest = deque(part for part in parts if len(part))
                advance(rest, done)
                while rest:
                    more = self._pwritev(fd, list(itertools.islice(rest, _IOV_MAX)), at + done, uncached)
                    done += more
                    advance(rest, more)
            # Marked after the write: a sync that starts in between must not think that it covered it. One that takes
            # the marks after this look covers it.
            file = (shift, block % STRIPES)
            if file not in self._dirty:
                with self._lock:
                    self._dirty.add(file)
        except OSError as exc:
            raise disk_error(exc, "writing a block") from exc

    def _pwritev(self, fd: int, parts: list[memoryview], at: int, uncached: bool) -> int:
        if uncached and self._uncached:
            try:
                return os.pwritev(fd, parts, at, _DONTCACHE)
            except OSError as exc:
                if exc.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                self._uncached = False
        return os.pwritev(fd, parts, at)

    def read(self, shift: int, block: int, offset: int, parts: list[memoryview], *, nowait: bool = False) -> bool:
        """Fill parts from `offset` of the block. False: the file ends before. Raises WouldBlock and DISK_FAILED."""
        want = 0
        for part in parts:
            want += len(part)
        try:
            fd, start = self._place(shift, block)
            done = os.preadv(fd, parts, start + offset, _NOWAIT) if nowait else os.preadv(fd, parts, start + offset)
            if done == want:
                return True
            if nowait:
                raise WouldBlock
            return self._read_slowly(fd, start + offset, parts)  # cut short, or the file is shorter than it should be
        except BlockingIOError:
            raise WouldBlock from None
        except OSError as exc:
            if nowait and exc.errno == errno.EOPNOTSUPP:
                raise WouldBlock from None
            raise disk_error(exc, "reading a block") from exc

    def read_cached(self, wanted: Sequence[tuple[tuple[int, int], list[memoryview]]], start: int) -> int:
        """See `ChunkEngine.read_places`."""
        at = start
        fds, preadv = self._fds, os.preadv
        try:
            for at in range(start, len(wanted)):  # where it stops is the answer
                (shift, block), parts = wanted[at]
                want = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
                if preadv(fds[shift, block % STRIPES], parts, block // STRIPES << shift, _NOWAIT) != want:
                    return at
        except (KeyError, OSError):
            return at
        return len(wanted)

    def read_rows_cached(
        self, library: native.Blocks, rows: BlockRows, begin: int, end: int, memory: memoryview, at: int
    ) -> Tally | None:
        """See `ChunkEngine.read_rows`; None where memory ends too soon. Blocks side by side in a file come together."""
        tally = native.Tally(at)
        where = native.address_of(memory)
        if library.read(
            self._fd_table.buffer_info()[0], rows.table, begin, end, rows.address, where, len(memory),
            ctypes.addressof(tally),
        ):  # fmt: skip
            return None
        return Tally(tally.end, tally.hits, tally.hit_bytes, tally.slow)

    def read_from_disk(self, shift: int, block: int, length: int) -> memoryview | None:
        """The block's first `length` bytes past the page cache, where the file system can; None: the file ends before.

        What is still to be written goes to the disk first, pages of others stay as they are. Raises DISK_FAILED.
        """
        fd, start = self._place(shift, block)
        size = -(-length // _DIRECT_ALIGN) * _DIRECT_ALIGN
        memory = memoryview(mmap.mmap(-1, size))  # begins at a page, as O_DIRECT wants it
        try:
            if self._direct:
                try:
                    direct = os.open(
                        self._path / f"{shift}-{block % STRIPES}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC
                    )
                    try:
                        done = self._fill(direct, start, memory)
                    finally:
                        os.close(direct)
                    return memory[:length] if done >= length else None
                except OSError as exc:
                    if exc.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                        raise
                    self._direct = False
            os.posix_fadvise(fd, start, size, os.POSIX_FADV_DONTNEED)
            done = self._fill(fd, start, memory)
            os.posix_fadvise(fd, start, size, os.POSIX_FADV_DONTNEED)
            return memory[:length] if done >= length else None
        except OSError as exc:
            raise disk_error(exc, "reading a block") from exc

    @staticmethod
    def _fill(fd: int, at: int, memory: memoryview) -> int:
        done = 0
        while done < len(memory):
            got = os.preadv(fd, [memory[done:]], at + done)
            if got == 0:
                break
            done += got
            if got % _DIRECT_ALIGN:  # the end of the file: nothing can be read from here on
                break
        return done

    def _read_slowly(self, fd: int, at: int, parts: list[memoryview]) -> bool:
        for part in parts:
            filled = 0
            while filled < len(part):
                done = os.preadv(fd, [part[filled:]], at + filled)
                if done == 0:
                    return False
                filled += done
            at += len(part)
        return True

    def sync(self) -> int:
        """Bring to disk all that was written before this call; returns the number of files. Raises DISK_FAILED."""
        with self._syncing:  # another caller's files may hold our bytes: they are there when it is through
            if self._lost:
                raise error(Code.DISK_FAILED, self._lost)
            self.forget_spoiled()
            with self._lock:
                dirty, self._dirty = self._dirty, set()
            try:
                for shift, stripe in dirty:
                    os.fdatasync(self._fds[shift, stripe])
            except OSError as exc:
                self._lost = f"fdatasync of block files: {exc}"
                raise error(Code.DISK_FAILED, self._lost) from exc
            return len(dirty)
