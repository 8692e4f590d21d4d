"""The data link against what the machine gives: iperf3 for tcp, preadv of cached data for shm, in one run.

    python bench/link.py [--seconds 2] [--rows round,4k,1m-memory,1m-read,1m-write] [--profile]

A server process answers 1 MiB reads with preadv from a cached file straight into the push view, and pulls writes.
`1m-memory` (tcp) is the link by itself: the bytes lie in the server's buffer already, as iperf3's do. Reads of a file
stand beside what preadv and iperf3 take one after the other, which is all that one thread of a server can do.
Prints a row for each door and shape, with the ratio to the peer's figure.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fireflyfs.common.ids import ClientId
from fireflyfs.common.limits import GiB, KiB, MiB
from fireflyfs.common.net import busy_poll
from fireflyfs.common.net.api import Address, Call, Handler, Piece, ServerRequest
from fireflyfs.common.net.blocking import BlockingPool
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.memory import SharedPool
from fireflyfs.common.net.server import LinkServer

FILE_BYTES = 256 * MiB
READ, WRITE, ECHO, HELD = 0x7101, 0x7102, 0x7103, 0x7104
IDENTITY = Identity("bench", ClientId(b"bench-bench-benc"))


def serve(folder: Path, profile: bool) -> None:
    """The server process: until SIGTERM."""
    fd = os.open(folder / "data", os.O_RDONLY)
    position = random.Random(1)

    def read(request: ServerRequest) -> None:
        views = request.push_views()
        pushed = []
        for view in views:
            at = position.randrange(0, FILE_BYTES - len(view)) & ~4095
            pushed.append(os.preadv(fd, [view], at))
        request.reply(b"", pushed)

    noise = b"\1" + random.Random(2).randbytes(MiB - 1)

    def held(request: ServerRequest) -> None:
        """Buffers go out as they are; one that was never used is filled first: unwritten memory is a single page."""
        pushed = []
        for view in request.push_views():
            if not view[0]:
                view[:] = noise[: len(view)]
            pushed.append(len(view))
        request.reply(b"", pushed)

    async def write(request: ServerRequest) -> None:
        request.reply(b"%d" % sum(map(len, await request.pull())))

    def echo(request: ServerRequest) -> None:
        request.reply(request.body)

    async def run() -> None:
        handlers: dict[int, Handler] = {READ: read, HELD: held, WRITE: write, ECHO: echo}
        server = LinkServer(IDENTITY, handlers, unix_path=str(folder / "link.sock"))
        await server.start()
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        print(json.dumps({"tcp": server.tcp, "unix": server.unix}), flush=True)
        await stop.wait()
        await server.stop()

    if profile:
        profiler = cProfile.Profile()
        profiler.runcall(asyncio.run, run())
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(22)
    else:
        busy_poll.run(run)


def rate(work: Callable[[], int], seconds: float) -> float:
    """Units a second; `work` does some and says how many."""
    work()
    start = time.perf_counter()
    done = 0
    while (spent := time.perf_counter() - start) < seconds:
        done += work()
    return done / spent


def iperf3(seconds: float) -> float:
    """Bytes a second of one stream on loopback; 0 without iperf3."""
    program = shutil.which("iperf3")
    if program is None:
        return 0.0
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = subprocess.Popen([program, "-s", "-1", "-p", str(port)], stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.3)
        out = subprocess.run(
            [program, "-c", "127.0.0.1", "-p", str(port), "-t", str(max(int(seconds), 1)), "-l", "1M", "-J"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        return float(json.loads(out)["end"]["sum_received"]["bits_per_second"]) / 8
    finally:
        server.kill()
        server.wait()


def preadv(folder: Path, seconds: float, size: int) -> float:
    """Reads a second of cached data into one buffer."""
    fd = os.open(folder / "data", os.O_RDONLY)
    view = memoryview(bytearray(size))
    rng = random.Random(2)

    def work() -> int:
        for _ in range(16):
            os.preadv(fd, [view], rng.randrange(0, FILE_BYTES - size) & ~4095)
        return 16

    try:
        return rate(work, seconds)
    finally:
        os.close(fd)


def many(link: BlockingPool, address: Address, threads: int, seconds: float) -> float:
    """Round trips a second of several threads."""
    counts = [0] * threads
    end = time.perf_counter() + seconds

    def work(index: int) -> None:
        while time.perf_counter() < end:
            link.call(address, Call(ECHO, b"x" * 64))
            counts[index] += 1

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / seconds


def measure(folder: Path, door: str, address: Address, args: argparse.Namespace, peers: dict[str, float]) -> None:
    link = BlockingPool(IDENTITY, pool=SharedPool())
    region = link.pool.allocate(16 * MiB)
    plain = memoryview(bytearray(16 * MiB))
    region.view[:] = plain

    def row(name: str, value: float, unit: str, peer: str) -> None:
        other = peers.get(peer, 0.0)
        ratio = f"{value / other:6.2f} x {peer} ({other:,.0f})" if other else ""
        print(f"{door:4} {name:38} {value:12,.0f} {unit:8} {ratio}", flush=True)

    def pieces(memory: str, size: int, count: int) -> list[Piece]:
        if memory == "region":
            return [region.slice(index * size, size) for index in range(count)]
        return [plain[index * size : (index + 1) * size] for index in range(count)]

    if "round" in args.rows:

        def round_trip() -> int:
            for _ in range(200):
                link.call(address, Call(ECHO, b"x" * 64))
            return 200

        def pipelined() -> int:
            link.call_many([(address, Call(ECHO, b"x" * 64))] * 64)
            return 64

        row("round trips, one thread", rate(round_trip, args.seconds), "/s", "")
        row("round trips, 64 in a batch", rate(pipelined, args.seconds), "/s", "")
        row("round trips, 4 threads", many(link, address, 4, args.seconds), "/s", "")
    for memory in ("region", "plain"):
        if "4k" in args.rows:
            into = pieces(memory, 4 * KiB, 128)

            def batch(into: list[Piece] = into) -> int:
                link.call(address, Call(READ, b"", into=into))
                return 128

            row(f"4 KiB reads, 128 a call, {memory}", rate(batch, args.seconds), "/s", "preadv 4 KiB /s")
        big = pieces(memory, MiB, 8)

        def reads(method: int, into: list[Piece] = big) -> int:
            link.call_many([(address, Call(method, b"", into=[piece])) for piece in into])
            return 8

        if "1m-memory" in args.rows and door == "tcp":
            value = rate(lambda: reads(HELD), args.seconds)
            row(f"1 MiB of its memory, 8 in flight, {memory}", value, "MiB/s", "iperf3 MiB/s")
        if "1m-read" in args.rows:
            peer = "preadv, then iperf3 MiB/s" if door == "tcp" else "preadv 1 MiB MiB/s"
            row(f"1 MiB reads, 8 in flight, {memory}", rate(lambda: reads(READ), args.seconds), "MiB/s", peer)
        if "1m-write" in args.rows:

            def writes(out: list[Piece] = big) -> int:
                link.call_many([(address, Call(WRITE, b"", out=[piece])) for piece in out])
                return 8

            peer = "iperf3 MiB/s" if door == "tcp" else "preadv 1 MiB MiB/s"
            row(f"1 MiB writes, 8 in flight, {memory}", rate(writes, args.seconds), "MiB/s", peer)
    link.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row")
    parser.add_argument("--rows", default="round,4k,1m-memory,1m-read,1m-write", type=lambda text: text.split(","))
    parser.add_argument("--doors", default="tcp,shm", type=lambda text: text.split(","))
    parser.add_argument("--profile", action="store_true", help="print the server's profile and the client's")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.serve, args.profile)
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm" if shutil.disk_usage("/dev/shm").free > GiB else None) as name:
        folder = Path(name)
        (folder / "data").write_bytes(random.Random(0).randbytes(MiB) * (FILE_BYTES // MiB))
        command = [sys.executable, __file__, "--serve", name, *(["--profile"] if args.profile else [])]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            where = json.loads(server.stdout.readline())
            peers = {
                "iperf3 MiB/s": iperf3(args.seconds) / MiB,
                "preadv 1 MiB MiB/s": preadv(folder, args.seconds, MiB),
                "preadv 4 KiB /s": preadv(folder, args.seconds, 4 * KiB),
            }
            both = [peers["iperf3 MiB/s"], peers["preadv 1 MiB MiB/s"]]
            peers["preadv, then iperf3 MiB/s"] = 1 / sum(1 / one for one in both) if all(both) else 0.0
            for name_, value in peers.items():
                print(f"peer {name_:38} {value:12,.0f}", flush=True)
            profiler = cProfile.Profile() if args.profile else None
            for door in args.doors:
                address = Address(where["tcp"]) if door == "tcp" else Address("", where["unix"], IDENTITY.host_id)
                if profiler is not None:
                    profiler.runcall(measure, folder, door, address, args, peers)
                else:
                    measure(folder, door, address, args, peers)
            if profiler is not None:
                pstats.Stats(profiler).sort_stats("tottime").print_stats(22)
        finally:
            server.terminate()
            server.wait(10)


if __name__ == "__main__":
    main()
