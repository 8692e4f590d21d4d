"""What the engine finds after `kill -9`, and after a power cut."""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.engine import block_space
from fireflyfs.storage.engine.interface import ChunkKey, Extent, Update, Writer
from fireflyfs.storage.engine.metadata import MetaStore, new_batch
from fireflyfs.storage.engine.record import blocks_of, pack
from fireflyfs.storage.engine.store import Engine, open_engine
from fireflyfs.storage.engine.writers import WriterTable, pack_done, writer_key

PAGE = 4096


def _child(path: Path, work: Any, steps: int, report: int) -> None:
    """Runs in the forked child: says which step begins and which is done."""
    try:
        engine = open_engine(path, checkpoint_interval_s=0.002)
        for number in range(steps):
            step = work.next_step()
            os.write(report, struct.pack("<I", 2 * number))
            work.perform(engine, step)
            work.note(step)
            os.write(report, struct.pack("<I", 2 * number + 1))
    finally:
        os._exit(0)


@pytest.mark.parametrize("seed", range(6))
def test_what_was_acknowledged_survives_kill(
    tmp_path: Path, workload: Callable[..., Any], contents: Callable[..., dict[ChunkKey, bytes]], seed: int
) -> None:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _child(tmp_path, workload(seed), 5000, write_end)
    os.close(write_end)
    kill_at = 4 * random.Random(seed).randint(1, 300)
    last = -1
    while last < kill_at:
        message = os.read(read_end, 4)
        if len(message) < 4:
            break
        last = struct.unpack("<I", message)[0]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while len(message := os.read(read_end, 4)) == 4:
        last = struct.unpack("<I", message)[0]
    os.close(read_end)
    assert last >= 0

    work = workload(seed)
    for _ in range((last + 1) // 2):
        work.note(work.next_step())
    engine = open_engine(tmp_path, checkpoint_interval_s=0)
    try:
        before = dict(work.committed), {key: data for key, data in work.pending.items() if data is not None}
        if last % 2 == 0:  # one step was under way: it happened or it did not
            work.note(work.next_step())
        after = dict(work.committed), {key: data for key, data in work.pending.items() if data is not None}
        found = contents(engine), contents(engine, pending=True)
        assert found in (before, after)
        _no_block_is_lost(engine)
    finally:
        engine.close()


def _no_block_is_lost(engine: Engine) -> None:
    """After checkpoints, the blocks in use are those that records name."""
    engine.checkpoint()
    engine.checkpoint()
    places = set()
    for state in engine.scan(None, 10_000):
        for look in (engine._chunks.committed, engine._chunks.pending):
            record = look(state.key)
            if record is not None:
                places.update(blocks_of(pack(record)))
    assert engine.space().used_bytes == sum(1 << shift for shift, _ in places)
    assert engine.stats()["held"] == 0


def _power_cut(now: Path, synced: Path, to: Path, roll: random.Random) -> None:
    """What a disk may hold that was whole at `synced` and had writes until `now` under way.

    The log is kept up to some byte after what was synced; of the block files, each page is old or new.
    """
    shutil.copytree(now / "meta", to / "meta")
    for log in (to / "meta").glob("*.log"):
        old = synced / "meta" / log.name
        size = log.stat().st_size
        keep = roll.choice([size, old.stat().st_size if old.exists() else size])
        if old.exists() and roll.random() < 0.6:
            keep = roll.randint(old.stat().st_size, size)
        os.truncate(log, keep)
    (to / "blocks").mkdir()
    share = roll.choice([0.0, 0.5, 1.0])
    for file in (now / "blocks").iterdir():
        new = bytearray(file.read_bytes())
        old_file = synced / "blocks" / file.name
        old_bytes = old_file.read_bytes() if old_file.exists() else b""
        old_bytes += bytes(len(new) - len(old_bytes))
        for at in range(0, len(new), PAGE):
            if roll.random() >= share:
                new[at : at + PAGE] = old_bytes[at : at + PAGE]
        (to / "blocks" / file.name).write_bytes(new)


@pytest.mark.parametrize("seed", range(30))
def test_a_power_cut_leaves_what_was_synced_or_newer(
    tmp_path: Path,
    workload: Callable[..., Any],
    contents: Callable[..., dict[ChunkKey, bytes]],
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(block_space, "REFILL_BYTES", 0)  # a block freed too early finds a new owner at once
    monkeypatch.setattr(block_space, "FORGOTTEN_BYTES_MIN", 0)  # and what was dropped too early is missing
    work = workload(seed, 3)
    roll = random.Random(seed)
    live, synced, cut = tmp_path / "live", tmp_path / "synced", tmp_path / "cut"
    live.mkdir()
    engine = open_engine(live, checkpoint_interval_s=0, kept_bytes=0)
    for _ in range(roll.randint(1, 60)):
        step = work.next_step()
        work.perform(engine, step)
        work.note(step)
    if roll.random() < 0.5:
        engine.checkpoint()
    engine.sync()
    shutil.copytree(live, synced)
    allowed: dict[ChunkKey, set[bytes | None]] = {key: {work.committed.get(key)} for key in work.keys}
    work.keep_house = False
    for number in range(roll.randint(1, 60)):
        step = work.next_step()
        work.perform(engine, step)
        work.note(step)
        allowed[step.key].add(work.committed.get(step.key))
        if number == 20 and roll.random() < 0.5:
            engine._folder.fold()
    cut.mkdir()
    _power_cut(live, synced, cut, roll)
    engine.close()

    after = open_engine(cut, checkpoint_interval_s=0, boot_id="another boot")
    try:
        found = contents(after)
        contents(after, pending=True)
        for key in work.keys:
            assert found.get(key) in allowed[key], f"chunk {key}"
        _no_block_is_lost(after)
    finally:
        after.close()
    assert len(list((live / "blocks").iterdir())) <= block_space.STRIPES * 15


def test_a_machine_that_lost_power_says_so_until_somebody_vouches(tmp_path: Path) -> None:
    for boot, vouched, lost in (("a", False, False), ("b", False, True), ("b", True, True), ("b", False, False)):
        engine = open_engine(tmp_path, checkpoint_interval_s=0, boot_id=boot)
        assert engine.lost_power is lost
        if vouched:
            engine.vouch()
        engine.close()
    engine = open_engine(tmp_path, checkpoint_interval_s=0, boot_id="c")
    assert engine.lost_power
    engine.close()


def test_a_request_whose_effect_a_power_cut_took_is_not_known_as_done(tmp_path: Path) -> None:
    """Its blocks were not synced, so the version is rolled back: repeated, it must happen again."""
    key, other = ChunkKey(1, 1), ChunkKey(1, 2)
    live, cut = tmp_path / "live", tmp_path / "cut"
    live.mkdir()
    engine = open_engine(live, checkpoint_interval_s=0, boot_id="a")
    for chunk, sequence in ((key, 1), (other, 2)):
        data = bytes([sequence]) * 20_000
        extents = [Extent(0, memoryview(data), crc32c(data))]
        engine.apply([Update(chunk, UpdateKind.WRITE, 1, 1, 65536, 0, extents, Writer(b"c" * 16, sequence, 1))])
        engine.commit([(chunk, 1)], 1)
        if chunk == key:
            engine.sync()
    shutil.copytree(live, cut)
    engine.close()
    for file in (cut / "blocks").iterdir():  # the log reached the disk, the bytes of the second did not
        found = file.read_bytes()
        file.write_bytes(found.replace(b"\2" * 4096, bytes(4096)))
    engine = open_engine(cut, checkpoint_interval_s=0, boot_id="b")
    try:
        assert engine.stat(other) is None
        known = {done.writer.channel: [chunk.key for chunk in done.chunks] for done in engine.done(None, 10)}
        assert known == {1: [key], 2: []}
    finally:
        engine.close()


def test_the_table_of_requests_is_bounded_and_checked(tmp_path: Path) -> None:
    meta = MetaStore(tmp_path)
    table = WriterTable(meta, channels_max=3)
    for channel in (1, 2, 3, 1, 4):
        batch = new_batch()
        table.note(batch, Writer(b"c" * 16, channel, len(table) + channel), ())
        meta.write(batch)
    assert [done.writer.channel for done in table.page(None, 10)] == [1, 3, 4], "the longest unused one is gone"
    name = writer_key(b"c" * 16, 3)
    meta.put(name, pack_done(5, ())[:-1] + b"!")
    with pytest.raises(FfsError) as caught:
        WriterTable(meta)
    assert caught.value.code is Code.DISK_FAILED
    meta.close()
