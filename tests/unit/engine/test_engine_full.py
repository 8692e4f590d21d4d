"""The engine on a disk that is mostly full: what is refused changes nothing, what is freed can be had again."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from crc32c import crc32c

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.limits import KiB, MiB
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.engine.interface import ChunkKey, Extent, Update, Writer
from fireflyfs.storage.engine.store import Engine, open_engine

PAGE = 4096
CHUNK = 128 * KiB


class SmallDisk:
    """Lets the block files below `path` have `room` bytes; what they have is what the file system says of them."""

    def __init__(self, path: Path, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.room = room
        self._fallocate = os.posix_fallocate
        monkeypatch.setattr(os, "posix_fallocate", self.posix_fallocate)
        monkeypatch.setattr(os, "fstatvfs", self.statvfs)
        monkeypatch.setattr(os, "statvfs", self.statvfs)

    def used(self) -> int:
        return sum(file.stat().st_blocks * 512 for file in (self.path / "blocks").glob("*-*"))

    def statvfs(self, _: int | Path) -> SimpleNamespace:
        free = (self.room - self.used()) // PAGE
        return SimpleNamespace(f_bavail=max(0, free), f_frsize=PAGE, f_blocks=self.room // PAGE)

    def posix_fallocate(self, fd: int, at: int, length: int) -> None:
        self._fallocate(fd, at, length)
        if self.used() > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("seed", range(12))
def test_a_full_disk_refuses_and_keeps(
    tmp_path: Path,
    workload: Callable[..., Any],
    contents: Callable[..., dict[ChunkKey, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    disk = SmallDisk(tmp_path, 2 * MiB, monkeypatch)

    def opened() -> Engine:
        return open_engine(tmp_path, checkpoint_interval_s=0, kept_bytes=256 * KiB)

    work = workload(seed, chunks=24)
    engine = opened()
    refused = written = 0
    for number in range(700):
        step = work.next_step()
        try:
            work.perform(engine, step)
        except FfsError as exc:
            if exc.code is not Code.NO_SPACE:
                raise
            refused += 1
        else:
            written += step.update is not None
            work.note(step)
        maps = len(list((tmp_path / "blocks").iterdir())) * PAGE  # where a file's bytes lie: ext4 counts it with them
        assert disk.used() <= disk.room - engine._blocks.reserve_bytes + maps
        if number % 100 == 99:
            assert contents(engine) == work.committed
            pending = {key: data for key, data in work.pending.items() if data is not None}
            assert contents(engine, pending=True) == pending
        if number % 250 == 249:
            engine.close()
            engine = opened()
    assert refused > 10, "the disk did not fill"
    assert written > 100
    for key in work.keys:
        version = work.versions[key] + 1  # in the place of a pending one
        engine.apply([Update(key, UpdateKind.REMOVE, version, 1, CHUNK, 0, [], Writer(b"w" * 16, 1, version))])
        engine.commit([(key, version)], 1)
    engine.sync()
    assert engine.space().used_bytes == 0
    data = random.Random(seed).randbytes(CHUNK)
    room = (disk.room - engine._blocks.reserve_bytes) // CHUNK
    with pytest.raises(FfsError) as caught:
        put(engine, [ChunkKey(9, index) for index in range(room + 1)], data)  # in blocks of one size now
    assert caught.value.code is Code.NO_SPACE
    assert engine.space().chunks >= room - 1, "but for the maps"
    engine.close()


def put(engine: Engine, keys: list[ChunkKey], data: bytes) -> None:
    """One chunk after the other."""
    extent = Extent(0, memoryview(data), crc32c(data))
    for key in keys:
        engine.apply_committed([Update(key, UpdateKind.WRITE, 1, 1, CHUNK, 0, [extent], Writer(b"w" * 16, 2, 1))], 1)
