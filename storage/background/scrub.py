"""Reads every committed chunk of one target from its disk, at a pace, and mends what does not match: rot is found
before readers find it, and while another replica still has the bytes.

A pass goes through the chunks in key order. Where it stands is kept in a file beside the store: a restart goes on from
there, roughly. What was written lately is read too; nothing is locked for it, and only a chunk that does not match is
looked at again under its lock.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.waiting import set_within
from fireflyfs.storage.background.pace import Pace
from fireflyfs.storage.core import target
from fireflyfs.storage.core.scrub import Outcome, Progress
from fireflyfs.storage.engine.interface import ChunkKey, ChunkState
from fireflyfs.storage.service.local_target import LocalTarget
from fireflyfs.storage.service.repair import Repairer
from fireflyfs.storage.service.replica import Replicas

log = logging.getLogger(__name__)

SCRUB_BYTES_S = 16 << 20  # where a pass is asked for and no pace is configured
SCRUB_EVERY_S = 7 * 86_400.0
PAGE = 256
IDLE_S = 10.0
KEEP_EVERY_S = 30.0  # a restart looks again at what was read since
STATE_FILE = "scrub.json"
STATE_FORMAT = 1


class Scrubber:
    """The job of one target. `bytes_s` or `every_s` 0: only when it is asked for."""

    def __init__(
        self, replicas: Replicas, repairer: Repairer, local: LocalTarget, *, bytes_s: int, every_s: float
    ) -> None:
        self._replicas = replicas
        self._repairer = repairer
        self._local = local
        self._every_s = every_s if bytes_s else 0.0
        self._pace = Pace(replicas.clock, bytes_s or SCRUB_BYTES_S)
        self._kept_s = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        local = self._local
        await asyncio.to_thread(self._load)
        await self._look_whether_empty()
        while True:
            try:
                if self._serves() and (local.scrub_asked.is_set() or self._due()):
                    await self.once()
                    continue
            except FfsError as exc:
                log.warning("target %d: the scrubber stops for now: %s", local.target_id, exc.message)
            except Exception:
                log.exception("target %d: the scrubber stops for now", local.target_id)
            local.scrub.running = False
            if local.scrub_asked.is_set():  # it does not serve now, or the pass was cut off
                await asyncio.sleep(IDLE_S)
                continue
            await set_within(local.scrub_asked, IDLE_S)

    async def _look_whether_empty(self) -> None:
        progress = self._local.scrub
        if progress.ended_unix_s or progress.empty_unix_s or progress.after:
            return
        try:
            chunks = (await self._local.call(self._local.engine.space)).chunks
        except FfsError as exc:
            log.warning("target %d: nothing is known of its chunks: %s", self._local.target_id, exc.message)
            return
        if not chunks:
            progress.empty_unix_s = self._replicas.clock.unix_ns() / 1e9
            await self._keep(0.0)

    def _serves(self) -> bool:
        local = self._local
        return target.may_serve(local.state, local.public) and not self._replicas.fenced()

    def _due(self) -> bool:
        return self._local.scrub.due(self._replicas.clock.unix_ns() / 1e9, self._every_s)

    async def once(self) -> None:
        """One pass, or what is left of one, to its end; returns early when the target stops serving."""
        local = self._local
        progress = local.scrub
        progress.begin((await local.call(local.engine.space)).chunks)
        log.info("target %d: scrubbing, %d of %d chunks done", local.target_id, progress.chunks, progress.total)
        while True:
            page = await local.call(local.engine.scan, progress.after, PAGE)
            for state in page:
                if not self._serves():
                    progress.running = False
                    return
                await self._look(state)
            if len(page) < PAGE:
                break
        progress.end(self._replicas.clock.unix_ns() / 1e9)
        local.scrub_asked.clear()
        local.space = await local.call(local.engine.space)
        await self._keep(0.0)
        log.log(
            logging.WARNING if progress.damaged else logging.INFO,
            "target %d: scrubbed %d chunks, %d bytes: %d did not match, %d repaired, %d lost",
            local.target_id,
            progress.chunks,
            progress.bytes,
            progress.damaged,
            progress.repaired,
            progress.lost,
        )

    async def _look(self, state: ChunkState) -> None:
        local = self._local
        committed = state.committed
        size = committed.length if committed is not None else 0
        await self._pace.wait(size)
        outcome = Outcome.GOOD
        if committed is not None:
            try:
                size = await local.call(local.engine.verify, state.key)
            except FfsError as exc:
                if exc.code is Code.CHECKSUM:
                    outcome = await self._repairer.repair(local, state.key)
                    if outcome is Outcome.LATER:
                        local.suspect(state.key)
                elif exc.code is not Code.CHUNK_NOT_FOUND:
                    raise
        local.scrub.note(state.key, size, outcome)
        self._replicas.count("scrubbed_chunks")
        self._replicas.count("scrubbed_bytes", size)
        await self._keep(KEEP_EVERY_S)

    # -- where it stands, across restarts

    async def _keep(self, every_s: float) -> None:
        now_s = self._replicas.clock.monotonic_s()
        if self._local.path is not None and now_s - self._kept_s >= every_s:
            self._kept_s = now_s
            await self._local.call(_save, self._local.path / STATE_FILE, self._local.scrub)

    def _load(self) -> None:
        if self._local.path is not None:
            self._local.scrub = load(self._local.path / STATE_FILE)


def _save(path: Path, progress: Progress) -> None:
    """What a crash leaves is the old file or the new one, or, after a power cut, nothing that `load` takes."""
    stored = {
        "format": STATE_FORMAT,
        "passes": progress.passes,
        "ended_unix_s": progress.ended_unix_s,
        "empty_unix_s": progress.empty_unix_s,
        "after": list(progress.after) if progress.after is not None else None,
        "chunks": progress.chunks,
        "total": progress.total,
        "bytes": progress.bytes,
        "damaged": progress.damaged,
        "repaired": progress.repaired,
        "lost": progress.lost,
    }
    new = path.with_suffix(".new")
    try:
        new.write_text(json.dumps(stored), encoding="ascii")
        os.replace(new, path)
    except OSError as exc:  # a full disk, say: the next pass begins at the first chunk
        log.warning("cannot keep how far the scrubber is: %s", exc)


def load(path: Path) -> Progress:
    """The progress that was kept; none where there is no file, or one that makes no sense."""
    try:
        stored = json.loads(path.read_text(encoding="ascii"))
        if stored.pop("format") != STATE_FORMAT:
            raise ValueError("another format")
        after = stored.pop("after")
        progress = Progress(after=ChunkKey(int(after[0]), int(after[1])) if after is not None else None)
        progress.ended_unix_s = float(stored.pop("ended_unix_s"))
        progress.empty_unix_s = float(stored.pop("empty_unix_s", 0.0))
        for name in ("passes", "chunks", "total", "bytes", "damaged", "repaired", "lost"):
            setattr(progress, name, int(stored[name]))
    except FileNotFoundError:
        return Progress()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as exc:
        log.warning("%s cannot be used, the scrubber begins anew: %s", path, exc)
        return Progress()
    return progress
