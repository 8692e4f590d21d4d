"""One run with files: metadata servers, clients with open files, faults for a while, then peace.

Then every client dies, and within CLEAN_S_MAX of that nothing of them may be left: no session, no trim, no garbage, no
chunk of a removed file, no chunk beyond the end of a file.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from unittest import mock

from fireflyfs.client.retry import RetryPolicy
from fireflyfs.common import ids
from fireflyfs.common.kv.interface import Transaction, read
from fireflyfs.meta.core import keys
from fireflyfs.meta.core.records import Inode
from simulator.file_model import Event, What
from simulator.file_nemesis import FileNemesis
from simulator.file_work import CELL, NAMES, FileWork, OpenFile
from simulator.metas import FileClient, Metas
from simulator.nemesis import Nemesis
from simulator.outcome import Outcome, recording
from simulator.world import Plan, Violation, World

HEAL_S_MAX = 90.0  # after the last fault, everything serves again within so long
# After the last client has died: its lease (60 s), the age below which meta takes no session for dead (60 s), one round
# of its search (15 s), one round of garbage collection (5 s), and twice what storage takes to give up and try again.
CLEAN_S_MAX = 60.0 + 60.0 + 15.0 + 5.0 + 60.0


def run_files_seed(seed: int, duration_s: float = 60.0, *, verbose: bool = False) -> Outcome:
    """Deterministic in `seed` and `duration_s`."""
    began_s = time.perf_counter()
    rng = random.Random(seed ^ 0xF11E5)
    plan = Plan(nodes=3, chains=rng.choice([1, 2, 3]), replicas=rng.choice([2, 3, 3]), drift=rng.choice([0.0, 0.01]))
    world = World(seed, plan)
    world.verbose = verbose
    rates = {
        "open": 1.0,
        "write": rng.choice([0.5, 2.0]),
        "append": rng.choice([0.0, 1.0]),
        "read": 1.0,
        "truncate": rng.choice([0.2, 1.0, 2.0]),
        "fsync": rng.choice([0.1, 0.4]),
        "flush": rng.choice([0.1, 0.4]),
        "refresh": rng.choice([0.2, 1.0]),
        "stat": rng.choice([0.3, 1.0]),
        "close": rng.choice([0.3, 1.0]),
        "unlink": rng.choice([0.0, 0.1, 0.4]),
    }
    trims = rng.random() < 0.3  # all about servers that come late with one
    work = FileWork(
        world,
        NAMES[: 1 if trims else rng.choice([1, 1, 2, 4])],
        cells=rng.choice([6, 10, 16]),
        pause_s=rng.choice([0.1, 0.3, 0.8]),
        rates=rates | {"truncate": 3.0, "append": 2.0, "unlink": 0.0} if trims else rates,
    )
    bytes_of = random.Random(seed ^ 0x1D5)
    with recording(world), mock.patch.object(ids, "secrets", mock.Mock(spec=secrets, token_bytes=bytes_of.randbytes)):
        world.loop.run_until_complete(_drive(world, work, rng, duration_s, trims))
    work.bury()
    if not world.problems:
        for text in work.problems():
            world.problem(text)
    real_s = time.perf_counter() - began_s
    return Outcome(
        seed, world.problems, world.trace, work.counts, world.loop.now_s, real_s, world.loop.steps, kind="files"
    )


async def _drive(world: World, work: FileWork, rng: random.Random, duration_s: float, trims: bool) -> None:
    loop = world.loop
    world.start_mgmtd()
    admin = world.process("admin")
    await admin.spawn(world.settle(admin))
    metas = Metas(world, rng.choice([2, 3] if trims else [1, 2, 2, 3]), stripe=rng.choice([1, 2, 3]))
    await admin.spawn(metas.settle(admin))
    policy = RetryPolicy(deadline_s=rng.choice([8.0, 20.0, 40.0]))
    clients: list[FileClient] = []
    strands: list[asyncio.Task[None]] = []

    async def next_client() -> None:
        client = FileClient(world, len(clients) + 1, policy)
        clients.append(client)
        await client.process.spawn(client.start())
        await asyncio.sleep(1)
        for _ in range(rng.choice([1, 2])):
            strands.append(client.process.spawn(work.strand(client, len(strands))))

    for _ in range(rng.choice([2, 3] if trims else [1, 2, 3])):
        await next_client()
    names = [client.name for client in clients]
    storage_faults = Nemesis(world, random.Random(world.seed ^ 0xFA17), names)
    storage_faults.leases = True
    storage_faults.choose()
    faults = FileNemesis(world, metas, random.Random(world.seed ^ 0xFA18), clients, next_client)
    faults.choose()
    if trims or rng.random() < 0.3:
        storage_faults.faults = []
    if trims:
        faults.faults, faults.pause_s = ["freeze_in_trim"], 1.0
    running = [asyncio.ensure_future(storage_faults.run()), asyncio.ensure_future(faults.run())]
    await asyncio.sleep(duration_s)
    storage_faults.ending = faults.ending = True
    await asyncio.wait(running)
    await faults.heal()
    await storage_faults.heal()
    world.say("peace")
    healed_s = loop.now_s
    while not world.healthy():
        if loop.now_s - healed_s > HEAL_S_MAX:
            raise Violation(f"after {HEAL_S_MAX:g} s of peace not everything serves")
        await asyncio.sleep(0.2)
    if rng.random() < 0.5:
        await _end_strands(work, clients, strands)
    for client in clients:
        client.kill()
    world.say("all clients are dead")
    dead_s = loop.now_s
    while left := _left_over(work, metas):
        if loop.now_s - dead_s > CLEAN_S_MAX:
            raise Violation(f"{CLEAN_S_MAX:g} s after the last client's death there is still {left}")
        await asyncio.sleep(1)
    world.say(f"clean after {loop.now_s - dead_s:.1f} s")
    await _last_look(world, work, metas, policy, len(clients) + 1)
    for task in strands:
        if task.done() and task.exception() is not None:
            raise task.exception()  # type: ignore[misc]


async def _end_strands(work: FileWork, clients: list[FileClient], strands: list[asyncio.Task[None]]) -> None:
    """The clients that live close their files."""
    work.ending = True
    alive = [
        task for task in strands if not any(task in client.process.tasks for client in clients if client.process.dead)
    ]
    late = (await asyncio.wait(alive, timeout=120))[1] if alive else ()
    if late:
        raise Violation("a client's operation does not end")


def _left_over(work: FileWork, metas: Metas) -> str:
    """What is still to be cleaned up, in words; empty when nothing is."""

    def look(txn: Transaction) -> tuple[dict[bytes, list[int]], dict[int, Inode]]:
        records = {
            letter: [keys.id_of(key) for key, _ in txn.scan(*keys.table(letter))] for letter in (b"S", b"T", b"G")
        }
        inodes = {keys.id_of(key): Inode.unpack(keys.id_of(key), value) for key, value in txn.scan(*keys.table(b"I"))}
        return records, inodes

    records, inodes = read(metas.kv.store, look)
    for letter, what in ((b"S", "a session"), (b"T", "a trim"), (b"G", "garbage")):
        if records[letter]:
            return f"{what} of inode {records[letter][0]}"
    for node in metas.world.nodes.values():
        for target_id, engine in node.engines.items():
            for key, chunk in engine.chunks.items():
                if chunk.committed is None or key.inode in work.doubtful:
                    continue
                inode = inodes.get(key.inode)
                if inode is None:
                    return f"chunk {key} of a removed file on target {target_id}"
                if key.chunk_index * inode.chunk_size + chunk.committed.version.length > inode.length:
                    return f"chunk {key} on target {target_id} beyond the end of its file, {inode.length} bytes long"
    return ""


async def _last_look(world: World, work: FileWork, metas: Metas, policy: RetryPolicy, number: int) -> None:
    """Every file once more: what the dead had written and been acknowledged counts now."""
    now_s = world.loop.now_s
    for history in work.histories.values():
        for write in history.writes:
            if write.ok:
                write.told_s = min(write.told_s, now_s)
    await asyncio.sleep(0.1)
    last = FileClient(world, number, policy)
    await last.process.spawn(last.start())
    await asyncio.sleep(1)

    async def look() -> None:
        opened: list[OpenFile] = []
        for path in work.names:
            began = Event(0, What.LENGTH, 0, 0, world.loop.now_s, "last")
            try:
                file = await last.blocking(lambda path=path: work.keep(last.files.open_file(path)))
            except FileNotFoundError:
                continue
            held = OpenFile(file, path, file.handle.file.inode, began.call_s)
            opened.append(held)
            began.end = file.inode.length // CELL
            work.done(began)
            work.history(held.inode).add(began)
            if not await work.read_all(last, "last", held):
                raise Violation(f"the last read of {path} failed")

    await last.process.spawn(look())
