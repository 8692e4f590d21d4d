"""Small reads that wait in the kernel at the same time, on real mounts: asked for together, each gets its own bytes."""

from __future__ import annotations

import mmap
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fireflyfs.common.limits import KiB, MiB
from fireflyfs.fuse.mount import Mount

pytestmark = pytest.mark.e2e

JOBS = 24


def pread(fd: int, offset: int, length: int) -> bytes:
    """Into memory that O_DIRECT takes."""
    with mmap.mmap(-1, length) as memory:
        count = os.preadv(fd, [memory], offset)
        return memory[:count]


def make_file(mount: Mount, name: str, data: bytes) -> Path:
    path = mount.mountpoint / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("request_bytes_max", [128 * KiB, MiB])
def test_many_reads_are_few_requests_and_every_byte_is_right(
    backend: Any, mounts: Callable[..., Mount], request_bytes_max: int
) -> None:
    mount = mounts(backend, request_bytes_max=request_bytes_max)
    data = random.Random(1).randbytes(2 * MiB + 100)
    fd = os.open(make_file(mount, "f", data), os.O_RDONLY | os.O_DIRECT)
    backend.data.read_s = 0.003

    def read(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(40):
            length = rng.choice((4 * KiB, 8 * KiB, 16 * KiB, 128 * KiB))
            offset = rng.randrange(0, len(data), 4 * KiB)
            assert pread(fd, offset, length) == data[offset : offset + length]

    try:
        with ThreadPoolExecutor(JOBS) as pool:
            list(pool.map(read, range(JOBS)))
    finally:
        os.close(fd)
    together = backend.data.together
    assert max(together) > 4
    assert sum(together) > 1.5 * len(together)
    reads = mount.volume.times.operations()["read"]
    assert reads["count"] >= JOBS * 40
    assert reads["bytes"] >= sum(together) * 4 * KiB


def test_one_reader_is_served_as_ever(backend: Any, mounts: Callable[..., Mount]) -> None:
    mount = mounts(backend)
    fd = os.open(make_file(mount, "f", b"x" * MiB), os.O_RDONLY | os.O_DIRECT)
    try:
        for block in range(100):
            assert pread(fd, block * 4 * KiB, 4 * KiB) == b"x" * 4 * KiB
    finally:
        os.close(fd)
    assert all(count == 1 for count in backend.data.together)


def test_a_read_that_must_wait_holds_nobody_up(backend: Any, mounts: Callable[..., Mount]) -> None:
    """Its servers are away; what was asked for in the same request, or came behind it, is answered meanwhile."""
    mount = mounts(backend)
    good = os.open(make_file(mount, "good", b"g" * MiB), os.O_RDONLY | os.O_DIRECT)
    waiting = os.open(make_file(mount, "waiting", b"w" * MiB), os.O_RDONLY | os.O_DIRECT)
    backend.data.away.add((mount.mountpoint / "waiting").stat().st_ino)
    backend.data.read_s = 0.003
    ended = threading.Event()

    def read_good() -> None:
        while not ended.is_set():
            assert pread(good, 0, 4 * KiB) == b"g" * 4 * KiB

    def read_waiting() -> bytes:
        return pread(waiting, 0, 4 * KiB)

    try:
        with ThreadPoolExecutor(2 * JOBS) as pool:
            others = [pool.submit(read_good) for _ in range(JOBS)]
            late = [pool.submit(read_waiting) for _ in range(JOBS)]
            time.sleep(0.3)
            before = mount.volume.times.operations()["read"]["count"]
            (mount.mountpoint / "made meanwhile").write_bytes(b"1")
            time.sleep(0.3)
            assert mount.volume.times.operations()["read"]["count"] > before + JOBS
            assert not any(each.done() for each in late)
            backend.data.away.clear()
            assert {each.result(30) for each in late} == {b"w" * 4 * KiB}
            ended.set()
            for each in others:
                each.result(30)
    finally:
        ended.set()
        backend.data.away.clear()
        os.close(good)
        os.close(waiting)


def test_reads_are_answered_whatever_fails(backend: Any, mounts: Callable[..., Mount]) -> None:
    mount = mounts(backend)
    fd = os.open(make_file(mount, "f", b"x" * MiB), os.O_RDONLY | os.O_DIRECT)
    backend.data.read_s = 0.003
    backend.data.fail_once = [RuntimeError("told to") for _ in range(5)]
    try:
        with ThreadPoolExecutor(JOBS) as pool:
            assert set(pool.map(lambda block: pread(fd, block * 4 * KiB, 4 * KiB), range(250))) == {b"x" * 4 * KiB}
    finally:
        os.close(fd)
    assert not backend.data.fail_once


def test_what_waits_to_be_written_is_read(backend: Any, mounts: Callable[..., Mount]) -> None:
    """By readers and writers of the same blocks, each of which holds one number all over."""
    mount = mounts(backend)
    path = make_file(mount, "f", bytes(256 * KiB))
    backend.data.read_s = 0.001
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    newest = [0] * 64

    def work(job: int) -> None:
        rng = random.Random(job)
        with mmap.mmap(-1, 4 * KiB) as memory:
            for turn in range(1, 60):
                block = rng.randrange(64) // JOBS * JOBS + job
                if block < 64 and rng.random() < 0.3:
                    memory[:] = bytes([turn]) * 4 * KiB
                    assert os.pwritev(fd, [memory], block * 4 * KiB) == 4 * KiB
                    newest[block] = turn
                block = rng.randrange(64)
                least = newest[block]
                got = pread(fd, block * 4 * KiB, 4 * KiB)
                assert len(set(got)) == 1
                assert got[0] >= least

    try:
        with ThreadPoolExecutor(JOBS) as pool:
            list(pool.map(work, range(JOBS)))
    finally:
        os.close(fd)
