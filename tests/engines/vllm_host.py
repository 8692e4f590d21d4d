"""vLLM as its connector sees it: a scheduler and workers in one process, called in the order in which vLLM calls."""

from __future__ import annotations

import pickle
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engines.opening import Opened, playing
from fireflyfs.client.kvcache.hashes import vllm_block_hashes

MODULE = "vllm.distributed.kv_transfer.kv_connector.v1.base"
BLOCK, BLOCKS, LAYERS = 4, 24, 3


class Base:
    """What of vLLM's base class a connector uses."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        self.role = role
        self._metadata: Any = None

    def bind_connector_metadata(self, metadata: Any) -> None:
        self._metadata = metadata

    def clear_connector_metadata(self) -> None:
        self._metadata = None

    def _get_connector_metadata(self) -> Any:
        assert self._metadata is not None
        return self._metadata


class Engine:
    """A scheduler and the workers of one vLLM: paged caches, block tables, steps. For a model: a step writes tokens."""

    def __init__(self, host: Host, ranks: int = 1, mla: bool = False, **extra: Any) -> None:
        self.host = host
        shape = (BLOCKS, BLOCK, 64) if mla else (2, BLOCKS, BLOCK, 2, 32)
        self.caches = [{f"layer{n}": torch.zeros(shape) for n in range(LAYERS)} for _ in range(ranks)]
        self.mla = mla
        self.scheduler = host.connector("SCHEDULER", ranks, 0, mla, extra)
        self.workers = [host.connector("WORKER", ranks, rank, mla, extra) for rank in range(ranks)]
        for worker, caches in zip(self.workers, self.caches, strict=True):
            worker.register_kv_caches(caches)
        self.scheduler.set_xfer_handshake_metadata(
            {rank: worker.get_handshake_metadata() for rank, worker in enumerate(self.workers)}
        )
        self.free = list(range(BLOCKS))
        self.new: list[Any] = []
        self.failed: set[int] = set()
        self._received: list[set[str]] = [set() for _ in range(ranks)]

    def request(self, name: str, tokens: list[int]) -> Any:
        hashes = vllm_block_hashes(tokens, BLOCK)
        return SimpleNamespace(request_id=name, num_tokens=len(tokens), block_hashes=hashes, tokens=tokens, blocks=[])

    def schedule(self, request: Any, computed: int = 0) -> tuple[int, bool]:
        """A request's first scheduling: match, make room, tell the connector. Tokens found, whether they come later."""
        found, later = self.scheduler.get_num_new_matched_tokens(request, computed)
        need = -(-request.num_tokens // BLOCK)
        request.blocks = [self.free.pop(0) for _ in range(need)]
        table = SimpleNamespace(get_block_ids=lambda: (request.blocks,))
        self.scheduler.update_state_after_alloc(request, table, found)
        return found, later

    def step(self, *parts: tuple[Any, int, int], new: bool = True) -> None:
        """One step of (request, computed, scheduled) each."""
        names = [request.request_id for request, _, _ in parts]
        news = [
            SimpleNamespace(req_id=request.request_id, block_ids=(request.blocks,), num_computed_tokens=computed)
            for request, computed, _ in parts
            if new
        ]
        cached = SimpleNamespace(
            req_ids=[] if new else names,
            resumed_req_ids=set(),
            new_block_ids=[] if new else [None] * len(parts),
            num_computed_tokens=[] if new else [computed for _, computed, _ in parts],
        )
        output = SimpleNamespace(
            scheduled_new_reqs=news,
            scheduled_cached_reqs=cached,
            num_scheduled_tokens={request.request_id: count for request, _, count in parts},
        )
        meta = pickle.loads(pickle.dumps(self.scheduler.build_connector_meta(output)))  # it goes to other processes
        for worker, caches, rank in zip(self.workers, self.caches, range(len(self.workers)), strict=True):
            worker.bind_connector_metadata(meta)
            worker.start_load_kv(None)
            for layer in caches:
                worker.wait_for_layer_load(layer)
            for request, computed, count in parts:
                self.compute(request, caches, rank, computed, count)
            for layer, tensor in caches.items():
                worker.save_kv_layer(layer, tensor, None)
            worker.wait_for_save()
            _, received = worker.get_finished(set())
            self._received[rank] |= received or set()
            self.failed |= worker.get_block_ids_with_load_errors()
            worker.clear_connector_metadata()

    @property
    def received(self) -> set[str]:
        """Requests whose blocks all workers have: vLLM waits for the last one."""
        return set.intersection(*self._received)

    def compute(self, request: Any, caches: dict[str, Any], rank: int, computed: int, count: int) -> None:
        for place in range(computed, computed + count):
            block, row = request.blocks[place // BLOCK], place % BLOCK
            for number, tensor in enumerate(caches.values()):
                value = request.tokens[place] + 1000 * number + (0 if self.mla else 100_000 * rank)
                (tensor[block, row] if self.mla else tensor[:, block, row])[:] = value

    def content(self, request: Any, tokens: int) -> list[Any]:
        """What the paged caches hold for a request's first tokens: each rank, each layer, each token one value."""
        found = []
        for caches in self.caches:
            for tensor in caches.values():
                for place in range(tokens):
                    block, row = request.blocks[place // BLOCK], place % BLOCK
                    values = tensor[block, row] if self.mla else tensor[:, block, row]
                    assert bool((values == values.flatten()[0]).all())
                    found.append(float(values.flatten()[0]))
        return found

    def finish(self, request: Any) -> None:
        assert self.scheduler.request_finished(request, request.blocks) == (False, None)
        self.free += request.blocks

    def flush(self) -> None:
        for worker in self.workers:
            if worker._saver is not None:
                assert worker._saver.flush(30)

    def shutdown(self) -> None:
        for part in (*self.workers, self.scheduler):
            part.shutdown()


class Host:
    """vLLM's modules with engines of it."""

    def __init__(self, names: dict[str, Any], module: Any, opened: Opened) -> None:
        self.names, self.module, self.opened = names, module, opened
        self.engines: list[Engine] = []

    def end(self) -> None:
        for engine in self.engines:
            engine.shutdown()

    def connector(self, role: str, ranks: int, rank: int, mla: bool, extra: dict[str, Any], **changes: Any) -> Any:
        parallel = {"tensor_parallel_size": ranks, "rank": rank, "pipeline_parallel_size": 1} | changes
        config = SimpleNamespace(
            kv_transfer_config=SimpleNamespace(
                kv_connector_extra_config={"fireflyfs": {"mgmtd": self.opened.mgmtd}} | extra
            ),
            parallel_config=SimpleNamespace(**parallel),
            model_config=SimpleNamespace(use_mla=mla, model="a/model"),
            cache_config=SimpleNamespace(block_size=BLOCK),
        )
        groups = changes.get("groups", [object()])
        pools = SimpleNamespace(num_blocks=BLOCKS, kv_cache_groups=groups, hash_block_size=None)
        return self.module.FireflyConnector(config, self.names["KVConnectorRole"][role], pools)

    def engine(self, *arguments: Any, **extra: Any) -> Engine:
        self.engines.append(Engine(self, *arguments, **extra))
        return self.engines[-1]


def running(monkeypatch: pytest.MonkeyPatch, mgmtd: str = "") -> AbstractContextManager[Host]:
    """See `opening.playing`."""
    return playing(Host, "vllm", monkeypatch, mgmtd, KVConnectorBase_V1=Base)
