"""Blocks that are written and replaced between two syncs: they are free at once, and need not reach the disk."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.engine import block_space
from fireflyfs.storage.engine.allocator import ClassAllocator
from fireflyfs.storage.engine.checkpoint import Epochs
from fireflyfs.storage.engine.interface import ChunkKey, Extent, Update, Writer
from fireflyfs.storage.engine.store import Engine, open_engine

MIB = 1 << 20


class Client:
    """Changes chunks, each version committed."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.versions: dict[ChunkKey, int] = {}

    def change(self, key: ChunkKey, data: bytes | None) -> None:
        """Replace the chunk; None: remove it."""
        version = self.versions[key] = self.versions.get(key, 0) + 1
        kind = UpdateKind.REMOVE if data is None else UpdateKind.REPLACE
        extents = [] if data is None else [Extent(0, memoryview(data), crc32c(data))]
        writer = Writer(b"w" * 16, 0, len(self.versions) * 1000 + version)
        self.engine.apply([Update(key, kind, version, 1, MIB, len(data or b""), extents, writer)])
        self.engine.commit([(key, version)], 1)

    def content(self, key: ChunkKey) -> bytes | None:
        if self.engine.stat(key) is None:
            return None
        into = memoryview(bytearray(MIB))
        return bytes(into[: self.engine.read(key, 0, into).length])


def test_what_was_removed_before_a_sync_does_not_reach_the_disk(tmp_path: Path) -> None:
    engine = open_engine(tmp_path, checkpoint_interval_s=0)
    client = Client(engine)
    data = b"\xa5" * (256 * 1024)  # less than what is written past the page cache
    keys = [ChunkKey(1, index) for index in range(8)]
    for key in keys:
        client.change(key, data)
    kept = ChunkKey(2, 0)
    client.change(kept, data)
    for key in keys:
        client.change(key, None)
    assert engine.space().used_bytes == len(data), "free before any sync"
    engine.sync()
    assert engine.stats()["forgotten_bytes"] == len(keys) * len(data)
    stored = b"".join(file.read_bytes() for file in (tmp_path / "blocks").iterdir())
    assert stored.count(data) == 1
    assert client.content(kept) == data
    engine.close()


def test_what_was_synced_keeps_its_block_until_the_next_sync(tmp_path: Path) -> None:
    engine = open_engine(tmp_path, checkpoint_interval_s=0)
    client = Client(engine)
    key, data = ChunkKey(1, 0), b"\x5a" * (128 * 1024)
    client.change(key, data)
    engine.sync()
    client.change(key, None)
    assert engine.space().used_bytes == len(data), "a power cut may ask for it"
    engine.sync()
    assert engine.space().used_bytes == 0
    assert engine.stats()["forgotten_bytes"] == 0
    engine.close()


def test_a_block_whose_next_owner_was_there_before_the_sync_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_space, "REFILL_BYTES", 0)  # what was freed is looked up again soon
    monkeypatch.setattr(block_space, "FORGOTTEN_BYTES_MIN", 0)
    engine = open_engine(tmp_path, checkpoint_interval_s=0, kept_bytes=64 * 1024)
    client = Client(engine)
    roll = random.Random(5)
    model: dict[ChunkKey, bytes | None] = {}
    for _ in range(600):
        key = ChunkKey(1, roll.randrange(12))
        choice = roll.random()
        if choice < 0.1:
            engine.checkpoint() if choice < 0.03 else engine.sync()
        elif choice < 0.25:
            if model.get(key) is not None:
                client.change(key, None)
                model[key] = None
        else:
            model[key] = roll.randbytes(roll.choice([3000, 20_000, 70_000]))
            client.change(key, model[key])
    for last in (False, True):
        for key, data in model.items():
            assert client.content(key) == data, f"{key}, after a sync: {last}"
        engine.sync()
    assert engine.stats()["forgotten_bytes"] > 0
    used = sum(1 << (max(len(data), 4096) - 1).bit_length() for data in model.values() if data is not None)
    assert engine.space().used_bytes == used
    engine.close()


@pytest.mark.parametrize("there", [1, 2, 3, 5])
def test_what_a_full_disk_gave_back_is_taken_anew_for_files_not_yet_made_too(tmp_path: Path, there: int) -> None:
    engine = open_engine(tmp_path, checkpoint_interval_s=0)
    client = Client(engine)
    data = b"\x3c" * (20 * 1024)
    for index in range(there):
        client.change(ChunkKey(1, index), data)
    engine.reclaim()
    assert engine.stats()["kept_free_bytes"] == 0
    for index in range(there, 12):
        client.change(ChunkKey(1, index), data)
        client.change(ChunkKey(2, index), data)
        client.change(ChunkKey(2, index), None)
    engine.sync()
    for index in range(12):
        assert client.content(ChunkKey(1, index)) == data
    engine.close()


def test_a_file_system_that_cannot_forget_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []

    class Library:
        @staticmethod
        def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
            modes.append(mode)
            block_space.ctypes.set_errno(block_space.errno.EOPNOTSUPP)
            return -1

    engine = open_engine(tmp_path, checkpoint_interval_s=0)
    client = Client(engine)
    monkeypatch.setattr(block_space, "_libc", Library)
    for round_ in range(2):
        for index in range(4):
            client.change(ChunkKey(1, index), b"x" * (128 * 1024))
            client.change(ChunkKey(1, index), None)
        engine.sync()
        assert len(modes) == 1, round_
    assert engine.stats()["forgotten_bytes"] == 0
    engine.close()


@given(st.lists(st.integers(0, 5), max_size=200), st.integers(0, 1 << 30))
def test_spoiled_blocks_are_those_freed_while_fresh(choices: list[int], seed: int) -> None:
    roll = random.Random(seed)
    allocator = ClassAllocator(8)
    owned: set[int] = set()
    fresh: set[int] = set()
    spoiled: set[int] = set()
    backed: set[int] = set()

    def allocate(with_space: bool) -> int:
        block = allocator.allocate()
        assert block not in owned
        if with_space:  # on a full disk there is none, and it is freed again
            allocator.set_backed(block, 1, True)
            backed.add(block)
        owned.add(block)
        fresh.add(block)
        spoiled.discard(block)
        return block

    for choice in choices:
        if choice == 0:
            allocator.age()
            fresh.clear()
        elif choice == 1:
            taken = {}
            for stripe in range(4):
                taken[stripe] = allocator.take_spoiled_runs(stripe, 4)
            found = {
                row * 4 + stripe
                for stripe, runs in taken.items()
                for first, count in runs
                for row in range(first, first + count)
            }
            assert found == spoiled
            assert allocator.spoiled_blocks == 0
            assert allocate(True) not in found, "meanwhile nobody is given them"
            for stripe, runs in taken.items():
                allocator.put_back(stripe, 4, runs)
            assert not any(allocator.is_used(block) for block in found)
            spoiled.clear()
        elif choice == 2 and owned:
            block = roll.choice(sorted(owned))
            assert allocator.is_fresh(block) == (block in fresh)
            allocator.free(block)
            owned.discard(block)
            if block in fresh & backed:
                spoiled.add(block)
            fresh.discard(block)
        else:
            allocate(choice != 3)
        assert allocator.spoiled_blocks == len(spoiled)
    given_back = {
        row * 4 + stripe
        for stripe in range(4)
        for first, count in allocator.take_free_runs(stripe, 4, 1 << 20)
        for row in range(first, first + count)
    }
    assert allocator.spoiled_blocks == len(spoiled - given_back), "what has no space is not written to the disk"


@pytest.mark.parametrize(("capacity", "due"), [(100 << 20, 64 << 20), (4 << 30, 128 << 20), (1 << 40, 256 << 20)])
def test_replaced_blocks_are_held_back_up_to_a_part_of_the_capacity(capacity: int, due: int) -> None:
    blocks = SimpleNamespace(capacity_bytes=lambda: capacity)
    epochs = Epochs(SimpleNamespace(put=lambda key, value: None), blocks, 0, 1)  # type: ignore[arg-type]
    mib = [(20, number) for number in range(due >> 20)]
    epochs.hold(mib[1:], ())
    assert not epochs.due
    epochs.hold(mib[:1], ())
    assert epochs.due, "a sync gives them up"
