"""What runs for as long as its process does goes on after errors that nobody thought of."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from fireflyfs.client.routing_source import AsyncRoutingSource
from fireflyfs.client.session import LeaseKeeper
from fireflyfs.proto import mgmtd_pb2


class Trouble:
    """A client of the cluster manager whose second call fails in a way that is none of ours."""

    def __init__(self) -> None:
        self.calls = 0
        self.went_on = threading.Event()

    def answered(self) -> None:
        self.calls += 1
        if self.calls == 2:
            raise RuntimeError("can't start new thread")
        if self.calls > 2:
            self.went_on.set()

    def extend_session(self, request: mgmtd_pb2.ExtendSessionRequest) -> mgmtd_pb2.ExtendSessionReply:
        self.answered()
        return mgmtd_pb2.ExtendSessionReply(lease_ms=30)

    async def get_routing(self, request: mgmtd_pb2.GetRoutingRequest) -> mgmtd_pb2.RoutingDelta:
        self.answered()
        await asyncio.sleep(0.001)
        return mgmtd_pb2.RoutingDelta(version=self.calls, since_version=request.since_version, full=self.calls == 1)


def test_a_lease_is_extended_after_any_error() -> None:
    manager: Any = Trouble()
    keeper = LeaseKeeper(manager, "c", mgmtd_pb2.ClientSession())
    told = threading.Event()
    keeper.on_extended = told.set
    try:
        assert manager.went_on.wait(5)
        assert told.wait(5)
    finally:
        keeper.close()


def test_routing_is_polled_after_any_error() -> None:
    manager: Any = Trouble()

    async def scenario() -> None:
        source = AsyncRoutingSource(manager)
        await source.start()
        try:
            assert (await source.wait_newer(2, 5)).version > 2
        finally:
            await source.close()

    asyncio.run(scenario())
