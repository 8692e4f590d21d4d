"""One run: a world, clients, faults for a while, then peace; then everything must be explained and in order."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import replace

from fireflyfs.client.retry import RetryPolicy
from fireflyfs.client.striping import FileLayout
from fireflyfs.storage.engine.interface import ChunkKey
from simulator.history import FOREVER, Kind, Op, TooHard, explain
from simulator.nemesis import BLACKOUTS, Nemesis
from simulator.outcome import Outcome, recording
from simulator.workload import CELLS, CHUNK, Work
from simulator.world import Plan, Violation, World

QUIET_S_MAX = 60.0  # and so long after that, the outcome of every update is known everywhere
HEAL_S_MAX = 90.0  # after the last fault, everything serves again within so long


def run_seed(seed: int, duration_s: float = 60.0, faults: tuple[str, ...] = (), *, verbose: bool = False) -> Outcome:
    """Deterministic in `seed`, `duration_s` and `faults` (names of `nemesis.FAULTS`; none: the seed chooses)."""
    began_s = time.perf_counter()
    rng = random.Random(seed)
    nodes = rng.choice([3, 3, 4])
    plan = Plan(
        nodes=nodes,
        chains=rng.choice([1, 1, 2, 3]),
        replicas=rng.choice([2, 3, 3, 3]),
        drift=rng.choice([0.0, 0.01, 0.05]),
    )
    world = World(seed, plan)
    world.verbose = verbose
    blackouts = (rng.random() < 0.2 and not faults) or BLACKOUTS in faults
    work = Work(
        world,
        [FileLayout(1000 + number, CHUNK, tuple(world.chains)) for number in range(rng.choice([1, 2]))],
        chunks=rng.choice([1, 2, 4]),
        pause_s=rng.choice([0.05, 0.2, 0.6]),
        removals=0.0 if blackouts else rng.choice([0.0, 0.02, 0.1]),  # versions grow: they tell what a blackout took
        syncs=0.1 if blackouts else rng.choice([0.0, 0.05]),
    )
    with recording(world):
        world.loop.run_until_complete(_drive(world, work, rng, duration_s, blackouts, faults))
    if not world.problems:
        _judge(world, work)
    return Outcome(
        seed,
        world.problems,
        world.trace,
        work.counts,
        world.loop.now_s,
        time.perf_counter() - began_s,
        world.loop.steps,
    )


async def _drive(
    world: World, work: Work, rng: random.Random, duration_s: float, blackouts: bool, faults: tuple[str, ...]
) -> None:
    loop = world.loop
    world.start_mgmtd()
    admin = world.process("admin")
    await admin.spawn(world.settle(admin))
    policy = RetryPolicy(deadline_s=rng.choice([8.0, 20.0, 40.0]))
    clients = [world.start_client(number, policy) for number in range(1, rng.choice([1, 2, 3]) + 1)]
    for client in clients:
        await client.process.spawn(client.start())
    await asyncio.sleep(1)
    strands = []
    for client in clients:
        for _ in range(rng.choice([1, 2])):
            strands.append(client.process.spawn(work.strand(client, len(strands))))
    nemesis = Nemesis(world, random.Random(world.seed ^ 0xFA17), [client.name for client in clients])
    nemesis.blackouts = blackouts
    nemesis.only = faults
    nemesis.floors = work.floors
    nemesis.choose()
    trouble = asyncio.ensure_future(nemesis.run())
    await asyncio.sleep(duration_s)
    nemesis.ending = True
    await trouble
    await nemesis.heal()
    world.say("peace")
    healed_s = loop.now_s
    while not world.healthy():
        if loop.now_s - healed_s > HEAL_S_MAX:
            raise Violation(f"after {HEAL_S_MAX:g} s of peace not everything serves")
        await asyncio.sleep(0.2)
    world.say(f"healthy after {loop.now_s - healed_s:.1f} s")
    work.ending = True
    done, late = await asyncio.wait(strands, timeout=60)
    if late:
        raise Violation("a client's operation does not end")
    for strand in done:
        if strand.exception() is not None:
            raise strand.exception()  # type: ignore[misc]
    quiet_s = loop.now_s
    while not (world.healthy() and _quiet(world)):
        # What nobody waits for any more ends, and what was left pending is finished.
        if loop.now_s - quiet_s > QUIET_S_MAX:
            break  # `_same_replicas` says what is left
        await asyncio.sleep(1)
    last = world.start_client(99, policy)
    await last.process.spawn(last.start())
    await asyncio.sleep(1)
    for file in work.files:
        failed = await last.process.spawn(work.read_chunks(last, file, list(range(work.chunks)), "last"))
        if failed:
            raise Violation(f"the last read failed: {failed}")
    _same_replicas(world)


def _quiet(world: World) -> bool:
    """Whether no update is under way, none is left without an outcome, and no bytes are lost anywhere."""
    engines = [engine for node in world.nodes.values() for engine in node.engines.values()]
    if world.bad_chunks():
        return False
    if any(chunk.pending is not None for engine in engines for chunk in engine.chunks.values()):
        return False
    workers = [node.worker for node in world.nodes.values() if node.worker is not None]
    return not any(local.in_flight for worker in workers for local in worker.replicas.targets.values())


def _same_replicas(world: World) -> None:
    """All replicas of a chain hold the same, nothing is pending, and what rotted was mended."""
    if world.bad_chunks():
        world.problem(f"{world.bad_chunks()} chunks are still rotten or damaged")
    for chain_id, members in world.chains.items():
        copies = []
        for target_id in members:
            engine = world.nodes[target_id // 100].engines[target_id]
            for key, chunk in engine.chunks.items():
                if chunk.pending is not None:
                    world.problem(f"target {target_id}: chunk {key} is still pending")
            copies.append(
                {
                    key: (chunk.committed.version.version, chunk.committed.data)
                    for key, chunk in engine.chunks.items()
                    if chunk.committed is not None
                }
            )
        for target_id, copy in zip(members[1:], copies[1:], strict=True):
            if copy != copies[0]:
                differ = sorted(key for key in copy.keys() | copies[0].keys() if copy.get(key) != copies[0].get(key))
                world.problem(f"chain {chain_id}: {target_id} and {members[0]} differ in {differ}")


def _judge(world: World, work: Work) -> None:
    for key, ops in work.histories.items():
        for begin, part in _parts(world, work, key, ops):
            try:
                text = explain(part, CELLS, begin)
            except TooHard as exc:
                work.count("too_hard")
                world.say(f"chunk {key}: the search was given up: {exc}")
                continue
            if text is not None:
                world.problem(f"chunk {key}: {text}")


def _parts(
    world: World, work: Work, key: tuple[int, int], ops: list[Op]
) -> Iterator[tuple[tuple[int, ...] | None, list[Op]]]:
    """The history between blackouts, and what each part began with.

    What is under way in a blackout may have happened before it, and been lost or not, or happen after it: it counts as
    open in both parts.
    """
    begin: tuple[int, ...] | None = None
    begin_s = 0.0
    again: set[int] = set()  # writes that went back to be pending
    for blackout in world.blackouts:
        yield begin, _between(ops, begin_s, blackout.at_s, again)
        stored = blackout.states.get(ChunkKey(*key))
        version = stored.version.version if stored is not None else 0
        if version < blackout.floors.get(key, 0):
            world.problem(f"chunk {key}: version {version} after a blackout, {blackout.floors[key]} was synced")
        begin = work.stored_cells(stored.data if stored is not None else b"", f"chunk {key} after a blackout")
        begin_s = blackout.at_s
        pending = blackout.pending.get(ChunkKey(*key))
        again = (
            set(work.stored_cells(pending.data, f"chunk {key} pending")) - set(begin) if pending is not None else set()
        )
    yield begin, _between(ops, begin_s, FOREVER, again)


def _between(ops: list[Op], begin_s: float, end_s: float, again: set[int]) -> list[Op]:
    found = []
    for op in ops:
        if op.call_s >= end_s or (op.return_s < begin_s and op.number not in again):
            continue
        whole = begin_s <= op.call_s and (op.return_s < end_s or end_s == FOREVER)
        if op.kind is Kind.READ and not whole:
            continue
        found.append(op if whole else replace(op, ok=False, call_s=max(op.call_s, begin_s), return_s=FOREVER))
    return found
