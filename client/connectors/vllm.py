"""vLLM's KV cache on FireflyFS: a connector that is loaded by name.

    --kv-transfer-config '{"kv_connector": "FireflyConnector", "kv_role": "kv_both",
      "kv_connector_module_path": "fireflyfs.client.connectors.vllm",
      "kv_connector_extra_config": {"fireflyfs": {"mgmtd": "host:7700"}}}'

The scheduler's half looks prefixes up and says which blocks are loaded and saved (`vllm_plan`); each worker's half
moves its shard of them, through pinned memory. Blocks are saved in the background after the step that filled them; what
does not keep up is dropped. A block that was found and is gone when it is loaded is reported; with
"kv_load_failure_policy": "recompute" vLLM computes it. All ranks use one namespace: one capacity, and one round trip to
look a prefix up on all of them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
)

from fireflyfs.client.connectors.settings import SECTION, CacheSettings
from fireflyfs.client.connectors.vllm_plan import Scheduled, StepPlanner, Transfer
from fireflyfs.client.kvcache.api import Cache
from fireflyfs.client.kvcache.device import PagePipeline
from fireflyfs.client.kvcache.layouts import vllm_pages
from fireflyfs.client.kvcache.page_saver import PageSaver
from fireflyfs.client.kvcache.torch_copies import TorchCopyEngine
from fireflyfs.common.errors import Code, FfsError, error

log = logging.getLogger(__name__)

STAGING_BYTES = 256 << 20  # pinned, for loading and again for saving
STAGING_SLOTS = 3
SLOT_PAGES_MAX = 64
SAVE_WAIT_S = 0.2  # how long a step waits for a free slot before the rest of its blocks is not saved
OPTIONS = ("load_async", "save_wait_s", "staging_bytes")


@dataclass
class Step(KVConnectorMetadata):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """From the scheduler to the workers, each step."""

    loads: list[Transfer] = field(default_factory=list)
    saves: list[Transfer] = field(default_factory=list)


@dataclass
class Pages(KVConnectorHandshakeMetadata):  # type: ignore[misc]
    """From a worker to the scheduler, once: how the cache is to be opened."""

    block_bytes: int
    fingerprint: str


class FireflyConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """One object in the scheduler, one in each worker; `role` says which."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any = None) -> None:
        """Raises FfsError for settings that are wrong, and for models that are not supported."""
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        extra = dict(vllm_config.kv_transfer_config.kv_connector_extra_config or {})
        self._settings = CacheSettings.of(extra.pop(SECTION, None))
        if set(extra) - set(OPTIONS):
            raise error(Code.CONFIG, f"unknown options {sorted(set(extra) - set(OPTIONS))}; there are {OPTIONS}")
        self._load_async = bool(extra.get("load_async", False))
        self._save_wait_s = float(extra.get("save_wait_s", SAVE_WAIT_S))
        self._staging_bytes = int(extra.get("staging_bytes", STAGING_BYTES))
        parallel = vllm_config.parallel_config
        for name in ("pipeline_parallel_size", "decode_context_parallel_size", "prefill_context_parallel_size"):
            if getattr(parallel, name, 1) != 1:
                raise error(Code.NOT_SUPPORTED, f"{name} over 1: a block would lie on several workers")
        groups = getattr(kv_cache_config, "kv_cache_groups", ())
        if len(groups) != 1:
            raise error(Code.NOT_SUPPORTED, f"a model with {len(groups)} kinds of cache (hybrid) has no single block")
        # MLA: every rank holds all of it. One stores it, all load it.
        self._ranks = 1 if vllm_config.model_config.use_mla else parallel.tensor_parallel_size
        self._block_size: int = vllm_config.cache_config.block_size
        self._num_blocks: int = kv_cache_config.num_blocks
        self._model: str = vllm_config.model_config.model
        self._cache: Cache | None = None
        if role is KVConnectorRole.SCHEDULER:
            hash_size = getattr(kv_cache_config, "hash_block_size", None) or self._block_size
            self._planner = StepPlanner(self._block_size, hash_size)
            self._told = False
        else:
            self._rank: int = parallel.rank % parallel.tensor_parallel_size
            self._loading: dict[str, Future[None]] = {}
            self._failed: set[int] = set()  # blocks; grows no larger than the paged cache
            self._failing = threading.Lock()
            self._loader: ThreadPoolExecutor | None = None
            self._saver: PageSaver | None = None

    # Scheduler

    def set_xfer_handshake_metadata(self, metadata: dict[int, Any]) -> None:
        """What the workers found out about their pages. They agree, or they are no ranks of one model."""
        pages = {(page.block_bytes, page.fingerprint) for page in metadata.values()}
        if len(pages) != 1:
            raise error(Code.NOT_SUPPORTED, f"workers with {len(pages)} different layouts")
        self._open(*pages.pop())

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        names = self._planner.wanted(request.request_id, request.block_hashes, request.num_tokens, num_computed_tokens)
        if self._cache is None and not self._told:
            self._told = True
            log.warning("no worker has said how large a block is: nothing is looked up (vLLM before 0.11.2?)")
        if not names or self._cache is None:
            return 0, False
        try:
            found = self._cache.match_prefix([key for name in names for key in self._keys_of_ranks(name)])
        except FfsError:
            log.exception("a prefix could not be looked up")
            return 0, False
        tokens = found // self._ranks * self._block_size
        return tokens, self._load_async and tokens > 0

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        block_ids = blocks.get_block_ids()[0] if num_external_tokens > 0 else ()
        self._planner.allocated(request.request_id, request.block_hashes, block_ids, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> Step:
        counts = scheduler_output.num_scheduled_tokens
        scheduled = [
            Scheduled(new.req_id, new.block_ids[0], True, new.num_computed_tokens, counts.get(new.req_id, 0))
            for new in scheduler_output.scheduled_new_reqs
        ]
        cached = scheduler_output.scheduled_cached_reqs
        for request, blocks, computed in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            whole = request in cached.resumed_req_ids
            scheduled.append(Scheduled(request, blocks[0] if blocks else (), whole, computed, counts.get(request, 0)))
        return Step(*self._planner.step(scheduled))

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Blocks may go at once: what is being saved of them was read before any later step can write."""
        self._planner.finished(request.request_id)
        return False, None

    def reset_cache(self) -> bool | None:
        if self._cache is None:
            return False
        self._cache.clear()
        return True

    # Worker

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """The layers' tensors: from here on blocks can be moved."""
        page_map = vllm_pages(kv_caches, self._num_blocks)
        tensors = list(kv_caches.values())
        self._pages = Pages(page_map.page_bytes, page_map.fingerprint(self._model, tp_size=self._ranks))
        cache = self._open(self._pages.block_bytes, self._pages.fingerprint)
        slot_pages = self._staging_bytes // (STAGING_SLOTS * page_map.page_bytes)
        slot_pages = max(1, min(slot_pages, SLOT_PAGES_MAX))
        engines = [TorchCopyEngine(page_map, tensors, slots=STAGING_SLOTS, slot_pages=slot_pages) for _ in range(2)]
        self._pipeline = PagePipeline(cache, engines[0])
        if self._rank < self._ranks:
            self._saver = PageSaver(cache, engines[1])

    def get_handshake_metadata(self) -> Pages:
        return self._pages

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        loads = self._get_connector_metadata().loads
        if not self._load_async:
            self._load(loads)
            return
        if loads and self._loader is None:
            self._loader = ThreadPoolExecutor(1, "ffs-page-loader")
        for load in loads:
            assert self._loader is not None
            self._loading[load.request] = self._loader.submit(self._load, [load])

    def wait_for_layer_load(self, layer_name: str) -> None:
        """All layers of a block come together, before the step begins."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """All layers of a block go together, when the step is queued."""

    def wait_for_save(self) -> None:
        """Begins to read the step's new blocks, behind its kernels; storing them goes on in the background."""
        saves = self._get_connector_metadata().saves
        if self._saver is not None and saves:
            keys, blocks = self._keys_and_blocks(saves)
            self._saver.submit(keys, blocks, wait_s=self._save_wait_s)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        done = {request for request, future in self._loading.items() if future.done()}
        for request in done:
            self._loading.pop(request).result()
        return None, done or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        with self._failing:
            failed, self._failed = self._failed, set()
        return failed

    def shutdown(self) -> None:
        """What was handed over to be saved is stored first, for a bounded time."""
        loader = getattr(self, "_loader", None)
        if loader is not None:
            loader.shutdown(cancel_futures=True)
        for part in (getattr(self, "_saver", None), self._cache):
            if part is not None:
                part.close()

    def _load(self, loads: Sequence[Transfer]) -> None:
        """Fill blocks. Those that could not be are reported, never taken for filled."""
        if not loads:
            return
        keys, blocks = self._keys_and_blocks(loads)
        try:
            loaded = self._pipeline.load(keys, blocks)
        except Exception:
            log.exception("%d blocks could not be loaded", len(blocks))
            loaded = [False] * len(blocks)
        failed = {block for block, there in zip(blocks, loaded, strict=True) if not there}
        with self._failing:
            self._failed |= failed

    def _keys_and_blocks(self, transfers: Sequence[Transfer]) -> tuple[list[bytes], list[int]]:
        keys = [self._key(name, self._rank) for transfer in transfers for name in transfer.hashes]
        return keys, [block for transfer in transfers for block in transfer.blocks]

    # Both

    def _open(self, block_bytes: int, fingerprint: str) -> Cache:
        self._cache = self._settings.open("vllm", block_bytes, fingerprint)
        return self._cache

    def _keys_of_ranks(self, name: bytes) -> list[bytes]:
        return [self._key(name, rank) for rank in range(self._ranks)]

    def _key(self, name: bytes, rank: int) -> bytes:
        """A block's hash and whose shard it is."""
        return name + (rank if rank < self._ranks else 0).to_bytes(2, "big")
