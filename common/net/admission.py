"""Which calls may be outstanding on a pipelined connection: within the server's bounds, first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from fireflyfs.common.errors import Code, FfsError, error

WAITING_MAX: Final = 4096  # calls that wait for room on one connection


class Admission:
    """Of one connection, on its loop. Whoever has entered leaves once, unless the connection has ended."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str, requests_max: int, payload_max: int) -> None:
        self._loop = loop
        self._name = name
        self._requests_max = requests_max
        self._payload_max = payload_max
        self._requests = 0
        self._payload = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._ended: FfsError | None = None

    def enter_now(self, payload: int) -> bool:
        """Whether there is room, and nobody waits for it: then the request has entered. Raises as `enter`."""
        self._check()
        if self._waiting or not self._has_room(payload):
            return False
        self._admit(payload)
        return True

    async def enter(self, payload: int) -> None:
        """Wait in turn until a request with so much payload may be sent; alone, any may.

        Raises OVERLOADED when too many wait, or what has ended the connection.
        """
        if self.enter_now(payload):
            return
        if len(self._waiting) >= WAITING_MAX:
            raise error(Code.OVERLOADED, f"{WAITING_MAX} calls wait for {self._name}")
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((payload, waiter))
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                self._admit_waiting()  # those behind us may need less
            else:  # our turn came as we gave up
                self.leave(payload)
            raise
        self._check()  # the connection may have ended between our turn and now

    def leave(self, payload: int) -> None:
        self._requests -= 1
        self._payload -= payload
        self._admit_waiting()

    def end(self, exc: FfsError) -> None:
        """The connection is lost: so are those that wait, and those that come."""
        self._ended = exc
        for _, waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()

    def _check(self) -> None:
        if self._ended is not None:
            raise error(self._ended.code, self._ended.message)

    def _has_room(self, payload: int) -> bool:
        return not self._requests or (
            self._requests < self._requests_max and self._payload + payload <= self._payload_max
        )

    def _admit(self, payload: int) -> None:
        self._requests += 1
        self._payload += payload

    def _admit_waiting(self) -> None:
        while self._waiting:
            payload, waiter = self._waiting[0]
            if not waiter.done():  # or its call has given up
                if not self._has_room(payload):
                    return
                self._admit(payload)
                waiter.set_result(None)
            self._waiting.popleft()
