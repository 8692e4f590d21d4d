"""What goes wrong, and when. Each seed turns on its own choice of faults, with its own rates: a run in which everything
happens all the time tries less than many runs that differ."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from simulator.net import Weather
from simulator.world import MGMTD, Node, World

FAULTS = (
    "kill",
    "kill_at_step",
    "kill_all",
    "freeze",
    "stop",
    "mgmtd",
    "partition",
    "one_way",
    "island",
    "disk_full",
    "disk_failed",
    "disk_slow",
    "nowait",
    "power",
    "wipe",
    "rot",
    "slow_net",
    "lossy_net",
    "doubling_net",
)
BLACKOUTS = "blackouts"  # not one fault of many: what it takes is judged differently


@dataclass
class Nemesis:
    """Runs until told to end; `heal` undoes everything."""

    world: World
    rng: random.Random
    clients: list[str]
    faults: list[str] = field(default_factory=list)
    pause_s: float = 3.0
    blackouts: bool = False
    leases: bool = False  # clients have some, which are not to run out while they live
    only: tuple[str, ...] = ()  # these faults, not the seed's own choice
    floors: dict[tuple[int, int], int] = field(default_factory=dict)
    ending: bool = False
    busy: set[str] = field(default_factory=set)  # nodes that something is being done to
    fragile: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def choose(self) -> None:
        if self.blackouts:
            self.tasks.append(asyncio.ensure_future(self._blackouts()))
        share = self.rng.choice([0.2, 0.4, 0.7, 1.0])
        self.faults = [fault for fault in FAULTS if self.rng.random() < share] or [self.rng.choice(FAULTS)]
        if self.only:
            self.faults = list(self.only)
        self.pause_s = self.rng.choice([0.5, 1.5, 3.0, 6.0])
        weather = Weather()
        if "slow_net" in self.faults:
            weather.slow = self.rng.choice([0.001, 0.01, 0.1])
            weather.slow_s = self.rng.choice([0.05, 0.5, 3.0])
        if "lossy_net" in self.faults:
            weather.lost = self.rng.choice([0.0005, 0.005, 0.02])
        if "doubling_net" in self.faults:
            weather.twice = self.rng.choice([0.001, 0.01, 0.1])
            weather.twice_s = self.rng.choice([0.01, 0.3, 8.0])
        self.world.net.weather = weather
        if "nowait" in self.faults:
            for node in self.world.nodes.values():
                for engine in node.engines.values():
                    engine.refuse_nowait = self.rng.choice([0.0, 0.3, 1.0])
        self.world.say(f"faults {self.faults} about every {self.pause_s} s")

    async def run(self) -> None:
        actions: dict[str, Callable[[], Awaitable[None]]] = {
            fault: getattr(self, f"_{fault}") for fault in self.faults if hasattr(self, f"_{fault}")
        }
        while not self.ending and actions:
            await asyncio.sleep(self.rng.expovariate(1 / self.pause_s))
            if self.ending:
                break
            fault = self.rng.choice(list(actions))
            task = asyncio.ensure_future(self._guarded(actions[fault]))
            self.tasks = [old for old in self.tasks if not old.done()]
            self.tasks.append(task)

    async def _guarded(self, action: Callable[[], Awaitable[None]]) -> None:
        await action()

    async def heal(self) -> None:
        """No further fault; everything runs again."""
        self.ending = True
        world = self.world
        if self.tasks:
            await asyncio.wait(self.tasks)
        world.net.cut.clear()
        world.net.weather = Weather()
        for node in world.nodes.values():
            for engine in node.engines.values():
                engine.full = False
                engine.refuse_nowait = 0.0
        self._start_mgmtd()
        for node in world.nodes.values():
            if node.process is not None:
                node.process.steps_left = None
                node.process.thread_s = (0.0, 0.002)
            if not node.up:
                self._start(node)
            elif node.process is not None and node.process.frozen:
                node.process.thaw()

    # Faults. Each ends what it began.

    def _pick(self) -> Node | None:
        nodes = [node for node in self.world.nodes.values() if node.up and node.name not in self.busy]
        return self.rng.choice(nodes) if nodes else None

    def _start(self, node: Node) -> None:
        self.world.net.silent.discard(node.name)
        self.world.say(f"{node.name} starts")
        self.world.start_node(node)

    def _start_mgmtd(self) -> None:
        if self.world.mgmtd is None or self.world.mgmtd.dead:
            self.world.say("mgmtd starts")
            self.world.start_mgmtd()

    async def _away(self, node: Node, away_s: float) -> None:
        await asyncio.sleep(away_s)
        if not node.up:
            self._start(node)

    def _away_s(self) -> float:
        return self.rng.choice([0.05, 0.5, 2.0, 7.0, 15.0]) * self.rng.uniform(0.5, 1.5)

    async def _kill(self) -> None:
        node = self._pick()
        if node is None:
            return
        self.world.say(f"kill {node.name}")
        self.world.kill_node(node)
        self.busy.add(node.name)
        await self._away(node, self._away_s())
        self.busy.discard(node.name)

    async def _kill_at_step(self) -> None:
        """Between two steps of its tasks, wherever they stand."""
        node = self._pick()
        if node is None or node.process is None:
            return
        process = node.process
        self.busy.add(node.name)

        def kill() -> None:
            if node.process is process:
                self.world.say(f"kill {node.name} at a step")
                self.world.kill_node(node)

        process.on_steps = kill
        process.steps_left = self.rng.randint(1, 600)
        await asyncio.sleep(self.rng.uniform(0.5, 3.0))
        process.steps_left = None
        await self._away(node, self._away_s())
        self.busy.discard(node.name)

    async def _kill_all(self) -> None:
        if self.world.net.silent or self.fragile:
            return  # a machine has just lost power: the others alone hold what it had not synced
        nodes = [node for node in self.world.nodes.values() if node.up]
        self.world.say("kill all")
        for node in nodes:
            self.world.kill_node(node)
            self.busy.add(node.name)
        if self.rng.random() < 0.3 and self.world.mgmtd is not None and not self.world.mgmtd.dead:
            self.world.stop_mgmtd()
            await asyncio.sleep(self.rng.uniform(0.1, 3))
            self._start_mgmtd()
        self.rng.shuffle(nodes)
        for node in nodes:
            await self._away(node, self.rng.choice([0.0, 0.3, 3.0, 8.0]))
            self.busy.discard(node.name)

    async def _freeze(self) -> None:
        node = self._pick()
        if node is None or node.process is None:
            return
        process = node.process
        self.world.say(f"freeze {node.name}")
        process.freeze()
        self.busy.add(node.name)
        await asyncio.sleep(self.rng.choice([0.1, 1.0, 4.0, 8.0]) * self.rng.uniform(0.5, 1.5))
        self.world.say(f"thaw {node.name}")
        process.thaw()
        self.busy.discard(node.name)

    async def _stop(self) -> None:
        """A planned stop, and a start."""
        node = self._pick()
        if node is None or node.process is None or node.worker is None or not hasattr(node, "membership"):
            return
        self.busy.add(node.name)
        process, worker = node.process, node.worker
        self.world.say(f"stop {node.name}")

        async def stop() -> None:
            await node.membership.stop(planned=True)  # type: ignore[attr-defined]
            await worker.stop()

        stopping = process.spawn(stop())
        for _ in range(100):
            await asyncio.sleep(0.1)
            if stopping.done():
                break
        self.world.kill_node(node)
        await self._away(node, self._away_s())
        self.busy.discard(node.name)

    async def _mgmtd(self) -> None:
        world = self.world
        if world.mgmtd is None or world.mgmtd.dead or "mgmtd" in self.busy:
            return
        self.busy.add("mgmtd")
        if self.rng.random() < 0.4:
            world.say("freeze mgmtd")
            process = world.mgmtd
            process.freeze()
            await asyncio.sleep(self.rng.choice([0.5, 3.0, 8.0]))
            world.say("thaw mgmtd")
            process.thaw()
        else:
            world.say("kill mgmtd")
            world.stop_mgmtd()
            await asyncio.sleep(self.rng.choice([0.2, 2.0, 8.0]) * self.rng.uniform(0.5, 1.5))
            self._start_mgmtd()
        self.busy.discard("mgmtd")

    def _pair(self) -> tuple[str, str]:
        names = [node.name for node in self.world.nodes.values()]
        one = self.rng.choice(names)
        other = self.rng.choice([MGMTD.split(":")[0], *(name for name in names if name != one), *self.clients])
        return (one, other) if self.rng.random() < 0.5 else (other, one)

    async def _partition(self) -> None:
        one, other = self._pair()
        await self._cut({(one, other), (other, one)})

    async def _one_way(self) -> None:
        await self._cut({self._pair()})

    async def _island(self) -> None:
        """A machine and a client see each other and nobody else."""
        inside = {self.rng.choice(list(self.world.nodes.values())).name, self.rng.choice(self.clients)}
        names = {node.name for node in self.world.nodes.values()} | {"mgmtd", *self.clients}
        outside = sorted(names - inside)
        pairs = {pair for one in sorted(inside) for other in outside for pair in ((one, other), (other, one))}
        if self.leases:
            pairs -= {pair for client in self.clients for pair in ((client, "mgmtd"), ("mgmtd", client))}
        await self._cut(pairs, self.rng.choice([3.0, 10.0, 20.0]))  # long enough for the others to go on without it

    async def _cut(self, pairs: set[tuple[str, str]], about_s: float = 0.0) -> None:
        if self.fragile:
            return
        net = self.world.net
        self.world.say(f"cut {sorted(pairs)}")
        net.cut |= pairs
        about_s = about_s or self.rng.choice([0.5, 3.0, 6.0, 12.0])
        await asyncio.sleep(about_s * self.rng.uniform(0.5, 1.5))
        net.cut -= pairs
        self.world.say(f"joined {sorted(pairs)}")

    def _engine(self) -> tuple[Node, int] | None:
        node = self._pick()
        return (node, self.rng.choice(list(node.engines))) if node is not None and node.engines else None

    async def _disk_full(self) -> None:
        found = self._engine()
        if found is None:
            return
        engine = found[0].engines[found[1]]
        self.world.say(f"disk of {found[1]} is full")
        engine.full = True
        await asyncio.sleep(self.rng.uniform(0.5, 8.0))
        engine.full = False

    async def _disk_failed(self) -> None:
        """I/O errors until the machine was looked after and its process started again."""
        found = self._engine()
        if found is None:
            return
        node, target_id = found
        self.busy.add(node.name)
        self.world.say(f"disk of {target_id} fails")
        node.engines[target_id].failed = True
        await asyncio.sleep(self.rng.uniform(0.5, 10.0))
        node.engines[target_id].failed = False
        self.world.kill_node(node)
        await self._away(node, 0.5)
        self.busy.discard(node.name)

    async def _disk_slow(self) -> None:
        node = self._pick()
        if node is None or node.process is None:
            return
        process = node.process
        slow_s = self.rng.choice([0.05, 0.5, 2.0])
        self.world.say(f"disk of {node.name} is slow: {slow_s} s")
        process.thread_s = (0.0, slow_s)
        await asyncio.sleep(self.rng.uniform(0.5, 8.0))
        process.thread_s = (0.0, 0.002)

    async def _blackouts(self) -> None:
        """Now and then every machine loses power at once."""
        while True:
            await asyncio.sleep(self.rng.uniform(5, 40))
            while self.fragile or self.world.net.silent:
                await asyncio.sleep(0.5)
            if self.ending:
                return
            self.fragile = True
            world = self.world
            world.blackout(self.floors)
            if world.mgmtd is not None and not world.mgmtd.dead:
                world.stop_mgmtd()
            nodes = list(world.nodes.values())
            self.busy |= {node.name for node in nodes} | {"mgmtd"}
            await asyncio.sleep(self.rng.uniform(0, 3))
            self._start_mgmtd()
            self.rng.shuffle(nodes)
            for node in nodes:
                await asyncio.sleep(self.rng.choice([0.0, 0.3, 3.0]))
                if not node.up:
                    self._start(node)
            await asyncio.sleep(8.0)  # until mgmtd has heard of each
            self.busy -= {node.name for node in nodes} | {"mgmtd"}
            self.fragile = False

    async def _rot(self) -> None:
        """The bytes of a chunk go bad on one replica while all others have the same version."""
        found = self._engine()
        if self.blackouts or self.world.plan.replicas < 3:
            return  # with them the good copies could go
        if found is None or self.fragile or self.busy or self.world.bad_chunks() or not self.world.healthy():
            return
        engine = found[0].engines[found[1]]
        others = self.world.chains[found[1] % 100]
        keys = sorted(
            key
            for key, chunk in engine.chunks.items()
            if chunk.committed is not None and len({self.world.committed_version(other, *key) for other in others}) == 1
        )
        if keys:
            key = self.rng.choice(keys)
            self.world.say(f"chunk {key.inode}.{key.chunk_index} of {found[1]} rots")
            engine.rotten.add(key)

    async def _wipe(self) -> None:
        """A machine comes back with empty disks while all else is well."""
        if self.world.plan.replicas < 3:
            return  # one more fault, and nothing would be left
        await self._power(wipe=True)

    async def _power(self, *, wipe: bool = False) -> None:
        """One machine loses power while all else is well: what it had not synced is on the others."""
        node = self._pick()
        weather = self.world.net.weather
        if node is None or self.busy or self.world.net.cut or weather.lost or weather.slow or not self.world.healthy():
            return
        if self.world.bad_chunks():
            return  # the good copies may be there
        others = {other.name for other in self.world.nodes.values() if other is not node}
        self.busy |= others | {node.name, "mgmtd"}
        self.fragile = True
        self.world.say(f"{'new disks in' if wipe else 'power cut of'} {node.name}")
        self.world.kill_node(node, power=True)
        for engine in node.engines.values() if wipe else ():
            engine.wipe()
        await asyncio.sleep(self.rng.uniform(0.2, 2.0))
        self.world.net.silent.discard(node.name)
        await asyncio.sleep(self._away_s())
        self._start(node)
        await asyncio.sleep(8.0)
        self.busy -= others | {node.name, "mgmtd"}
        self.fragile = False
