"""Where the time of a `get_batch` of the KV cache goes: both halves of it in one process, one after the other.

    python bench/kvcache_halves.py [--size 4096] [--batch 64] [--nodes 3] [--targets 2] [--seconds 3] [--calls]

A client's `KVCache`, its connections, the servers' connections, handlers, indexes and engines are the real ones. What
is left out is what wakes a process: no event loop runs, and the servers' turn is taken where the client would wait. So
the processor time of each half is that half's alone. `--calls`: calls of functions for each block, and where most time
is. FFS_NATIVE=0: without the library in C. For blocks up to 64 KiB, whose answers fit into sockets, on a machine with
memory to spare: nobody is there who would wait for a disk.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import os
import pstats
import select
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from crc32c import crc32c

from fireflyfs.client.kvcache import KVCache, Namespace
from fireflyfs.client.routing import SERVING, Chain, Routing
from fireflyfs.client.striping import FileLayout
from fireflyfs.common.cache_hash import Keys
from fireflyfs.common.clock import SystemClock
from fireflyfs.common.errors import FfsError
from fireflyfs.common.ids import ClientId, InodeId
from fireflyfs.common.net import frame
from fireflyfs.common.net.api import Address, Call, Reply
from fireflyfs.common.net.busy_poll import Waiters
from fireflyfs.common.net.connection import Connection
from fireflyfs.common.net.dial import Dialed
from fireflyfs.common.net.exchange import Exchange
from fireflyfs.common.net.frame import Hello, LinkKind
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.memory import SharedPool
from fireflyfs.common.net.methods import Method
from fireflyfs.common.net.pending import Pending
from fireflyfs.common.net.server import SOCKET_BUFFER_BYTES, LinkServer
from fireflyfs.common.net.staging import StagingPool
from fireflyfs.proto import mgmtd_pb2
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.core.target import Local, TargetState
from fireflyfs.storage.engine.interface import CacheName, ChunkKey, Extent, Update, Writer
from fireflyfs.storage.engine.store import create_target, open_engine
from fireflyfs.storage.service.blocks import BlockReader
from fireflyfs.storage.service.local_target import LocalTarget
from fireflyfs.storage.service.reading import Reader
from fireflyfs.storage.service.replica import Replicas

INODE = 77
STORED_BYTES = 64 << 20
CPU_NS = time.CLOCK_THREAD_CPUTIME_ID


class Halves:
    """Processor time of the servers' half; one of both may have a profile."""

    def __init__(self) -> None:
        self.server_ns = 0
        self._side = ""
        self._profile = cProfile.Profile()

    @contextmanager
    def profiled(self, side: str, profile: cProfile.Profile) -> Iterator[None]:
        self._side, self._profile = side, profile
        if side == "client":
            profile.enable()
        yield
        profile.disable()
        self._side = ""

    def serve(self, step: Callable[[], None]) -> None:
        if self._side == "client":
            self._profile.disable()
        elif self._side:
            self._profile.enable()
        began = time.clock_gettime_ns(CPU_NS)
        step()
        self.server_ns += time.clock_gettime_ns(CPU_NS) - began
        if self._side == "client":
            self._profile.enable()
        elif self._side:
            self._profile.disable()


class Node:
    """A storage worker without a process, and the client's connection to it."""

    def __init__(self, root: Path, number: int, targets: int, loop: asyncio.AbstractEventLoop, halves: Halves) -> None:
        self._halves = halves
        self.address = Address(tcp=f"node{number}")
        self.chains = [number * targets + n + 1 for n in range(targets)]
        self.locals: list[LocalTarget] = []
        for chain in self.chains:
            path = root / str(chain)
            create_target(path, "bench", chain)
            self.locals.append(LocalTarget(chain, open_engine(path, checkpoint_interval_s=0), path=path))
        self._replicas = Replicas(self.locals, None, SystemClock(), last_heartbeat_s=time.monotonic)  # type: ignore[arg-type]
        self._blocks = BlockReader(self._replicas, Reader(self._replicas))
        self._loop = loop
        self._connection: Connection | None = None
        self.exchange: Exchange | None = None

    def install(self, routing: Routing) -> None:
        self._replicas.install(routing)
        for local in self.locals:
            local.state = TargetState(Local.UPTODATE, returning=False)
            after = local.cache.load_page(None)
            while after is not None:
                after = local.cache.load_page(after)

    def connect(self, shared_memory: bool, staging: StagingPool | None, waiters: Waiters) -> None:
        identity = Identity("bench", ClientId(b"bench-bench-benc"))
        server = LinkServer(identity, {int(Method.STORAGE_CACHE_GET): self._blocks.get})
        server.loop = self._loop
        ours, theirs = _pair(shared_memory)
        self._connection = Connection(server, theirs, unix=shared_memory, name="bench")
        hello = Hello("bench", identity.client_id, identity.host_id, LinkKind.TCP | LinkKind.SHM)
        ours.sendall(frame.pack_hello(hello))
        self._connection._readable()
        answer = memoryview(ours.recv(4096))
        welcome = frame.parse_answer(frame.parse_header(answer), answer[frame.HEADER_BYTES :])
        self.exchange = Exchange(Dialed(ours, welcome, "bench"), staging, waiters)
        assert self.exchange.shares == shared_memory

    def serve(self) -> None:
        """The servers' turn: read and answer what has come."""
        connection = self._connection
        assert connection is not None
        while select.select([connection.sock], (), (), 0)[0]:
            self._halves.serve(connection._readable)
        if connection.queued_bytes or connection.in_flight:
            raise SystemExit("an answer that waits for the disk, or for room in the socket: run it again, or with less")


def _pair(unix: bool) -> tuple[socket.socket, socket.socket]:
    if unix:
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        for each in (ours, theirs):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for each in (ours, theirs):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    return ours, theirs


class Link:
    """A `BlockingLink` to the nodes, and the routing that names them."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = {node.address: node for node in nodes}
        self.pool = SharedPool()
        chains = {chain: Chain(chain, 1, ((chain, int(SERVING)),)) for node in nodes for chain in node.chains}
        self._routing = Routing(
            1,
            targets={chain: mgmtd_pb2.TargetInfo(target_id=chain, chain_id=chain) for chain in chains},
            chains=chains,
            addresses={chain: node.address for node in nodes for chain in node.chains},
        )

    def current(self) -> Routing:
        return self._routing

    def wait_newer(self, version: int, timeout_s: float) -> Routing:
        return self._routing

    def call(self, address: Address, call: Call) -> Reply:
        (answer,) = self.call_many([(address, call)])
        if isinstance(answer, FfsError):
            raise answer
        return answer

    def call_many(self, calls: Sequence[tuple[Address, Call]]) -> list[Reply | FfsError]:
        now_s = time.monotonic()
        pendings = [Pending(call, now_s) for _, call in calls]
        groups: dict[Address, list[Pending]] = {}
        for (address, _), pending in zip(calls, pendings, strict=True):
            groups.setdefault(address, []).append(pending)
        nodes = [self._nodes[address] for address in groups]
        for node, group in zip(nodes, groups.values(), strict=True):
            node.exchange.send(group)  # type: ignore[union-attr]
        for node in nodes:
            node.serve()
        for node in nodes:
            node.exchange.receive()  # type: ignore[union-attr]
        return [pending.outcome for pending in pendings]  # type: ignore[misc]


@contextmanager
def halves_of(options: argparse.Namespace, halves: Halves) -> Iterator[tuple[Link, list[Node], list[bytes]]]:
    root = Path(tempfile.mkdtemp(prefix="ffs-bench-"))
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        nodes = [Node(root, number, options.targets, loop, halves) for number in range(options.nodes)]
        link = Link(nodes)
        keys = [os.urandom(32) for _ in range(min(4096, STORED_BYTES // options.size) // options.batch * options.batch)]
        _store(nodes, keys, options.size)

        async def install() -> None:
            for node in nodes:
                node.install(link.current())

        loop.run_until_complete(install())
        yield link, nodes, keys
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _store(nodes: Sequence[Node], keys: Sequence[bytes], size: int) -> None:
    engines = [local.engine for node in nodes for local in node.locals]
    for number, (key, index) in enumerate(zip(keys, Keys(keys).index.tolist(), strict=True)):
        data = os.urandom(size)
        extents = [Extent(0, memoryview(data), crc32c(data))]
        writer = Writer(b"b" * 16, 1, number)
        place, chunk_size = ChunkKey(INODE, index), 1 << (size - 1).bit_length()
        update = Update(place, UpdateKind.PUT, 1, 1, chunk_size, 0, extents, writer, name=CacheName(key, 0))
        engines[index % len(engines)].apply_committed([update], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--targets", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each link")
    parser.add_argument("--calls", action="store_true")
    options = parser.parse_args()
    halves = Halves()
    with halves_of(options, halves) as (link, nodes, keys):
        chains = tuple(chain for node in nodes for chain in node.chains)
        context = SimpleNamespace(link=link, routing=link, scratch=None, clock=SystemClock(), storage=None)
        filesystem: Any = SimpleNamespace(context=context, close=lambda: None)
        namespace = Namespace("bench", INODE, options.size, 1, 0, 0.0, b"")
        batches = [keys[at : at + options.batch] for at in range(0, len(keys), options.batch)]
        for name in ("shm", "tcp"):
            for node in nodes:
                node.connect(name == "shm", StagingPool(SharedPool()) if name == "shm" else None, Waiters(0.0))
            cache = KVCache(filesystem, namespace, FileLayout(InodeId(INODE), options.size, chains))
            out = [np.empty(options.size, np.uint8) for _ in range(options.batch)]
            measure(cache, batches, out, halves, options, name)


def measure(
    cache: KVCache, batches: list[list[bytes]], out: list[Any], halves: Halves, options: argparse.Namespace, name: str
) -> None:
    def gets(seconds: float) -> int:
        blocks = 0
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            for keys in batches:
                assert cache.get_batch(keys, out) == [options.size] * len(keys)
                blocks += len(keys)
        return blocks

    gets(0.2)
    best_client = best_server = float("inf")
    for _ in range(10):
        halves.server_ns = 0
        began = time.clock_gettime_ns(CPU_NS)
        blocks = gets(options.seconds / 10)
        total_ns = time.clock_gettime_ns(CPU_NS) - began
        best_client = min(best_client, (total_ns - halves.server_ns) / blocks / 1000)
        best_server = min(best_server, halves.server_ns / blocks / 1000)
    print(f"{name}  {options.size} bytes: client {best_client:.2f} us a block, servers {best_server:.2f}", flush=True)
    for side in ("client", "servers") if options.calls else ():
        profile = cProfile.Profile()
        with halves.profiled(side, profile):
            blocks = gets(0.5)
        stats = pstats.Stats(profile)
        calls = sum(entry[0] for entry in stats.stats.values())  # type: ignore[attr-defined]
        print(f"{name}  {side}: {calls / blocks:.1f} calls a block")
        stats.sort_stats("tottime").print_stats(30)


if __name__ == "__main__":
    main()
