"""What inference engines load from FireflyFS, on a real cluster: pages, pipelines and the connectors for three hosts.

The hosts are played by `tests/engines`: their calls in their order, on their own memory layouts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines import lmcache_host, sglang_host, vllm_host
from fireflyfs.client.kvcache import KVCache
from fireflyfs.client.kvcache.device import PagePipeline
from fireflyfs.client.kvcache.hashes import sglang_page_hashes, vllm_block_hashes
from fireflyfs.client.kvcache.layouts import HostPages, flashmla_pages, layer_first
from fireflyfs.client.kvcache.page_saver import PageSaver
from fireflyfs.client.kvcache.torch_copies import TorchCopyEngine
from fireflyfs.common.errors import FfsError
from fireflyfs.deploy.local import LocalCluster

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def mgmtd(cluster: LocalCluster) -> str:
    return ",".join(cluster.mgmtd_addresses())


@pytest.fixture
def name() -> str:
    return f"engines-{os.urandom(4).hex()}"


@pytest.fixture
def sglang(monkeypatch: pytest.MonkeyPatch, mgmtd: str) -> Iterator[sglang_host.Host]:
    with sglang_host.running(monkeypatch, mgmtd) as host:
        yield host


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch, mgmtd: str) -> Iterator[vllm_host.Host]:
    with vllm_host.running(monkeypatch, mgmtd) as host:
        yield host


@pytest.fixture
def lmcache(monkeypatch: pytest.MonkeyPatch, mgmtd: str) -> Iterator[lmcache_host.Host]:
    with lmcache_host.running(monkeypatch, mgmtd) as host:
        yield host


def test_flashmla_pages_are_gathered_and_scattered_in_place(mgmtd: str, name: str) -> None:
    rng = np.random.default_rng(3)
    source = [rng.integers(0, 1 << 16, (4, 64, 1, 576), np.uint16) for _ in range(61)]
    target = [np.zeros_like(layer) for layer in source]
    page_map = flashmla_pages(source)
    keys = vllm_block_hashes(list(range(3 * 64)), 64)
    mark = page_map.fingerprint("deepseek")
    with KVCache.open(mgmtd, name, block_size=page_map.page_bytes, fingerprint=mark) as cache:
        assert cache.put_batch(keys, HostPages(page_map, source).blocks([0, 1, 3])) == [True] * 3
        assert cache.match_prefix([*keys, bytes(32)]) == 3
        pages = HostPages(page_map, target)
        assert cache.get_batch([keys[2], bytes(32), keys[0]], pages.blocks([1, 0, 2])) == [
            page_map.page_bytes, -1, page_map.page_bytes,
        ]  # fmt: skip
    for before, after in zip(source, target, strict=True):
        assert np.array_equal(after[1], before[3])
        assert np.array_equal(after[2], before[0])
        assert not after[3].any()
    fp8 = flashmla_pages([np.zeros((4, 64, 656), np.uint8)] * 61, fp8=True)
    with pytest.raises(FfsError, match="fingerprint"):
        KVCache.open(mgmtd, name, block_size=page_map.page_bytes, fingerprint=fp8.fingerprint("deepseek"))


def test_pages_of_a_device_through_staging(mgmtd: str, name: str) -> None:
    layers = [torch.randn(40, 16, 4, 64).to(torch.bfloat16) for _ in range(4)]
    restored = [torch.zeros_like(layer) for layer in layers]
    page_map = layer_first(layers)
    keys = [bytes.fromhex(digest) for digest in sglang_page_hashes(list(range(40 * 16)), 16)]
    with KVCache.open(mgmtd, name, block_size=page_map.page_bytes) as cache:
        saver = PageSaver(cache, TorchCopyEngine(page_map, layers, slots=2, slot_pages=8))
        assert saver.submit(keys[:24], range(24), wait_s=30) == 24
        saver.close()
        assert saver.counts == (24, 0, 0, 0)
        pipeline = PagePipeline(cache, TorchCopyEngine(page_map, layers, slots=2, slot_pages=8))
        assert pipeline.save(keys[24:], range(24, 40)) == [True] * 16
        cache.delete(keys[7:8])
        reached = cache.filesystem.allocate
        engine = TorchCopyEngine(page_map, restored, slots=3, slot_pages=5, allocate=reached)
        pages = list(range(39, -1, -1))
        assert PagePipeline(cache, engine).load(keys, pages) == [number != 7 for number in range(40)]
        engine.close()
    for before, after in zip(layers, restored, strict=True):
        expected = before.flip(0)
        expected[32] = 0
        assert torch.equal(after, expected)


@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
def test_sglang_engines_share_prefixes(sglang: sglang_host.Host, layout: str) -> None:
    pools = [sglang_host.HostPool(layout) for _ in range(2)]
    first, second = (sglang.backend(pool) for pool in pools)
    pools[0].kv_buffer.copy_(torch.randn(pools[0].kv_buffer.shape))
    hashes = sglang_page_hashes(list(range(5 * sglang_host.PAGE)), sglang_host.PAGE)
    assert first.batch_exists(hashes) == 0
    assert first.batch_set_v1(hashes[:4], pools[0].indices(1, 2, 3, 4)) == [True] * 4
    assert second.batch_exists(hashes) == 4
    assert second.batch_get_v1(hashes, pools[1].indices(4, 0, 3, 1, 2)) == [True] * 4 + [False]
    for page, other in ((1, 4), (2, 0), (3, 3), (4, 1)):
        assert torch.equal(pools[0].page(page), pools[1].page(other))


@pytest.mark.parametrize("load_async", [False, True])
def test_vllm_engines_share_prefixes(vllm: vllm_host.Host, load_async: bool) -> None:
    first, second = (vllm.engine(2, False, load_async=load_async) for _ in range(2))
    one = first.request("one", list(range(500, 518)))
    assert first.schedule(one) == (0, False)
    first.step((one, 0, 18))
    first.flush()
    two = second.request("two", [*one.tokens, 1, 2])
    assert second.schedule(two) == (16, load_async)
    second.step()
    while load_async and second.received != {"two"}:
        second.step()
    assert second.content(two, 16) == first.content(one, 16)
    assert not second.failed
    lost = second.request("three", [*one.tokens, 3])
    assert second.schedule(lost)[0] == 16
    second.scheduler.reset_cache()
    second.step()
    while load_async and "three" not in second.received:
        second.step()
    assert second.failed == set(lost.blocks[:4])


def test_lmcache_stores_and_finds_chunks(lmcache: lmcache_host.Host) -> None:
    connector = lmcache.connector()
    key, chunk = lmcache_host.key, lmcache_host.chunk
    lmcache.run(connector.batched_put([key(1), key(2), key(3)], [chunk(1), chunk(2), chunk(3, tokens=9)]))
    assert connector.batched_contains([key(1), key(2), key(3), key(4)]) == 3
    found = lmcache.run(connector.batched_get([key(2), key(4), key(3)]))
    assert found[1] is None
    assert bool((found[0].tensor == 2).all())
    assert bytes(found[2].byte_array) == bytes(chunk(3, tokens=9).byte_array)
    assert connector.remove_sync(key(1))
    assert not lmcache.run(connector.exists(key(1)))
    lmcache.run(connector.close())


def test_the_documented_examples(mgmtd: str) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "engines.md").read_text()
    names: dict[str, Any] = {"mgmtd": mgmtd}
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, "docs/engines.md", "exec"), names)
