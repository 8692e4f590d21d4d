"""What clients do, and the history of it.

A file is a row of chunks; a chunk is CELLS cells, each filled with the number of the write that set it, so a read says
for each cell which write it saw. Truncations and removals set cells to 0, as what was never written.
"""

from __future__ import annotations

import asyncio
import random
import struct
from dataclasses import dataclass, field

from fireflyfs.client.storage_client import ReadSpan
from fireflyfs.client.storage_codec import WriteSpan
from fireflyfs.client.striping import FileLayout
from fireflyfs.common.errors import Code, FfsError
from simulator.history import Kind, Op
from simulator.world import SimClient, World

CELLS = 6
CELL_BYTES = 4096
CHUNK = 65536
SPAN = CELLS * CELL_BYTES

# What a client may be told when it gives up; anything else is a defect.
EXPECTED = {Code.TIMEOUT, Code.UNAVAILABLE, Code.NO_SPACE, Code.CHECKSUM, Code.OVERLOADED, Code.DISK_FAILED}


@dataclass
class Work:
    """The workload of one world."""

    world: World
    files: list[FileLayout]
    chunks: int
    pause_s: float
    removals: float
    syncs: float
    histories: dict[tuple[int, int], list[Op]] = field(default_factory=dict)
    number: int = 0
    ending: bool = False
    floors: dict[tuple[int, int], int] = field(default_factory=dict)  # versions that survive a blackout
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    def begin(self, kind: Kind, key: tuple[int, int], begin: int, end: int, who: str) -> Op:
        self.number += 1
        op = Op(self.number, kind, begin, end, self.world.loop.now_s, who)
        self.histories.setdefault(key, []).append(op)
        return op

    async def strand(self, client: SimClient, number: int) -> None:
        """One thread of one client: operations one after the other."""
        rng = random.Random(self.world.seed * 31 + number)
        who = f"{client.name}.{number}"
        while not self.ending:
            await asyncio.sleep(rng.expovariate(1 / self.pause_s))
            if self.ending:
                return
            roll = rng.random()
            if roll < self.syncs:
                await self.sync(client, rng, who)
            elif roll < self.syncs + self.removals:
                await self.zero(client, rng, who)
            elif roll < 0.55:
                await self.write(client, rng, who)
            else:
                await self.read(client, rng, who)

    def _failed(self, what: str, who: str, exc: FfsError) -> None:
        self.count(f"{what}_{exc.code.name.lower()}")
        self.world.say(f"{who} {what} failed: {exc.code.name} {exc.message}")
        if exc.code not in EXPECTED:
            self.world.problem(f"{who}: {what} ended with {exc.code.name}: {exc.message}")

    async def write(self, client: SimClient, rng: random.Random, who: str) -> None:
        """Some neighbouring cells of one chunk; sometimes of several chunks in one batch."""
        file = rng.choice(self.files)
        chunks = rng.sample(range(self.chunks), min(self.chunks, rng.choice([1, 1, 1, 2])))
        ops, spans = [], []
        for chunk in chunks:
            begin = rng.randrange(CELLS)
            end = rng.randint(begin + 1, CELLS)
            if rng.random() < 0.2:
                begin, end = 0, CELLS
            op = self.begin(Kind.WRITE, (file.inode, chunk), begin, end, who)
            data = struct.pack("<Q", op.number) * (CELL_BYTES // 8) * (end - begin)
            spans.append(WriteSpan(file, chunk * CHUNK + begin * CELL_BYTES, memoryview(data)))
            ops.append(op)
        failed = await client.blocking(lambda: client.storage.write(spans))
        for place, op in enumerate(ops):
            if place in failed:
                self._failed("write", who, failed[place])
            else:
                op.ok, op.return_s = True, self.world.loop.now_s
                self.count("write")
                self.world.say(f"{who} wrote #{op.number} to {file.inode}.{chunks[place]} [{op.begin},{op.end})")

    async def read(self, client: SimClient, rng: random.Random, who: str) -> None:
        file = rng.choice(self.files)
        chunks = rng.sample(range(self.chunks), min(self.chunks, rng.choice([1, 1, 2])))
        for place, exc in (await self.read_chunks(client, file, chunks, who)).items():
            self._failed("read", f"{who} chunk {chunks[place]}", exc)

    async def read_chunks(
        self, client: SimClient, file: FileLayout, chunks: list[int], who: str
    ) -> dict[int, FfsError]:
        ops = [self.begin(Kind.READ, (file.inode, chunk), 0, CELLS, who) for chunk in chunks]
        memory = [memoryview(bytearray(b"\xff" * SPAN)) for _ in chunks]
        spans = [ReadSpan(file, chunk * CHUNK, into) for chunk, into in zip(chunks, memory, strict=True)]
        failed: dict[int, FfsError] = await client.blocking(lambda: client.storage.read(spans))
        for place, op in enumerate(ops):
            if place in failed:
                continue
            op.ok, op.return_s = True, self.world.loop.now_s
            op.saw = self._cells(memory[place], f"{who} read {file.inode}.{chunks[place]}")
            self.count("read")
            self.world.say(f"{who} read {file.inode}.{chunks[place]} {list(op.saw)}")
        return failed

    def stored_cells(self, data: bytes, where: str) -> tuple[int, ...]:
        """The cells of what an engine holds of a chunk."""
        return self._cells(memoryview(data.ljust(SPAN, b"\0")), where)

    def _cells(self, data: memoryview, where: str) -> tuple[int, ...]:
        found = []
        for cell in range(CELLS):
            raw = bytes(data[cell * CELL_BYTES : (cell + 1) * CELL_BYTES])
            if raw != raw[:8] * (CELL_BYTES // 8):
                self.world.problem(f"{where}: cell {cell} is torn")
            found.append(struct.unpack("<Q", raw[:8])[0])
        return tuple(found)

    async def zero(self, client: SimClient, rng: random.Random, who: str) -> None:
        """Truncate the file at a cell's border: the chunks behind it are removed."""
        file = rng.choice(self.files)
        first = rng.randrange(self.chunks)
        cell = rng.choice([0, 0, *range(CELLS)])
        ops = [
            self.begin(Kind.ZERO, (file.inode, chunk), cell if chunk == first else 0, CELLS, who)
            for chunk in range(first, self.chunks)
        ]
        try:
            await client.blocking(lambda: client.storage.truncate(file, first * CHUNK + cell * CELL_BYTES))
        except FfsError as exc:
            self._failed("truncate", who, exc)
            return
        for op in ops:
            op.ok, op.return_s = True, self.world.loop.now_s
        self.count("truncate")
        self.world.say(f"{who} truncated {file.inode} to {first}+{cell} as {[op.number for op in ops]}")

    def _acknowledged(self, file: FileLayout) -> dict[tuple[int, int], int]:
        """The version of each chunk that every SERVING replica has committed: what was acknowledged is in it."""
        world = self.world
        manager = world.manager
        found: dict[tuple[int, int], int] = {}
        for chunk in range(self.chunks if manager is not None else 0):
            assert manager is not None
            record = manager.cluster.chains[file.chain_of(chunk)]
            versions = [
                world.committed_version(target_id, file.inode, chunk)
                for target_id, public in record.members
                if public.name == "SERVING"
            ]
            found[file.inode, chunk] = min(versions, default=0)
        return found

    async def sync(self, client: SimClient, rng: random.Random, who: str) -> None:
        file = rng.choice(self.files)
        acknowledged = self._acknowledged(file)
        blackouts = len(self.world.blackouts)
        try:
            await client.blocking(lambda: client.storage.sync(file.chains))
        except FfsError as exc:
            self._failed("sync", who, exc)
        else:
            self.count("sync")
            if blackouts == len(self.world.blackouts):
                for key, version in acknowledged.items():
                    self.floors[key] = max(version, self.floors.get(key, 0))
            self.world.say(f"{who} synced {file.inode}")
