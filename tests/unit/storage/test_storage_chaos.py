"""Crashes, lost answers, hanging replicas, late routing and rot, from one seed each, while clients write and read.

What must hold whatever happens: a version of a chunk has one content for ever; a request is done at most once, and once
if it was acknowledged; no read goes back behind what was acknowledged or read before it began; in the end all serving
replicas are equal.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.net.api import Address, Call, Reply
from fireflyfs.common.net.methods import Method
from fireflyfs.mgmtd.core import chain as chain_rules
from fireflyfs.proto.storage_wire import READ_IO, READ_RESULT
from fireflyfs.storage.background.pending import PendingResolver
from fireflyfs.storage.background.repair import SuspectRepair
from fireflyfs.storage.background.resync import Resync
from fireflyfs.storage.background.scrub import Scrubber
from fireflyfs.storage.core.target import Local, Public
from fireflyfs.storage.engine.interface import ChunkKey, Writer

KEYS = 5
WRITES = 60
CLIENTS = 3


class Mortal:
    """What a process uses of the world; after its death nothing of it reaches the world any more.

    Its threads may go on after it died, as late as they like: each call looks whether it may still be made, and death
    comes between two calls.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._calling = threading.Lock()
        self.dead = False

    def die(self) -> None:
        with self._calling:
            self.dead = True

    def _check(self) -> None:
        if self.dead:
            raise error(Code.CANCELLED, "this process is dead")

    def __getattr__(self, name: str) -> Any:
        self._check()
        found = getattr(self._inner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._calling:
                self._check()
                return found(*args, **kwargs)

        return call if callable(found) else found


class MortalNet(Mortal):
    async def call(self, address: Address, call: Call) -> Reply:
        if self.dead:
            raise error(Code.CANCELLED)
        reply: Reply = await self._inner.call(address, call)
        if self.dead:
            raise error(Code.CANCELLED)
        return reply


class Chaos:
    def __init__(self, cluster: Any, seed: int) -> None:
        self.cluster = cluster
        self.chance = random.Random(seed)
        self.disks = {target_id: server.engine for target_id, server in cluster.servers.items()}
        self.mortals: dict[int, list[Mortal]] = {}
        self.jobs: dict[int, list[asyncio.Task[None]]] = {}
        self.crashed_at: dict[int, float] = {}
        self.contents: dict[tuple[int, int], bytes] = {}
        self.version_of: dict[bytes, tuple[int, int]] = {}
        self.floor = [0] * KEYS
        self.said: dict[int, int] = {}
        self.witnesses: dict[int, set[int]] = {}
        self.finished = False  # clients are
        self.calm = False  # and nothing is disturbed any more
        self.crashes = 0
        self.rotted = 0
        for target_id in self.disks:
            self.start(target_id, fresh=False)

    def start(self, target_id: int, *, fresh: bool) -> None:
        old = self.cluster.servers[target_id]
        net = MortalNet(self.cluster.net)
        engine = Mortal(self.disks[target_id])
        self.mortals[target_id] = [net, engine]
        server = self.cluster.add(target_id, engine)
        server.replicas.link = net
        if not fresh:
            server.target.state = old.target.state
        self.cluster.net.down.discard(str(target_id))
        server.replicas.install(self.cluster.routing())
        self.jobs[target_id] = [
            asyncio.ensure_future(PendingResolver(server.replicas, server.service.updater, server.target).run()),
            asyncio.ensure_future(
                Resync(server.replicas, server.service.updater, server.service.repairer, server.target).run()
            ),
            asyncio.ensure_future(SuspectRepair(server.replicas, server.service.repairer, server.target).run()),
        ]

    def may_crash(self, target_id: int) -> bool:
        """Whether each request under way keeps a witness: a replica that served when it began, and lives since then.

        What was done for whom is in the memory of those that saw it, and with a chunk only for its newest version: when
        all of them die before a client hears, and others wrote to the chunk, its repeated request is a new one.
        """
        return all(seen - {target_id} for seen in self.witnesses.values())

    def crash(self, target_id: int) -> None:
        self.crashes += 1
        for seen in self.witnesses.values():
            seen.discard(target_id)
        self.cluster.net.down.add(str(target_id))
        for mortal in self.mortals[target_id]:
            mortal.die()
        for job in self.jobs[target_id]:
            job.cancel()
        self.crashed_at[target_id] = asyncio.get_running_loop().time()

    def step_chain(self) -> None:
        """mgmtd's turn: what the targets say, the chain's next state."""
        cluster = self.cluster
        members = []
        now = asyncio.get_running_loop().time()
        for target_id, public in cluster.states:
            server = cluster.servers[target_id]
            said = int(server.target.state.local)
            if target_id in self.crashed_at:
                said = int(Local.UPTODATE if public is Public.SERVING else Local.ONLINE)
                if now - self.crashed_at[target_id] > 0.04:
                    said = int(Local.OFFLINE)
            elif server.target.chain is None or server.target.chain.version < cluster.version:
                said = self.said.get(target_id, said)
            self.said[target_id] = said
            members.append(chain_rules.Member(target_id, chain_rules.Public(int(public)), chain_rules.Local(said)))
        after = [(decision.target_id, Public(int(decision.public))) for decision in chain_rules.next_chain(members)]
        if after != cluster.states:
            cluster.states = after
            cluster.version += 1
            routing = cluster.routing()
            for target_id, server in cluster.servers.items():
                if target_id not in self.crashed_at:
                    delay = self.chance.choice([0, 0, 0.005, 0.03])
                    asyncio.get_running_loop().call_later(delay, server.replicas.install, routing)

    async def manage(self) -> None:
        while not self.calm or any(public is not Public.SERVING for _, public in self.cluster.states):
            self.step_chain()
            await asyncio.sleep(0.01)

    async def disturb(self) -> None:
        net = self.cluster.net
        while not self.finished:
            await asyncio.sleep(self.chance.uniform(0.02, 0.15))
            serving = [t for t, public in self.cluster.states if public is Public.SERVING]
            alive = [t for t in serving if t not in self.crashed_at]
            what = self.chance.random()
            if what < 0.5 and len(alive) >= 2 and len(alive) == len(serving):
                victim = self.chance.choice(alive)
                if self.may_crash(victim):
                    self.crash(victim)
            elif what < 0.7:
                victim = str(self.chance.choice(list(self.disks)))
                trouble = self.chance.choice([net.hung, net.lose_answers_of])
                trouble.add(victim)
                await asyncio.sleep(self.chance.uniform(0.01, 0.05))
                trouble.discard(victim)
            elif self.crashed_at:
                await self.revive(self.chance.choice(list(self.crashed_at)))
        for target_id in list(self.crashed_at):
            await self.revive(target_id)
        self.calm = True

    async def rot(self) -> None:
        """Bytes go bad on one replica while the two others have good ones."""
        while not self.finished:
            await asyncio.sleep(self.chance.uniform(0.005, 0.03))
            if self.crashed_at or any(public is not Public.SERVING for _, public in self.cluster.states):
                continue
            key = ChunkKey(7, self.chance.randrange(KEYS))
            held = [disk.chunks.get(key) for disk in self.disks.values()]
            good = all(chunk and chunk.committed and not chunk.pending and not chunk.rotten for chunk in held)
            if good and len({chunk.committed[0].version for chunk in held if chunk}) == 1:
                self.disks[self.chance.choice(list(self.disks))].rot(key)
                self.rotted += 1

    async def revive(self, target_id: int) -> None:
        while asyncio.get_running_loop().time() - self.crashed_at[target_id] < 0.06:
            await asyncio.sleep(0.01)
        self.step_chain()
        del self.crashed_at[target_id]
        self.start(target_id, fresh=True)
        self.said[target_id] = int(Local.OFFLINE)

    def saw(self, index: int, version: int, data: bytes) -> None:
        known = self.contents.setdefault((index, version), data)
        assert known == data, f"chunk {index} version {version} had another content"
        place = self.version_of.setdefault(data, (index, version))
        assert place == (index, version), f"{data!r} was done twice"

    async def write(self, client: int, make: Callable[..., Any]) -> None:
        chance = random.Random(client)
        for sequence in range(1, WRITES + 1):
            keys = chance.sample(range(KEYS), chance.choice([1, 1, 2, 3]))
            values = {index: f"c{client:02}s{sequence:05}k{index:02}".encode() for index in keys}
            todo = dict(values)
            self.witnesses[client] = {
                target_id
                for target_id, public in self.cluster.states
                if public is Public.SERVING and target_id not in self.crashed_at
            }
            while todo:
                head = self.cluster.states[0][0]
                try:
                    results = await self.cluster.update(
                        head,
                        [make(index, value) for index, value in todo.items()],
                        Writer(bytes([client]) * 16, 1, sequence),
                        deadline_s=0.25,
                    )
                except FfsError as exc:
                    if exc.code in (Code.CHECKSUM, Code.INTERNAL, Code.STALE_UPDATE):
                        raise
                    await asyncio.sleep(0.01)
                    continue
                for (index, value), result in zip(list(todo.items()), results, strict=True):
                    assert result.code not in (Code.CHECKSUM, Code.MISSING_UPDATE, Code.STALE_UPDATE), result
                    if result.code is Code.OK:
                        self.saw(index, result.version, value)
                        self.floor[index] = max(self.floor[index], result.version)
                        del todo[index]
            del self.witnesses[client]

    async def read(self) -> None:
        while not self.finished:
            await asyncio.sleep(0.001)
            serving = [t for t, public in self.cluster.states if public is Public.SERVING]
            if not serving:
                continue
            target_id, index = self.chance.choice(serving), self.chance.randrange(KEYS)
            floor = self.floor[index]
            into = memoryview(bytearray(12))
            body = np.array([(7, index, 1, 1, 0, 12)], READ_IO).tobytes()
            try:
                reply = await self.cluster.net.call(
                    Address(tcp=str(target_id)), Call(Method.STORAGE_READ, body, into=[into], deadline_s=0.5)
                )
            except FfsError:
                continue
            status, length, version, _, _ = np.frombuffer(reply.body, READ_RESULT).tolist()[0]
            if status == Code.CHUNK_NOT_FOUND:
                assert floor == 0
            elif status == Code.OK:
                assert version >= floor, f"chunk {index}: version {version} read after version {floor}"
                self.saw(index, version, bytes(into[:length]))
                self.floor[index] = max(self.floor[index], version)


@pytest.mark.parametrize("rot", [False, True], ids=["", "rot"])
@pytest.mark.parametrize("seed", range(6))
def test_whatever_fails_the_history_is_one(
    seed: int, rot: bool, make_cluster: Callable[..., Any], write_item: Any
) -> None:
    async def scenario() -> None:
        cluster = make_cluster(3)
        chaos = Chaos(cluster, seed)
        for number, disk in enumerate(chaos.disks.values()):
            disk.cold = seed % 3 == 0 or (seed % 3 == 1 and number == seed % 2)  # work in threads, or on the loop
        manager = asyncio.ensure_future(chaos.manage())
        disturber = asyncio.ensure_future(chaos.disturb())
        readers = [asyncio.ensure_future(chaos.read()) for _ in range(3)]
        if rot:
            readers.append(asyncio.ensure_future(chaos.rot()))
        await asyncio.gather(*(chaos.write(client, write_item) for client in range(1, CLIENTS + 1)))
        while rot and not chaos.rotted:
            await asyncio.sleep(0.01)
        chaos.finished = True
        await asyncio.gather(disturber, *readers)
        await manager  # until all replicas serve again
        while any(server.target.in_flight for server in cluster.servers.values()):
            await asyncio.sleep(0.01)  # what clients had given up on
        for server in cluster.servers.values():
            await PendingResolver(server.replicas, server.service.updater, server.target).once()
        for server in cluster.servers.values():
            scrubber = Scrubber(server.replicas, server.service.repairer, server.target, bytes_s=0, every_s=0)
            # One that has not heard yet that it serves looks at nothing, and one that the others have not heard of yet
            # gets no help.
            while not server.target.scrub.passes or server.target.scrub.damaged:
                await scrubber.once()
                await asyncio.sleep(0.005)
        copies = []
        for disk in chaos.disks.values():
            assert not [key for key, chunk in disk.chunks.items() if chunk.pending]
            assert not [key for key, chunk in disk.chunks.items() if chunk.rotten or chunk.committed[0].damaged]
            copies.append({key: (chunk.committed[0].version, chunk.committed[1]) for key, chunk in disk.chunks.items()})
        assert copies[0] == copies[1] == copies[2]
        for key, (version, data) in copies[0].items():
            chaos.saw(key.chunk_index, version, data)
            assert version >= chaos.floor[key.chunk_index]
        for jobs in chaos.jobs.values():
            for job in jobs:
                job.cancel()
        cluster.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))
