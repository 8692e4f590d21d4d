"""LMCache as its remote connector sees it: keys, memory objects with references, and who makes connectors."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engines.opening import Opened, playing
from fireflyfs.client.kvcache.layouts.memory import bytes_of

MODULE = "lmcache.v1.storage_backend.connector"
CHUNK, LAYERS, HIDDEN = 16, 3, 64
SHAPE = (2, LAYERS, CHUNK, HIDDEN)


class Memory:
    """LMCache's memory object: a reference is given back once."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.tensor = torch.zeros(shape, dtype=torch.bfloat16)
        self.nbytes = self.tensor.nbytes
        self.references = 1

    @property
    def byte_array(self) -> memoryview:
        assert self.references > 0
        return bytes_of(self.tensor)[: self.nbytes]

    def ref_count_down(self) -> None:
        self.references -= 1
        assert self.references >= 0


class Base:
    """What LMCache's base class works out for a connector."""

    def __init__(self, config: Any, metadata: Any) -> None:
        self.meta_shapes = [torch.Size(shape) for shape in metadata.shapes]
        self.meta_dtypes = [torch.bfloat16 for _ in metadata.shapes]
        self.meta_fmt = "KV_2LTD"
        self.full_chunk_size_bytes = sum(shape.numel() * 2 for shape in self.meta_shapes)
        self.single_token_size = self.full_chunk_size_bytes // metadata.chunk_size

    def reshape_partial_chunk(self, memory: Memory, nbytes: int) -> Memory:
        memory.nbytes = nbytes
        return memory


class Cpu:
    """LMCache's local backend: hands out memory until there is none."""

    def __init__(self) -> None:
        self.given: list[Memory] = []
        self.room = 1 << 30

    def allocate(self, shapes: Sequence[Any], dtypes: Any, fmt: str) -> Memory | None:
        if len(self.given) >= self.room:
            return None
        self.given.append(Memory(tuple(shapes[0])))
        return self.given[-1]

    def held(self) -> int:
        return sum(memory.references for memory in self.given)


class Host:
    """LMCache's modules with connectors for them."""

    def __init__(self, names: dict[str, Any], module: Any, opened: Opened) -> None:
        self.names, self.module, self.opened = names, module, opened
        self.cpu = Cpu()
        self.loop = asyncio.new_event_loop()

    @property
    def cache(self) -> Any:
        """What was opened last."""
        return self.opened.caches[-1]

    def end(self) -> None:
        for cache in self.opened.caches:
            cache.close()
        self.loop.close()

    def connector(self, url: str = "plugin://fireflyfs", layerwise: bool = False, **changes: Any) -> Any:
        prefix = "remote_storage_plugin.fireflyfs."
        named = {"module_path": "m", "class_name": "c", "mgmtd": self.opened.mgmtd, "ttl_s": 60}
        extra = {prefix + name: value for name, value in named.items()}
        config = SimpleNamespace(extra_config=extra, use_layerwise=layerwise)
        metadata = SimpleNamespace(**{"shapes": [SHAPE], "chunk_size": CHUNK} | changes)
        adapter = self.module.FireflyAdapter()
        assert adapter.can_parse(url)
        plugin = "fireflyfs" if url.startswith("plugin") else None
        return adapter.create_connector(
            SimpleNamespace(
                url=url,
                loop=self.loop,
                local_cpu_backend=self.cpu,
                config=config,
                metadata=metadata,
                plugin_name=plugin,
            )
        )

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(call)


def key(number: int) -> Any:
    return SimpleNamespace(to_string=lambda: f"model@1@0@{number:x}@bfloat16")


def chunk(number: int, tokens: int = CHUNK) -> Memory:
    memory = Memory((2, LAYERS, tokens, HIDDEN))
    memory.tensor.fill_(number)
    return memory


def running(monkeypatch: pytest.MonkeyPatch, mgmtd: str = "") -> AbstractContextManager[Host]:
    """See `opening.playing`."""
    return playing(Host, "lmcache", monkeypatch, mgmtd, RemoteConnector=Base)
