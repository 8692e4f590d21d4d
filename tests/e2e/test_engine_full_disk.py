"""The engine on a file system that is really full, and on one that really loses power."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from crc32c import crc32c

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.engine.interface import ChunkKey, Extent, Update, Writer
from fireflyfs.storage.engine.store import Engine, open_engine

pytestmark = pytest.mark.e2e
MiB = 1 << 20
IMAGE_BYTES = 192 * MiB


def put(engine: Engine, key: ChunkKey, version: int, data: bytes) -> None:
    update = Update(
        key, UpdateKind.WRITE, version, 1, MiB, 0, [Extent(0, memoryview(data), crc32c(data))], Writer(b"c" * 16, 0, 1)
    )
    engine.apply([update])
    engine.commit([(key, version)], 1)


def get(engine: Engine, key: ChunkKey) -> bytes:
    into = memoryview(bytearray(MiB))
    return bytes(into[: engine.read(key, 0, into).length])


def test_a_full_disk_refuses_writes_and_keeps_what_it_has(
    tmp_path: Path, loop_mounts: Callable[[Path], Path], make_image: Callable[[Path, int], Path]
) -> None:
    target = loop_mounts(make_image(tmp_path / "disk.img", IMAGE_BYTES)) / "t"
    target.mkdir()
    engine = open_engine(target, checkpoint_interval_s=0)
    roll = random.Random(1)
    stored: dict[ChunkKey, bytes] = {}
    sizes = [MiB, MiB, 300_000, 5_000]
    refused = 0
    for index in range(2000):
        key, data = ChunkKey(1, index), roll.randbytes(sizes[index % 4])
        try:
            put(engine, key, 1, data)
            stored[key] = data
        except FfsError as exc:
            if exc.code != Code.NO_SPACE:
                raise
            refused += 1
            if refused > 40:
                break
    assert refused > 40
    assert sum(map(len, stored.values())) > IMAGE_BYTES // 2
    assert engine.pending(10) == []
    # Overwrites of what is there are refused or done, never half done; removing makes room again.
    for key in list(stored)[:40]:
        data = roll.randbytes(len(stored[key]))
        try:
            put(engine, key, 2, data)
            stored[key] = data
        except FfsError as exc:
            if exc.code != Code.NO_SPACE:
                raise
    assert all(get(engine, key) == data for key, data in stored.items())
    engine.sync()
    for key in [key for key in stored if len(stored[key]) == MiB][:20]:
        engine.apply([Update(key, UpdateKind.REMOVE, 3, 1, MiB, 0, [], Writer(b"c" * 16, 0, 1))])
        engine.commit([(key, 3)], 1)
        del stored[key]
    for index in range(15):
        key, data = ChunkKey(2, index), roll.randbytes(MiB)
        put(engine, key, 1, data)
        stored[key] = data
    engine.close()
    engine = open_engine(target, checkpoint_interval_s=0)
    assert engine.space().chunks == len(stored)
    assert all(get(engine, key) == data for key, data in stored.items())
    engine.close()


def test_synced_chunks_survive_a_copied_disk(
    tmp_path: Path, loop_mounts: Callable[[Path], Path], make_image: Callable[[Path, int], Path]
) -> None:
    """The image's backing file, copied while the engine runs, is what a power cut leaves."""
    image = make_image(tmp_path / "disk.img", IMAGE_BYTES)
    target = loop_mounts(image) / "t"
    target.mkdir()
    engine = open_engine(target, checkpoint_interval_s=0)
    roll = random.Random(2)
    synced: dict[ChunkKey, bytes] = {}
    for index in range(30):
        key = ChunkKey(1, index)
        synced[key] = roll.randbytes(roll.choice([4_000, 70_000, MiB]))
        put(engine, key, 1, synced[key])
    engine.sync()
    newer: dict[ChunkKey, bytes] = {}
    for key in list(synced)[::2]:
        newer[key] = roll.randbytes(len(synced[key]))
        put(engine, key, 2, newer[key])
    copy = tmp_path / "after.img"
    subprocess.run(["cp", "--sparse=always", image, copy], check=True)
    engine.close()
    after = loop_mounts(copy) / "t"
    engine = open_engine(after, checkpoint_interval_s=0, boot_id="after the power cut")
    for key, data in synced.items():
        assert get(engine, key) in (data, newer.get(key, data))
    engine.close()
