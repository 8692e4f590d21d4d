"""Random sizes at random offsets, scattered, both ways at once, from several threads: every byte is looked at.

FFS_RDMA_SOAK_SECONDS: how long (15). FFS_RDMA_SOAK_SEED repeats a run's choices, not its timing.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fireflyfs.common.limits import KiB, MiB
from fireflyfs.common.net.api import Address, Call, Memory, Piece, Reply
from fireflyfs.common.net.blocking import BlockingPool
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.link_choice import LinkChoice
from fireflyfs.common.net.memory import SharedPool
from fireflyfs.common.net.multiplex import MultiplexLink

SECONDS = float(os.environ.get("FFS_RDMA_SOAK_SECONDS", "15"))
SEED = int(os.environ.get("FFS_RDMA_SOAK_SEED", "0")) or random.SystemRandom().getrandbits(32)
MIRROR = 0x7204
REGION_BYTES = 2 * MiB
PIECE_BYTES_MAX = 256 * KiB
PIECES_MAX = 40
IDENTITY = Identity("test", link=LinkChoice.RDMA)


@pytest.fixture
def address() -> Iterator[Address]:
    program = Path(__file__).parent / "link_process.py"
    with subprocess.Popen(
        [sys.executable, str(program), "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield Address(json.loads(process.stdout.readline()))
        process.kill()


def length(rng: random.Random) -> int:
    """As often short as long."""
    return min(int(2 ** rng.uniform(0, PIECE_BYTES_MAX.bit_length() - 1)), PIECE_BYTES_MAX)


def pieces(rng: random.Random, memory: Memory, lengths: list[int]) -> tuple[list[Piece], list[int]]:
    """So many pieces, anywhere in the memory but not one over another; of its owner's view or of the memory itself."""
    room = REGION_BYTES - sum(lengths)
    gaps = sorted(rng.randrange(room + 1) for _ in lengths)
    offsets, before = [], 0
    for gap, size in zip(gaps, lengths, strict=True):
        offsets.append(gap + before)
        before += size
    found: list[Piece] = [
        memory.slice(offset, size) if rng.random() < 0.8 else memory.view[offset : offset + size]
        for offset, size in zip(offsets, lengths, strict=True)
    ]
    order = list(range(len(lengths)))
    rng.shuffle(order)
    return [found[index] for index in order], [offsets[index] for index in order]


def cut(rng: random.Random, total: int) -> list[int]:
    """Lengths that make up `total`."""
    lengths = []
    while total:
        lengths.append(total if len(lengths) == PIECES_MAX - 1 else min(length(rng), total))
        total -= lengths[-1]
    return lengths


class Soaker:
    """Sends what lies in one memory, scattered, and has it brought back to other places of another one."""

    def __init__(self, number: int, allocate: Callable[[int], Memory]) -> None:
        self.rng = random.Random(f"{SEED} {number}")
        self.source, self.target = allocate(REGION_BYTES), allocate(REGION_BYTES)
        self.source.view[:] = self.rng.randbytes(REGION_BYTES)
        self.expected = bytearray(REGION_BYTES)  # all of the target, what nobody asked to be written too
        self.calls = self.moved = 0

    def next(self) -> tuple[Call, list[int]]:
        lengths = [length(self.rng) for _ in range(self.rng.randint(1, PIECES_MAX))]
        while sum(lengths) > REGION_BYTES // 2:
            lengths.pop()
        out, _ = pieces(self.rng, self.source, lengths)
        data = b"".join(bytes(piece if isinstance(piece, memoryview) else piece.view) for piece in out)
        sizes = cut(self.rng, len(data))
        into, offsets = pieces(self.rng, self.target, sizes)
        position = 0
        for piece, offset in zip(into, offsets, strict=True):
            size = len(piece) if isinstance(piece, memoryview) else piece.length
            self.expected[offset : offset + size] = data[position : position + size]
            position += size
        pushed = [len(piece) if isinstance(piece, memoryview) else piece.length for piece in into]
        return Call(MIRROR, b"", out=out, into=into, deadline_s=60.0), pushed

    def look(self, reply: Reply, pushed: list[int]) -> None:
        assert list(reply.pushed) == pushed
        assert self.target.view == self.expected, f"seed {SEED}, call {self.calls}: other bytes than were sent"
        self.calls += 1
        self.moved += sum(pushed)


@pytest.mark.timeout(SECONDS + 150)
def test_soak_of_rdma(address: Address) -> None:
    end_s = time.monotonic() + SECONDS
    failed: list[BaseException] = []
    link = BlockingPool(IDENTITY)
    soakers = [Soaker(number, link.pool.allocate) for number in range(3)]

    def work(soaker: Soaker) -> None:
        try:
            while time.monotonic() < end_s and not failed:
                call, pushed = soaker.next()
                soaker.look(link.call(address, call), pushed)
        except BaseException as exc:
            failed.append(exc)

    async def multiplexed() -> list[Soaker]:
        pipelined = MultiplexLink(IDENTITY, pool=SharedPool())
        mine = [Soaker(number, pipelined.pool.allocate) for number in range(10, 13)]

        async def one(soaker: Soaker) -> None:
            while time.monotonic() < end_s and not failed:
                call, pushed = soaker.next()
                soaker.look(await pipelined.call(address, call), pushed)

        await asyncio.gather(*map(one, mine))
        assert {traffic.link for traffic in pipelined.traffic()} == {"rdma"}
        await pipelined.close()
        return mine

    threads = [threading.Thread(target=work, args=(soaker,)) for soaker in soakers]
    for thread in threads:
        thread.start()
    try:
        soakers += asyncio.run(multiplexed())
    except BaseException as exc:
        failed.append(exc)
    for thread in threads:
        thread.join(90)
    if failed:
        raise failed[0]
    assert {traffic.link for traffic in link.traffic()} == {"rdma"}
    assert sum(traffic.failures for traffic in link.traffic()) == 0
    link.close()
    print(f"seed {SEED}: {sum(s.calls for s in soakers)} calls, {sum(s.moved for s in soakers) / MiB:.0f} MiB each way")
    assert all(soaker.calls for soaker in soakers)
