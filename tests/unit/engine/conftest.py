"""A workload that a seed decides, and the model of what it leaves; shared by the crash tests of the engine."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import pytest
from crc32c import crc32c

from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.engine.interface import ChunkEngine, ChunkKey, Extent, Update, Writer
from fireflyfs.storage.engine.store import Engine

CHUNK = 128 * 1024


class Step(NamedTuple):
    """One step: store `update` as pending, or as committed at once, or commit a pending version, or keep house."""

    verb: str  # apply, apply_committed, commit, sync, checkpoint
    key: ChunkKey
    update: Update | None
    version: int


class Workload:
    """Random steps over a few chunks. `committed` and `pending` are what an engine must hold after `note`."""

    def __init__(self, seed: int, chunks: int = 5, *, keep_house: bool = True) -> None:
        self.random = random.Random(seed)
        self.keys = [ChunkKey(1 + n % 2, n) for n in range(chunks)]
        self.keep_house = keep_house
        self.committed: dict[ChunkKey, bytes] = {}
        self.pending: dict[ChunkKey, bytes | None] = {}
        self.versions: dict[ChunkKey, int] = dict.fromkeys(self.keys, 0)

    def next_step(self) -> Step:
        roll = self.random
        key = roll.choice(self.keys)
        if key in self.pending and roll.random() < 0.9:
            return Step("commit", key, None, self.versions[key] + 1)
        verb = roll.random()
        if self.keep_house and verb < 0.06:
            return Step(roll.choice(["sync", "checkpoint"]), key, None, 0)
        at_once = roll.random() < 0.2
        return Step("apply_committed" if at_once else "apply", key, self._update(key, roll.random()), 0)

    def _update(self, key: ChunkKey, which: float) -> Update:
        roll = self.random
        base = self.committed.get(key, b"")
        version = self.versions[key] + 1
        kind, length, pieces = UpdateKind.WRITE, 0, []
        if which < 0.4 and len(base) > 8000:
            longest = min(roll.choice([4000, 40_000]), len(base))  # pieces for the log, and for blocks of their own
            sizes = [roll.randint(1, longest) for _ in range(roll.randint(1, 3))]
            pieces = [(roll.randint(0, len(base) - size), size) for size in sizes]
        elif which < 0.7:
            pieces = [(len(base), roll.randint(0, min(9000, CHUNK - len(base))))]
        elif which < 0.85:
            at = roll.randrange(CHUNK)
            pieces = [(at, roll.randint(1, CHUNK - at))]
        elif which < 0.9:
            kind, length = UpdateKind.TRUNCATE, roll.randint(0, CHUNK)
        elif which < 0.93:
            kind = UpdateKind.REMOVE
        else:
            kind, length = UpdateKind.REPLACE, roll.randint(1, CHUNK)
            pieces = [(0, length)]
        extents = []
        for at, size in pieces:
            data = roll.randbytes(size)
            extents.append(Extent(at, memoryview(data), crc32c(data)))
        return Update(key, kind, version, 1, CHUNK, length, extents, Writer(b"w" * 16, 0, version))

    def after(self, update: Update) -> bytes | None:
        """The content that update makes of the committed one; None: no chunk."""
        base = self.committed.get(update.key)
        if update.kind == UpdateKind.REMOVE or (base is None and update.kind == UpdateKind.TRUNCATE):
            return None
        if update.kind == UpdateKind.TRUNCATE:
            return (base or b"")[: update.length]
        content = bytearray(b"" if update.kind == UpdateKind.REPLACE else base or b"")
        for extent in update.extents:
            if len(extent.data):
                content += bytes(max(0, extent.offset - len(content)))
                content[extent.offset : extent.offset + len(extent.data)] = extent.data
        return bytes(content)

    def note(self, step: Step) -> None:
        """The step succeeded."""
        if step.update is not None:
            self.pending[step.key] = self.after(step.update)
        if step.verb in ("commit", "apply_committed"):
            content = self.pending.pop(step.key)
            self.versions[step.key] = step.update.version if step.update is not None else step.version
            if content is None:
                self.committed.pop(step.key, None)
            else:
                self.committed[step.key] = content

    @staticmethod
    def perform(engine: Engine, step: Step) -> None:
        if step.update is not None and step.verb == "apply_committed":
            engine.apply_committed([step.update], 1)
        elif step.update is not None:
            engine.apply([step.update])
        elif step.verb == "commit":
            engine.commit([(step.key, step.version)], 1)
        elif step.verb == "sync":
            engine.sync()
        else:
            engine.checkpoint()


def read_all(engine: ChunkEngine, *, pending: bool = False) -> dict[ChunkKey, bytes]:
    """Contents of all chunks, verified; with `pending`, only pending versions that are no removals."""
    contents = {}
    for state in engine.scan(None, 10_000):
        version = state.pending if pending else state.committed
        if version is None or version.removed:
            continue
        into = memoryview(bytearray(version.length + 1))
        result = engine.read(state.key, 0, into, pending=pending)
        assert result.length == version.length
        assert crc32c(into[: result.length]) == result.crc32c == version.crc32c
        contents[state.key] = bytes(into[: result.length])
    return contents


@pytest.fixture
def workload() -> Callable[..., Workload]:
    return Workload


@pytest.fixture
def contents() -> Callable[..., dict[ChunkKey, bytes]]:
    return read_all
