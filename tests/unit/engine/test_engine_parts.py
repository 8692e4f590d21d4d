"""The engine's small parts: checksums, records, allocation, identity."""

from __future__ import annotations

import errno
import itertools
import os
import random
import threading
from array import array
from pathlib import Path

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.storage.engine import blocks, crc
from fireflyfs.storage.engine.allocator import ClassAllocator
from fireflyfs.storage.engine.deltas import DeltaRef, Deltas
from fireflyfs.storage.engine.extents import runs
from fireflyfs.storage.engine.identity import create_target, read_identity, require_identity
from fireflyfs.storage.engine.interface import ChunkKey
from fireflyfs.storage.engine.record import (
    Record,
    block_of,
    block_shift_of,
    chunk_key,
    delta_key,
    key_of,
    pack,
    stamp,
    undo_key,
    unit_shift_of,
    unpack,
)

KiB = 1024


@given(st.binary(max_size=3000), st.binary(max_size=3000))
def test_checksums_combine(first: bytes, second: bytes) -> None:
    assert crc.combine(crc32c(first), crc32c(second), len(second)) == crc32c(first + second)


@given(st.integers(0, 1 << 20))
def test_checksum_of_zeros(count: int) -> None:
    assert crc.zeros_crc(count) == crc32c(bytes(count))


@given(st.integers(0, 70_000), st.sampled_from([4096, 8192, 16384]))
def test_checksum_of_units(length: int, unit: int) -> None:
    data = random.Random(length).randbytes(length)
    assert crc.combine_units(crc.unit_crcs(memoryview(data), unit), unit, length) == crc32c(data)


@given(
    st.binary(max_size=100), st.binary(min_size=1, max_size=300), st.binary(max_size=100), st.sampled_from([1, 8, 64])
)
def test_checksum_after_units_changed(before: bytes, changed: bytes, behind: bytes, unit: int) -> None:
    other = bytes(255 - byte for byte in changed)
    old, new = (crc.unit_crcs(memoryview(data), unit) for data in (changed, other))
    last = len(changed) - unit * (len(old) - 1)
    patched = crc.patch_units(crc32c(before + changed + behind), old, new, unit, last, len(behind))
    assert patched == crc32c(before + other + behind)


@given(st.sets(st.integers(0, 40)))
def test_runs_of_units(units: set[int]) -> None:
    found = runs(sorted(units))
    assert [unit for first, last in found for unit in range(first, last + 1)] == sorted(units)
    assert all(later > last + 1 for (_, last), (later, _) in itertools.pairwise(found))


RECORD = Record(
    0, 20, 14, 1 << 20, 40_000, 0xDEADBEEF, 50_000, 77, 9, 4, 1 << 60, 6, 3, b"i" * 16,
    array("I", (1, 2, 0xFFFFFFFF)), Deltas.of((DeltaRef(5, 6, (7 << 32) | 1), DeltaRef(9, 10, 11))),
)  # fmt: skip


def test_a_record_survives_packing() -> None:
    raw = pack(RECORD)
    assert unpack(raw) == RECORD
    assert block_of(raw) == (20, 77)
    assert unpack(stamp(raw, epoch=99, chain_version=7)) == RECORD._replace(epoch=99, chain_version=7)
    # The stored bytes are a promise to every later release.
    assert raw.hex() == (
        "0100140e00001000409c0000efbeadde50c300004d00000003000200090000000000000004000000000000000000000000000010"
        "0600000003000000" + "69" * 16 + "0100000002000000ffffffff"
        "05000000060000000100000007000000090000000a0000000b00000000000000" + raw[-4:].hex()
    )


def test_a_damaged_record_is_refused() -> None:
    raw = pack(RECORD)
    for at in range(len(raw)):
        damaged = bytearray(raw)
        damaged[at] ^= 1
        with pytest.raises(FfsError) as caught:
            unpack(bytes(damaged))
        assert caught.value.code == (Code.VERSION_MISMATCH if at == 0 else Code.CHECKSUM)
    with pytest.raises(FfsError):
        unpack(raw[:20])


def test_keys_sort_as_chunks() -> None:
    keys = [ChunkKey(inode, index) for inode in (0, 1, 256, (1 << 64) - 1) for index in (0, 255, 256, (1 << 64) - 1)]
    assert sorted(keys) == [key_of(raw) for raw in sorted(chunk_key(b"c", key) for key in reversed(keys))]
    assert delta_key(keys[5], 3).startswith(chunk_key(b"d", keys[5]))
    assert key_of(undo_key(7, keys[5]), 9) == keys[5]


def test_sizes() -> None:
    assert [block_shift_of(n) for n in (0, 1, 4096, 4097, 1 << 20, (1 << 20) + 1)] == [0, 12, 12, 13, 20, 21]
    assert [unit_shift_of(n * KiB) for n in (64, 128, 256, 512, 1024, 65536)] == [12, 12, 13, 13, 14, 14]


@given(st.lists(st.integers(0, 2), max_size=200), st.integers(0, 1 << 30))
def test_blocks_have_one_owner(choices: list[int], seed: int) -> None:
    roll = random.Random(seed)
    allocator = ClassAllocator(8)
    owned: set[int] = set()
    ever: set[int] = set()
    for choice in choices:
        if choice or not owned:
            block = allocator.allocate()
            assert block not in owned
            owned.add(block)
            ever.add(block)
            allocator.set_backed(block, 1, True)
        else:
            block = roll.choice(sorted(owned))
            owned.discard(block)
            allocator.free(block)
    assert allocator.used_blocks == len(owned)
    assert all(allocator.is_used(block) for block in owned)
    free = {
        row * 4 + stripe
        for stripe in range(4)
        for first, count in allocator.take_free_runs(stripe, 4, 1 << 20)
        for row in range(first, first + count)
    }
    assert not free & owned
    assert free == {block for block in ever if block not in owned}
    assert allocator.take_free_runs(0, 4, 9) == []
    assert sum(allocator.assume_backed(stripe, 4, 1 << 20) for stripe in range(4)) >= len(free)
    assert max(owned | free, default=0) < len(choices) + 8


def test_blocks_count_as_backed_up_to_the_end_of_their_own_file() -> None:
    allocator = ClassAllocator(64)
    for _ in range(40):
        allocator.allocate()
    for block in (2, 6, 17):
        allocator.free(block)
    assert allocator.assume_backed(2, 4, 3) == 2  # blocks 2 and 6; 10 is in use
    assert allocator.assume_backed(2, 4, 3) == 0
    assert allocator.assume_backed(1, 4, 0) == 0
    assert [block for block in range(64) if allocator.is_backed(block)] == [2, 6]
    assert allocator.assume_backed(1, 4, 5) == 1  # 17 is row 4


def test_marked_blocks_are_not_handed_out() -> None:
    allocator = ClassAllocator()
    assert allocator.mark_used(5000)
    assert not allocator.mark_used(5000)
    taken = {allocator.allocate() for _ in range(6000)}
    assert 5000 not in taken
    assert len(taken) == 6000
    allocator.free(5000)
    with pytest.raises(ValueError, match="not in use"):
        allocator.free(5000)


def test_a_target_belongs_to_one_cluster(tmp_path: Path) -> None:
    path = tmp_path / "disk" / "t"
    create_target(path, 'odd "name"', 1001)
    create_target(path, 'odd "name"', 1001)
    identity = read_identity(path)
    assert identity == ('odd "name"', 1001)
    require_identity(path, 'odd "name"', 1001)
    for cluster_id, target_id, code in (("other", 1001, Code.WRONG_CLUSTER), ('odd "name"', 7, Code.CONFIG)):
        with pytest.raises(FfsError) as caught:
            create_target(path, cluster_id, target_id)
        assert caught.value.code == code


def test_foreign_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FfsError) as caught:
        create_target(tmp_path, "c", 1)
    assert caught.value.code == Code.CONFIG
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(FfsError, match="holds no target"):
        require_identity(tmp_path, "c", 1)


def test_a_newer_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target.toml").write_text('format = 9\ncluster_id = "c"\ntarget_id = 1\n')
    with pytest.raises(FfsError) as caught:
        read_identity(tmp_path)
    assert caught.value.code == Code.VERSION_MISMATCH
    assert "9" in str(caught.value)
    (tmp_path / "target.toml").write_text("format = 1\n")
    with pytest.raises(FfsError) as caught:
        read_identity(tmp_path)
    assert caught.value.code == Code.CONFIG


def test_a_sync_waits_for_the_one_that_has_taken_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = blocks.BlockStore(tmp_path / "blocks")
    block = store.allocate(12)
    store.write(12, block, 0, [memoryview(bytes(4096))])
    begun, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def slow(fd: int) -> None:
        begun.set()
        assert go_on.wait(30)
        done.append("on the disk")

    monkeypatch.setattr(os, "fdatasync", slow)
    first = threading.Thread(target=store.sync)
    first.start()
    assert begun.wait(30)
    second = threading.Thread(target=lambda: (store.sync(), done.append("second returned")))
    second.start()
    second.join(0.1)
    assert done == []
    go_on.set()
    first.join(30)
    second.join(30)
    assert done == ["on the disk", "second returned"]
    store.close()


def test_after_a_failed_sync_none_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = blocks.BlockStore(tmp_path / "blocks")
    block = store.allocate(12)
    store.write(12, block, 0, [memoryview(bytes(4096))])

    def fails(fd: int) -> None:
        raise OSError(errno.EIO, "told to")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fails)
        with pytest.raises(FfsError):
            store.sync()
    with pytest.raises(FfsError) as caught:
        store.sync()  # the kernel has dropped the pages and would say yes
    assert caught.value.code is Code.DISK_FAILED
    store.close()
