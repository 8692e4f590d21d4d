"""The KV cache beside Redis, in one run on one machine: get and put in batches of 64, exists, longest prefix.

    python bench/kvcache.py [--seconds 3] [--replicas 1] [--nodes 3] [--json] [--sizes 4096,65536,73728,1048576]

A local cluster (`--nodes` storage processes), and `redis-server` on a Unix socket of its own with nothing stored on
disk; one client process for both. Redis' client is redis-py with its C parser, MGET and MSET of a batch; it gives new
`bytes` objects, which an engine still has to copy to where they are wanted: "with its copy" adds that.
Ours land in the caller's buffers, each verified by checksum. `allocated`: buffers from `FileSystem.allocate`.
`client memory`: of a process with an open cache, after puts and gets of batches, without its own keys and buffers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.kvcache import KVCache
from fireflyfs.deploy.local import ClusterSpec, LocalCluster

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
BATCH = 64
SIZES = (4 * KIB, 64 * KIB, 72 * KIB, MIB)
STORED_BYTES = 256 * MIB  # of each size, so that it is all in the page cache, and in Redis
STORED_BLOCKS_MAX = 4096


@dataclass
class Speed:
    """Units a second, and the processor time of each in client and servers together, in microseconds."""

    per_second: float
    cpu_us: float


class Meter:
    """Measures work of this process and of some servers. Processor time says more than a rate where others work too."""

    def __init__(self, servers: Iterable[int]) -> None:
        self._servers = list(servers)

    def cpu_s(self) -> float:
        ticks = 0
        for pid in self._servers:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")

    def measure(self, work: Callable[[], int], seconds: float) -> Speed:
        """The rate is that of the best of five parts: what the machine gives when nobody else takes it."""
        work()
        best = 0.0
        total = 0
        cpu_s = self.cpu_s()
        for _ in range(5):
            began = time.perf_counter()
            done = 0
            while time.perf_counter() - began < seconds / 5:
                done += work()
            best = max(best, done / (time.perf_counter() - began))
            total += done
        return Speed(best, 1e6 * (self.cpu_s() - cpu_s) / total)


def storage_workers(local: LocalCluster) -> list[int]:
    """The worker processes of the cluster's storage nodes."""
    parents = {status.pid for status in local.status() if status.name.startswith("storage") and status.pid}
    workers = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) in parents:
                workers.append(int(entry.name))
    return workers


@contextlib.contextmanager
def cluster(replicas: int, nodes: int) -> Iterator[tuple[list[str], Meter]]:
    root = Path(tempfile.mkdtemp(prefix="ffs-bench-"))
    local = LocalCluster(root)
    local.create(ClusterSpec(replicas=replicas, storage_nodes=nodes, capacity_bytes=8 * GIB))
    local.up()
    try:
        yield local.mgmtd_addresses(), Meter(storage_workers(local))
    finally:
        local.down()
        shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def redis_client() -> Iterator[tuple[Any, Meter]]:
    """A server of our own, which keeps nothing on disk."""
    import redis

    root = Path(tempfile.mkdtemp(prefix="ffs-bench-redis-"))
    path = root / "redis.sock"
    command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no"]
    server = subprocess.Popen([*command, "--dir", str(root)], stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(unix_socket_path=str(path))
        for _ in range(100):
            with contextlib.suppress(redis.exceptions.ConnectionError):
                client.ping()
                break
            time.sleep(0.05)
        yield client, Meter([server.pid])
        client.close()
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(root, ignore_errors=True)


class Turns:
    """Batches of the stored keys, one after the other, round and round."""

    def __init__(self, keys: list[bytes]) -> None:
        self._batches = [keys[start : start + BATCH] for start in range(0, len(keys), BATCH)]
        self._next = 0

    def __call__(self) -> list[bytes]:
        self._next = (self._next + 1) % len(self._batches)
        return self._batches[self._next]


def size_rows(
    fs: dict[str, FileSystem], meter: Meter, redis: Any, redis_meter: Meter, size: int, seconds: float
) -> list[dict[str, Any]]:
    count = min(STORED_BLOCKS_MAX, STORED_BYTES // size) // BATCH * BATCH
    keys = [os.urandom(32) for _ in range(count)]
    blocks = [np.frombuffer(os.urandom(size), np.uint8) for _ in range(BATCH)]
    texts = [block.tobytes() for block in blocks]
    turns = Turns(keys)

    def redis_put() -> int:
        redis.mset(dict(zip(turns(), texts, strict=True)))
        return BATCH

    for _ in range(count // BATCH):
        redis_put()
    target = np.empty((BATCH, size), np.uint8)

    def redis_get() -> int:
        redis.mget(turns())
        return BATCH

    def redis_get_copied() -> int:
        for number, value in enumerate(redis.mget(turns())):
            target[number] = np.frombuffer(value, np.uint8)
        return BATCH

    peer = {
        "put": redis_meter.measure(redis_put, seconds),
        "get": redis_meter.measure(redis_get, seconds),
        "get copied": redis_meter.measure(redis_get_copied, seconds),
    }
    redis.flushall()
    rows = []
    for link, filesystem in fs.items():
        with KVCache.open(filesystem, f"bench-{size}", block_size=size) as cache:

            def put(cache: KVCache = cache) -> int:
                assert all(cache.put_batch(turns(), blocks))
                return BATCH

            for _ in range(count // BATCH):
                put()
            arrays = [np.empty(size, np.uint8) for _ in range(BATCH)]

            def get(cache: KVCache = cache, out: list[Any] = arrays) -> int:
                assert cache.get_batch(turns(), out) == [size] * BATCH
                return BATCH

            figures = {"put": meter.measure(put, seconds), "get": meter.measure(get, seconds)}
            if link == "shm":
                memory = filesystem.allocate(BATCH * size)
                slices = [memory.slice(number * size, size) for number in range(BATCH)]
                figures["get allocated"] = meter.measure(lambda s=slices, g=get: g(out=s), seconds)
                memory.close()
            cache.clear()
        for name, value in figures.items():
            beside = peer["put" if name == "put" else "get"]
            rows.append(
                {
                    "row": f"{name} {size // KIB} KiB {link}",
                    "blocks_s": value.per_second,
                    "mb_s": value.per_second * size / 1e6,
                    "cpu_us": value.cpu_us,
                    "redis_blocks_s": beside.per_second,
                    "redis_cpu_us": beside.cpu_us,
                    "ratio": value.per_second / beside.per_second,
                    "ratio_copied": value.per_second / peer["get copied"].per_second if name != "put" else None,
                }
            )
    return rows


def lookup_rows(
    fs: dict[str, FileSystem], meter: Meter, redis: Any, redis_meter: Meter, seconds: float
) -> list[dict[str, Any]]:
    keys = [os.urandom(32) for _ in range(4096)]
    block = bytes(4 * KIB)
    for start in range(0, len(keys), 128):
        redis.mset(dict.fromkeys(keys[start : start + 128], block))
    some, many = keys[:128], keys[:1000]

    def redis_exists() -> int:
        pipe = redis.pipeline(transaction=False)
        for key in some:
            pipe.exists(key)
        return sum(pipe.execute())

    peer = redis_meter.measure(redis_exists, seconds)
    redis.flushall()
    rows = []
    for link, filesystem in fs.items():
        with KVCache.open(filesystem, "bench-lookups", block_size=4 * KIB) as cache:
            for start in range(0, len(keys), 128):
                assert all(cache.put_batch(keys[start : start + 128], [block] * 128))

            def exists(cache: KVCache = cache) -> int:
                assert all(cache.exists_batch(some))
                return len(some)

            def match(cache: KVCache = cache) -> int:
                assert cache.match_prefix(many) == len(many)
                return 1

            figure = meter.measure(exists, seconds)
            rows.append(
                {
                    "row": f"exists 128 {link}",
                    "keys_s": figure.per_second,
                    "cpu_us": figure.cpu_us,
                    "redis_keys_s": peer.per_second,
                    "redis_cpu_us": peer.cpu_us,
                    "ratio": figure.per_second / peer.per_second,
                }
            )
            rows.append({"row": f"match 1000 {link}", "ms": 1000 / meter.measure(match, seconds).per_second})
            cache.clear()
    return rows


def memory_row(addresses: list[str], shared_memory: bool) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=tell_memory, args=(addresses, shared_memory, theirs))
    child.start()
    theirs.close()
    mib = ours.recv()
    child.join()
    return {"row": f"client memory {'shm' if shared_memory else 'tcp'}", "mib": mib}


def tell_memory(addresses: list[str], shared_memory: bool, told: multiprocessing.connection.Connection) -> None:
    """The child process. All that is resident and cannot be dropped, so shared memory too, but no program text."""

    def resident_mib() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:"))) / KIB

    with contextlib.ExitStack() as stack:
        filesystem = stack.enter_context(FileSystem.connect(addresses, shared_memory=shared_memory))
        most = 0.0
        for size in SIZES:
            cache = stack.enter_context(KVCache.open(filesystem, f"bench-memory-{size}", block_size=size))
            before = resident_mib()
            keys = [os.urandom(32) for _ in range(BATCH)]
            out = [np.ones(size, np.uint8) for _ in keys]
            own = resident_mib() - before
            for _ in range(8):
                assert all(cache.put_batch(keys, out))
                assert cache.get_batch(keys, out) == [size] * BATCH
            most = max(most, resident_mib() - own)
            del out
            cache.clear()
    told.send(most)


def line(row: dict[str, Any]) -> str:
    if "mib" in row:
        return f"{row['row']:26s} {row['mib']:10.1f} MiB"
    if "ms" in row:
        return f"{row['row']:26s} {row['ms']:10.2f} ms"
    cpu = f"cpu {row['cpu_us']:.1f} us, Redis {row['redis_cpu_us']:.1f}"
    if "keys_s" in row:
        beside = f"{row['ratio']:5.2f} x Redis ({row['redis_keys_s']:,.0f})"
        return f"{row['row']:26s} {row['keys_s']:9,.0f} keys/s   {beside}   {cpu}"
    copied = f", {row['ratio_copied']:.2f} x with its copy" if row["ratio_copied"] else ""
    beside = f"{row['ratio']:5.2f} x Redis ({row['redis_blocks_s']:,.0f}){copied}"
    return f"{row['row']:26s} {row['blocks_s']:9,.0f} /s {row['mb_s']:7,.0f} MB/s  {beside}   {cpu}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="of blocks, in bytes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def show(more: list[dict[str, Any]]) -> None:
        rows.extend(more)
        if not options.json:
            for row in more:
                print(line(row), flush=True)

    with contextlib.ExitStack() as stack:
        addresses, meter = stack.enter_context(cluster(options.replicas, options.nodes))
        redis, redis_meter = stack.enter_context(redis_client())
        fs = {
            "shm": stack.enter_context(FileSystem.connect(addresses)),
            "tcp": stack.enter_context(FileSystem.connect(addresses, shared_memory=False)),
        }
        for size in map(int, options.sizes.split(",")):
            show(size_rows(fs, meter, redis, redis_meter, size, options.seconds))
        show(lookup_rows(fs, meter, redis, redis_meter, options.seconds))
        show([memory_row(addresses, shared_memory) for shared_memory in (True, False)])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
    if options.json:
        print(json.dumps({"rows": rows, "client_peak_bytes": peak}, indent=2))


if __name__ == "__main__":
    main()
