"""Regions and rings with their links made and taken back: what most programs for 3FS use."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import hf3fs_py_usrbio as usrbio
from hf3fs_py_usrbio import deregister_fd, extract_mount_point, force_fsync, hardlink, punch_hole, register_fd

__all__ = [
    "IorPriority",
    "deregister_fd",
    "extract_mount_point",
    "force_fsync",
    "hardlink",
    "ioring",
    "iovec",
    "make_ioring",
    "make_iovec",
    "punch_hole",
    "read_file",
    "register_fd",
]


class IorPriority:
    HIGH = -1
    NORMAL = 0
    LOW = 1


class iovec:
    """A region and its link, which goes with it. Slices are `hf3fs_py_usrbio.iovec`s."""

    def __init__(self, iov: usrbio.iovec, link: str) -> None:
        self.iov = iov
        self.link = link
        self._owner = os.getpid()

    def __getitem__(self, part: slice) -> usrbio.iovec:
        piece: usrbio.iovec = self.iov[part]
        return piece

    def __setitem__(self, part: slice, value: Any) -> None:
        self.iov[part] = value

    def __del__(self) -> None:
        if self._owner == os.getpid():  # a forked child's copy leaves the parent's region alone
            with contextlib.suppress(OSError):  # the mount may be gone
                os.unlink(self.link)


class ioring:
    """A ring that takes regions of both kinds."""

    def __init__(self, ior: usrbio.ioring) -> None:
        self.ior = ior

    @staticmethod
    def size_for_entries(entries: int) -> int:
        return usrbio.ioring.size_for_entries(entries)

    def prepare(self, iov: iovec | usrbio.iovec, *args: Any, **kwargs: Any) -> usrbio.ioring:
        return self.ior.prepare(iov.iov if isinstance(iov, iovec) else iov, *args, **kwargs)

    def submit(self) -> usrbio.ioring:
        return self.ior.submit()

    def wait(self, *args: Any, **kwargs: Any) -> list[usrbio.iovec]:
        return self.ior.wait(*args, **kwargs)


def make_iovec(shm: SharedMemory, hf3fs_mount_point: str, block_size: int = 0, numa: int = -1) -> iovec:
    """Register all of `shm`, whose name may be unlinked right after."""
    number = str(uuid.uuid4())
    block = f".b{block_size}" if block_size > 0 else ""
    link = f"{hf3fs_mount_point}/3fs-virt/iovs/{number}{block}"
    region = usrbio.iovec(shm.buf, number, hf3fs_mount_point, block_size, numa)
    os.symlink(os.path.normpath(f"/dev/shm/{shm.name}"), link)
    return iovec(region, link)


def make_ioring(
    hf3fs_mount_point: str,
    entries: int,
    for_read: bool = True,
    io_depth: int = 0,
    priority: int | None = None,
    timeout: int | None = None,
    numa: int = -1,
    flags: int = 0,
) -> ioring:
    """A ring of `entries`, for one direction. The other arguments: docs/usrbio.md."""
    return ioring(usrbio.ioring(hf3fs_mount_point, entries, for_read, io_depth, priority, timeout, numa, flags))


def read_file(
    fn: str,
    hf3fs_mount_point: str | None = None,
    block_size: int = 1 << 30,
    off: int = 0,
    priority: int | None = None,
    cb: Callable[[memoryview, int], Any] | None = None,
) -> bytes | None:
    """All of a file from `off` on, or None where `cb` takes it: cb(block, its offset) returns where to go on (an int),
    something true to stop, or something false to go on behind the block."""
    point = hf3fs_mount_point or extract_mount_point(fn)
    if point is None:
        raise OSError(2, "not on a mount that serves rings", fn)
    found: list[bytes] = []
    with contextlib.ExitStack() as stack:
        fd = os.open(fn, os.O_RDONLY)
        stack.callback(os.close, fd)
        register_fd(fd)
        stack.callback(deregister_fd, fd)
        shm = SharedMemory(create=True, size=block_size)
        stack.callback(shm.close)
        stack.callback(shm.unlink)
        memory = shm.buf
        assert memory is not None  # until it is closed
        region = make_iovec(shm, point)
        ring = make_ioring(point, 1, priority=priority)
        stack.callback(ring.ior.destroy)
        whole = region[0:block_size]
        while True:
            ring.prepare(whole, True, fd, off)
            count = ring.submit().wait(min_results=1)[0].result
            if count < 0:
                raise OSError(-count, os.strerror(-count), fn)
            if not count:
                break
            if cb is None:
                found.append(bytes(memory[:count]))
            else:
                with memory[:count] as block:
                    answer = cb(block, off)
                if type(answer) is int:
                    off = answer
                    continue
                if answer:
                    break
            if count < block_size:
                break
            off += block_size
    return None if cb is not None else b"".join(found)
