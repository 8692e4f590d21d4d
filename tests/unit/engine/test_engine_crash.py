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

from fireflyfs.storage.engine import blocks
from fireflyfs.storage.engine.interface import ChunkKey
from fireflyfs.storage.engine.record import blocks_of, pack
from fireflyfs.storage.engine.store import Engine, open_engine

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
        for prefix in (b"c", b"p"):
            record = engine._record(prefix, state.key)
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
    monkeypatch.setattr(blocks, "REFILL_BYTES", 0)  # a block freed too early finds a new owner at once
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
    assert len(list((live / "blocks").iterdir())) <= blocks.STRIPES * 15
