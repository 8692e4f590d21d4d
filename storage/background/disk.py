"""Looks at each target's disk every few seconds: space for the reports, and a small write that shows a dead disk."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from pathlib import Path

from fireflyfs.common.errors import FfsError
from fireflyfs.storage.service.replica import LocalTarget

log = logging.getLogger(__name__)

EVERY_S = 3.0
STALL_S = 20.0
_PROBE = ".disk-check"


class DiskWatcher:
    """The job of one target."""

    def __init__(self, local: LocalTarget) -> None:
        self._local = local

    async def run(self) -> None:
        """Until cancelled, or the disk has failed."""
        while not self._local.state.failed:
            try:
                async with asyncio.timeout(STALL_S):
                    await self.once()
            except TimeoutError:
                log.warning("target %d: its disk does not answer within %g s", self._local.target_id, STALL_S)
            except FfsError as exc:
                log.error("target %d: %s", self._local.target_id, exc.message)
            await asyncio.sleep(EVERY_S)

    async def once(self) -> None:
        """Raises FfsError when the disk has failed; the target is offline then."""
        local = self._local
        local.space = await local.call(local.engine.space)
        if local.path is not None:
            await local.call(_probe, local.path)


def _probe(path: Path) -> None:
    try:
        with open(path / _PROBE, "wb") as file:
            file.write(os.urandom(16))
            file.flush()
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):  # a full disk is not a failed one
            raise
