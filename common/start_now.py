"""Tasks that begin, or go on, at once and not in the event loop's next turn: most requests take one step or two.

For callbacks of the loop. Within a task nothing happens at once, because only one can run at a time: all is as without
this module then, and on loops that are not asyncio's own.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def start_now(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task whose first step has been taken; `done` when that was all."""
    if sys.version_info >= (3, 12):
        return asyncio.Task(work, loop=loop, eager_start=True)
    task = loop.create_task(work)
    ready = _ready(loop)
    if ready:
        ready.pop()._run()  # what create_task has put there
    return task


def answer_now(loop: asyncio.AbstractEventLoop, waited_for: asyncio.Future[T], answer: T) -> None:
    """Set the result; the one that waits for it goes on before this returns."""
    ready = _ready(loop)
    before = len(ready) if ready is not None else 0
    waited_for.set_result(answer)
    if ready is not None and len(ready) == before + 1:
        ready.pop()._run()


def _ready(loop: asyncio.AbstractEventLoop) -> deque[asyncio.Handle] | None:
    """What runs in the loop's next turn; None where nothing may run now."""
    if asyncio.current_task(loop) is not None:
        return None
    ready: deque[asyncio.Handle] | None = vars(loop).get("_ready")
    return ready
