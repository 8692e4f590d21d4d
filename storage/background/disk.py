"""Looks at each target's disk every few seconds: space for the reports, and a small write that shows a dead disk."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from pathlib import Path

from fireflyfs.common.errors import FfsError
from fireflyfs.storage.service.local_target import LocalTarget

log = logging.getLogger(__name__)

EVERY_S = 3.0
STALL_S = 20.0
_PROBE = ".disk-check"


class DiskWatcher:
    """The job of one target."""

    def __init__(self, local: LocalTarget) -> None:
        self._local = local

    async def run(self) -> None:
        """Until cancelled, or the disk has failed. One that hangs takes the target out of its chain."""
        while not self._local.state.failed:
            look = asyncio.ensure_future(self.once())
            done, _ = await asyncio.wait({look}, timeout=STALL_S)
            if not done:
                self._local.stall(f"its disk does not answer within {STALL_S:g} s")
            try:
                await look
            except FfsError as exc:
                log.error("target %d: %s", self._local.target_id, exc.message)
            self._local.answers_again()
            self._local.look_again()
            await asyncio.sleep(EVERY_S)

    async def once(self) -> None:
        """Raises DISK_FAILED when it has; the target is offline then."""
        local = self._local
        # Not in the target's own threads: a long queue there is load, not a hanging disk.
        try:
            local.space = await asyncio.to_thread(local.engine.space)
            if local.path is not None:
                await asyncio.to_thread(_probe, local.path)
        except (FfsError, OSError) as exc:
            local.note_failure(exc)
            raise


def _probe(path: Path) -> None:
    try:
        with open(path / _PROBE, "wb") as file:
            file.write(os.urandom(16))
            file.flush()
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):  # a full disk is not a failed one
            raise
