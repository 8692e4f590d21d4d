"""One file's chunks on the replicas of a chain: read and mended, resynced and scrubbed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np

from fireflyfs.common.net.api import Address, Call
from fireflyfs.common.net.methods import Method
from fireflyfs.proto.storage_wire import READ_IO, READ_RESULT
from fireflyfs.storage.background.resync import Resync
from fireflyfs.storage.background.scrub import Scrubber
from fireflyfs.storage.core import forward
from fireflyfs.storage.core.scrub import Outcome
from fireflyfs.storage.core.target import Local, Public, TargetState
from fireflyfs.storage.engine.interface import ChunkKey, Writer
from fireflyfs.storage.service.wire import Item

S, Y, X = Public.SERVING, Public.SYNCING, Public.OFFLINE
KEY = ChunkKey(7, 0)
DATA = bytes(range(251)) * 80  # five units of 4 KiB
MakeCluster = Callable[[int], Any]
MakeItem = Callable[..., Item]


def writer(sequence: int, channel: int = 1) -> Writer:
    return Writer(b"a" * 16, channel, sequence)


async def read(
    cluster: Any, target_id: int, index: int = 0, offset: int = 0, length: int = 30_000
) -> tuple[int, bytes]:
    """(status, data)."""
    body = np.array([(7, index, 1, cluster.version, offset, length)], READ_IO).tobytes()
    into = memoryview(bytearray(length))
    reply = await cluster.net.call(Address(tcp=str(target_id)), Call(Method.STORAGE_READ, body, into=[into]))
    status, got, _, _, _ = np.frombuffer(reply.body, READ_RESULT).tolist()[0]
    return status, bytes(into[:got])


async def mend(cluster: Any, target_id: int, key: ChunkKey = KEY) -> Outcome:
    server = cluster.servers[target_id]
    outcome: Outcome = await server.service.repairer.repair(server.target, key)
    return outcome


def chunk(cluster: Any, target_id: int, key: ChunkKey = KEY) -> Any:
    return cluster.servers[target_id].engine.chunks[key]


def all_serve(cluster: Any) -> bool:
    return all(server.target.state.local is Local.UPTODATE for server in cluster.servers.values())


def scrubber(cluster: Any, target_id: int, **choices: Any) -> Scrubber:
    server = cluster.servers[target_id]
    return Scrubber(server.replicas, server.service.repairer, server.target, **{"bytes_s": 0, "every_s": 0} | choices)


def run(scenario: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


async def resync(cluster: Any, source: int) -> None:
    server = cluster.servers[source]
    hop = forward.next_hop(server.target.chain, source)
    assert hop is not None
    job = Resync(server.replicas, server.service.updater, server.service.repairer, server.target)
    await job.once(server.target.chain, hop)
    assert server.target.resync_done == server.target.resync_total


def demote(cluster: Any, target_id: int, *states: tuple[int, Public]) -> None:
    cluster.servers[target_id].target.set_state(TargetState(Local.ONLINE, returning=False))
    cluster.publish(*states)
