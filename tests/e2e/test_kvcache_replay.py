"""Requests of a chat service, replayed on the KV cache by several processes: in peace, and while servers die."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.kvcache import MISS, KVCache, Namespaces
from fireflyfs.deploy.local import LocalCluster
from kvload.processes import BLOCK, PATIENT, Worker, block_of, buffers, trace_of

pytestmark = pytest.mark.e2e


def test_a_trace_replayed_by_several_processes(cluster: LocalCluster) -> None:
    workers = [Worker(cluster, "replay", "t-trace", seed) for seed in range(3)]
    for worker in workers:
        wanted, hits, expected = worker.end()
        # Nothing was evicted: at least what this process itself put before, and prompts that others put first.
        assert wanted > hits >= expected > wanted // 3
    with FileSystem.connect(cluster.mgmtd_addresses()) as fs, KVCache.open(fs, "t-trace", block_size=BLOCK) as cache:
        stats = cache.stats().servers
        assert stats["evictions"] == stats["damaged"] == 0
        assert stats["blocks"] == len(
            {block for seed in range(3) for request in trace_of(seed, 120) for block in request}
        )
        Namespaces(fs).remove("t-trace")


def test_replays_go_on_while_storage_dies_and_hangs(cluster_factory: Callable[..., Any]) -> None:
    """Never a wrong block; and whatever a put said is stored is there in the end, for no two replicas were lost."""
    cluster: LocalCluster = cluster_factory(replicas=2)
    with FileSystem.connect(cluster.mgmtd_addresses()) as fs, KVCache.open(fs, "replay", block_size=BLOCK) as opened:
        workers = [Worker(cluster, "replay_through_faults", "replay", seed) for seed in (1, 2, 3)]
        assert [worker.answer() for worker in workers] == ["ready"] * 3
        time.sleep(1.5)
        cluster.kill("storage-1")
        time.sleep(1.0)
        cluster.restart("storage-1")
        cluster.wait_serving()
        cluster.kill("storage-2", signal.SIGSTOP)
        time.sleep(1.5)
        cluster.kill("storage-2", signal.SIGCONT)
        cluster.wait_serving()
        stored: set[bytes] = set()
        for worker in workers:
            wanted, hits, refused, keys = worker.end()
            # No share of hits is asked for: while a node is away its keys are misses at once, and requests go faster.
            assert wanted - refused >= hits > 200
            stored.update(map(bytes.fromhex, keys))
        opened.close()
        with KVCache.open(fs, "replay", block_size=BLOCK, **PATIENT) as cache:
            names = sorted(stored)
            assert len(names) > 300
            for start in range(0, len(names), 256):
                part = names[start : start + 256]
                out = buffers(len(part))
                lengths = cache.get_batch(part, out)
                assert MISS not in lengths
                for key, length, data in zip(part, lengths, out, strict=True):
                    assert bytes(data[:length]) == block_of(key, length)
            assert cache.stats().servers["evictions"] == 0
