"""Memory pools: bounds, seals, what is freed."""

from __future__ import annotations

import fcntl
import gc
import os

import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.limits import KiB, MiB
from fireflyfs.common.net.buffers import BufferPool
from fireflyfs.common.net.memory import PrivatePool, SharedPool
from fireflyfs.common.net.staging import StagingPool


@pytest.mark.parametrize("pool", [PrivatePool(), SharedPool()])
def test_slices_stay_inside(pool) -> None:
    memory = pool.allocate(100)
    memory.slice(90, 10).view[:] = b"x" * 10
    assert bytes(memory.view[88:]) == b"\0\0" + b"x" * 10
    for offset, length in [(-1, 1), (0, 101), (100, 1), (0, -1)]:
        with pytest.raises(FfsError) as caught:
            memory.slice(offset, length)
        assert caught.value.code is Code.INVALID
    memory.close()


def test_shared_memory_cannot_shrink() -> None:
    memory = SharedPool().allocate(8192)
    assert fcntl.fcntl(memory.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, 10)
    memory.close()
    memory.close()


def test_the_pool_is_bounded_and_gets_its_bytes_back() -> None:
    pool = SharedPool(10_000)
    first = pool.allocate(6000)
    with pytest.raises(FfsError) as caught:
        pool.allocate(6000)
    assert caught.value.code is Code.OVERLOADED
    first.close()
    second = pool.allocate(6000)
    del second  # dropped, not closed
    gc.collect()
    pool.allocate(6000).close()


def test_staging_reuses_and_gives_up_tainted_buffers() -> None:
    staging = StagingPool(SharedPool(), bytes_max=4 * MiB)
    first = staging.take(MiB)
    assert first is not None
    staging.give(first)
    assert staging.take(MiB) is first
    first.tainted = True
    staging.give(first)
    assert first.closed
    held = [staging.take(2 * MiB), staging.take(2 * MiB)]
    assert all(held)
    assert staging.take(300 * KiB) is None  # the bound: the socket is the way
    for memory in held:
        staging.give(memory)
    other = staging.take(4 * MiB)  # idle buffers of another size give way
    assert other is not None
    staging.give(other)
    staging.close()
    assert other.closed


def test_buffer_pool_keeps_up_to_its_bound() -> None:
    pool = BufferPool(cached_bytes_max=2 * MiB)
    buffers = [pool.take(MiB) for _ in range(3)]
    for buffer in buffers:
        pool.give(buffer)
    assert pool.take(MiB) in buffers
    assert len(pool.take(40 * KiB)) == 64 * KiB
    assert len(pool.take(10)) == 10
