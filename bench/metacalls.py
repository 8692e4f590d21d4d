"""A metadata service of its own process for benchmarks, and clients that call it: for meta.py and inodes.py.

No mgmtd and no storage: chains are invented, and no call here needs them.
"""

from __future__ import annotations

import asyncio
import cProfile
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fireflyfs.client.routing import Chain, Routing
from fireflyfs.common.clock import SystemClock
from fireflyfs.common.kv.read_ahead import read_ahead
from fireflyfs.common.kv.rocksdb import RocksKv
from fireflyfs.common.limits import GiB
from fireflyfs.common.net import busy_poll
from fireflyfs.common.net.api import Address, Call
from fireflyfs.common.net.blocking import BlockingPool
from fireflyfs.common.net.control import ControlClient, ControlServer
from fireflyfs.common.net.dual import link_handlers
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.methods import service_methods
from fireflyfs.common.net.server import LinkServer
from fireflyfs.meta.core.layout import LayoutRule
from fireflyfs.meta.service.assembly import assemble
from fireflyfs.proto import common_pb2, meta_pb2, mgmtd_pb2, storage_pb2

META = meta_pb2.DESCRIPTOR.services_by_name["Meta"]
NUMBERS = service_methods("META")
REPLIES = {method.name: method.output_type.name for method in META.methods}
CHAINS = 12
CLUSTER = "bench"
READ_AHEAD_BYTES = 4 * GiB  # as a metadata server's by default


class NoStorage:
    """Nothing was ever written."""

    async def query_last_chunk(self, inode: int, layout: common_pb2.Layout) -> None:
        return None

    async def remove_chunks(self, inode: int, layout: common_pb2.Layout, begin: int = 0, limit: int = 1024) -> Any:
        return type("Removed", (), {"removed": 0, "more": False})

    async def truncate_chunk(self, inode: int, layout: common_pb2.Layout, index: int, length: int) -> None:
        return None

    async def sync_chains(self, chains: object) -> None:
        return None

    async def space(self) -> list[storage_pb2.TargetSpace]:
        return []


class InventedRouting:
    """One table of chains that all serve."""

    def __init__(self) -> None:
        chains = {n: Chain(n, 1, ((n, mgmtd_pb2.PUBLIC_SERVING),)) for n in range(1, CHAINS + 1)}
        table = mgmtd_pb2.ChainTableInfo(table_id=1, version=1, chains=list(chains))
        self._routing = Routing(version=1, chains=chains, chain_tables={1: table})

    def current(self) -> Routing:
        return self._routing


def serve(folder: str, told: multiprocessing.connection.Connection, profile: str) -> None:
    """The child process: serves until SIGTERM."""

    async def main() -> None:
        kv = RocksKv(Path(folder) / "kv")
        parts = assemble(
            kv, SystemClock(), NoStorage(), InventedRouting(), root=(0, 0, 0o755), layout=LayoutRule(1 << 20, 4, 1)
        )
        jobs = [asyncio.create_task(job()) for job in (parts.collector.run, parts.folder.run)]
        jobs.append(asyncio.create_task(read_ahead(Path(folder) / "kv", READ_AHEAD_BYTES)))
        link = LinkServer(Identity(CLUSTER), link_handlers(META, "META", parts.handlers), unix_path=f"{folder}/unix")
        control = ControlServer([(META, parts.handlers)])
        await link.start()
        await control.start()
        told.send((link.tcp, link.unix, control.address))
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()
        for job in jobs:
            job.cancel()
        await link.stop()
        await control.stop()
        kv.close()

    profiler = cProfile.Profile() if profile else None
    if profiler is not None:
        profiler.enable()
    busy_poll.run(main, busy_poll.LOOKING_METADATA)
    if profiler is not None:
        profiler.disable()
        profiler.dump_stats(profile)


@dataclass(frozen=True, slots=True)
class Doors:
    """Where the service is reached, and who it is."""

    tcp: str
    unix: str
    grpc: str
    pid: int


@contextmanager
def serving(folder: str, profile: str = "") -> Iterator[Doors]:
    """The service on the store in `folder`, which is made if there is none."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=serve, args=(folder, theirs, profile))
    child.start()
    try:
        assert child.pid is not None
        yield Doors(*ours.recv(), child.pid)
    finally:
        child.terminate()
        child.join()


Send = Callable[[str, Any], Any]


def sender(lane: str, doors: Doors) -> Send:
    """Calls one method on one lane and parses the answer."""
    identity = Identity(CLUSTER)
    if lane == "grpc":
        control = ControlClient(META, doors.grpc)
        return lambda name, request: control.call(name, request, deadline_s=30.0)
    pool = BlockingPool(identity)
    unix = {} if lane == "tcp" else {"unix": doors.unix, "host_id": identity.host_id}
    address = Address(tcp=doors.tcp, **unix)

    def send(name: str, request: Any) -> Any:
        reply = pool.call(address, Call(NUMBERS[name], request.SerializeToString()))
        parsed = getattr(common_pb2 if REPLIES[name] == "Empty" else meta_pb2, REPLIES[name])()
        parsed.MergeFromString(bytes(reply.body))
        return parsed

    return send


class Load:
    """What one client asks: its own directory, one request after another."""

    def __init__(self, send: Send, name: str) -> None:
        self.send = send
        self.caller = common_pb2.Caller(uid=1000, gid=1000, gids=[1000, 27], client_id=os.urandom(16))
        root = common_pb2.Caller(uid=0, gid=0)
        at = meta_pb2.PathAt(dir=1, path=name.encode())
        self.dir = send("MakeNode", meta_pb2.MakeNodeRequest(caller=root, at=at, mode=0o040777)).inode.id
        self.made = 0
        self.last = 0

    def _at(self, number: int) -> meta_pb2.PathAt:
        return meta_pb2.PathAt(dir=self.dir, path=b"file%08d" % number)

    def _mutation(self) -> meta_pb2.Mutation:
        return meta_pb2.Mutation(request_id=os.urandom(16))

    def create(self) -> None:
        request = meta_pb2.OpenRequest(
            caller=self.caller, mutation=self._mutation(), at=self._at(self.made), flags=0o102, mode=0o644,
            session=self.made.to_bytes(16, "big"),
        )  # fmt: skip
        self.last = self.send("Open", request).inode.id
        self.made += 1

    def create_and_close(self) -> None:
        session = self.made.to_bytes(16, "big")
        self.create()
        hint = meta_pb2.LengthHint(length=4096)
        self.send(
            "Close",
            meta_pb2.CloseRequest(
                caller=self.caller, mutation=self._mutation(), inode=self.last, session=session, hint=hint
            ),
        )

    def stat(self) -> None:
        self.send("Stat", meta_pb2.StatRequest(caller=self.caller, at=self._at(self.made // 2)))

    def lookup(self) -> None:
        name = b"file%08d" % (self.made // 3)
        self.send("Lookup", meta_pb2.LookupRequest(caller=self.caller, parent=self.dir, name=name))

    def set_mode(self) -> None:
        request = meta_pb2.SetAttrRequest(caller=self.caller, mutation=self._mutation(), at=self._at(0), mode=0o600)
        self.send("SetAttr", request)

    def list_64(self) -> None:
        at = meta_pb2.PathAt(dir=self.dir)
        self.send("List", meta_pb2.ListRequest(caller=self.caller, at=at, limit=64, attributes=True))

    def unlink(self) -> bool:
        if not self.made:
            return False
        self.made -= 1
        request = meta_pb2.RemoveRequest(caller=self.caller, mutation=self._mutation(), at=self._at(self.made))
        self.send("Remove", request)
        return True


def measure(loads: list[Load], row: str, seconds: float) -> float:
    """Calls of all clients per second."""
    counts = [0] * len(loads)
    end = time.perf_counter() + seconds

    def work(place: int) -> None:
        call = getattr(loads[place], row)
        while time.perf_counter() < end and call() is not False:
            counts[place] += 1

    begin = time.perf_counter()
    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(loads))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begin)
