"""The rdma link against perftest's ib_read_bw and ib_write_bw, on this machine's own device, both ends here.

    python bench/rdma.py [--seconds 3] [--rounds 7] [--gid-index N]

Prints 1 MiB reads and writes beside perftest's figure: one queue pair each, eight messages of 1 MiB always in flight,
turn and turn about, medians. Then what the server's process spends on each MiB outside the posting of work requests,
4 KiB reads one by one and 128 a call, what Python spends on a work request, and how much Python allocates while payload
moves. On a software device (rxe) only the ratios say anything: it moves the bytes within the call that posts them.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable

from fireflyfs.common import collector
from fireflyfs.common.limits import KiB, MiB
from fireflyfs.common.net import busy_poll
from fireflyfs.common.net.api import Address, Call, ServerRequest, Slice
from fireflyfs.common.net.blocking import BlockingPool
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.link_choice import LinkChoice
from fireflyfs.common.net.memory import SharedPool
from fireflyfs.common.net.multiplex import MultiplexLink
from fireflyfs.common.net.rdma import queues
from fireflyfs.common.net.rdma import server as rdma_server
from fireflyfs.common.net.rdma.library import device_names
from fireflyfs.common.net.server import LinkServer

READ, WRITE, COSTS = 0x7101, 0x7102, 0x7103
IDENTITY = Identity("bench", link=LinkChoice.RDMA)
BATCH = 128
DEPTH = 8  # messages of 1 MiB in flight
PERFTEST_MESSAGES = 100


class Costs:
    """Seconds of the server in planning, posting and polling, and how many work requests they were for."""

    def __init__(self) -> None:
        self.plan_s = self.post_s = self.poll_s = 0.0
        self.work_requests = self.chains = self.completions = 0


def timed(costs: Costs) -> Callable[[], None]:
    """Count what the server's verbs calls take, which costs a few per cent itself, until what is returned is called."""
    plan, post, poll = rdma_server.plan, queues.QueuePair.post, queues.Completions.poll

    def timed_plan(*arguments: object, **names: object) -> object:
        begin_s = time.perf_counter()
        works = plan(*arguments, **names)  # type: ignore[arg-type]
        costs.plan_s += time.perf_counter() - begin_s
        return works

    def timed_post(self: queues.QueuePair, chain: list[object]) -> None:
        begin_s = time.perf_counter()
        post(self, chain)  # type: ignore[arg-type]
        costs.post_s += time.perf_counter() - begin_s
        costs.work_requests += len(chain)
        costs.chains += 1

    def timed_poll(self: queues.Completions) -> list[queues.Completion]:
        begin_s = time.perf_counter()
        found = poll(self)
        costs.poll_s += time.perf_counter() - begin_s
        costs.completions += len(found)
        return found

    rdma_server.plan = timed_plan  # type: ignore[assignment]
    queues.QueuePair.post = timed_post  # type: ignore[method-assign,assignment]
    queues.Completions.poll = timed_poll  # type: ignore[method-assign,assignment]

    def stop() -> None:
        rdma_server.plan, queues.QueuePair.post, queues.Completions.poll = (  # type: ignore[method-assign]
            plan, post, poll,
        )  # fmt: skip

    return stop


def serve() -> None:
    """The server process: until SIGTERM. What it pushes lies in its registered buffers already."""
    costs = Costs()
    stop_timing = timed(costs)

    def read(request: ServerRequest) -> None:
        request.reply(b"", [len(view) for view in request.push_views()])

    async def write(request: ServerRequest) -> None:
        request.reply(b"%d" % sum(map(len, await request.pull())))

    def tell(request: ServerRequest) -> None:
        nonlocal stop_timing
        stop_timing()
        if request.body == b"count":
            stop_timing = timed(costs)
        figures = (costs.plan_s, costs.post_s, costs.poll_s, costs.work_requests, costs.chains, costs.completions)
        request.reply(" ".join(map(str, (*figures, time.process_time()))).encode())

    async def main() -> None:
        server = LinkServer(IDENTITY, {READ: read, WRITE: write, COSTS: tell})
        await server.start()
        collector.settle()
        print(server.tcp, flush=True)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()
        await server.stop()

    busy_poll.run(main)  # as storage workers do


def rate(work: Callable[[], int], seconds: float) -> float:
    work()
    begin_s = time.perf_counter()
    done = 0
    while time.perf_counter() - begin_s < seconds:
        done += work()
    return done / (time.perf_counter() - begin_s)


def perftest(program: str, gid_index: int) -> float:
    """MiB/s of 1 MiB messages; 0 where it is not installed or prints none."""
    if shutil.which(program) is None:
        return 0.0
    line = [program, "-x", str(gid_index), "-F", "-s", str(MiB), "-n", str(PERFTEST_MESSAGES), "-t", str(DEPTH)]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(50):  # its server takes a moment to listen
                done = subprocess.run([*line, "localhost"], capture_output=True, text=True, timeout=120, check=False)
                found = re.findall(rf"^\s*{MiB}\s+\d+\s+[\d.]+\s+([\d.]+)", done.stdout, re.MULTILINE)
                if found:
                    return float(found[-1])
                if server.poll() is not None:
                    return 0.0
                time.sleep(0.1)
        finally:
            server.kill()
    return 0.0


class Large:
    """Reads or writes of 1 MiB on one connection, `DEPTH` of them always in flight as perftest has it."""

    def __init__(self, address: Address, method: int, program: str) -> None:
        self.program = program
        self.ratios: list[float] = []
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self._address, self._method = address, method

    def round(self, seconds: float, gid_index: int) -> None:
        _, ours = asyncio.run(self._move(seconds))
        theirs = perftest(self.program, gid_index)
        self.ours.append(ours)
        if theirs:
            self.theirs.append(theirs)
            self.ratios.append(ours / theirs)

    def count(self, link: BlockingPool, seconds: float) -> tuple[float, ...]:
        """Once more, and what each MiB costs the server, as `Costs` has it; last, seconds of its processor."""
        begin = costs_of(link, self._address, count=True)
        moved, _ = asyncio.run(self._move(seconds))
        end = costs_of(link, self._address)
        return tuple((after - before) / moved for before, after in zip(begin, end, strict=True))

    async def _move(self, seconds: float) -> tuple[int, float]:
        """(MiB in all, MiB/s while all were in flight)."""
        link = MultiplexLink(IDENTITY, pool=SharedPool())
        region = link.pool.allocate(DEPTH * MiB)
        times: list[float] = []
        begun = asyncio.Event()
        end_s = 0.0

        async def one(piece: Slice) -> None:
            call = Call(self._method, b"", **{"into" if self._method == READ else "out": [piece]})
            while not end_s or time.perf_counter() < end_s:
                await link.call(self._address, call)
                times.append(time.perf_counter())
                if len(times) == DEPTH:  # connected, and everything was touched once
                    begun.set()

        tasks = [asyncio.create_task(one(region.slice(index * MiB, MiB))) for index in range(DEPTH)]
        await begun.wait()
        first, end_s = len(times), time.perf_counter() + seconds
        await asyncio.gather(*tasks)
        await link.close()
        region.close()
        inside = [when for when in times[first - 1 :] if when <= end_s]
        return len(times), (len(inside) - 1) / (inside[-1] - inside[0])

    def told(self) -> str:
        if not self.ratios:
            return ""
        ratios = ", ".join(f"{ratio:.2f}" for ratio in sorted(self.ratios))
        found = f"{statistics.median(self.ratios):.2f} x {self.program}"
        return f"{found} ({statistics.median(self.theirs):,.1f}); rounds {ratios}"


def measure(address: Address, seconds: float, rounds: int, gid_index: int) -> None:
    link = BlockingPool(IDENTITY, pool=SharedPool())
    region = link.pool.allocate(16 * MiB)

    def row(name: str, value: float, unit: str, note: str = "") -> None:
        print(f"{name:32} {value:12,.1f} {unit:8} {note}", flush=True)

    # A client's read is the server's RDMA WRITE, and the other way round. In turn, for machines are not equally busy.
    larges = {"reads": Large(address, READ, "ib_write_bw"), "writes": Large(address, WRITE, "ib_read_bw")}
    for _ in range(rounds):
        for large in larges.values():
            large.round(seconds, gid_index)
    for name, large in larges.items():
        row(f"1 MiB {name}, {DEPTH} in flight", statistics.median(large.ours), "MiB/s", large.told())
        _, post_s, _, works, chains, completions, used_s = large.count(link, seconds)
        note = f"beside {1e6 * post_s:,.0f} us in posting; {chains:.2f} posts, {works:.2f} work requests, "
        row("  of the server's process", 1e6 * (used_s - post_s), "us/MiB", note + f"{completions:.2f} completions")

    # Every second page: nothing can be joined, each piece is a work request.
    pieces = [region.slice(index * 8 * KiB, 4 * KiB) for index in range(BATCH)]
    together = [region.slice(index * 4 * KiB, 4 * KiB) for index in range(BATCH)]

    def one() -> int:
        link.call(address, Call(READ, b"", into=[pieces[0]]))
        return 1

    def batch(into: list[Slice]) -> int:
        link.call(address, Call(READ, b"", into=into))
        return BATCH

    alone = rate(one, seconds)
    row("4 KiB reads, one a call", alone, "/s")
    begin = costs_of(link, address, count=True)
    scattered = rate(lambda: batch(pieces), seconds)
    end = costs_of(link, address)
    row(f"4 KiB reads, {BATCH} a call, apart", scattered, "/s", f"{scattered / alone:.1f} x one a call")
    joined = rate(lambda: batch(together), seconds)
    row(f"4 KiB reads, {BATCH} a call, joined", joined, "/s", f"{joined / alone:.1f} x one a call")
    plan_s, post_s, poll_s, works, chains, _, _ = (after - before for before, after in zip(begin, end, strict=True))
    row("planning", 1e6 * plan_s / works, "us", "a work request")
    row("posting", 1e6 * post_s / works, "us", f"a work request, {works / chains:.0f} in a chain")
    row("polling", 1e6 * poll_s / chains, "us", "a chain")

    tracemalloc.start()
    moved = 0
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        link.call(address, Call(READ, b"", into=[region.slice(0, 8 * MiB)]))
        moved += 8
    row("allocated at most", tracemalloc.get_traced_memory()[1] / KiB, "KiB", f"by the client while {moved} MiB came")
    tracemalloc.stop()
    link.close()


def costs_of(link: BlockingPool, address: Address, *, count: bool = False) -> list[float]:
    """What was counted so far; whether to go on counting."""
    call = Call(COSTS, b"count" if count else b"")
    return [float(part) for part in bytes(link.call(address, call).body).split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gid-index", type=int, default=1, help="for perftest")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    if not device_names():
        sys.exit("this machine has no rdma device: `ffs rdma check` says what is missing; docs/rdma.md has a guest")
    with subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            measure(Address(server.stdout.readline().strip()), arguments.seconds, arguments.rounds, arguments.gid_index)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
