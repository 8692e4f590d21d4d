"""What clients do with open files, and the history of it: see `file_model`.

A cell holds the number of the write that filled it, all of it, so each cell that is read names its write. All lengths
are whole cells. Each client keeps some files open, on handles of their own for each strand, and dies with them.
"""

from __future__ import annotations

import asyncio
import os
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fireflyfs.client.file import File
from fireflyfs.common.errors import FfsError
from simulator.file_model import Event, FileHistory, What
from simulator.metas import FileClient
from simulator.workload import EXPECTED
from simulator.world import World

CELL = 16384
CHUNK_CELLS = 4  # of 64 KiB
NAMES = ("a", "b", "c", "d")


@dataclass
class OpenFile:
    """A handle of one strand, and what it wrote that meta was not told of."""

    file: File
    path: str
    inode: int
    known_s: float
    untold: list[Event] = field(default_factory=list)


@dataclass
class FileWork:
    """The workload of one world."""

    world: World
    names: tuple[str, ...]
    cells: int
    pause_s: float
    rates: dict[str, float]
    histories: dict[int, FileHistory] = field(default_factory=dict)
    paths: dict[str, set[int]] = field(default_factory=dict)  # inodes ever seen there
    removed: dict[str, list[tuple[float, frozenset[int]]]] = field(default_factory=dict)
    open_cuts: dict[str, list[Event]] = field(default_factory=dict)  # opens with O_TRUNC, of an unknown outcome
    doubtful: set[int] = field(default_factory=set)  # inodes with a write that failed: it may come late
    kept: list[File] = field(default_factory=list)  # so that none is closed by the garbage collector
    number: int = 0
    ending: bool = False
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    def history(self, inode: int) -> FileHistory:
        if inode not in self.histories:
            self.histories[inode] = FileHistory(inode, CHUNK_CELLS)
        return self.histories[inode]

    def event(self, what: What, begin: int, end: int, who: str) -> Event:
        self.number += 1
        return Event(self.number, what, begin, end, self.world.loop.now_s, who)

    def done(self, event: Event) -> None:
        event.ok, event.return_s = True, self.world.loop.now_s

    async def strand(self, client: FileClient, number: int) -> None:
        """One thread of one client."""
        rng = random.Random(self.world.seed * 31 + number)
        who = f"{client.name}.{number}"
        opened: list[OpenFile] = []
        names, weights = zip(*self.rates.items(), strict=True)
        while not self.ending:
            await asyncio.sleep(rng.expovariate(1 / self.pause_s))
            if self.ending:
                break
            what = rng.choices(names, weights)[0]
            if what == "open" or not opened:
                if len(opened) < 3:
                    await self.open(client, rng, who, opened)
            elif what in ("stat", "unlink"):
                await getattr(self, what)(client, rng.choice(self.names), who)
            else:
                await getattr(self, what)(client, rng, who, rng.choice(opened), opened)
        for held in list(opened):
            await self.close(client, rng, who, held, opened)

    async def _try(self, client: FileClient, what: str, who: str, function: Callable[[], Any]) -> tuple[bool, Any]:
        """Whether it succeeded, and its result, or the error's code where that is known."""
        try:
            result = await client.blocking(function)
        except FileNotFoundError as exc:
            self.count(f"{what}_no_entry")
            if what in ("open", "stat", "unlink"):
                return False, exc
            self.world.problem(f"{who}: {what} ended with {exc}")
        except (OSError, FfsError) as exc:
            cause = exc if isinstance(exc, FfsError) else exc.__cause__
            if not isinstance(cause, FfsError):
                raise
            self.count(f"{what}_{cause.code.name.lower()}")
            self.world.say(f"{who} {what} failed: {cause.code.name} {cause.message}")
            if cause.code not in EXPECTED:
                self.world.problem(f"{who}: {what} ended with {cause.code.name}: {cause.message}")
            return False, exc
        else:
            self.count(what)
            return True, result
        return False, None

    # Names

    async def open(self, client: FileClient, rng: random.Random, who: str, opened: list[OpenFile]) -> None:
        path = rng.choice(self.names)
        flags = os.O_RDWR | (os.O_CREAT if rng.random() < 0.8 else 0)
        cut = self.event(What.TRUNCATE, 0, 0, who) if rng.random() < self.rates.get("truncate", 0) / 10 else None
        if cut is not None:
            flags |= os.O_TRUNC
            self.open_cuts.setdefault(path, []).append(cut)  # whatever file that may be
        began = self.event(What.LENGTH, 0, 0, who)
        ok, file = await self._try(client, "open", who, lambda: self.keep(client.files.open_file(path, flags)))
        if not ok:
            return
        inode = file.handle.file.inode
        for removed_s, inodes in self.removed.get(path, []):
            if inode in inodes and removed_s < began.call_s:
                self.world.problem(f"{who}: opened {path} as inode {inode}, which was removed at {removed_s:.4f}")
        self.paths.setdefault(path, set()).add(inode)
        history = self.history(inode)
        if cut is not None:
            self.open_cuts[path].remove(cut)
            self.done(cut)
            history.add(cut)
        self._length(history, began, file.inode.length, who)
        opened.append(OpenFile(file, path, inode, began.call_s))
        self.world.say(f"{who} opened {path} as {inode}{' cut' if cut else ''}, {file.inode.length // CELL} cells")

    def _length(self, history: FileHistory, began: Event, length: int, who: str) -> None:
        if length % CELL:
            self.world.problem(f"{who}: file {history.inode} is {length} bytes long, which no one made")
        began.end = length // CELL
        self.done(began)
        history.add(began)

    async def stat(self, client: FileClient, path: str, who: str) -> None:
        began = self.event(What.LENGTH, 0, 0, who)
        ok, inode = await self._try(client, "stat", who, lambda: client.files.inode(path))
        if ok:
            self.paths.setdefault(path, set()).add(inode.id)
            self._length(self.history(inode.id), began, inode.length, who)
            self.world.say(f"{who} stat {path} {inode.id}: {inode.length // CELL} cells")

    async def unlink(self, client: FileClient, path: str, who: str) -> None:
        known = frozenset(self.paths.get(path, ()))  # whatever was there before is gone afterwards
        ok, _ = await self._try(client, "unlink", who, lambda: client.files.unlink(path))
        if ok:
            self.removed.setdefault(path, []).append((self.world.loop.now_s, known))
            self.world.say(f"{who} removed {path}")

    # Open files

    async def write(
        self, client: FileClient, rng: random.Random, who: str, held: OpenFile, opened: list[OpenFile]
    ) -> None:
        begin = rng.randrange(self.cells)
        end = min(self.cells, begin + rng.choice([1, 1, 2, 4, 7]))
        await self._write(client, who, held, begin, end)

    async def append(
        self, client: FileClient, rng: random.Random, who: str, held: OpenFile, opened: list[OpenFile]
    ) -> None:
        ok, length = await self._try(client, "length", who, lambda: held.file.length)
        begin = length // CELL if ok else self.cells
        if begin < self.cells:
            await self._write(client, who, held, begin, min(self.cells, begin + rng.choice([1, 1, 3])))

    async def _write(self, client: FileClient, who: str, held: OpenFile, begin: int, end: int) -> None:
        event = self.event(What.WRITE, begin, end, who)
        self.history(held.inode).add(event)
        data = struct.pack("<Q", event.number) * (CELL // 8) * (end - begin)
        ok, _ = await self._try(client, "write", who, lambda: held.file.pwrite(data, begin * CELL))
        if ok:
            self.done(event)
            held.untold.append(event)
            self.world.say(f"{who} wrote #{event.number} to {held.inode} [{begin},{end})")
        else:
            self.doubtful.add(held.inode)

    async def read(
        self, client: FileClient, rng: random.Random, who: str, held: OpenFile, opened: list[OpenFile]
    ) -> None:
        await self.read_all(client, who, held)

    async def read_all(self, client: FileClient, who: str, held: OpenFile) -> bool:
        event = self.event(What.READ, 0, self.cells, who)
        event.known_s = held.known_s
        size = self.cells * CELL
        ok, data = await self._try(client, "read", who, lambda: held.file.pread(size, 0))
        if ok:
            event.saw = self._cells(data, f"{who} read {held.inode}")
            self.done(event)
            self.history(held.inode).add(event)
            self.world.say(f"{who} read {held.inode} {list(event.saw)}")
        return ok

    def _cells(self, data: bytes, where: str) -> tuple[int, ...]:
        if len(data) % CELL:
            self.world.problem(f"{where}: {len(data)} bytes, which no one made")
        found = []
        for begin in range(0, len(data), CELL):
            raw = data[begin : begin + CELL]
            if raw != raw[:8] * (CELL // 8):
                self.world.problem(f"{where}: cell {begin // CELL} is torn")
            found.append(struct.unpack("<Q", raw[:8])[0])
        return tuple(found)

    async def truncate(
        self, client: FileClient, rng: random.Random, who: str, held: OpenFile, opened: list[OpenFile]
    ) -> None:
        event = self.event(What.TRUNCATE, 0, rng.choice([0, *range(self.cells + 1)]), who)
        self.history(held.inode).add(event)
        untold = list(held.untold)
        ok, _ = await self._try(client, "truncate", who, lambda: held.file.truncate(event.end * CELL))
        if ok:
            self.done(event)
            self._told(held, untold)
            self.world.say(f"{who} truncated {held.inode} to {event.end} as #{event.number}")

    async def fsync(
        self, client: FileClient, rng: random.Random, who: str, held: OpenFile, opened: list[OpenFile]
    ) -> None:
        await self._tell(client, "fsync", who, held, held.file.fsync)

    async def flush(
        self, client: FileClient, rng: random.Random, who: str, held: OpenFile, opened: list[OpenFile]
    ) -> None:
        await self._tell(client, "flush", who, held, held.file.flush)

    async def _tell(
        self, client: FileClient, what: str, who: str, held: OpenFile, function: Callable[[], None]
    ) -> bool:
        untold = list(held.untold)
        ok, _ = await self._try(client, what, who, function)
        if ok:
            self._told(held, untold)
            self.world.say(f"{who} {what} {held.inode}")
        return ok

    def _told(self, held: OpenFile, events: list[Event]) -> None:
        for event in events:
            event.told_s = min(event.told_s, self.world.loop.now_s)
        held.untold = [event for event in held.untold if event not in events]

    async def refresh(
        self, client: FileClient, rng: random.Random, who: str, held: OpenFile, opened: list[OpenFile]
    ) -> None:
        began = self.event(What.LENGTH, 0, 0, who)
        ok, inode = await self._try(client, "refresh", who, held.file.refresh)
        if ok:
            held.known_s = began.call_s
            self._length(self.history(held.inode), began, inode.length, who)
            self.world.say(f"{who} refreshed {held.inode}: {inode.length // CELL} cells")

    async def close(
        self, client: FileClient, rng: random.Random, who: str, held: OpenFile, opened: list[OpenFile]
    ) -> None:
        opened.remove(held)
        await self._tell(client, "close", who, held, held.file.close)

    def problems(self) -> list[str]:
        """The judgement of all files. An open without an answer may have cut off whatever file had that name."""
        found: list[str] = []
        for path, cuts in self.open_cuts.items():
            for inode in self.paths.get(path, ()):
                for cut in cuts:
                    self.history(inode).add(cut)
        for history in self.histories.values():
            found += history.problems()
        return found

    def keep(self, file: File) -> File:
        """For `bury`; in the thread that opens it, whose client may be dead before it hears of it."""
        self.kept.append(file)
        return file

    def bury(self) -> None:
        """Nothing of an open file happens any more when it is forgotten."""
        for file in self.kept:
            file.handle._closed = True
