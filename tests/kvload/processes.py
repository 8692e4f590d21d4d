"""Processes that use the KV cache as inference engines do, and check every block that they are given."""

from __future__ import annotations

import hashlib
import json
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fireflyfs.client.kvcache import MISS, KVCache, Namespaces
from fireflyfs.deploy.local import LocalCluster

KiB, MiB = 1 << 10, 1 << 20
BLOCK = 64 * KiB
PATIENCE_S = 30.0
PATIENT: dict[str, Any] = {"timeout_s": 10.0, "put_timeout_s": 20.0}  # where a busy machine must not make misses


def keys_of(count: int, seed: int = 0) -> list[bytes]:
    return [hashlib.sha256(f"{seed}-{number}".encode()).digest() for number in range(count)]


def block_of(key: bytes, size: int = BLOCK) -> bytes:
    """What every writer puts under a key."""
    return random.Random(key).randbytes(size)


def buffers(count: int, size: int = BLOCK) -> list[bytearray]:
    return [bytearray(size) for _ in range(count)]


class Worker:
    """This file as a process of its own: `role` and what it needs as JSON, its answers as lines."""

    def __init__(self, cluster: LocalCluster, role: str, *arguments: object) -> None:
        command = [sys.executable, "-P", __file__, role, json.dumps([cluster.mgmtd_addresses(), *arguments])]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"it ended with {self._process.wait()}"
        return json.loads(line)

    def end(self) -> Any:
        """Its answer once it is told to stop; it is gone then."""
        answer = json.loads(self._process.communicate("stop\n", timeout=PATIENCE_S)[0])
        assert self._process.returncode == 0
        return answer


def told_to_stop() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


def load(addresses: Sequence[str], name: str, seed: int) -> tuple[int, int]:
    """Puts and gets until it is told to stop; (gets, hits)."""
    chance = random.Random(seed)
    gets = hits = 0
    with KVCache.open(addresses, name, block_size=BLOCK) as cache:
        print('"ready"', flush=True)
        while not told_to_stop():
            keys = [b"key-%06d" % chance.randrange(400) for _ in range(16)]
            if chance.random() < 0.4:
                cache.put_batch(keys, [block_of(key, chance.choice((BLOCK, 9000))) for key in keys])
                continue
            out = buffers(16)
            began_s = time.monotonic()
            for key, length, data in zip(keys, cache.get_batch(keys, out), out, strict=True):
                gets += 1
                if length != MISS:
                    hits += 1
                    assert bytes(data[:length]) == block_of(key, length), key
            assert time.monotonic() - began_s < 5
    return gets, hits


def trace_of(seed: int, requests: int) -> Iterator[list[int]]:
    """Requests as lists of block ids, in the shape of a chat service's: a few system prompts that many share, then
    turns of conversations that go on from what was said before."""
    chance = random.Random(seed)
    prompts = [[1000 * n + part for part in range(chance.randrange(2, 8))] for n in range(1, 6)]
    chats: list[list[int]] = []
    fresh = 1_000_000 * (seed + 1)
    for _ in range(requests):
        if chats and chance.random() < 0.6:
            blocks = chats[-1 - min(int(chance.expovariate(0.2)), len(chats) - 1)]
        else:
            blocks = list(chance.choice(prompts))
            chats.append(blocks)
        for _ in range(chance.randrange(1, 6)):
            fresh += 1
            blocks.append(fresh)
        del blocks[60:]
        yield list(blocks)


def replay(addresses: Sequence[str], name: str, seed: int) -> tuple[int, int, int]:
    hits = wanted = 0
    seen: set[int] = set()
    expected = 0
    with KVCache.open(addresses, name, block_size=BLOCK, **PATIENT) as cache:
        for request in trace_of(seed, 120):
            keys = [hashlib.sha256(b"%d" % block).digest() for block in request]
            have = cache.match_prefix(keys)
            out = buffers(have, 8 * KiB)
            assert cache.get_batch(keys[:have], out) == [8 * KiB] * have
            for key, data in zip(keys, out, strict=False):
                assert bytes(data) == block_of(key, 8 * KiB)
            assert all(cache.put_batch(keys[have:], [block_of(key, 8 * KiB) for key in keys[have:]]))
            wanted += len(keys)
            hits += have
            expected += sum(block in seen for block in request)
            seen.update(request)
    return wanted, hits, expected


def _resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * KiB
    raise AssertionError("no memory figures")


def memory(addresses: Sequence[str]) -> int:
    """What the process grows by, its own buffers apart: they are made, and touched, before."""
    keys = keys_of(64, seed=7)
    blocks = [np.full(MiB, number, np.uint8) for number in range(64)]
    out = [np.zeros(MiB, np.uint8) for _ in range(64)]
    for each in out:
        each[:] = 1
    before = _resident_bytes()
    with KVCache.open(addresses, "t-memory", block_size=MiB, **PATIENT) as cache:
        assert all(cache.put_batch(keys, blocks))
        for _ in range(3):
            assert cache.get_batch(keys, out) == [MiB] * 64
        grown = _resident_bytes() - before
        cache.clear()
        Namespaces(cache.filesystem).remove("t-memory")
    return grown


def replay_through_faults(addresses: Sequence[str], name: str, seed: int) -> tuple[int, int, int, list[str]]:
    """As `replay`, whatever servers do meanwhile, until it is told to stop: (blocks wanted, hits, puts that failed, the
    keys that were put). Each process has its own length of a block, so that a block made of two would be seen."""
    length = 8 * KiB + 1000 * seed
    wanted = hits = refused = 0
    stored: set[bytes] = set()
    with KVCache.open(addresses, name, block_size=BLOCK) as cache:
        print('"ready"', flush=True)
        for number, request in enumerate(trace_of(seed, 100_000)):
            if told_to_stop():
                assert number > 20
                break
            keys = [hashlib.sha256(b"%d" % block).digest() for block in request]
            have = cache.match_prefix(keys)
            out = buffers(have)
            lengths = cache.get_batch(keys[:have], out)
            for key, found, data in zip(keys, lengths, out, strict=False):
                assert found == MISS or bytes(data[:found]) == block_of(key, found), key.hex()
                assert found == MISS or (found - 8 * KiB) % 1000 == 0
            # Computed again: what is behind the first block that is not there.
            have = lengths.index(MISS) if MISS in lengths else have
            put = cache.put_batch(keys[have:], [block_of(key, length) for key in keys[have:]])
            stored.update(key for key, done in zip(keys[have:], put, strict=True) if done)
            wanted += len(keys)
            hits += have
            refused += put.count(False)
    return wanted, hits, refused, [key.hex() for key in stored]


if __name__ == "__main__":
    roles: dict[str, Callable[..., Any]] = {
        "load": load, "memory": memory, "replay": replay, "replay_through_faults": replay_through_faults,
    }  # fmt: skip
    print(json.dumps(roles[sys.argv[1]](*json.loads(sys.argv[2]))), flush=True)
