"""Epochs: what is durable, and when what an older version needed may be given up.

Each commit belongs to the current epoch. A sync closes the epoch (`epoch += 1`, under the gate that commits pass),
brings the block files to disk, then the log with the new `durable` epoch in it. Only then is everything that commits up
to that epoch replaced given up: blocks get new owners, undo records and dead deltas are deleted. A crash before that
finds the undo records and all that they name; a crash after it no longer needs them. Only a block that was both written
and replaced within one epoch gets a new owner at once.
"""

from __future__ import annotations

import itertools
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.storage.engine.blocks import BlockStore
from fireflyfs.storage.engine.metadata import MetaStore, new_batch
from fireflyfs.storage.engine.record import META

EPOCH_KEY = META + b"epoch"
_EPOCH = struct.Struct("<QQ")  # durable, current
RELEASE_BATCH = 4096  # keys deleted in one batch
HELD_ITEMS_MAX = 65_536  # replaced versions held back; beyond, a checkpoint is due
# The same for the blocks that they hold. What is replaced within one epoch does not reach the disk: to overwrite half a
# gigabyte at random in pieces of 64 KiB writes half as much with 256 MiB as with 64, and more than that gains nothing.
# Of the target's capacity it is no more than a part.
HELD_BYTES_DUE = 256 << 20
HELD_BYTES_DUE_MIN = 64 << 20
HELD_SHARE = 32


class Held(NamedTuple):
    """What the commits of one epoch made superfluous, to be given up once that epoch is durable."""

    epoch: int
    blocks: Sequence[tuple[int, int]]  # (shift, number)
    keys: tuple[bytes, ...]  # undo record, deltas


def read_epochs(meta: MetaStore) -> tuple[int, int]:
    """(durable, current) as stored; (0, 0) in a new store."""
    raw = meta.get(EPOCH_KEY)
    durable, current = _EPOCH.unpack(raw) if raw else (0, 0)
    return durable, current


class Epochs:
    """The durable and the current epoch of one store, what is held back, and group sync. Thread-safe."""

    def __init__(self, meta: MetaStore, blocks: BlockStore, durable: int, current: int) -> None:
        self._meta = meta
        self._blocks = blocks
        self.durable = durable
        self.current = current
        self.gate = threading.Lock()  # held while a commit reads `current` and writes its batch
        self._held: deque[Held] = deque()
        self._held_lock = threading.Lock()
        self._held_bytes = 0
        self._held_bytes_due = min(HELD_BYTES_DUE, max(HELD_BYTES_DUE_MIN, blocks.capacity_bytes() // HELD_SHARE))
        self._delta_ids = itertools.count()
        self._rounds = threading.Condition()
        self._running = False
        self._started = 0
        self._finished = 0
        self._changes = 1  # commits since the last round; 1: the first sync of a process always runs
        self.failure: FfsError | None = None
        self.rounds = 0
        meta.put(EPOCH_KEY, _EPOCH.pack(durable, current))

    def next_delta_id(self) -> int:
        """Unique in this store for ever: no epoch is current twice, in any process."""
        return self._delta_id_base() | (next(self._delta_ids) & 0xFFFFFFFF)

    def _delta_id_base(self) -> int:
        return (self.current & 0x7FFFFFFF) << 32  # the highest bit means a patch

    def hold(self, blocks: Sequence[tuple[int, int]], keys: tuple[bytes, ...], epoch: int | None = None) -> None:
        """Keep blocks and keys until everything committed so far (or in `epoch`) is durable."""
        if blocks or keys:
            self._held.append(Held(self.current if epoch is None else epoch, blocks, keys))
            self._count_held(blocks, 1)

    def replaced(self, blocks: Sequence[tuple[int, int]], keys: tuple[bytes, ...]) -> None:
        """What a commit made superfluous; the gate is held, and the commit's batch is in the log.

        A block that was allocated in this epoch is named by nothing but records of this epoch, which a power cut may
        take whatever happens to it: it is free at once. All else is held back.
        """
        self.hold(self._blocks.free_fresh(blocks) if blocks else (), keys)

    def _count_held(self, blocks: Sequence[tuple[int, int]], sign: int) -> None:
        if blocks:
            with self._held_lock:
                self._held_bytes += sign * sum([1 << shift for shift, _ in blocks])

    @property
    def held_items(self) -> int:
        return len(self._held)

    @property
    def due(self) -> bool:
        """Whether so much is held back that a sync should give it up."""
        return self._held_bytes >= self._held_bytes_due or len(self._held) > HELD_ITEMS_MAX

    def note_change(self) -> None:
        self._changes += 1

    def require_working(self) -> None:
        """Raises DISK_FAILED after the disk failed once: what fdatasync lost is not found by asking again."""
        if self.failure is not None:
            raise error(Code.DISK_FAILED, str(self.failure))

    def fail(self, failure: FfsError) -> None:
        if self.failure is None and failure.code == Code.DISK_FAILED:
            self.failure = failure

    def sync(self) -> None:
        """Everything committed before the call survives a power cut when this returns; callers share a round."""
        with self._rounds:
            target = self._started + 1  # a round that is under way may have missed what this caller committed
            while self._running and self._finished < target:
                self._rounds.wait()
            if self._finished >= target:
                self.require_working()
                return
            self._running = True
            self._started += 1
        try:
            self.require_working()
            self._round()
        except FfsError as exc:
            self.fail(exc if exc.code == Code.DISK_FAILED else error(Code.DISK_FAILED, str(exc)))
            raise
        finally:
            with self._rounds:
                self._running = False
                self._finished = self._started
                self._rounds.notify_all()

    def _round(self) -> None:
        with self.gate:
            if not self._changes and not self._held:
                return
            closing = self.current
            self.current += 1
            self._changes = 0
            self._blocks.age()
        self.rounds += 1
        self._blocks.sync()
        self._meta.put(EPOCH_KEY, _EPOCH.pack(closing, closing + 1))
        self._meta.flush()
        self.durable = closing
        self._release(closing)

    def _release(self, durable: int) -> None:
        batch = new_batch()
        freed: list[tuple[int, int]] = []
        while self._held and self._held[0].epoch <= durable:
            held = self._held.popleft()
            freed += held.blocks
            for key in held.keys:
                batch.delete(key)
            if len(batch) >= RELEASE_BATCH:
                self._meta.write(batch)
                batch = new_batch()
        if len(batch):
            self._meta.write(batch)
        self._count_held(freed, -1)
        for shift, block in freed:
            self._blocks.free(shift, block)


class Background:
    """Runs a job every `interval_s`, and at once when `wake` is called, until closed. Stops at a failed disk."""

    def __init__(self, job: Callable[[], None], interval_s: float, name: str) -> None:
        self._job = job
        self._interval_s = interval_s
        self._event = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        if interval_s > 0:
            self._thread.start()

    def _run(self) -> None:
        while True:
            self._event.wait(self._interval_s)
            self._event.clear()
            if self._closed:
                return
            try:
                self._job()
            except FfsError as exc:
                if exc.code == Code.DISK_FAILED:
                    return

    def wake(self) -> None:
        self._event.set()

    def close(self) -> None:
        self._closed = True
        self._event.set()
        if self._thread.is_alive():
            self._thread.join()
