"""SGLang as its storage backend sees it: host pools, and a controller's module with the backend loaded for it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

from engines.opening import Opened, playing

MODULE = "sglang.srt.mem_cache.hicache_storage"
PAGE, PAGES, LAYERS, HEADS, VALUES = 8, 6, 3, 2, 64


class HostPool:
    """As SGLang's MHA pool: pointers to the pieces of each page, in SGLang's order."""

    def __init__(self, layout: str = "page_first", heads: int = HEADS) -> None:
        self.layout, self.page_size, self.layer_num, self.head_num, self.head_dim = layout, PAGE, LAYERS, heads, VALUES
        self.dtype = torch.bfloat16
        axes = (LAYERS, PAGES * PAGE) if layout == "layer_first" else (PAGES * PAGE, LAYERS)
        shape = (2, *axes, heads, VALUES)
        self.kv_buffer = torch.zeros(shape, dtype=self.dtype)

    def get_page_buffer_meta(self, indices: torch.Tensor) -> tuple[list[int], list[int]]:
        base, token = self.kv_buffer.data_ptr(), self.head_num * self.head_dim * self.dtype.itemsize
        half = self.kv_buffer.nbytes // 2
        addresses = []
        if self.layout == "layer_first":
            for index in indices.tolist()[:: self.page_size]:
                for layer in range(LAYERS):
                    at = base + (layer * PAGES * PAGE + index) * token
                    addresses += [at, at + half]
            return addresses, [self.page_size * token] * len(addresses)
        for index in indices.tolist()[:: self.page_size]:
            addresses += [base + index * LAYERS * token, base + index * LAYERS * token + half]
        return addresses, [self.page_size * LAYERS * token] * len(addresses)

    def page(self, number: int) -> torch.Tensor:
        rows = slice(number * PAGE, (number + 1) * PAGE)
        return self.kv_buffer[:, :, rows] if self.layout == "layer_first" else self.kv_buffer[:, rows]

    def indices(self, *pages: int) -> torch.Tensor:
        return torch.cat([torch.arange(page * PAGE, (page + 1) * PAGE) for page in pages])


class Host:
    """SGLang's module with backends for it."""

    def __init__(self, names: dict[str, Any], module: Any, opened: Opened) -> None:
        self.names, self.module, self.opened = names, module, opened
        self.made: list[Any] = []

    def end(self) -> None:
        for backend in self.made:
            backend.close()

    def config(self, **changes: Any) -> Any:
        values: dict[str, Any] = {
            "tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1, "attn_cp_rank": 0, "attn_cp_size": 1,
            "is_mla_model": False, "enable_storage_metrics": False, "is_page_first_layout": True, "model_name": "m",
            "dcp_size": 1, "dcp_rank": 0,
            "extra_config": {"interface_v1": 1, "fireflyfs": {"mgmtd": self.opened.mgmtd}},
        }  # fmt: skip
        return self.names["HiCacheStorageConfig"](**values | changes)

    def backend(self, pool: Any = None, **changes: Any) -> Any:
        backend = self.module.FireflyHiCache(self.config(**changes), {})
        backend.register_mem_pool_host(pool or HostPool())
        backend.on_host_pools_registered()
        self.made.append(backend)
        return backend


def running(monkeypatch: pytest.MonkeyPatch, mgmtd: str = "") -> AbstractContextManager[Host]:
    """See `opening.playing`."""
    return playing(Host, "sglang", monkeypatch, mgmtd)
