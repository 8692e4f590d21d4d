"""Space for blocks: the block files, which blocks have an owner, and what the file system has given. Thread-safe.

A size class is a power of two from 4 KiB to 64 MiB. Its blocks lie striped over STRIPES files, so that writers of one
class do not queue on one inode's lock: block b is number b // STRIPES in file b % STRIPES. Files are extended, and
holes filled, in groups of GROUP_BYTES with fallocate: a full disk shows before anything is written. At most
15 * STRIPES descriptors are ever open.

Freed blocks keep their space for the next owner up to `kept_bytes`; the rest is given back by punching holes. What
was written to a block that had its only owner between two syncs is dropped from the page cache before the second one: a
file that is removed soon does not reach the disk.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from array import array
from collections.abc import Sequence
from pathlib import Path

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import KiB, MiB
from fireflyfs.storage.engine.allocator import ClassAllocator
from fireflyfs.storage.engine.identity import sync_directory
from fireflyfs.storage.engine.record import BLOCK_SHIFT_MAX, BLOCK_SHIFT_MIN

STRIPES = 4  # part of the stored format
GROUP_BYTES = MiB  # space is taken from the file system in pieces of this size, or of one larger block
REFILL_BYTES = 64 * MiB  # blocks that an allocator looks up ahead: so soon are freed ones used again
KEPT_BYTES_DEFAULT = 256 * MiB
TRIM_FREE_TIMES = 4  # while the file system has so many times more free than could be given back, there is no hurry
TRIM_BYTES_MIN = 64 * MiB  # given back then at a time: this, or
TRIM_PART = 16  # one part in so many
RESERVE_BYTES_MAX = 64 * MiB  # left free for RocksDB: its log must never meet a full disk
FORGOTTEN_BYTES_MIN = 64 * KiB  # of neighbouring blocks: less is written out sooner than forgotten
_STATVFS_EVERY_BYTES = MiB  # of allocations or metadata between two looks at the free space
_PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_FORGET = 0x01 | 0x10  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_ZERO_RANGE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def disk_error(exc: OSError, what: str) -> FfsError:
    """NO_SPACE where the disk is full, DISK_FAILED for anything else."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return error(Code.NO_SPACE, f"{what}: {os.strerror(exc.errno)}")
    return error(Code.DISK_FAILED, f"{what}: {exc}")


class BlockSpace:
    """For blocks of all size classes of one target. `capacity_bytes` 0: bounded by the file system only."""

    def __init__(self, path: Path, capacity_bytes: int = 0, kept_bytes: int = KEPT_BYTES_DEFAULT) -> None:
        self._path = path
        self._capacity_bytes = capacity_bytes
        self._kept_bytes = kept_bytes
        self._lock = threading.Lock()
        shifts = range(BLOCK_SHIFT_MIN, BLOCK_SHIFT_MAX + 1)
        self._classes = {shift: ClassAllocator(REFILL_BYTES >> shift) for shift in shifts}
        self._fds: dict[tuple[int, int], int] = {}
        # The same by (shift - BLOCK_SHIFT_MIN) * STRIPES + stripe, for the library in C; -1: not open.
        self._fd_table = array("i", [-1] * (len(shifts) * STRIPES))
        self._dirty: set[tuple[int, int]] = set()
        self._sizes: dict[tuple[int, int], int] = {}
        self.used_bytes = 0
        self.backed_free_bytes = 0
        self._unchecked_bytes = 0
        self.forgotten_bytes = 0
        self._can_forget = True  # until the file system says that it cannot
        self._leftovers_known = False  # free blocks may have space that an earlier process took for them
        path.mkdir(exist_ok=True)
        self._dir_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        stat = os.statvfs(path)
        self.reserve_bytes = min(RESERVE_BYTES_MAX, stat.f_blocks * stat.f_frsize // 8)
        for entry in path.iterdir():  # after a kill, pages of any file may be dirty: the next sync covers them all
            shift, _, stripe = entry.name.partition("-")
            if shift.isdigit() and stripe.isdigit():
                self._fd(int(shift), int(stripe))
                self._dirty.add((int(shift), int(stripe)))

    # -- files

    def _fd(self, shift: int, stripe: int) -> int:
        fd = self._fds.get((shift, stripe))
        if fd is None:
            name = self._path / f"{shift}-{stripe}"
            existed = name.exists()
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if not existed:
                sync_directory(self._path)
            self._sizes[shift, stripe] = os.fstat(fd).st_size
            self._fds[shift, stripe] = fd
            if BLOCK_SHIFT_MIN <= shift <= BLOCK_SHIFT_MAX and stripe < STRIPES:
                self._fd_table[(shift - BLOCK_SHIFT_MIN) * STRIPES + stripe] = fd
        return fd

    def _place(self, shift: int, block: int) -> tuple[int, int]:
        """(descriptor, file offset) of a block. CHECKSUM where the record names a file that is not there."""
        fd = self._fds.get((shift, block % STRIPES))
        if fd is None:
            raise error(Code.CHECKSUM, f"block file {shift}-{block % STRIPES} is missing")
        return fd, (block // STRIPES) << shift

    # -- space

    def free_bytes(self) -> int:
        """What new blocks may still take, of the file system and of the capacity."""
        stat = os.fstatvfs(self._dir_fd)
        free = max(0, stat.f_bavail * stat.f_frsize - self.reserve_bytes) + self.backed_free_bytes
        return min(free, max(0, self._capacity_bytes - self.used_bytes)) if self._capacity_bytes else free

    def capacity_bytes(self) -> int:
        stat = os.fstatvfs(self._dir_fd)
        total = stat.f_blocks * stat.f_frsize
        return min(total, self._capacity_bytes) if self._capacity_bytes else total

    def require_reserve(self, more_bytes: int) -> None:
        """Raises NO_SPACE when the file system is so full that metadata could not be written."""
        self._unchecked_bytes += more_bytes
        if self._unchecked_bytes < _STATVFS_EVERY_BYTES and more_bytes < _STATVFS_EVERY_BYTES:
            return
        stat = os.fstatvfs(self._dir_fd)
        if stat.f_bavail * stat.f_frsize < self.reserve_bytes // 2 + more_bytes:
            raise error(Code.NO_SPACE, "the disk is full but for the reserve")
        self._unchecked_bytes = 0

    def allocate(self, shift: int) -> int:
        """A block of 2**shift bytes with space behind it. Raises NO_SPACE, with nothing changed, and DISK_FAILED."""
        size = 1 << shift
        with self._lock:
            if self._capacity_bytes and self.used_bytes + size > self._capacity_bytes:
                raise error(Code.NO_SPACE, f"the target's capacity of {self._capacity_bytes} bytes is used up")
            allocator = self._classes[shift]
            block = allocator.allocate()
            try:
                if not allocator.is_backed(block):
                    self._back(allocator, shift, block)
            except OSError as exc:
                allocator.free(block)
                raise disk_error(exc, "allocating a block") from exc
            except FfsError:
                allocator.free(block)
                raise
            self.backed_free_bytes -= size
            self.used_bytes += size
            return block

    def _back(self, allocator: ClassAllocator, shift: int, block: int) -> None:
        """Take space for the block's group; where that is too much, for the block alone."""
        stripe, row = block % STRIPES, block // STRIPES
        rows = max(1, GROUP_BYTES >> shift)
        first = row - row % rows
        stat = os.fstatvfs(self._dir_fd)
        spare = stat.f_bavail * stat.f_frsize - self.reserve_bytes
        if spare < rows << shift:
            first, rows = row, 1
        if spare < rows << shift:
            raise error(Code.NO_SPACE, "the disk is full but for the reserve")
        fd = self._fd(shift, stripe)
        before = self._sizes[shift, stripe]
        try:
            os.posix_fallocate(fd, first << shift, rows << shift)
        except OSError:
            os.ftruncate(fd, before)  # a partly extended file would keep the space
            raise
        self._sizes[shift, stripe] = max(before, (first + rows) << shift)
        for each in range(first, first + rows):
            other = each * STRIPES + stripe
            if not allocator.is_backed(other):
                allocator.set_backed(other, 1, True)
                if not allocator.is_used(other) or other == block:
                    self.backed_free_bytes += 1 << shift

    def mark_used(self, shift: int, block: int) -> bool:
        """At open: a stored record names this block. False when another record named it too."""
        fresh = self._classes[shift].mark_used(block)
        if fresh:
            self.used_bytes += 1 << shift
        return fresh

    def free(self, shift: int, block: int) -> None:
        """The block may have a new owner at once: nothing that a crash could bring back names it."""
        with self._lock:
            self._free(shift, block)

    def _free(self, shift: int, block: int) -> None:
        allocator = self._classes[shift]
        allocator.free(block)
        self.used_bytes -= 1 << shift
        self.backed_free_bytes += 1 << shift
        if not allocator.is_backed(block):  # owned since before this process opened the store
            allocator.set_backed(block, 1, True)

    def free_fresh(self, places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """As `free`, of those blocks (shift, number) that were allocated since `age` was called last; the others."""
        older = []
        with self._lock:
            for place in places:
                shift, block = place
                if self._classes[shift].is_fresh(block):
                    self._free(shift, block)
                else:
                    older.append(place)
        return older

    def age(self) -> None:
        """A sync begins: no block is fresh any more."""
        with self._lock:
            for allocator in self._classes.values():
                allocator.age()

    def reclaim(self) -> int:
        """On a full disk: give back all free blocks, also those left over by an earlier process."""
        with self._lock:
            if not self._leftovers_known:
                self._leftovers_known = True
                for (shift, stripe), size in self._sizes.items():
                    if shift in self._classes and stripe < STRIPES:
                        added = self._classes[shift].assume_backed(stripe, STRIPES, size >> shift)
                        self.backed_free_bytes += added << shift
        return self.trim(0)

    def trim(self, keep_bytes: int | None = None) -> int:
        """Give free blocks back to the file system until at most keep_bytes stay; returns the bytes given back."""
        keep = self._kept_bytes if keep_bytes is None else keep_bytes
        given = 0
        for shift in range(BLOCK_SHIFT_MAX, BLOCK_SHIFT_MIN - 1, -1):
            with self._lock:
                excess = self.backed_free_bytes - keep
                if excess <= 0:
                    return given
                given += self._trim_class(shift, max(1, excess >> shift))
        return given

    def trim_some(self) -> int:
        """As `trim`, a part at a time while the disk has plenty of room: to punch a GiB takes a tenth of a second of
        processor time, which is best not spent at once beside somebody who waits."""
        excess = self.backed_free_bytes - self._kept_bytes
        if excess <= 0:
            return 0
        stat = os.fstatvfs(self._dir_fd)
        if stat.f_bavail * stat.f_frsize < TRIM_FREE_TIMES * excess:
            return self.trim()
        return self.trim(self._kept_bytes + excess - min(excess, max(TRIM_BYTES_MIN, excess // TRIM_PART)))

    def _trim_class(self, shift: int, blocks: int) -> int:
        allocator = self._classes[shift]
        given = 0
        for stripe in range(STRIPES):
            if (shift, stripe) not in self._fds:
                continue
            fd = self._fds[shift, stripe]
            for row, count in allocator.take_free_runs(stripe, STRIPES, blocks):
                if _libc.fallocate(fd, _PUNCH, row << shift, count << shift) != 0:
                    # A file system without holes: the space stays with its class, for its next blocks.
                    allocator.set_backed(row * STRIPES + stripe, count, True, STRIPES)
                    continue
                given += count << shift
                self.backed_free_bytes -= count << shift
                blocks -= count
            if blocks <= 0:
                break
        return given

    def forget_spoiled(self) -> None:
        """Drop what nobody needs from the page cache. The space stays; where it cannot be done, it is written out."""
        for shift, allocator in self._classes.items():
            if allocator.spoiled_blocks << shift < FORGOTTEN_BYTES_MIN:
                continue
            for stripe in range(STRIPES):
                with self._lock:  # nobody is given these blocks meanwhile
                    runs = allocator.take_spoiled_runs(stripe, STRIPES)
                for row, count in runs:
                    if count << shift >= FORGOTTEN_BYTES_MIN and self._can_forget:
                        if _libc.fallocate(self._fds[shift, stripe], _FORGET, row << shift, count << shift) == 0:
                            self.forgotten_bytes += count << shift
                        else:
                            self._can_forget = ctypes.get_errno() != errno.EOPNOTSUPP
                with self._lock:
                    allocator.put_back(stripe, STRIPES, runs)

    def stats(self) -> dict[str, float]:
        per_class = {
            f"blocks_{(1 << shift) // KiB}k": float(allocator.used_blocks)
            for shift, allocator in self._classes.items()
            if allocator.used_blocks
        }
        totals = {
            "used_bytes": self.used_bytes,
            "kept_free_bytes": self.backed_free_bytes,
            "forgotten_bytes": self.forgotten_bytes,
        }
        return {name: float(value) for name, value in totals.items()} | per_class

    def close(self) -> None:
        with self._lock:
            for fd in self._fds.values():
                os.close(fd)
            self._fds.clear()
            self._fd_table[:] = array("i", [-1] * len(self._fd_table))
            os.close(self._dir_fd)
