"""Metadata servers and clients with open files, in one simulated world.

Real: meta's handlers, transactions, trims, garbage collection and session reaping, as `meta.server` puts them together;
the client library from `FileSystem` down. Simulated: the key-value store's faults, the links, and the threads.

Fault model of the store: a commit now and then conflicts, or its outcome is unknown: it happened, or it did not.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fireflyfs.client.async_storage import AsyncStorageClient
from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.membership import Membership
from fireflyfs.client.retry import RetryPolicy
from fireflyfs.client.routing import Routing
from fireflyfs.client.scratch import Scratch
from fireflyfs.client.session import LEASE_RENEWALS, ClientContext, Parts
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.ids import ClientId
from fireflyfs.common.kv.interface import Transaction
from fireflyfs.common.kv.memory import MemoryKv
from fireflyfs.common.net.dual import link_handlers
from fireflyfs.common.net.memory import PrivatePool
from fireflyfs.meta.core.layout import LayoutRule
from fireflyfs.meta.server import MetaConfig, run_jobs
from fireflyfs.meta.service.assembly import assemble
from fireflyfs.proto import meta_pb2, mgmtd_pb2
from fireflyfs.proto.common_pb2 import NODE_TYPE_CLIENT, NODE_TYPE_META, Caller, Endpoint
from simulator.loop import Process
from simulator.net import SimLink, SimStub, Station
from simulator.world import CLUSTER, MGMTD, SimClient, World, wait

META = meta_pb2.DESCRIPTOR.services_by_name["Meta"]
FIRST_META = 51  # node ids of metadata servers start here
CHAIN_TABLE = 1
SCRATCH_BYTES = 1 << 18


class SimKv:
    """The store that all metadata servers share."""

    def __init__(self, chance: random.Random) -> None:
        self.store = MemoryKv()
        self.chance = chance
        self.conflicts = 0.0  # of commits do not happen
        self.unknown = 0.0  # of commits end without an answer

    @contextmanager
    def transaction(self, *, read_only: bool = False) -> Iterator[Transaction]:
        with self.store.transaction(read_only=read_only) as transaction:
            yield transaction if read_only else _Doubtful(self, transaction)  # type: ignore[misc]

    def sync(self) -> None:
        self.store.sync()

    def close(self) -> None:
        pass


class _Doubtful:
    """A transaction whose commit may go wrong."""

    def __init__(self, kv: SimKv, inner: Transaction) -> None:
        self._kv = kv
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def commit(self) -> None:
        kv = self._kv
        if kv.conflicts and kv.chance.random() < kv.conflicts:
            raise error(Code.TXN_CONFLICT)
        if kv.unknown and kv.chance.random() < kv.unknown:
            if kv.chance.random() < 0.5:
                self._inner.commit()
            raise error(Code.TXN_UNKNOWN, "the store did not answer")
        self._inner.commit()


@dataclass
class MetaNode:
    """A machine with a metadata server. Nothing here but the number of starts survives its processes."""

    node_id: int
    rate: float = 1.0
    process: Process | None = None
    starts: int = 0

    @property
    def name(self) -> str:
        return f"m{self.node_id}"

    @property
    def address(self) -> str:
        return f"{self.name}:0"

    @property
    def up(self) -> bool:
        return self.process is not None and not self.process.dead


class Metas:
    """All metadata servers of a world."""

    def __init__(self, world: World, servers: int, stripe: int) -> None:
        self.world = world
        self.kv = SimKv(random.Random(world.seed ^ 0x4B56))
        self.nodes = [
            MetaNode(FIRST_META + number, 1 + world.rng.uniform(-world.plan.drift, world.plan.drift))
            for number in range(servers)
        ]
        self.stripe = stripe

    async def settle(self, process: Process) -> None:
        """Register and start all; a chain table of all chains."""
        stub = SimStub(self.world.net, process, "admin", MGMTD, CLUSTER, 5.0)
        await stub.set_chain_table(
            mgmtd_pb2.SetChainTableRequest(table_id=CHAIN_TABLE, chains=sorted(self.world.chains))
        )
        for node in self.nodes:
            await stub.register_node(mgmtd_pb2.RegisterNodeRequest(node_id=node.node_id, type=NODE_TYPE_META))
            self.start(node)
        await asyncio.sleep(3)

    def start(self, node: MetaNode) -> None:
        """A new process on what the store holds."""
        world = self.world
        node.starts += 1
        process = node.process = world.process(f"{node.name}.{node.starts}", node.rate)
        seed = world.seed * 1009 + node.node_id * 31 + node.starts

        async def run() -> None:
            client_id = ClientId(process.name.encode().ljust(16, b"\0"))
            link = SimLink(world.net, process, node.name, client_id)
            stub = SimStub(world.net, process, node.name, MGMTD, CLUSTER, 5.0)
            membership = Membership(
                stub,  # type: ignore[arg-type]
                node.node_id,
                NODE_TYPE_META,
                0,
                Endpoint(tcp=node.address),
                list,
                _nothing,
                process,
                rng=random.Random(seed),
            )
            storage = AsyncStorageClient(
                link,  # type: ignore[arg-type]
                membership,
                client_id,
                clock=process,
                rng=random.Random(seed + 1),
            )
            layout = LayoutRule(1 << 16, self.stripe, CHAIN_TABLE)
            while True:
                try:
                    parts = assemble(self.kv, process, storage, membership, root=(0, 0, 0o1777), layout=layout)
                    break
                except FfsError as exc:
                    world.say(f"{node.name} does not start: {exc.message}")
                    await asyncio.sleep(1)  # and whoever looks after it starts it again
            config = MetaConfig(CLUSTER, node.node_id, [MGMTD], kv="memory")
            run_jobs(parts, stub, config)  # type: ignore[arg-type]
            world.net.stations[node.address] = Station(process, node.name, link_handlers(META, "META", parts.handlers))
            await membership.start()

        process.spawn(run())

    def kill(self, node: MetaNode) -> None:
        if node.up:
            assert node.process is not None
            node.process.kill()
            self.world.net.gone(node.address, silent=False)


def _nothing(routing: Routing) -> None:
    pass


class FileClient(SimClient):
    """A client process with open files and a lease."""

    def __init__(self, world: World, number: int, policy: RetryPolicy) -> None:
        super().__init__(world, number, policy)
        self.client_id = ClientId(self.name.encode().ljust(16, b"\0"))
        link = self.link
        link.pool = PrivatePool()
        context = ClientContext(
            Parts(link, self.view, self.client_id),  # type: ignore[arg-type]
            caller=Caller(),
            policy=policy,
            clock=self.process,
            rng=random.Random(world.seed * 77 + number + 7),
            sleep=lambda seconds: wait(asyncio.sleep(seconds)),
        )
        context.scratch = Scratch(link.pool, SCRATCH_BYTES)
        self.files = FileSystem(context, umask=0)

    async def start(self) -> None:
        await super().start()
        self.process.spawn(self._hold_lease(), f"{self.name} lease")

    async def _hold_lease(self) -> None:
        """What `LeaseKeeper` does in a thread."""
        stub = SimStub(self.world.net, self.process, self.name, MGMTD, CLUSTER, 5.0)
        session = mgmtd_pb2.ClientSession(client_id=self.client_id, type=NODE_TYPE_CLIENT, hostname=self.name)
        lease_s = 30.0
        while True:
            try:
                reply = await stub.extend_session(mgmtd_pb2.ExtendSessionRequest(session=session))
                lease_s = reply.lease_ms / 1000
            except FfsError:
                pass
            await asyncio.sleep(lease_s / LEASE_RENEWALS)

    def kill(self) -> None:
        self.process.kill()
