"""What bringing a replica up to date costs, after it missed writes to 1 % of its chunks.

    python bench/recovery.py [--mib 1024] [--missed 0.01] [--rounds 6] [--json]

A local cluster of three storage nodes with three replicas. In each round a node is stopped, 4 KiB are written to one
chunk of a hundred, and the node is started again, while a client reads random blocks all the time. Beside what was
moved stands what was missed; beside the speed of the reads meanwhile, that before the node was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.routing import SERVING, SYNCING
from fireflyfs.common.net.control import ControlClient
from fireflyfs.deploy.local import ClusterSpec, LocalCluster
from fireflyfs.proto import storage_pb2

KIB, MIB = 1 << 10, 1 << 20
CHUNK_BYTES = 256 * KIB
BEFORE_S = 3.0
HEAL_S = 120.0
PATH = "/recovery"
STORAGE = storage_pb2.DESCRIPTOR.services_by_name["Storage"]

Samples = list[tuple[float, int]]  # (time, bytes read until then)


def reader(mgmtd: str, size: int, pipe: Connection) -> None:
    """Reads random blocks until told to end; then gives its samples."""
    samples: Samples = []
    stop = threading.Event()
    with FileSystem.connect(mgmtd) as fs, fs.open_file(PATH) as file:

        def work() -> None:
            rng = random.Random(1)
            memory = fs.allocate(CHUNK_BYTES)
            done = 0
            while not stop.is_set():
                done += file.readinto_at(memory.slice(0, CHUNK_BYTES), rng.randrange(size // CHUNK_BYTES) * CHUNK_BYTES)
                samples.append((time.monotonic(), done))

        thread = threading.Thread(target=work)
        thread.start()
        pipe.recv()
        stop.set()
        thread.join()
    pipe.send(samples)


def bytes_between(samples: Samples, from_s: float, until_s: float) -> int:
    inside = [done for at_s, done in samples if from_s <= at_s <= until_s]
    return inside[-1] - inside[0] if inside else 0


def moved(cluster: LocalCluster, but: int) -> tuple[float, float]:
    """(chunks, bytes) that the workers of all nodes but one have sent to bring others up to date since they started."""
    endpoints = cluster.routing().endpoints
    chunks = size = 0.0
    for door in {endpoint.grpc for target, endpoint in endpoints.items() if target // 1000 != but}:
        with contextlib.closing(ControlClient(STORAGE, door)) as worker:
            values = worker.call("Stats", storage_pb2.StatsRequest()).values
            chunks += values.get("resync_chunks", 0)
            size += values.get("resync_bytes", 0)
    return chunks, size


def wait_for_state(fs: FileSystem, node: int, wanted: int) -> float:
    """When routing first said SYNCING of some replica of the node, or SERVING of all."""
    deadline_s = time.monotonic() + HEAL_S
    routing = fs.context.routing.current()
    while time.monotonic() < deadline_s:
        states = {state for chain in routing.chains.values() for t, state in chain.targets if t // 1000 == node}
        if states == {SERVING} or wanted in states - {SERVING}:
            return time.monotonic()
        routing = fs.context.routing.wait_newer(routing.version, 1.0)
    raise RuntimeError(f"node {node} is not brought up to date within {HEAL_S:g} s")


def one_round(cluster: LocalCluster, fs: FileSystem, node: int, size: int, share: float) -> dict[str, float]:
    """One node misses writes and returns. Times are monotonic seconds."""
    name = f"storage-{node}"
    chunks = size // CHUNK_BYTES
    missed = random.Random(node).sample(range(chunks), max(1, int(chunks * share)))
    began_s = time.monotonic()
    time.sleep(BEFORE_S)
    before_s = time.monotonic()
    pid = next(process.pid for process in cluster.status() if process.name == name)
    os.kill(pid, signal.SIGTERM)
    while any(process.running for process in cluster.status() if process.name == name):
        time.sleep(0.05)
    with fs.open_file(PATH, os.O_RDWR) as file:
        for chunk in missed:
            file.pwrite(os.urandom(4 * KIB), chunk * CHUNK_BYTES)
    moved_before = moved(cluster, node)
    starting = threading.Thread(target=cluster.restart, args=(name,))
    started_s = time.monotonic()
    starting.start()
    syncing_s = wait_for_state(fs, node, SYNCING)
    serving_s = wait_for_state(fs, node, SERVING)
    starting.join()
    moved_after = moved(cluster, node)
    return {
        "began_s": began_s,
        "before_s": before_s,
        "started_s": started_s,
        "syncing_s": syncing_s,
        "serving_s": serving_s,
        "missed_bytes": len(missed) * CHUNK_BYTES,
        "moved_chunks": moved_after[0] - moved_before[0],
        "moved_bytes": moved_after[1] - moved_before[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024, help="of data, stored three times")
    parser.add_argument("--missed", type=float, default=0.01, help="share of the chunks")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", action="store_true", help="every round")
    options = parser.parse_args()
    size = options.mib * MIB
    root = Path(tempfile.mkdtemp(prefix="ffs-bench-recovery-"))
    cluster = LocalCluster(root)
    cluster.create(ClusterSpec(replicas=3, chunk_size=CHUNK_BYTES))
    spawn = multiprocessing.get_context("spawn")
    client = None
    try:
        cluster.up()
        mgmtd = ",".join(cluster.mgmtd_addresses())
        with FileSystem.connect(mgmtd) as fs:
            with fs.open_file(PATH, os.O_RDWR | os.O_CREAT) as file:
                for offset in range(0, size, 8 * MIB):
                    file.pwrite(os.urandom(8 * MIB), offset)
                file.fsync()
            pipe, theirs = spawn.Pipe()
            client = spawn.Process(target=reader, args=(mgmtd, size, theirs))
            client.start()
            time.sleep(BEFORE_S)  # it starts, and warms caches
            rounds = [one_round(cluster, fs, 1 + turn % 3, size, options.missed) for turn in range(options.rounds)]
        pipe.send("end")
        samples: Samples = pipe.recv()
        client.join()
    finally:
        if client is not None:
            client.kill()
        cluster.down()
        shutil.rmtree(root, ignore_errors=True)

    def speed(from_key: str, until_key: str) -> float:
        """MiB/s over all rounds."""
        seconds = sum(turn[until_key] - turn[from_key] for turn in rounds)
        return sum(bytes_between(samples, turn[from_key], turn[until_key]) for turn in rounds) / MIB / seconds

    missed = sum(turn["missed_bytes"] for turn in rounds)
    sent = sum(turn["moved_bytes"] for turn in rounds)
    before, starting, syncing = (
        speed("began_s", "before_s"),
        speed("started_s", "syncing_s"),
        speed("syncing_s", "serving_s"),
    )
    ratio = sent / missed
    resync_s = sum(turn["serving_s"] - turn["syncing_s"] for turn in rounds) / len(rounds)
    if options.json:
        print(json.dumps(rounds, indent=1))
    print(f"{'missed: chunks of':44s} {missed / len(rounds) / MIB:10,.1f} MiB   of {options.mib} MiB")
    print(f"{'moved to bring it up to date':44s} {sent / len(rounds) / MIB:10,.1f} MiB   {ratio:.2f} x what was missed")
    print(f"{'from SYNCING to SERVING':44s} {resync_s:10,.2f} s")
    print(f"{'reads before':44s} {before:10,.0f} MiB/s")
    print(f"{'reads while the node starts':44s} {starting:10,.0f} MiB/s {starting / before:5.2f} x")
    print(f"{'reads while it is brought up to date':44s} {syncing:10,.0f} MiB/s {syncing / before:5.2f} x  goal 0.50 x")


if __name__ == "__main__":
    main()
