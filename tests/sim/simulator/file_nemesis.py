"""What goes wrong with metadata servers and with clients that hold files open; storage's faults come from `nemesis`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from fireflyfs.common.kv.interface import read
from fireflyfs.meta.core import keys
from simulator.loop import Process
from simulator.metas import FileClient, MetaNode, Metas
from simulator.world import MGMTD, World

FAULTS = (
    "kill",
    "kill_at_step",
    "kill_both",
    "kill_in_trim",
    "freeze",
    "freeze_in_trim",
    "cut_off",
    "one_way",
    "client_dies",
    "client_dies_at_step",
    "client_freezes",
    "conflicts",
    "unknown_commits",
)


@dataclass
class FileNemesis:
    """Runs until told to end; `heal` undoes everything. `next_client` brings a client in place of one that died."""

    world: World
    metas: Metas
    rng: random.Random
    clients: list[FileClient]
    next_client: Callable[[], Awaitable[None]]
    faults: list[str] = field(default_factory=list)
    pause_s: float = 3.0
    ending: bool = False
    busy: set[str] = field(default_factory=set)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def choose(self) -> None:
        share = self.rng.choice([0.2, 0.4, 0.7, 1.0])
        self.faults = [fault for fault in FAULTS if self.rng.random() < share] or [self.rng.choice(FAULTS)]
        self.pause_s = self.rng.choice([1.0, 3.0, 6.0])
        if "conflicts" in self.faults:
            self.metas.kv.conflicts = self.rng.choice([0.01, 0.1, 0.3])
        if "unknown_commits" in self.faults:
            self.metas.kv.unknown = self.rng.choice([0.005, 0.03, 0.1])
        self.world.say(f"faults of metadata servers and clients {self.faults} about every {self.pause_s} s")

    async def run(self) -> None:
        actions: list[Callable[[], Awaitable[None]]] = [
            getattr(self, f"_{fault}") for fault in self.faults if hasattr(self, f"_{fault}")
        ]
        while not self.ending and actions:
            await asyncio.sleep(self.rng.expovariate(1 / self.pause_s))
            if self.ending:
                break
            self.tasks = [old for old in self.tasks if not old.done()]
            self.tasks.append(asyncio.ensure_future(_run(self.rng.choice(actions))))

    async def heal(self) -> None:
        """No further fault; every metadata server runs again."""
        self.ending = True
        if self.tasks:
            await asyncio.wait(self.tasks)
        self.metas.kv.conflicts = self.metas.kv.unknown = 0.0
        for node in self.metas.nodes:
            if node.process is not None:
                node.process.steps_left = None
            self._start(node)

    def _pick(self) -> MetaNode | None:
        nodes = [node for node in self.metas.nodes if node.up and node.name not in self.busy]
        return self.rng.choice(nodes) if nodes else None

    def _pick_client(self) -> FileClient | None:
        alive = [client for client in self.clients if not client.process.dead and client.name not in self.busy]
        return self.rng.choice(alive) if alive else None

    def _start(self, node: MetaNode) -> None:
        if not node.up:
            self.world.say(f"{node.name} starts")
            self.metas.start(node)

    def _away_s(self) -> float:
        return self.rng.choice([0.05, 0.5, 2.0, 7.0]) * self.rng.uniform(0.5, 1.5)

    async def _at_a_step(self, process: Process, action: Callable[[], None]) -> None:
        process.on_steps = action
        process.steps_left = self.rng.randint(1, 150)
        await asyncio.sleep(self.rng.uniform(0.5, 3.0))
        process.steps_left = None

    async def _in_a_trim(self, process: Process, action: Callable[[], None]) -> None:
        """A few steps after the next truncation has left something to be trimmed, by whomever."""

        def watch() -> None:
            trimming = bool(read(self.metas.kv.store, lambda txn: list(txn.scan(*keys.table(b"T"), limit=1))))
            if trimming:
                process.on_steps = action
            process.steps_left = self.rng.randint(1, 20) if trimming else 1

        process.on_steps = watch
        process.steps_left = 1
        await asyncio.sleep(self.rng.uniform(1.0, 5.0))
        process.steps_left = None

    # Metadata servers

    async def _kill(self) -> None:
        node = self._pick()
        if node is None:
            return
        self.busy.add(node.name)
        self.world.say(f"kill {node.name}")
        self.metas.kill(node)
        await asyncio.sleep(self._away_s())
        self._start(node)
        self.busy.discard(node.name)

    async def _kill_at_step(self) -> None:
        await self._kill_when(self._at_a_step)

    async def _kill_in_trim(self) -> None:
        await self._kill_when(self._in_a_trim)

    async def _kill_when(self, moment: Callable[[Process, Callable[[], None]], Awaitable[None]]) -> None:
        node = self._pick()
        if node is None or node.process is None:
            return
        self.busy.add(node.name)

        def kill() -> None:
            self.world.say(f"kill {node.name} at a step")
            self.metas.kill(node)

        await moment(node.process, kill)
        await asyncio.sleep(self._away_s())
        self._start(node)
        self.busy.discard(node.name)

    async def _kill_both(self) -> None:
        nodes = [node for node in self.metas.nodes if node.up and node.name not in self.busy]
        self.world.say("kill all metadata servers")
        for node in nodes:
            self.busy.add(node.name)
            self.metas.kill(node)
        for node in nodes:
            await asyncio.sleep(self._away_s())
            self._start(node)
            self.busy.discard(node.name)

    async def _freeze(self) -> None:
        await self._freeze_when(self._at_a_step)

    async def _freeze_in_trim(self) -> None:
        """While the others go on and finish what it had begun."""
        if any(node.name in self.busy for node in self.metas.nodes):
            return
        await self._freeze_when(self._in_a_trim)

    async def _freeze_when(self, moment: Callable[[Process, Callable[[], None]], Awaitable[None]]) -> None:
        node = self._pick()
        if node is None or node.process is None:
            return
        process = node.process
        self.busy.add(node.name)

        def freeze() -> None:
            self.world.say(f"freeze {node.name}")
            process.freeze()

        await moment(process, freeze)
        await asyncio.sleep(self.rng.choice([0.1, 1.0, 4.0, 12.0]) * self.rng.uniform(0.5, 1.5))
        if process.frozen:
            self.world.say(f"thaw {node.name}")
            process.thaw()
        self.busy.discard(node.name)

    async def _cut_off(self) -> None:
        """A metadata server sees neither storage nor another machine, or one kind of them not."""
        node = self.rng.choice(self.metas.nodes)
        storage = [other.name for other in self.world.nodes.values()]
        clients = [client.name for client in self.clients if not client.process.dead]
        others = self.rng.choice([storage, [self.rng.choice(storage)], [MGMTD.split(":")[0]], clients])
        await self._cut({pair for other in others for pair in ((node.name, other), (other, node.name))})

    async def _one_way(self) -> None:
        node = self.rng.choice(self.metas.nodes)
        clients = [client.name for client in self.clients if not client.process.dead]
        other = self.rng.choice([*(other.name for other in self.world.nodes.values()), *clients])
        await self._cut({self.rng.choice([(node.name, other), (other, node.name)])})

    async def _cut(self, pairs: set[tuple[str, str]]) -> None:
        net = self.world.net
        self.world.say(f"cut {sorted(pairs)}")
        net.cut |= pairs
        await asyncio.sleep(self.rng.choice([0.5, 3.0, 10.0]) * self.rng.uniform(0.5, 1.5))
        net.cut -= pairs
        self.world.say(f"joined {sorted(pairs)}")

    # Clients

    async def _client_dies(self) -> None:
        client = self._pick_client()
        if client is not None:
            self.world.say(f"kill {client.name}")
            client.kill()
            await asyncio.sleep(self._away_s())
            await self.next_client()

    async def _client_dies_at_step(self) -> None:
        client = self._pick_client()
        if client is None:
            return
        self.busy.add(client.name)

        def kill() -> None:
            self.world.say(f"kill {client.name} at a step")
            client.kill()

        await self._at_a_step(client.process, kill)
        self.busy.discard(client.name)
        if client.process.dead:
            await asyncio.sleep(self._away_s())
            await self.next_client()

    async def _client_freezes(self) -> None:
        """For less than its lease."""
        client = self._pick_client()
        if client is None:
            return
        self.busy.add(client.name)
        self.world.say(f"freeze {client.name}")
        client.process.freeze()
        await asyncio.sleep(self.rng.choice([0.5, 3.0, 8.0]))
        self.world.say(f"thaw {client.name}")
        client.process.thaw()
        self.busy.discard(client.name)


async def _run(action: Callable[[], Awaitable[None]]) -> None:
    await action()
