"""Routing as the data path needs it: the newest picture, and waiting for a newer one."""

from __future__ import annotations

from typing import Protocol

from fireflyfs.client.routing import Routing


class RoutingView(Protocol):
    """What a blocking client needs of `RoutingSource`."""

    def current(self) -> Routing: ...

    def wait_newer(self, version: int, timeout_s: float) -> Routing:
        """The routing once it is newer than `version`, or the current one after `timeout_s`."""


class AsyncRoutingView(Protocol):
    """The same on an event loop."""

    def current(self) -> Routing: ...

    async def wait_newer(self, version: int, timeout_s: float) -> Routing: ...
