"""Random operations on one file of a mount against a model that is an array of bytes, as fsx does.

FFS_FSX_SEED and FFS_FSX_STEPS choose the run; a failure names the seed and the last steps.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"),
]

STEPS = int(os.environ.get("FFS_FSX_STEPS", "700"))
SEED = int(os.environ.get("FFS_FSX_SEED", "0")) or int.from_bytes(os.urandom(4), "little")
NAME = f"fsx{time.time_ns()}-"
FILE_MAX = 3_000_000  # three chunks
KEEP, PUNCH, ZERO = 1, 2, 16
_libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Exerciser:
    """`fds` are of one file, of one mount or of several that promise to see each other's work at once.

    `locked`: they promise it to those who lock the file, so each step does.
    """

    def __init__(
        self, paths: list[Path], seed: int, *, flags: int = 0, mapped: bool = True, locked: bool = False
    ) -> None:
        self.paths, self.flags, self.locked = paths, flags, locked
        self.chosen = 0
        self.rng = random.Random(seed)
        self.seed = seed
        self.model = bytearray()
        self.done: deque[str] = deque(maxlen=30)
        self.fds = [os.open(path, os.O_RDWR | os.O_CREAT | flags) for path in paths]
        self.operations: list[Callable[[], str]] = [
            self.read, self.read, self.write, self.write, self.write, self.truncate, self.punch, self.zero,
            self.allocate, self.copy, self.seek, self.reopen, self.sync, self.stat,
        ]  # fmt: skip
        if mapped:
            self.operations += [self.map_read, self.map_write]

    def run(self, steps: int) -> None:
        try:
            for _ in range(steps):
                self.step(self.rng.choice(self.operations))
            self.whole()
            self.reopen()
            self.whole()
        except BaseException as exc:
            exc.add_note(f"FFS_FSX_SEED={self.seed}; the last steps:\n" + "\n".join(self.done))
            raise
        finally:
            for fd in self.fds:
                os.close(fd)

    def step(self, operation: Callable[[], str]) -> None:
        self.chosen = self.rng.randrange(len(self.fds))
        lock = self.rng.choice([fcntl.flock, fcntl.lockf])
        if not self.locked or operation == self.reopen:
            self.done.append(f"{self.chosen}: {operation()}")
            return
        lock(self.fd, fcntl.LOCK_EX)
        self.done.append(f"{self.chosen}: {operation()}")
        lock(self.fd, fcntl.LOCK_UN)

    @property
    def fd(self) -> int:
        return self.fds[self.chosen]

    @property
    def path(self) -> Path:
        return self.paths[self.chosen]

    def extent(self, end: int) -> tuple[int, int]:
        """(offset, length) below `end`: often small, often at the edge of a page or of a chunk."""
        rng = self.rng
        offset = rng.randrange(max(1, end))
        if rng.random() < 0.3:
            offset -= offset % rng.choice([512, 4096, 1 << 20])
        length = rng.choice([rng.randrange(1, 100), rng.randrange(1, 20_000), rng.randrange(1, 1_500_000)])
        if rng.random() < 0.2:
            length = max(1, length - (offset + length) % 4096)
        return offset, max(1, min(length, end - offset))

    def put(self, offset: int, data: bytes) -> None:
        self.grow(offset + len(data))
        self.model[offset : offset + len(data)] = data

    def grow(self, end: int) -> None:
        if len(self.model) < end:
            self.model.extend(bytes(end - len(self.model)))

    def same(self, offset: int, data: bytes, what: str) -> None:
        want = bytes(self.model[offset : offset + len(data)])
        if data != want:
            place = next(n for n, (a, b) in enumerate(zip(data, want, strict=False)) if a != b)
            raise AssertionError(f"{what}: byte {offset + place} is {data[place]}, should be {want[place]}")

    def whole(self) -> None:
        for fd in self.fds:
            if self.locked:
                fcntl.flock(fd, fcntl.LOCK_EX)
            data = os.pread(fd, FILE_MAX + 1, 0)
            while len(data) < len(self.model) and (more := os.pread(fd, FILE_MAX, len(data))):
                data += more
            assert len(data) == len(self.model) == os.fstat(fd).st_size
            self.same(0, data, "at the end")
            if self.locked:
                fcntl.flock(fd, fcntl.LOCK_UN)

    def read(self) -> str:
        offset, length = self.extent(FILE_MAX)
        data = os.pread(self.fd, length, offset)
        assert len(data) == max(0, min(length, len(self.model) - offset)), f"read {length} at {offset}: {len(data)}"
        self.same(offset, data, f"read {length} at {offset}")
        return f"read {offset} {length}"

    def write(self) -> str:
        offset, length = self.extent(FILE_MAX)
        data = self.rng.randbytes(length)
        assert os.pwrite(self.fd, data, offset) == length
        self.put(offset, data)
        return f"write {offset} {length}"

    def truncate(self) -> str:
        length = self.rng.randrange(FILE_MAX)
        if self.rng.random() < 0.5:
            os.ftruncate(self.fd, length)
        else:
            os.truncate(self.path, length)
        del self.model[length:]
        self.grow(length)
        return f"truncate {length}"

    def punch(self) -> str:
        offset, length = self.extent(FILE_MAX)
        fallocate(self.fd, PUNCH | KEEP, offset, length)
        end = min(offset + length, len(self.model))
        self.model[offset:end] = bytes(max(0, end - offset))
        return f"punch {offset} {length}"

    def zero(self) -> str:
        offset, length = self.extent(FILE_MAX)
        keep = self.rng.random() < 0.5
        fallocate(self.fd, ZERO | (KEEP if keep else 0), offset, length)
        if not keep:
            self.grow(offset + length)
        end = min(offset + length, len(self.model))
        self.model[offset:end] = bytes(max(0, end - offset))
        return f"zero {offset} {length} keep={keep}"

    def allocate(self) -> str:
        offset, length = self.extent(FILE_MAX)
        keep = self.rng.random() < 0.5
        fallocate(self.fd, KEEP if keep else 0, offset, length)
        if not keep:
            self.grow(offset + length)
        return f"allocate {offset} {length} keep={keep}"

    def copy(self) -> str:
        if len(self.model) < 2:
            return "copy nothing"
        source, length = self.extent(len(self.model))
        into, _ = self.extent(FILE_MAX - length if length < FILE_MAX else 1)
        if source < into + length and into < source + length:
            return "copy nothing"
        fd = self.fd
        os.fstat(fd)  # the kernel cuts the copy at the length that it was told last
        copied = os.copy_file_range(fd, fd, length, source, into)
        assert copied == length
        self.put(into, bytes(self.model[source : source + length]))
        return f"copy {source} {length} to {into}"

    def seek(self) -> str:
        """What is said to be a hole reads as zeros, and the two take turns."""
        if not self.model:
            return "seek nothing"
        fd, at, found = self.fd, self.rng.randrange(len(self.model)), []
        while at < len(self.model):
            try:
                data = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno != errno.ENXIO:
                    raise
                data = len(self.model)
            assert data >= at
            self.same(at, bytes(data - at), f"a hole from {at} to {data}")
            if data >= len(self.model):
                break
            at = os.lseek(fd, data, os.SEEK_HOLE)
            assert data < at <= len(self.model)
            found.append((data, at))
        return f"seek {found}"

    def reopen(self) -> str:
        for place, path in enumerate(self.paths):
            os.close(self.fds[place])
            self.fds[place] = os.open(path, os.O_RDWR | self.flags)
        return "reopen"

    def sync(self) -> str:
        self.rng.choice([os.fsync, os.fdatasync])(self.fd)
        return "sync"

    def stat(self) -> str:
        assert os.fstat(self.fd).st_size == len(self.model)
        assert self.path.stat().st_size == len(self.model)
        return "stat"

    def map_read(self) -> str:
        if not self.model:
            return "map nothing"
        offset, length = self.extent(len(self.model))
        base = offset - offset % mmap.ALLOCATIONGRANULARITY
        with mmap.mmap(self.fd, offset + length - base, mmap.MAP_SHARED, mmap.PROT_READ, offset=base) as view:
            self.same(offset, view[offset - base :], f"mapped {length} at {offset}")
        return f"map_read {offset} {length}"

    def map_write(self) -> str:
        if not self.model:
            return "map nothing"
        offset, length = self.extent(len(self.model))
        base = offset - offset % mmap.ALLOCATIONGRANULARITY
        data = self.rng.randbytes(length)
        with mmap.mmap(self.fd, offset + length - base, offset=base) as view:
            view[offset - base :] = data
            if self.rng.random() < 0.5:
                view.flush()
        self.put(offset, data)
        return f"map_write {offset} {length}"


@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("options", [(), ("--strict",)], ids=["cached", "strict"])
def test_one_descriptor(cluster: Any, mount_of: Any, options: tuple[str, ...], number: int) -> None:
    path = mount_of(cluster, *options).point / f"{NAME}one{number}{len(options)}"
    Exerciser([path], SEED + number).run(STEPS)


def test_two_descriptors_and_o_direct(cluster: Any, mount_of: Any) -> None:
    path = mount_of(cluster).point / f"{NAME}direct"
    Exerciser([path, path], SEED, flags=os.O_DIRECT).run(STEPS)


def test_two_strict_mounts_see_each_other(cluster: Any, mount_of: Any) -> None:
    paths = [mount_of(cluster, "--strict").point / f"{NAME}two" for _ in range(2)]
    Exerciser(paths, SEED, mapped=False).run(STEPS)


def test_two_cached_mounts_under_locks(cluster: Any, mount_of: Any) -> None:
    """Who locks sees what was done under the lock before, through caches, mappings and write-behind."""
    paths = [mount_of(cluster).point / f"{NAME}locked" for _ in range(2)]
    Exerciser(paths, SEED, locked=True).run(STEPS)
