"""What every kind of run has in common."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from simulator.world import Diary, Violation, World


@dataclass
class Outcome:
    """What became of a seed."""

    seed: int
    problems: list[str]
    trace: list[str]
    counts: dict[str, int] = field(default_factory=dict)
    virtual_s: float = 0.0
    real_s: float = 0.0
    steps: int = 0
    kind: str = "storage"


@contextmanager
def recording(world: World) -> Iterator[None]:
    """The world's loop is the current one, its log goes to its trace, a violation to its problems; then it ends."""
    asyncio.set_event_loop(world.loop)
    logger = logging.getLogger("fireflyfs")
    diary = Diary(world)
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO if world.verbose else logging.CRITICAL)
    logger.propagate = False
    logger.addHandler(diary)
    try:
        with warnings.catch_warnings():
            # A process may die before a coroutine of it has begun.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            yield
    except Violation as exc:
        world.problem(str(exc))
    finally:
        logger.removeHandler(diary)
        logger.setLevel(before[0])
        logger.propagate = before[1]
        asyncio.set_event_loop(None)
        world.close()
