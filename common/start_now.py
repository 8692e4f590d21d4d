"""Tasks that begin at once, not in the event loop's next turn: most requests are answered in their first step."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def start_now(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task whose first step has been taken; `done` when that was all. Call it from a callback, not from a task."""
    if sys.version_info >= (3, 12):
        return asyncio.Task(work, loop=loop, eager_start=True)
    task = loop.create_task(work)
    ready = vars(loop).get("_ready")  # of asyncio's own loops; on others the task begins when its turn comes
    if ready:
        ready.pop()._run()  # what create_task has put there
    return task
