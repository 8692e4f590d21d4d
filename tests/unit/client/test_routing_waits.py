"""Who waits for the cluster in vain is told what is missing of what was waited for, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from fireflyfs.client.routing import Routing
from fireflyfs.client.routing_source import AsyncRoutingSource, RoutingSource
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.proto import mgmtd_pb2

VERSION = 7


class Manager:
    """mgmtd of a cluster without metadata servers, in which nothing changes; or, at version 0, one that is away."""

    def __init__(self, version: int = VERSION) -> None:
        self.version = version
        self.ended = threading.Event()

    def get_routing(self, request: mgmtd_pb2.GetRoutingRequest) -> mgmtd_pb2.RoutingDelta:
        if request.since_version or not self.version:
            self.ended.wait(20)
            raise error(Code.CANCELLED, "closed")
        return mgmtd_pb2.RoutingDelta(version=self.version, full=True)


class AsyncManager:
    async def get_routing(self, request: mgmtd_pb2.GetRoutingRequest) -> mgmtd_pb2.RoutingDelta:
        if request.since_version:
            await asyncio.Event().wait()
        return mgmtd_pb2.RoutingDelta(version=VERSION, full=True)


@contextlib.contextmanager
def routing_of(manager: Any) -> Iterator[RoutingSource]:
    source = RoutingSource(manager)
    try:
        yield source
    finally:
        manager.ended.set()
        source.close()


def has_chains(routing: Routing) -> bool:
    return bool(routing.chains)


def test_who_waits_for_chains_hears_nothing_of_metadata_servers() -> None:
    with routing_of(Manager()) as source:
        source.wait_newer(0, 5)
        with pytest.raises(FfsError, match=rf"waited 0.01 s for the cluster: .* routing version {VERSION}$"):
            source.wait_until(has_chains, 0.01)


def test_nor_does_who_waits_in_a_loop() -> None:
    manager: Any = AsyncManager()

    async def scenario() -> None:
        source = AsyncRoutingSource(manager)
        await source.start()
        try:
            await source.wait_newer(0, 5)
            with pytest.raises(FfsError, match=f"routing version {VERSION}$"):
                await source.wait_until(has_chains, 0.01)
        finally:
            await source.close()

    asyncio.run(scenario())


def test_who_waits_for_a_cluster_that_is_away_hears_that() -> None:
    with routing_of(Manager(0)) as source, pytest.raises(FfsError, match="nothing was heard of it"):
        source.wait_until(has_chains, 0.01, lacks="no chain is there")


def test_what_is_missing_is_said_in_the_words_of_who_waits() -> None:
    with routing_of(Manager()) as source:
        source.wait_newer(0, 5)
        with pytest.raises(FfsError, match=r"for the cluster: no chain is there$"):
            source.wait_until(has_chains, 0.01, lacks="no chain is there")
