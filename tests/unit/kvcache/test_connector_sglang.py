"""The storage backend for SGLang's hierarchical cache, called as SGLang's controller calls it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engines.interfaces import differences, recorded
from engines.sglang_host import HEADS, LAYERS, MODULE, PAGE, PAGES, VALUES, Host, HostPool, running
from fireflyfs.client.connectors.settings import digest_of
from fireflyfs.client.kvcache.layouts import HostPages, sglang_host_pages
from fireflyfs.common.errors import Code, FfsError


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with running(monkeypatch) as host:
        yield host


def hashes(count: int, salt: int = 0) -> list[str]:
    return [f"{salt * 1000 + number:064x}" for number in range(count)]


def test_it_is_what_sglang_calls(host: Host) -> None:
    assert differences(host.module.FireflyHiCache, recorded("sglang")[MODULE]["HiCacheStorage"]) == []
    assert issubclass(host.module.FireflyHiCache, host.names["HiCacheStorage"])


@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
def test_pages_go_out_and_come_back_without_a_copy(host: Host, layout: str) -> None:
    pool = HostPool(layout)
    backend = host.backend(pool)
    for number in range(PAGES):
        pool.page(number).fill_(number + 1)
    names = hashes(3)
    assert backend.batch_exists(names) == 0
    assert backend.batch_set_v1(names, pool.indices(1, 2, 4)) == [True] * 3
    assert backend.batch_exists([*names, *hashes(1, salt=9)]) == 3
    pool.kv_buffer.zero_()
    assert backend.batch_get_v1([*names, *hashes(1, salt=9)], pool.indices(0, 5, 3, 2)) == [True, True, True, False]
    for number, value in ((0, 2), (5, 3), (3, 5)):
        assert bool((pool.page(number) == value).all())
    for number in (1, 2, 4):
        assert not pool.page(number).any()
    assert [call[1:3] for call in host.opened.calls] == [("sglang", pool.kv_buffer.nbytes // PAGES)]


def test_a_page_is_the_one_that_the_layout_describes(host: Host) -> None:
    pool = HostPool()
    pool.kv_buffer.copy_(torch.randn(pool.kv_buffer.shape))
    host.backend(pool).batch_set_v1(hashes(1), pool.indices(3))
    page_map = sglang_host_pages(pool.kv_buffer, "page_first", PAGE)
    assert list(host.opened.blocks.values()) == [b"".join(HostPages(page_map, [pool.kv_buffer]).slices(3))]


def test_what_is_there_is_not_sent_again(host: Host) -> None:
    pool = HostPool()
    backend = host.backend(pool)
    backend.batch_set_v1(hashes(2), pool.indices(0, 1))
    assert backend.batch_set_v1(hashes(4), pool.indices(0, 1, 2, 3)) == [True] * 4
    assert [call for call in host.opened.caches[0].calls if call[0] == "put"] == [("put", 2), ("put", 2)]
    cache = host.opened.caches[0]
    more = hashes(6)
    cache.refuse = set(backend._keys(more[5:]))
    assert backend.batch_set_v1(more, pool.indices(*range(6))) == [True] * 5 + [False]


def test_the_older_interface_moves_tensors(host: Host) -> None:
    backend = host.backend()
    values = 2 * PAGE * LAYERS * HEADS * VALUES
    pages = [torch.full((values,), float(number)).to(torch.bfloat16) for number in range(3)]
    assert backend.batch_set(hashes(3), pages)
    assert backend.set(hashes(4)[3], pages[1].reshape(2, -1).t())
    assert [backend.exists(name) for name in hashes(5)] == [True, True, True, True, False]
    targets = [torch.zeros_like(page) for page in pages]
    found = backend.batch_get([hashes(3)[2], hashes(9)[8], hashes(3)[0]], targets)
    assert found[1] is None
    assert torch.equal(found[0], pages[2])
    assert torch.equal(targets[2], pages[0])
    assert backend.get(hashes(9)[8], targets[0]) is None
    assert backend.batch_get([], []) == []
    with pytest.raises(TypeError, match="contiguous"):
        backend.get(hashes(1)[0], torch.zeros(4, 4).t())
    backend.clear()
    assert host.opened.blocks == {}


def test_ranks_keep_apart_and_mla_ranks_share(host: Host) -> None:
    pools = [HostPool() for _ in range(2)]
    ranks = [host.backend(pools[rank], tp_rank=rank, tp_size=2) for rank in range(2)]
    ranks[0].batch_set_v1(hashes(1), pools[0].indices(0))
    assert [rank.batch_exists(hashes(1)) for rank in ranks] == [1, 0]
    host.opened.blocks.clear()
    shared = [host.backend(pools[rank], tp_rank=rank, tp_size=2, is_mla_model=True) for rank in range(2)]
    shared[0].batch_set_v1(hashes(1), pools[0].indices(0))
    assert [rank.batch_exists(hashes(1)) for rank in shared] == [1, 1]
    assert [key[:32].hex() for key in host.opened.blocks] == hashes(1)


def test_the_fingerprint_tells_models_layouts_and_shards_apart(host: Host) -> None:
    host.backend()
    host.backend(tp_rank=1, tp_size=2)
    host.backend(tp_rank=0, tp_size=2)
    host.backend(model_name="other")
    host.backend(HostPool("layer_first"))
    host.backend(HostPool(heads=4))
    prints = host.opened.fingerprints
    assert prints[1] == prints[2], "ranks of one engine use one namespace"
    assert len(set(prints)) == len(prints) - 1


def transfer(host: Host, name: str, policy: str, keys: list[str] | None = None, indices: Any = None) -> Any:
    kind = host.names["PoolTransfer"](name=host.names["PoolName"][name], host_indices=indices, keys=keys)
    kind.hit_policy = host.names["PoolHitPolicy"][policy]
    return kind


def test_models_of_several_pools(host: Host) -> None:
    pool, state, indexer = HostPool(), HostPool(heads=1), HostPool(heads=1)
    backend = host.module.FireflyHiCache(host.config(), {})
    backend.register_mem_pool_host(pool)
    backend.register_mem_host_pool_v2(state, host.names["PoolName"].MAMBA)
    backend.register_mem_host_pool_v2(indexer, host.names["PoolName"].INDEXER)
    backend.on_host_pools_registered()
    assert host.opened.calls[0][2] == pool.kv_buffer.nbytes // PAGES, "the largest page"
    names = hashes(5)
    backend.batch_set_v1(names, pool.indices(0, 1, 2, 3, 4))
    state.page(1).fill_(7)
    stored = backend.batch_set_v2(
        [
            transfer(host, "MAMBA", "TRAILING_PAGES", [names[2]], state.indices(1)),
            transfer(host, "INDEXER", "ALL_PAGES", names[:4], indexer.indices(0, 1, 2, 3)),
        ]
    )
    assert stored == {host.names["PoolName"].MAMBA: [True], host.names["PoolName"].INDEXER: [True] * 4}
    asked = [transfer(host, "MAMBA", "TRAILING_PAGES", names[:1]), transfer(host, "INDEXER", "ALL_PAGES")]
    found = backend.batch_exists_v2(names, asked)
    assert (found.kv_hit_pages, found.restorable_prefix_pages) == (3, [3])
    assert found.extra_pool_hit_pages == {"kv": 5, "mamba": 3, "indexer": 4}
    assert backend.batch_exists_v2(names, asked[1:]).kv_hit_pages == 4
    assert backend.batch_exists_v2(hashes(2, salt=5), asked).kv_hit_pages == 0
    got = backend.batch_get_v2([transfer(host, "MAMBA", "TRAILING_PAGES", [names[2]], state.indices(4))])
    assert list(got.values()) == [[True]]
    assert bool((state.page(4) == 7).all())
    with pytest.raises(ValueError, match="block_groups is not supported"):
        backend.batch_exists_v2(names, [transfer(host, "MAMBA", "BLOCK_GROUPS")])
    with pytest.raises(FfsError, match="pool swa was not registered"):
        backend.batch_get_v2([transfer(host, "SWA", "ALL_PAGES", names[:1], state.indices(0))])
    with pytest.raises(FfsError, match="opened for") as late:
        backend.register_mem_host_pool_v2(HostPool(heads=8), host.names["PoolName"].DRAFT)
    assert late.value.code == Code.TOO_LARGE


def test_pools_that_only_hand_out_numbers_have_no_pages(host: Host) -> None:
    backend = host.module.FireflyHiCache(host.config())
    backend.register_mem_pool_host(HostPool())
    backend.register_mem_host_pool_v2(SimpleNamespace(page_size=4, get_page_buffer_meta=lambda _: None), "anchor")
    backend.on_host_pools_registered()
    assert len(host.opened.calls) == 1


def test_a_closed_backend_and_wrong_settings(host: Host) -> None:
    backend = host.backend()
    backend.close()
    assert host.opened.caches[0].closed
    with pytest.raises(FfsError, match="closed"):
        backend.batch_exists(hashes(1))
    with pytest.raises(FfsError, match='no table "fireflyfs"'):
        host.module.FireflyHiCache(host.config(extra_config={"interface_v1": 1}), {})
    with pytest.raises(FfsError, match="no host pool"):
        host.module.FireflyHiCache(host.config(), {}).batch_exists(hashes(1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "no table"), ({}, "mgmtd is missing"), ({"mgmtd": "h:1", "ttl": 3}, "unknown setting fireflyfs.ttl;"),
        ({"mgmtd": "h:1", "ttl_s": "soon"}, "not a float"), ({"mgmtd": "h:1", "replication": 0}, "at least 1"),
        ({"mgmtd": "h:1", "capacity_bytes": -1}, "at least 0"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(host: Host, given: Any, message: str) -> None:
    with pytest.raises(FfsError, match=message) as wrong:
        host.module.CacheSettings.of(given)
    assert wrong.value.code == Code.CONFIG


def test_settings_of_a_url(host: Host) -> None:
    settings = host.module.CacheSettings.of_url("fireflyfs://a:1,b:2/team%20a?replication=2&ttl_s=3.5")
    assert (settings.mgmtd, settings.namespace, settings.replication, settings.ttl_s) == ("a:1,b:2", "team a", 2, 3.5)
    for wrong in ("redis://a:1/x", "fireflyfs:///x", "fireflyfs://a:1/x?ttl=1"):
        with pytest.raises(FfsError):
            host.module.CacheSettings.of_url(wrong)


def test_pages_that_are_no_blocks_are_refused_at_the_start(host: Host) -> None:
    backend = host.module.FireflyHiCache(host.config())
    for heads in (1, 3000):
        pool = HostPool(heads=heads)
        pool.page_size = 1 if heads == 1 else PAGE
        with pytest.raises(FfsError, match="change --page-size"):
            backend.register_mem_pool_host(pool)


def test_names_that_differ_have_digests_that_differ() -> None:
    plain = "ab" * 32
    names = [plain, plain.upper(), "ab " + "ab" * 30 + "a", plain[:-1], "page of a draft model"]
    digests = [digest_of(name) for name in names]
    assert digests[0] == bytes.fromhex(plain)
    assert len(set(digests)) == len(names)
    assert {len(digest) for digest in digests} == {32}
