"""One cluster in one virtual-time loop: mgmtd, storage workers and clients as they run in production.

Real: mgmtd's manager, service and store (on the memory KV), the storage worker with all its background jobs, membership
and routing, the client library with its retries. Simulated: the event loop, clocks, network and disks.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import greenlet

from fireflyfs.client.membership import Membership
from fireflyfs.client.retry import RetryPolicy
from fireflyfs.client.routing import Routing
from fireflyfs.client.routing_source import AsyncRoutingSource
from fireflyfs.client.storage_client import StorageClient
from fireflyfs.common.errors import FfsError
from fireflyfs.common.ids import ClientId
from fireflyfs.common.kv.memory import MemoryKv
from fireflyfs.common.net.api import Address, Call, Reply
from fireflyfs.common.net.dual import link_handlers
from fireflyfs.mgmtd.background.ticking import tick_forever
from fireflyfs.mgmtd.core.chain import problems_of_step
from fireflyfs.mgmtd.manager import Manager
from fireflyfs.mgmtd.service import MgmtdService
from fireflyfs.mgmtd.store.store import Store
from fireflyfs.proto import mgmtd_pb2, storage_pb2
from fireflyfs.proto.common_pb2 import NODE_TYPE_STORAGE, Endpoint
from fireflyfs.storage.core.target import Public
from fireflyfs.storage.engine.interface import ChunkKey
from fireflyfs.storage.service.local_target import LocalTarget
from fireflyfs.storage.worker import StorageWorker
from simulator.engine import SimEngine, Stored
from simulator.loop import PROCESS, Process, SimLoop, bury
from simulator.net import Net, SimLink, SimStub, Station

CLUSTER = "simulated"
MGMTD = "mgmtd:0"
FAILED_AFTER_S = 5.0
SCRUB_BYTES_S = 1 << 20
SCRUB_EVERY_S = 20.0
STORAGE = storage_pb2.DESCRIPTOR.services_by_name["Storage"]


class Violation(AssertionError):
    """Something happened that must never happen."""


class Killed(BaseException):
    """Ends a process in the middle of a call."""


@dataclass
class Node:
    """A machine with one storage worker. What is here survives its processes."""

    node_id: int
    engines: dict[int, SimEngine]
    rate: float = 1.0
    process: Process | None = None
    worker: StorageWorker | None = None
    starts: int = 0

    @property
    def name(self) -> str:
        return f"n{self.node_id}"

    @property
    def address(self) -> str:
        return f"{self.name}:0"

    @property
    def up(self) -> bool:
        return self.process is not None and not self.process.dead


@dataclass
class Blackout:
    """A power cut of all machines at once, and what the first to serve again held of each chunk."""

    at_s: float
    floors: dict[tuple[int, int], int]  # of each chunk, the version that was synced
    leaders: set[int] = field(default_factory=set)
    states: dict[ChunkKey, Stored] = field(default_factory=dict)
    pending: dict[ChunkKey, Stored] = field(default_factory=dict)  # about to be finished


@dataclass
class Plan:
    """The shape of a world."""

    nodes: int = 3
    chains: int = 1
    replicas: int = 3
    drift: float = 0.0  # clocks run faster or slower by up to this share


@dataclass
class World:
    """Everything. `trace` collects what happened, for a person and to compare two runs of one seed."""

    seed: int
    plan: Plan
    rng: random.Random = field(init=False)
    trace: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    verbose: bool = False

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.loop = SimLoop(random.Random(self.seed ^ 0x5EED))
        self.loop.set_exception_handler(self._on_loop_error)
        self.net = Net(self.loop, random.Random(self.seed ^ 0xBEEF), self.problem)
        self.kv = MemoryKv()
        self.mgmtd: Process | None = None
        self.manager: Manager | None = None
        self.processes: list[Process] = []
        self.clients: list[SimClient] = []
        self.chains: dict[int, list[int]] = {}
        self.nodes: dict[int, Node] = {}
        self.contents: dict[tuple[int, ChunkKey, int, Any], tuple[int, bytes, bool]] = {}
        self.blackouts: list[Blackout] = []
        self.complete: dict[int, set[int]] = {}
        self.chain_states: dict[int, tuple[int, tuple[tuple[int, Any], ...]]] = {}
        self._lay_out()

    def _lay_out(self) -> None:
        plan = self.plan
        targets: dict[int, list[int]] = {node_id: [] for node_id in range(1, plan.nodes + 1)}
        for chain_id in range(1, plan.chains + 1):
            members = []
            for place in range(plan.replicas):
                node_id = (chain_id - 1 + place) % plan.nodes + 1
                target_id = node_id * 100 + chain_id
                targets[node_id].append(target_id)
                members.append(target_id)
            self.chains[chain_id] = members
        for node_id, ids in targets.items():
            engines = {}
            for target_id in ids:
                engine = SimEngine(random.Random(self.seed * 1000 + target_id))
                engine.on_commit = lambda key, stored, target_id=target_id: self._committed(target_id, key, stored)
                engines[target_id] = engine
            self.nodes[node_id] = Node(node_id, engines, 1 + self.rng.uniform(-plan.drift, plan.drift))

    # Judging

    def say(self, text: str) -> None:
        self.trace.append(f"{self.loop.now_s:10.4f} {text}")

    def problem(self, text: str) -> None:
        self.say(f"PROBLEM {text}")
        self.problems.append(f"at {self.loop.now_s:.4f} s: {text}")

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        exc = context.get("exception")
        if not isinstance(exc, (Killed, FfsError, asyncio.CancelledError)):
            self.problem(f"{context.get('message')}: {exc!r}")

    def _committed(self, target_id: int, key: ChunkKey, stored: Stored) -> None:
        """One version of a chunk by one writer has one content, wherever it is committed."""
        version = stored.version
        if self.verbose:
            what = "removed" if version.removed else f"crc {version.crc32c:08x}"
            client_id, channel, sequence = version.writer
            writer = f"{client_id.rstrip(bytes(1)).decode(errors='replace')}.{channel}.{sequence}"
            self.say(f"  {target_id} commits {key.inode}.{key.chunk_index} v{version.version} of {writer} {what}")
        if version.damaged:
            return  # known to be lost there
        name = (target_id % 100, key, version.version, version.writer)
        what = (version.crc32c, stored.data, version.removed)
        known = self.contents.setdefault(name, what)
        if known != what:
            self.problem(f"chunk {key} version {version.version} of {version.writer} has two contents")

    def check_chains(self) -> None:
        """Each change of a chain that was published keeps the rules."""
        manager = self.manager
        if manager is None:
            return
        for chain_id, record in manager.cluster.chains.items():
            new = (record.version, record.members)
            old = self.chain_states.get(chain_id)
            if old is not None and old != new:
                complete = self.complete.get(chain_id, set())
                for text in problems_of_step(old[0], old[1], new[0], new[1], complete):
                    self.problem(f"chain {chain_id}: {text}")
                states = " ".join(f"{target_id}:{public.name}" for target_id, public in record.members)
                self.say(f"chain {chain_id} v{record.version}: {states}")
                if not any(int(public) == int(Public.SERVING) for _, public in old[1]):
                    self._note_leader(chain_id, record.members)
            self.chain_states[chain_id] = new

    def _note_leader(self, chain_id: int, members: tuple[tuple[int, Any], ...]) -> None:
        """The first replica that serves after a blackout: what it holds is the beginning of what comes after."""
        for blackout in self.blackouts:
            serving = [target_id for target_id, public in members if int(public) == int(Public.SERVING)]
            if chain_id in blackout.leaders or not serving:
                continue
            blackout.leaders.add(chain_id)
            engine = self.nodes[serving[0] // 100].engines[serving[0]]
            for key, chunk in engine.chunks.items():
                if chunk.committed is not None:
                    blackout.states[key] = chunk.committed
                if chunk.pending is not None:
                    blackout.pending[key] = chunk.pending

    def committed_version(self, target_id: int, inode: int, chunk: int) -> int:
        found = self.nodes[target_id // 100].engines[target_id].chunks.get(ChunkKey(inode, chunk))
        return found.committed.version.version if found is not None and found.committed is not None else 0

    def blackout(self, floors: dict[tuple[int, int], int]) -> None:
        """Every machine loses power at once; `floors`: what must survive it."""
        self.say("blackout")
        for node in self.nodes.values():
            self.kill_node(node, power=True)
            for engine in node.engines.values():
                engine.power_cut()
        self.net.silent.clear()
        self.contents.clear()  # versions are given out again
        self.blackouts.append(Blackout(self.loop.now_s, dict(floors)))

    # Processes

    def process(self, name: str, rate: float = 1.0) -> Process:
        process = Process(self.loop, name, rate)
        self.processes.append(process)
        return process

    def start_mgmtd(self) -> None:
        process = self.mgmtd = self.process("mgmtd")

        async def run() -> None:
            manager = Manager(Store(self.kv), CLUSTER, process, failed_after_s=FAILED_AFTER_S, session_lease_s=60.0)
            self.manager = manager
            cluster = manager.cluster
            for chain_id, record in cluster.chains.items():
                published = self.chain_states.get(chain_id, (0, ()))[0]
                if record.version < published:
                    self.problem(f"chain {chain_id}: mgmtd came back with version {record.version} after {published}")
                # What was stored before a crash and never published is the beginning now.
                self.chain_states[chain_id] = (record.version, record.members)
            apply = cluster.apply

            def checked(changes: Any) -> None:
                for chain_id, record in cluster.chains.items():
                    self.complete[chain_id] = {t for t, _ in record.members if cluster.is_complete(t)}
                apply(changes)
                self.check_chains()

            manager.cluster.apply = checked  # type: ignore[method-assign]
            service = MgmtdService(manager, routing_wait_max_s=10.0)
            self.net.stations[MGMTD] = Station(process, "mgmtd", service=service)
            await tick_forever(manager, process, 0.2)

        process.spawn(run())

    def stop_mgmtd(self) -> None:
        assert self.mgmtd is not None
        self.mgmtd.kill()
        self.manager = None
        self.net.gone(MGMTD, silent=False)

    def start_node(self, node: Node) -> None:
        """Start its storage worker: a new process on what the disks hold."""
        node.starts += 1
        process = node.process = self.process(f"{node.name}.{node.starts}", node.rate)
        address = node.address

        async def run() -> None:
            targets = [
                LocalTarget(target_id, _Mortal(engine, process), threads=2, clock=process)  # type: ignore[arg-type]
                for target_id, engine in node.engines.items()
            ]
            link = SimLink(self.net, process, node.name, ClientId(process.name.encode().ljust(16, b"\0")))
            members: list[Membership] = []
            worker = node.worker = StorageWorker(
                targets,
                link,
                process,
                last_heartbeat_s=lambda: members[0].last_heartbeat_ok if members else None,
                on_target_change=lambda: members[0].poke() if members else None,
                scrub_bytes_s=SCRUB_BYTES_S,
                scrub_every_s=SCRUB_EVERY_S,
            )
            handlers = link_handlers(STORAGE, "STORAGE", worker.service) | worker.service.bulk_handlers()
            await worker.start()
            self.net.stations[address] = Station(process, node.name, handlers)
            stub = SimStub(self.net, process, node.name, MGMTD, CLUSTER, 5.0)
            membership = Membership(
                stub,  # type: ignore[arg-type]
                node.node_id,
                NODE_TYPE_STORAGE,
                0,
                Endpoint(tcp=address),
                worker.reports,
                worker.replicas.install,
                process,
                rng=random.Random(self.seed + node.node_id * 1000 + node.starts),
            )
            members.append(membership)
            node.membership = membership  # type: ignore[attr-defined]
            await membership.start()

        process.spawn(run())

    def kill_node(self, node: Node, *, power: bool = False) -> None:
        """SIGKILL of its worker; with `power`, its machine loses what was not synced, and is silent."""
        process = node.process
        if process is None or process.dead:
            return
        process.kill()
        self.net.gone(node.address, silent=power)
        if power:
            self.net.silent.add(node.name)
            for engine in node.engines.values():
                engine.power_cut()

    async def settle(self, process: Process) -> None:
        """Register nodes, targets and chains; wait until all serve."""
        stub = SimStub(self.net, process, "admin", MGMTD, CLUSTER, 5.0)
        for node in self.nodes.values():
            await stub.register_node(mgmtd_pb2.RegisterNodeRequest(node_id=node.node_id, type=NODE_TYPE_STORAGE))
            for target_id in node.engines:
                await stub.register_target(
                    mgmtd_pb2.RegisterTargetRequest(target_id=target_id, node_id=node.node_id, worker=0)
                )
            self.start_node(node)
        await asyncio.sleep(3)
        specs = [mgmtd_pb2.ChainSpec(chain_id=chain_id, targets=members) for chain_id, members in self.chains.items()]
        await stub.set_chains(mgmtd_pb2.SetChainsRequest(chains=specs))
        for _ in range(300):
            if self.healthy():
                return
            await asyncio.sleep(0.2)
        raise Violation("the cluster did not come up")

    def healthy(self) -> bool:
        """Whether every replica serves, by mgmtd and by itself."""
        if self.manager is None or not self.manager.cluster.chains:
            return False
        for record in self.manager.cluster.chains.values():
            if any(int(public) != int(Public.SERVING) for _, public in record.members):
                return False
        return True

    def bad_chunks(self) -> int:
        """Chunks whose bytes are lost on one replica or another."""
        engines = [engine for node in self.nodes.values() for engine in node.engines.values()]
        return sum(len(engine.rotten & engine.chunks.keys()) + engine.space_damaged() for engine in engines)

    # Clients

    def start_client(self, number: int, policy: RetryPolicy) -> SimClient:
        return SimClient(self, number, policy)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            bury(process)
        for client in self.clients:
            client.end()
        self.loop.close()


class _Mortal:
    """An engine as one process sees it: after its death, and in the middle of a call, it reaches the disk no more."""

    def __init__(self, engine: SimEngine, process: Process) -> None:
        self._engine = engine
        self._process = process

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._engine, name)
        if not callable(method):
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._process.dead:
                raise Killed
            self._engine.between = self._between
            return method(*args, **kwargs)

        return call

    def _between(self) -> None:
        if self._process.dead:
            raise Killed


class SimClient:
    """A client process: the blocking library, run in greenlets that wait on the loop."""

    def __init__(self, world: World, number: int, policy: RetryPolicy) -> None:
        self.world = world
        self.name = f"c{number}"
        self.process = world.process(self.name)
        world.clients.append(self)
        self.greenlets: list[greenlet.greenlet] = []
        seed = world.seed * 77 + number
        stub = SimStub(world.net, self.process, self.name, MGMTD, CLUSTER, 5.0)
        self.source = AsyncRoutingSource(stub, rng=random.Random(seed))  # type: ignore[arg-type]
        client_id = ClientId(self.name.encode().ljust(16, b"\0"))
        self.link = _BlockingLink(SimLink(world.net, self.process, self.name, client_id))
        self.view = _View(self.source)
        self.storage = StorageClient(
            self.link,  # type: ignore[arg-type]
            self.view,
            client_id,
            policy=policy,
            clock=self.process,
            rng=random.Random(seed + 1),
            sleep=lambda seconds: wait(asyncio.sleep(seconds)),
        )

    async def start(self) -> None:
        await self.source.start()

    def end(self) -> None:
        """The world is over: end what still stands in blocking code, now and not whenever it is collected."""
        for strand in self.greenlets:
            strand.over = True  # type: ignore[attr-defined]
            strand.throw(greenlet.GreenletExit)
        self.greenlets.clear()

    async def blocking(self, function: Callable[[], Any]) -> Any:
        """Run blocking code of the library; what it waits for is awaited here."""
        strand = greenlet.greenlet(function)
        self.greenlets.append(strand)
        outcome = strand.switch()
        while not strand.dead:
            try:
                result = await outcome
            except Exception as exc:
                outcome = strand.throw(exc)
            else:
                outcome = strand.switch(result)
        self.greenlets.remove(strand)
        return outcome


def wait(awaitable: Any) -> Any:
    """In a greenlet: the result of `awaitable`, awaited by whoever runs this strand."""
    strand = greenlet.getcurrent()
    if getattr(strand, "over", False):
        if asyncio.iscoroutine(awaitable):
            awaitable.close()
        raise greenlet.GreenletExit
    assert strand.parent is not None
    return strand.parent.switch(awaitable)


class _View:
    """A blocking `RoutingView`."""

    def __init__(self, source: AsyncRoutingSource) -> None:
        self._source = source

    def current(self) -> Routing:
        return self._source.current()

    def wait_newer(self, version: int, timeout_s: float) -> Routing:
        found: Routing = wait(self._source.wait_newer(version, timeout_s))
        return found


class _Begun:
    """A `Begun` that leaves when it is waited for."""

    def __init__(self, link: SimLink, address: Address, call: Call) -> None:
        self._link = link
        self._address = address
        self._call = call

    def finish(self) -> Reply:
        reply: Reply = wait(self._link.call(self._address, self._call))
        return reply

    def give_up(self) -> None:
        pass


class _BlockingLink:
    """A `BlockingLink`."""

    pool: Any = None

    def __init__(self, link: SimLink) -> None:
        self._link = link

    def call(self, address: Address, call: Call) -> Reply:
        reply: Reply = wait(self._link.call(address, call))
        return reply

    def begin(self, address: Address, call: Call) -> _Begun:
        return _Begun(self._link, address, call)

    def call_many(self, calls: Any) -> list[Reply | FfsError]:
        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*(self._link.call(a, c) for a, c in calls), return_exceptions=True)

        answers: list[Any] = wait(all_of_them())
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, FfsError):
                raise answer
        return answers

    def close(self) -> None:
        pass


class Diary(logging.Handler):
    """What the processes log, in the trace of a verbose run."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.INFO)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        process = PROCESS.get()
        self._world.say(f"    {process.name if process is not None else 'world'}: {record.getMessage()}")
