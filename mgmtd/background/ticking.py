"""The tick: silent workers are lost, chains go their next step, leases run out."""

from __future__ import annotations

import asyncio
import logging

from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import FfsError
from fireflyfs.mgmtd.manager import Manager

log = logging.getLogger(__name__)


async def tick_forever(manager: Manager, clock: Clock, interval_s: float) -> None:
    """Tick until cancelled. A tick that fails changes nothing; the next one tries again."""
    while True:
        await asyncio.sleep(interval_s)
        for session in manager.leases.expire(clock.monotonic_s()):
            log.info("the lease of client %s on %s ran out", session.client_id.hex(), session.hostname)
        try:
            await manager.change(lambda: manager.cluster.tick(clock.monotonic_s()))
        except FfsError as exc:
            log.error("mgmtd cannot take its next step: %s", exc)
        except Exception:
            log.exception("mgmtd's step failed; the next one tries again")
