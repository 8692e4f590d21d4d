"""The rdma link against perftest on the same device, and what a work request costs in Python.

    python bench/rdma.py [--seconds 3] [--rows read,write,small,copies,cost]

Needs an rdma device, but for the row `cost`; in the guest of `make test-rdma` one is there:
`tests/rdma/guest/run.py --kernel DIR --rw . -- .venv/bin/python bench/rdma.py`. A server process pushes (the client
reads) and pulls (the client writes) 1 MiB pieces of memory that the client has registered, eight under way;
ib_write_bw and ib_read_bw (Debian: perftest) do the same between two processes without us. A software device's speed
says nothing about an adapter's: compare only what stands in one row.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator

from fireflyfs.common.limits import KiB, MiB
from fireflyfs.common.net import busy_poll
from fireflyfs.common.net.api import Address, Call, Reply, ServerRequest
from fireflyfs.common.net.blocking import BlockingPool
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.rdma import verbs
from fireflyfs.common.net.rdma.plan import Work
from fireflyfs.common.net.server import LinkServer

PUSH, PULL, TRACE = 0x7301, 0x7302, 0x7303
AT_ONCE = 8
BATCH = 64
TRACED_BYTES = 64 * MiB
COST_ROUNDS = 2000
IDENTITY = Identity("bench")
ROWS = ("read", "write", "small", "copies", "cost")


def serve() -> None:
    """The server process: until SIGTERM."""

    def push(request: ServerRequest) -> None:
        request.push_views()  # what lies in the buffer goes: nothing is made up here, the link is what is measured
        request.reply(b"", request.push_lengths)

    async def pull(request: ServerRequest) -> None:
        request.reply(b"%d" % sum(map(len, await request.pull())))

    def trace(request: ServerRequest) -> None:
        """Begin to count allocations, or say what they came to at most."""
        if tracemalloc.is_tracing():
            request.reply(b"%d" % tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        else:
            tracemalloc.start()
            request.reply()

    async def run() -> None:
        server = LinkServer(IDENTITY, {PUSH: push, PULL: pull, TRACE: trace})
        await server.start()
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        print(json.dumps(server.tcp), flush=True)
        await stop.wait()
        await server.stop()

    busy_poll.run(run)


@contextlib.contextmanager
def served(link: str) -> Iterator[tuple[BlockingPool, Address]]:
    """A server process and a client here, both with `FFS_LINK` as told."""
    os.environ["FFS_LINK"] = link
    verbs_adapters_again()
    process = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = Address(json.loads(process.stdout.readline()))
    client = BlockingPool(IDENTITY)
    try:
        yield client, address
    finally:
        client.close()
        process.terminate()
        process.wait()


def verbs_adapters_again() -> None:
    """The settings of this process are read once: read them anew."""
    from fireflyfs.common.net.rdma import adapters

    adapters._adapters = None


def rate(work: Callable[[], int], seconds: float) -> float:
    """Units a second; `work` does some and says how many."""
    work()
    start_s = time.perf_counter()
    done = 0
    while (spent_s := time.perf_counter() - start_s) < seconds:
        done += work()
    return done / spent_s


def large(link: BlockingPool, address: Address, method: int) -> Callable[[], int]:
    """`AT_ONCE` pieces of 1 MiB under way; counts bytes."""
    memory = link.pool.allocate(AT_ONCE * MiB)
    calls = []
    for index in range(AT_ONCE):
        piece = [memory.slice(index * MiB, MiB)]
        call = Call(method, b"", into=piece, deadline_s=60) if method == PUSH else Call(method, b"", out=piece)
        calls.append((address, call))

    def work() -> int:
        for reply in link.call_many(calls):
            if not isinstance(reply, Reply):
                raise reply
        return AT_ONCE * MiB

    return work


def small(link: BlockingPool, address: Address, count: int) -> Callable[[], int]:
    """`count` pieces of 4 KiB, none beside another, in one request; counts pieces."""
    memory = link.pool.allocate(2 * count * 4 * KiB)
    pieces = [memory.slice(2 * index * 4 * KiB, 4 * KiB) for index in range(count)]

    def work() -> int:
        link.call(address, Call(PUSH, b"", into=pieces))
        return count

    return work


def perftest(program: str, device: str) -> float | None:
    """Bytes a second of 1 MiB messages as perftest measures them; None where it is not installed or says nothing."""
    if shutil.which(program) is None:
        return None
    arguments = [program, "-d", device, "-F", "-s", str(MiB), "-n", "200", "-x", "1", "-p", "18599"]
    server = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(2)
        out = subprocess.run([*arguments, "127.0.0.1"], capture_output=True, text=True, timeout=240, check=False).stdout
    finally:
        server.terminate()
        server.wait()
    found = re.search(rf"^\s*{MiB}\s+\d+\s+[\d.]+\s+([\d.]+)", out, re.MULTILINE)
    return float(found[1]) * MiB if found and float(found[1]) else None


def row(name: str, text: str) -> None:
    print(f"{name:<28} {text}", flush=True)


def bulk(name: str, method: int, program: str, device: str, seconds: float) -> None:
    with served("rdma") as (link, address):
        ours = rate(large(link, address, method), seconds)
    with served("tcp") as (link, address):
        tcp = rate(large(link, address, method), seconds)
    peer = perftest(program, device)
    beside = f"{program} {peer / 1e6:.0f} MB/s, {ours / peer:.2f} of it" if peer else f"{program}: no figure"
    row(name, f"{ours / 1e6:.0f} MB/s; {beside}; tcp link {tcp / 1e6:.0f} MB/s")


def pieces_row(seconds: float) -> None:
    with served("rdma") as (link, address):
        one = rate(small(link, address, 1), seconds)
        many = rate(small(link, address, BATCH), seconds)
    row("4 KiB pieces", f"one a request {one:.0f}/s; {BATCH} a request {many:.0f}/s, {many / one:.1f} times as many")


def copies_row() -> None:
    """Payload in Python objects would show as megabytes: the largest sum of allocations while 64 MiB move each way."""
    with served("rdma") as (link, address):
        works = [large(link, address, method) for method in (PUSH, PULL)]
        for work in works:
            work()  # buffers that are kept are made now
        link.call(address, Call(TRACE, b""))
        tracemalloc.start()
        moved = sum(work() for work in works for _ in range(TRACED_BYTES // (AT_ONCE * MiB)))
        mine = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        theirs = int(bytes(link.call(address, Call(TRACE, b"")).body))
    row(
        "allocated at most",
        f"client {mine / KiB:.0f} KiB, server {theirs / KiB:.0f} KiB while {moved // MiB} MiB moved",
    )


class _Unposted:
    """Stands where a queue pair's verbs object does: chains are built as always and go nowhere."""

    def post_send(self, first: object) -> None:
        del first


def cost_row() -> None:
    """What Python spends on one work request, by the length of the chain; no device is needed."""
    try:
        verbs.library()
    except ImportError as exc:
        row("cost", f"pyverbs cannot be imported: {exc}")
        return
    names = verbs.library().constants
    pair = verbs.QueuePair.__new__(verbs.QueuePair)
    pair._what, pair._raw = "queue pair", _Unposted()
    pair._signaled = names["IBV_SEND_SIGNALED"]
    pair._opcodes = (names["IBV_WR_RDMA_WRITE"], names["IBV_WR_RDMA_READ"])
    for length, sges in ((1, 1), (16, 1), (64, 1), (64, 16)):
        work = Work(False, 0, 1, 4 * KiB, ((0, 4 * KiB // sges, 1),) * sges)
        chain = [(number, work, number == length) for number in range(1, length + 1)]
        start_s = time.process_time()
        for _ in range(COST_ROUNDS):
            pair.post(chain)
        each_us = (time.process_time() - start_s) / COST_ROUNDS / length * 1e6
        row(f"chain of {length}, {sges} entries", f"{each_us:.2f} us of Python for a work request")
    completion = verbs.library().cq.WC
    start_s = time.process_time()
    for _ in range(COST_ROUNDS * 8):
        wc = completion(wr_id=1, status=0)
        (wc.wr_id, int(wc.status))
    row("completion", f"{(time.process_time() - start_s) / COST_ROUNDS / 8 * 1e6:.2f} us of Python")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    rows = options.rows.split(",")
    if "cost" in rows:
        cost_row()
    devices = verbs.device_names()
    if not devices:
        row("device", "none: `make test-rdma` shows how to run in a guest that has one")
        return
    if "read" in rows:
        bulk("read 1 MiB", PUSH, "ib_write_bw", devices[0], options.seconds)
    if "write" in rows:
        bulk("write 1 MiB", PULL, "ib_read_bw", devices[0], options.seconds)
    if "small" in rows:
        pieces_row(options.seconds)
    if "copies" in rows:
        copies_row()


if __name__ == "__main__":
    main()
