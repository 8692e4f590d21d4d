"""The KV cache on a real cluster: what is put is found, what is found is right, and nothing that fails is an error."""

from __future__ import annotations

import asyncio
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.kvcache import MISS, AsyncKVCache, KVCache, Namespaces
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.deploy.local import LocalCluster
from kvload.processes import BLOCK, PATIENCE_S, PATIENT, KiB, MiB, Worker, block_of, buffers, keys_of

pytestmark = pytest.mark.e2e

Bed = tuple[LocalCluster, FileSystem]


@pytest.fixture(scope="module")
def bed(cluster: LocalCluster) -> Iterator[Bed]:
    with FileSystem.connect(cluster.mgmtd_addresses()) as fs:
        yield cluster, fs


@pytest.fixture
def cache(bed: Bed) -> Iterator[KVCache]:
    """A namespace of one test."""
    name = "t-" + secrets.token_hex(4)
    with KVCache.open(bed[1], name, block_size=BLOCK, fingerprint="model", **PATIENT) as opened:
        yield opened
        opened.clear()
    Namespaces(bed[1]).remove(name)


def until(what: str, ready: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not ready():
        assert time.monotonic() < end, what
        time.sleep(0.05)


# What is put, is there


def test_blocks_of_all_sizes_are_found_whole(cache: KVCache) -> None:
    sizes = [4 * KiB, 4 * KiB + 1, 10_000, 32 * KiB, BLOCK - 1, BLOCK]
    keys = [bytes([length]) * length for length in (8, 9, 31, 32, 33, 64)]
    blocks = [block_of(key, size) for key, size in zip(keys, sizes, strict=True)]
    assert cache.exists_batch(keys) == [False] * 6
    assert cache.put_batch(keys, blocks) == [True] * 6
    assert cache.exists_batch([*keys, b"another key"]) == [True] * 6 + [False]
    out = buffers(7)
    assert cache.get_batch([*keys, b"another key"], out) == [*sizes, MISS]
    assert [bytes(each[:size]) for each, size in zip(out, sizes, strict=False)] == blocks
    assert cache.delete([keys[1], b"another key"]) == 1
    assert cache.get_batch(keys[:2], buffers(2)) == [sizes[0], MISS]
    stats = cache.stats()
    assert (stats.puts, stats.hits, stats.misses, stats.puts_refused, stats.away) == (6, 7, 2, 0, 0)
    assert (stats.servers["blocks"], stats.servers["bytes"]) == (5, sum(sizes) - sizes[1])
    cache.clear()
    assert cache.exists_batch(keys) == [False] * 6
    assert cache.stats().servers["blocks"] == 0


def test_a_block_may_stand_in_many_buffers(bed: Bed, cache: KVCache) -> None:
    key, data = b"scattered", block_of(b"scattered", 50_000)
    parts = [data[:1], memoryview(data)[1:20_000], np.frombuffer(data, np.uint8)[20_000:]]
    assert cache.put_batch([key], [parts]) == [True]
    first, second, third = bytearray(7), np.zeros((64, 512), np.uint8), bytearray(30_000)
    memory = bed[1].allocate(BLOCK)
    try:
        out: list[Any] = [[first, second, third], memory.slice(100, 50_000), [memoryview(bytearray(50_000))]]
        assert cache.get_batch([key] * 3, out) == [50_000] * 3  # a key may stand in a batch more than once
        assert (bytes(first) + second.tobytes() + bytes(third))[:50_000] == data
        assert bytes(memory.view[100:50_100]) == data
        assert cache.put_batch([b"small one"], [data[:5000]]) == [True]
        assert cache.get_batch([b"small one"], [memory.slice(60_000, 5100)]) == [5000]
        assert bytes(memory.view[60_000:65_000]) == data[:5000]
        assert bytes(out[2][0]) == data
    finally:
        memory.close()
    floats = np.arange(4096, dtype=np.float32).reshape(4, 32, 32)
    assert cache.put_batch([key], [floats]) == [True]
    back = np.empty_like(floats)
    assert cache.get_batch([key], [back]) == [floats.nbytes]
    assert np.array_equal(back, floats)


def test_of_a_key_that_is_put_twice_the_last_block_counts(cache: KVCache) -> None:
    blocks = [bytes([number]) * (8 * KiB) for number in range(3)]
    assert cache.put_batch([b"same key"] * 3, blocks) == [True] * 3
    out = bytearray(BLOCK)
    assert cache.get_batch([b"same key"], [out]) == [8 * KiB]
    assert bytes(out[: 8 * KiB]) == blocks[2]
    assert cache.put_batch([b"same key"], [blocks[0][: 4 * KiB]]) == [True]  # a shorter one leaves nothing behind
    assert cache.get_batch([b"same key"], [out]) == [4 * KiB]


def test_the_longest_prefix_is_what_is_there_without_a_gap(cache: KVCache) -> None:
    keys = keys_of(300)
    assert cache.match_prefix(keys) == 0
    cache.put_batch(keys[:200] + keys[201:], [bytes(4 * KiB)] * 299)
    assert cache.match_prefix(keys) == 200
    assert cache.match_prefix(keys[:150]) == 150
    assert cache.match_prefix([]) == 0


def test_what_can_never_work_is_an_error(cache: KVCache) -> None:
    for keys, blocks in (([b"short"], [bytes(BLOCK)]), ([b"k" * 65], [bytes(BLOCK)]), ([b"k" * 8], [])):
        with pytest.raises(FfsError) as caught:
            cache.put_batch(keys, blocks)
        assert caught.value.code is Code.INVALID
    for block in (bytes(4095), bytes(BLOCK + 1), b""):
        with pytest.raises(FfsError):
            cache.put_batch([b"k" * 8], [block])
    with pytest.raises(FfsError):
        cache.get_batch([b"k" * 8], [bytes(BLOCK)])  # cannot be written to
    with pytest.raises(FfsError):
        cache.get_batch([b"k" * 8], [np.zeros((8, 8))[:, ::2]])  # not contiguous
    cache.put_batch([b"k" * 8], [bytes(BLOCK)])
    assert cache.get_batch([b"k" * 8], [bytearray(BLOCK - 1)]) == [MISS]
    assert cache.stats().too_large == 1


def test_another_model_is_refused(bed: Bed, cache: KVCache) -> None:
    name = cache.namespace.name
    for options in ({"fingerprint": "other model"}, {"fingerprint": "model", "block_size": 2 * BLOCK}):
        with pytest.raises(FfsError) as caught:
            KVCache.open(bed[1], name, **{"block_size": BLOCK} | options)  # type: ignore[arg-type]
        assert caught.value.code is Code.INVALID
        assert name in caught.value.message
    with KVCache.open(bed[0].mgmtd_addresses(), name, block_size=BLOCK, fingerprint=b"model") as same:
        assert same.namespace == cache.namespace
    with pytest.raises(FfsError):
        same.exists_batch([b"k" * 8])  # closed


def test_in_the_background_and_on_asyncio(bed: Bed, cache: KVCache) -> None:
    keys = keys_of(200)
    cache.put_batch(keys[:150], [block_of(key, 8 * KiB) for key in keys[:150]])
    out = buffers(200, 8 * KiB)
    job = cache.prefetch(keys, out)
    assert job.wait(PATIENCE_S) == [8 * KiB] * 150 + [MISS] * 50
    assert job.done()
    assert job.poll() == job.wait()
    assert not job.cancel()
    assert [bytes(each) for each in out[:150]] == [block_of(key, 8 * KiB) for key in keys[:150]]

    async def use() -> None:
        name = cache.namespace.name
        async with await AsyncKVCache.open(bed[1], name, block_size=BLOCK, fingerprint="model") as other:
            batches = [other.get_batch(keys[start : start + 50], buffers(50)) for start in range(0, 150, 50)]
            assert await asyncio.gather(*batches) == [[8 * KiB] * 50] * 3
            assert await other.match_prefix(keys) == 150
            assert await other.delete(keys[:10]) == 10

    asyncio.run(use())


def test_of_two_writers_one_wins(bed: Bed, cache: KVCache) -> None:
    """A reader sees one of the blocks that were put, all of it, or none."""
    keys = keys_of(8)
    stop = threading.Event()
    wrong: list[bytes] = []

    def write(mark: int) -> None:
        with KVCache.open(
            bed[0].mgmtd_addresses(), cache.namespace.name, block_size=BLOCK, fingerprint="model", **PATIENT
        ) as own:
            turn = 0
            while not stop.is_set():
                turn += 1
                size = BLOCK if turn % 2 else 20 * KiB
                assert all(own.put_batch(keys, [bytes([mark + turn % 100]) * size] * len(keys)))

    writers = [threading.Thread(target=write, args=(mark,)) for mark in (1, 101)]
    for writer in writers:
        writer.start()
    seen: set[int] = set()
    end = time.monotonic() + 1.5
    while time.monotonic() < end or len(seen) < 3:
        out = buffers(len(keys))
        for length, block in zip(cache.get_batch(keys, out), out, strict=True):
            if length != MISS:
                seen.add(block[0])
                if bytes(block[:length]) != block[:1] * length or length not in (BLOCK, 20 * KiB):
                    wrong.append(bytes(block[:length]))
    stop.set()
    for writer in writers:
        writer.join()
    assert not wrong
    assert cache.get_batch(keys, buffers(8)).count(MISS) == 0


# Bounds


def test_blocks_expire(bed: Bed) -> None:
    keys = keys_of(20, seed=1)
    with KVCache.open(bed[1], "t-ttl", block_size=BLOCK, ttl_s=3, **PATIENT) as cache:
        cache.put_batch(keys, [bytes(BLOCK)] * 20)
        assert cache.match_prefix(keys) == 20
        until("blocks do not expire", lambda: not any(cache.exists_batch(keys)))
        assert cache.get_batch(keys, buffers(20)) == [MISS] * 20
        until("expired blocks stay", lambda: cache.stats().servers["blocks"] == 0)
        assert cache.stats().servers["expired"] == 20
    Namespaces(bed[1]).remove("t-ttl")


def test_a_namespace_stays_within_its_capacity_and_keeps_what_is_used(bed: Bed) -> None:
    capacity = 12 * MiB
    hot, keys = keys_of(16, seed=2), keys_of(1024, seed=3)
    with KVCache.open(bed[1], "t-full", block_size=BLOCK, capacity_bytes=capacity, **PATIENT) as cache:
        assert all(cache.put_batch(hot, [block_of(key) for key in hot]))
        for start in range(0, len(keys), 32):
            assert all(cache.put_batch(keys[start : start + 32], [bytes(BLOCK)] * 32))
            out = buffers(16)
            assert cache.get_batch(hot, out) == [BLOCK] * 16
            if start % 256 == 0:
                until("it stays too large", lambda: cache.stats().servers["bytes"] <= capacity)
        assert [bytes(each) for each in out] == [block_of(key) for key in hot]
        until("it stays too large", lambda: cache.stats().servers["bytes"] <= capacity)
        found = sum(cache.exists_batch(keys))
        assert capacity // BLOCK // 2 <= found + 16 <= capacity // BLOCK
        assert cache.stats().servers["evictions"] >= 1024 - capacity // BLOCK
    Namespaces(bed[1]).remove("t-full")


# Beside files


def test_namespaces_on_the_command_line(bed: Bed, ffs_json: Callable[..., Any]) -> None:
    cluster, fs = bed
    made = ffs_json(cluster, "cache", "create", "t-cli", "--block-size", BLOCK, "--capacity", MiB, "--fingerprint", "m")
    assert made["replicas"] >= 1
    ffs_json(cluster, "cache", "create", "t-cli", "--block-size", BLOCK, "--fingerprint", "other", code=5)
    with KVCache.open(fs, "t-cli", block_size=BLOCK, fingerprint="m", **PATIENT) as cache:
        cache.put_batch(keys_of(4), [bytes(BLOCK)] * 4)
        cache.get_batch(keys_of(5), buffers(5))
        shown = ffs_json(cluster, "cache", "show", "t-cli")
        assert (shown["blocks"], shown["used_bytes"], shown["capacity_bytes"]) == (4, 4 * BLOCK, MiB)
        assert (shown["hits"], shown["misses"], shown["puts"]) == (4, 1, 4)
        names = Namespaces(fs).names()
        fs.write_bytes("/.kvcache/a file of somebody's", b"")  # anybody may put one there
        assert [row["name"] for row in ffs_json(cluster, "cache", "list")] == names
        fs.unlink("/.kvcache/a file of somebody's")
        ffs_json(cluster, "cache", "clear", "t-cli", "--yes")
        assert cache.match_prefix(keys_of(4)) == 0
    ffs_json(cluster, "cache", "rm", "t-cli", "--yes")
    assert "t-cli" not in Namespaces(fs).names()
    ffs_json(cluster, "cache", "show", "t-cli", code=3)


def chunks_of(fs: FileSystem) -> int:
    return sum(target.chunks for target in fs.context.storage.space())


def test_a_check_finds_nothing_wrong_and_a_removed_namespace_leaves_nothing(
    bed: Bed, ffs_json: Callable[..., Any]
) -> None:
    cluster, fs = bed
    before = chunks_of(fs)
    cache = KVCache.open(fs, "t-gone", block_size=BLOCK, **PATIENT)
    assert all(cache.put_batch(keys_of(64), [bytes(BLOCK)] * 64))
    assert ffs_json(cluster, "fsck", "--pause", "0.2")["clean"]
    assert fs.getsize("/.kvcache/t-gone") == 0
    fs.unlink("/.kvcache/t-gone")  # as `rm` on a mount
    assert cache.match_prefix(keys_of(64)) == 64  # as of a file that is open
    assert cache.put_batch(keys_of(1, seed=9), [bytes(BLOCK)]) == [True]
    cache.close()
    until("its blocks are not collected", lambda: chunks_of(fs) <= before)


# What fails


def test_killed_storage_processes_make_misses_and_never_a_wrong_block(cluster_factory: Callable[..., Any]) -> None:
    cluster: LocalCluster = cluster_factory(replicas=1)
    with FileSystem.connect(cluster.mgmtd_addresses()) as fs, KVCache.open(fs, "load", block_size=BLOCK) as cache:
        loads = [Worker(cluster, "load", "load", seed) for seed in (1, 2)]
        assert [load.answer() for load in loads] == ["ready"] * 2
        for name in ("storage-1", "storage-2"):
            time.sleep(0.7)  # under load
            cluster.kill(name)
            time.sleep(0.5)
            cluster.restart(name)
        cluster.wait_serving()
        answers = [load.end() for load in loads]
        assert all(hits > 100 for _, hits in answers), answers
        keys = keys_of(64)
        until("not everybody takes blocks again", lambda: all(cache.put_batch(keys, [bytes(BLOCK)] * 64)))
        # Everything that is stored is right, and is found by a worker that lists it anew.
        names = [b"key-%06d" % number for number in range(400)]
        there = cache.exists_batch(names)
        out = buffers(400)
        lengths = cache.get_batch(names, out)
        assert [length != MISS for length in lengths] == there
        assert sum(there) > 100
        for name, length, data in zip(names, lengths, out, strict=True):
            assert length == MISS or bytes(data[:length]) == block_of(name, length)
        cluster.down()
        began_s = time.monotonic()
        assert cache.get_batch(keys, buffers(64)) == [MISS] * 64
        assert cache.put_batch(keys, [bytes(BLOCK)] * 64) == [False] * 64
        assert cache.exists_batch(keys) == [False] * 64
        assert time.monotonic() - began_s < 8
        assert cache.stats().away > 0
        cluster.up()
        until("blocks do not come back", lambda: cache.match_prefix(keys) == 64)


def test_a_node_that_hangs_is_a_miss_within_the_time(bed: Bed, cache: KVCache) -> None:
    keys = keys_of(64, seed=5)
    assert all(cache.put_batch(keys, [bytes(BLOCK)] * 64))
    name = cache.namespace.name
    with KVCache.open(bed[1], name, block_size=BLOCK, fingerprint="model", timeout_s=0.5) as hasty:
        bed[0].kill("storage-1", signal.SIGSTOP)
        try:
            began_s = time.monotonic()
            lengths = hasty.get_batch(keys, buffers(64))
            assert time.monotonic() - began_s < 3
            assert lengths.count(BLOCK) > 10  # other nodes answer, for themselves and as other replicas
            hasty.exists_batch(keys)
            assert time.monotonic() - began_s < 4
        finally:
            bed[0].kill("storage-1", signal.SIGCONT)
            bed[0].wait_serving()


def test_a_client_takes_little_memory(cluster: LocalCluster) -> None:
    assert Worker(cluster, "memory").end() < 100 * MiB
