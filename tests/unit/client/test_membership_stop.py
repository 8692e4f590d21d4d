"""Membership stops when it is told to, whatever is reported at that moment."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fireflyfs.client.membership import POKE_PAUSE_S, Membership
from fireflyfs.common.clock import SystemClock
from fireflyfs.proto import mgmtd_pb2
from fireflyfs.proto.common_pb2 import NODE_TYPE_STORAGE, Endpoint


class Mgmtd:
    """Answers at once; nothing changes."""

    def __init__(self) -> None:
        self.beats = 0

    async def heartbeat(self, request: mgmtd_pb2.HeartbeatRequest) -> mgmtd_pb2.HeartbeatReply:
        self.beats += 1
        return mgmtd_pb2.HeartbeatReply()

    async def get_routing(self, request: mgmtd_pb2.GetRoutingRequest) -> mgmtd_pb2.RoutingDelta:
        await asyncio.Event().wait()
        raise AssertionError


@pytest.mark.parametrize("turns", range(5))
def test_a_stop_that_follows_news_is_not_lost(turns: int) -> None:
    """A resync begins, and the worker is stopped some turns of the loop later."""

    async def scenario() -> None:
        mgmtd: Any = Mgmtd()
        endpoint = Endpoint()
        member = Membership(mgmtd, 1, NODE_TYPE_STORAGE, 0, endpoint, list, lambda _: None, SystemClock(), interval_s=5)
        await member.start()
        while not mgmtd.beats:
            await asyncio.sleep(0.01)
        await asyncio.sleep(POKE_PAUSE_S + 0.05)
        member.poke()
        for _ in range(turns):
            await asyncio.sleep(0)
        stopping = asyncio.create_task(member.stop(planned=False))
        done, _ = await asyncio.wait({stopping}, timeout=3)
        assert done, "it beats on"

    asyncio.run(scenario())
