"""The KV cache on a disk that is really full: files never lack the room that blocks take."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.kvcache import KVCache
from fireflyfs.deploy.local import ClusterSpec, LocalCluster

pytestmark = pytest.mark.e2e

MiB = 1 << 20
IMAGE_BYTES = 512 * MiB
BLOCK = MiB
FILE_BYTES = 160 * MiB  # more than stays free beside blocks


@pytest.fixture
def small_cluster(
    tmp_path: Path, loop_mounts: Callable[[Path], Path], make_image: Callable[[Path, int], Path]
) -> Iterator[LocalCluster]:
    """One storage node with one target, all of it on a small file system."""
    local = LocalCluster(loop_mounts(make_image(tmp_path / "disk", IMAGE_BYTES)) / "cluster")
    local.create(ClusterSpec(storage_nodes=1, targets_per_worker=1, replicas=1))
    try:
        local.up()
        yield local
    finally:
        local.down()


def test_blocks_give_way_to_files(small_cluster: LocalCluster) -> None:
    keys = [b"block number %06d" % number for number in range(480)]
    data = os.urandom(BLOCK)
    with (
        FileSystem.connect(small_cluster.mgmtd_addresses()) as fs,
        KVCache.open(fs, "all", block_size=BLOCK, put_timeout_s=10) as cache,
    ):
        for start in range(0, len(keys), 20):
            assert all(cache.put_batch(keys[start : start + 20], [data] * 20)), cache.stats()
        full = cache.stats().servers
        assert full["evictions"] > 50
        assert full["blocks"] > 150
        content = os.urandom(MiB)
        with fs.open("/file", "wb", buffering=0) as file:
            for _ in range(FILE_BYTES // MiB):
                assert file.write(content) == MiB  # never ENOSPC
            file.flush()
        with fs.open("/file", "rb", buffering=0) as file:
            for _ in range(FILE_BYTES // MiB):
                assert file.read(MiB) == content
        after = cache.stats().servers
        assert 0 < after["blocks"] < full["blocks"]
        out = [bytearray(BLOCK) for _ in range(20)]
        there = [key for key, found in zip(keys, cache.exists_batch(keys), strict=True) if found][:20]
        assert cache.get_batch(there, out[: len(there)]) == [BLOCK] * len(there)
        assert all(bytes(each) == data for each in out[: len(there)])
        # Room that a removed file gives back is used again.
        fs.unlink("/file")
        end = time.monotonic() + 30
        while fs.context.storage.space()[0].chunks > cache.stats().servers["blocks"]:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert all(cache.put_batch(keys[:40], [data] * 40))
