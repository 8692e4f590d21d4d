"""How long clients stand still when a storage worker dies, and when a storage node is stopped as planned.

    python bench/failover.py [--kills 20] [--nodes 5] [--stops 20] [--json]

A local cluster of three storage nodes with three replicas and default settings. One client process reads 4 KiB at
random places all the time, another one writes 4 KiB, both over all chains. A stall is the longest single call between
the event and the moment when every replica serves again. The events: SIGKILL of a worker, which its supervisor reports;
SIGKILL of a whole storage node, which nobody reports, until mgmtd misses it; SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.deploy.local import ClusterSpec, LocalCluster

KIB, MIB = 1 << 10, 1 << 20
FILES = 4
FILE_BYTES = 16 * MIB
IO_BYTES = 4 * KIB
THREADS = 2
SETTLE_S = 1.0
HEAL_S = 90.0
MISSED_S = 7.0  # a little more than mgmtd's failure interval


@dataclass(frozen=True)
class Row:
    """The stalls of one kind, in seconds."""

    name: str
    worst_s: float
    median_s: float
    goal_s: float

    def line(self) -> str:
        verdict = "" if self.worst_s < self.goal_s else "  MISSED"
        figures = f"{self.worst_s:7.2f} s worst  {self.median_s:7.2f} s median  goal {self.goal_s:g} s"
        return f"{self.name:32s} {figures}{verdict}"


def client(mgmtd: str, kind: str, pipe: Connection) -> None:
    """Reads or writes until told to end; answers each message with the longest call since the one before."""
    longest = [0.0] * THREADS
    began = [0.0] * THREADS  # of the call that is under way
    stop = threading.Event()
    with FileSystem.connect(mgmtd) as fs:
        files = [fs.open_file(f"/failover/{n}", os.O_RDWR) for n in range(FILES)]

        def work(place: int) -> None:
            rng = random.Random(place)
            data = rng.randbytes(IO_BYTES)
            while not stop.is_set():
                file = rng.choice(files)
                offset = rng.randrange(FILE_BYTES // IO_BYTES) * IO_BYTES
                began[place] = time.monotonic()
                if kind == "read":
                    file.pread(IO_BYTES, offset)
                else:
                    file.pwrite(data, offset)
                longest[place] = max(longest[place], time.monotonic() - began[place])
                time.sleep(0.002)

        threads = [threading.Thread(target=work, args=(place,)) for place in range(THREADS)]
        for thread in threads:
            thread.start()
        while pipe.recv() == "how long":
            now_s = time.monotonic()
            # A call that still stands counts with what it has stood so far.
            pipe.send(max(*longest, *(now_s - at_s for at_s in began)))
            longest[:] = [0.0] * THREADS
        stop.set()
        for thread in threads:
            thread.join()


def wait_healed(cluster: LocalCluster, since: dict[int, int]) -> None:
    """Until some chain has changed since its version in `since`, and every replica serves."""
    deadline_s = time.monotonic() + HEAL_S
    while True:
        chains = cluster.routing().chains.values()
        noticed = any(chain.version > since[chain.chain_id] for chain in chains)
        if noticed and all(len(chain.serving) == len(chain.targets) for chain in chains):
            return
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"not healed within {HEAL_S:g} s: {[chain.targets for chain in chains]}")
        time.sleep(0.05)


def kill_worker(cluster: LocalCluster, name: str) -> None:
    """SIGKILL of the process that holds the replicas; its supervisor lives."""
    supervisor = next(process.pid for process in cluster.status() if process.name == name)
    for child in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)


def kill_node(cluster: LocalCluster, name: str) -> None:
    """SIGKILL of supervisor and worker, and the start of the node when mgmtd has missed it."""
    cluster.kill(name)
    time.sleep(MISSED_S)
    cluster.restart(name)


def stop_node(cluster: LocalCluster, name: str) -> None:
    """SIGTERM of the storage node, and its start afterwards."""
    cluster.restart(name)


def stalls(
    cluster: LocalCluster, pipes: dict[str, Connection], event: Callable[[LocalCluster, str], None], count: int
) -> dict[str, list[float]]:
    """The longest read and the longest write around each of `count` events."""
    found: dict[str, list[float]] = {kind: [] for kind in pipes}
    names = cluster.plan().storage_names
    for turn in range(count):
        time.sleep(SETTLE_S)
        for pipe in pipes.values():
            pipe.send("how long")
            pipe.recv()
        before = {chain.chain_id: chain.version for chain in cluster.routing().chains.values()}
        event(cluster, names[turn % len(names)])
        wait_healed(cluster, before)
        time.sleep(SETTLE_S)  # a call that still stands ends now, if it ever does
        for kind, pipe in pipes.items():
            pipe.send("how long")
            found[kind].append(pipe.recv())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="also every single stall")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="ffs-bench-failover-"))
    cluster = LocalCluster(root)
    cluster.create(ClusterSpec(replicas=3))
    spawn = multiprocessing.get_context("spawn")
    clients = []
    try:
        cluster.up()
        mgmtd = ",".join(cluster.mgmtd_addresses())
        with FileSystem.connect(mgmtd) as fs:
            fs.mkdir("/failover")
            for number in range(FILES):
                fs.write_bytes(f"/failover/{number}", random.Random(number).randbytes(FILE_BYTES))
        pipes: dict[str, Connection] = {}
        for kind in ("read", "write"):
            pipes[kind], theirs = spawn.Pipe()
            clients.append(spawn.Process(target=client, args=(mgmtd, kind, theirs)))
            clients[-1].start()
        time.sleep(2 * SETTLE_S)
        found = {
            "worker killed": stalls(cluster, pipes, kill_worker, options.kills),
            "node killed": stalls(cluster, pipes, kill_node, options.nodes),
            "node stopped": stalls(cluster, pipes, stop_node, options.stops),
        }
        for pipe in pipes.values():
            pipe.send("end")
        for process in clients:
            process.join()
    finally:
        for process in clients:
            process.kill()
        cluster.down()
        shutil.rmtree(root, ignore_errors=True)
    goals = {"worker killed": 8.0, "node killed": 8.0, "node stopped": 1.0}  # of writes; reads have another replica
    rows = [
        Row(
            f"{what}, {kind} ({len(times)} times)",
            max(times),
            statistics.median(times),
            goals[what] if kind == "write" else 1.0,
        )
        for what, kinds in found.items()
        for kind, times in kinds.items()
        if times
    ]
    if options.json:
        print(json.dumps({"rows": [row.__dict__ for row in rows], "stalls_s": found}, indent=1))
    else:
        print("\n".join(row.line() for row in rows))


if __name__ == "__main__":
    main()
