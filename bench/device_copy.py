"""From the KV cache to a GPU and back: pages of a paged cache through pinned staging memory, beside the plain copies.

    python bench/device_copy.py [--layout flashmla|flashmla-fp8|gqa] [--pages 128] [--slots 3] [--slot-pages 8]
                                [--source memory|cluster] [--mgmtd HOST:PORT,...] [--device cuda] [--seconds 3] [--json]

`--source memory` (the default): blocks come from a dict in this process, so that the staging itself is measured; it
needs torch and numpy alone. `--source cluster` starts a cluster of its own, unless --mgmtd names one. The limits are
measured in the same run: one pinned copy after the other, and the cache's get and put without a device. Every page is
compared. On a machine without a GPU `--device cpu` shows that it runs, and no speed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

SOURCES = Path(__file__).resolve().parents[1] / "src"
GIB = 1 << 30


def imported() -> Any:
    """The pipeline's modules. Where the client's requirements are missing, without the package that would load them."""
    if importlib.util.find_spec("fireflyfs") is None:
        sys.path.insert(0, str(SOURCES))
    if importlib.util.find_spec("grpc") is None:
        # `common.errors` names gRPC's codes, which nothing here sends.
        codes = types.ModuleType("grpc")
        codes.StatusCode = type("StatusCode", (type,), {"__getattr__": lambda _, name: name})("StatusCode", (), {})  # type: ignore[attr-defined]
        sys.modules["grpc"] = codes
        package = types.ModuleType("fireflyfs.client.kvcache")
        package.__path__ = [str(SOURCES / "fireflyfs" / "client" / "kvcache")]
        import fireflyfs.client

        sys.modules[package.__name__] = package
        fireflyfs.client.kvcache = package  # type: ignore[attr-defined]
    from fireflyfs.client.kvcache import device, layouts, torch_copies

    return types.SimpleNamespace(
        layouts=layouts, PagePipeline=device.PagePipeline, TorchCopyEngine=torch_copies.TorchCopyEngine
    )


class HostBlocks:
    """A cache in this process's memory: a get is one copy, as it is from a server on the same host at best."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, torch.Tensor] = {}

    def put_batch(self, keys: Sequence[bytes], blocks: Sequence[Any]) -> list[bool]:
        for key, block in zip(keys, blocks, strict=True):
            self._blocks.setdefault(key, torch.empty(len(block), dtype=torch.uint8)).copy_(
                torch.frombuffer(block, dtype=torch.uint8)
            )
        return [True] * len(keys)

    def get_batch(self, keys: Sequence[bytes], out: Sequence[Any]) -> list[int]:
        for key, into in zip(keys, out, strict=True):
            torch.frombuffer(into, dtype=torch.uint8).copy_(self._blocks[key])
        return [len(into) for into in out]


@contextlib.contextmanager
def source_of(arguments: argparse.Namespace, page_bytes: int) -> Iterator[Any]:
    if arguments.source == "memory":
        yield HostBlocks()
        return
    from fireflyfs.client.kvcache import KVCache
    from fireflyfs.deploy.local import LocalCluster

    with contextlib.ExitStack() as stack:
        mgmtd = arguments.mgmtd
        if not mgmtd:
            root = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="ffs-bench-", ignore_cleanup_errors=True))
            )
            cluster = LocalCluster(root)
            cluster.create()
            stack.callback(cluster.down)
            cluster.up()
            mgmtd = ",".join(cluster.mgmtd_addresses())
        name = f"bench-{time.time_ns()}"
        cache = stack.enter_context(KVCache.open(mgmtd, name, block_size=page_bytes, timeout_s=30, put_timeout_s=30))
        stack.callback(cache.clear)
        yield cache


def tensors_of(layout: str, pages: int, device: str) -> list[torch.Tensor]:
    """Random bytes in the shape of a model's cache."""
    shapes = {
        "flashmla": ((pages, 64, 1, 576), torch.bfloat16, 61),  # DeepSeek-V3
        "flashmla-fp8": ((pages, 64, 1, 656), torch.uint8, 61),
        "gqa": ((2, pages, 16, 8, 128), torch.bfloat16, 80),  # Llama-70B on one GPU of eight has 1 head: this is all 8
    }
    shape, dtype, layers = shapes[layout]
    made = []
    for _ in range(layers):
        raw = torch.randint(0, 255, (*shape[:-1], shape[-1] * dtype.itemsize), dtype=torch.uint8, device=device)
        made.append(raw.view(dtype))
    return made


def rate(work: Callable[[], None], nbytes: int, seconds: float, settle: Callable[[], None]) -> float:
    """GiB a second: the median of at least three rounds, after one to warm up."""
    work()
    settle()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        began = time.perf_counter()
        work()
        settle()
        times.append(time.perf_counter() - began)
    return nbytes / statistics.median(times) / GIB


def pages_are_right(
    pipeline: Any,
    engine: Any,
    keys: Sequence[bytes],
    before: Sequence[torch.Tensor],
    tensors: Sequence[torch.Tensor],
    axis: int,
) -> bool:
    """Blocks come back to other pages than they came from, and copies keep their order with work on the device."""

    def equal(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> bool:
        return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(left, right, strict=True))

    count = len(keys)
    for tensor in tensors:
        tensor.zero_()
    assert all(pipeline.load(keys, list(range(count - 1, -1, -1)))), "a miss"
    right = equal([tensor.flip(axis) for tensor in before], tensors)
    # What is queued before a save is seen by it; what is queued after it is not.
    part = list(range(min(engine.slot_pages, count)))
    for tensor, original in zip(tensors, before, strict=True):
        tensor.copy_(original)
    event = engine.save(0, part)
    for tensor in tensors:
        tensor.zero_()
    event.wait()
    saved = [bytes(getattr(row, "view", row)) for row in engine.rows(0)[: len(part)]]
    # What is queued before a load is over when it writes.
    engine.load(0, part, part).wait()
    again = engine.save(0, part)
    again.wait()
    read = [bytes(getattr(row, "view", row)) for row in engine.rows(0)[: len(part)]]
    right = right and saved == read and any(saved[0])
    for tensor, original in zip(tensors, before, strict=True):
        right = right and torch.equal(
            tensor.narrow(axis, 0, len(part)).contiguous().view(torch.uint8),
            original.narrow(axis, 0, len(part)).contiguous().view(torch.uint8),
        )
        tensor.copy_(original)
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=["flashmla", "flashmla-fp8", "gqa"], default="flashmla")
    parser.add_argument("--pages", type=int, default=128)
    parser.add_argument("--slots", type=int, default=3)
    parser.add_argument("--slot-pages", type=int, default=8)
    parser.add_argument("--source", choices=["memory", "cluster"], default="memory")
    parser.add_argument("--mgmtd", default="")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU here: --device cpu shows that it runs")
    modules = imported()
    layouts = modules.layouts
    pages = arguments.pages
    tensors = tensors_of(arguments.layout, pages, arguments.device)
    if arguments.layout == "gqa":
        page_map = layouts.vllm_pages({f"layer{n}": tensor for n, tensor in enumerate(tensors)}, pages)
    else:
        page_map = layouts.flashmla_pages(tensors, fp8=arguments.layout == "flashmla-fp8")
    size = page_map.page_bytes
    total = pages * size
    cuda = arguments.device == "cuda"
    settle: Callable[[], None] = torch.cuda.synchronize if cuda else lambda: None
    slot_bytes = arguments.slot_pages * size
    host = torch.empty(slot_bytes, dtype=torch.uint8, pin_memory=cuda)
    place = torch.empty(slot_bytes, dtype=torch.uint8, device=arguments.device)
    copies = -(-total // slot_bytes)
    keys = [b"page-%08d" % number for number in range(pages)]
    numbers = list(range(pages))

    def plain(into: torch.Tensor, source: torch.Tensor) -> Callable[[], None]:
        def work() -> None:
            for _ in range(copies):
                into.copy_(source, non_blocking=True)

        return work

    rows: list[tuple[str, float, str]] = []

    def row(name: str, work: Callable[[], None], nbytes: int = total, limits: Sequence[str] = ()) -> None:
        value = rate(work, nbytes, arguments.seconds, settle)
        limit = min((found for known, found, _ in rows if known in limits), default=0.0)
        rows.append((name, value, f"{value / limit:.2f} x the slower of {', '.join(limits)}" if limit else ""))

    row("pinned copy to the device", plain(place, host), copies * slot_bytes)
    row("pinned copy from the device", plain(host, place), copies * slot_bytes)
    with source_of(arguments, size) as cache:
        allocate = cache.filesystem.allocate if arguments.source == "cluster" else None
        engine = modules.TorchCopyEngine(
            page_map, tensors, slots=arguments.slots, slot_pages=arguments.slot_pages, allocate=allocate
        )
        pipeline = modules.PagePipeline(cache, engine)
        assert all(pipeline.save(keys, numbers)), "the cache refused blocks"
        before = [tensor.clone() for tensor in tensors]
        staged = engine.rows(0)
        step = arguments.slot_pages

        def get_alone() -> None:
            for at in range(0, pages, step):
                part = keys[at : at + step]
                assert min(cache.get_batch(part, staged[: len(part)])) == size, "a miss"

        def put_alone() -> None:
            for at in range(0, pages, step):
                part = keys[at : at + step]
                cache.put_batch(part, staged[: len(part)])

        def load() -> None:
            assert all(pipeline.load(keys, numbers)), "a miss"

        def save() -> None:
            assert all(pipeline.save(keys, numbers)), "a block was refused"

        row("get alone, into pinned memory", get_alone)
        row("get to the device's pages", load, limits=["pinned copy to the device", "get alone, into pinned memory"])
        same = pages_are_right(pipeline, engine, keys, before, tensors, 1 if arguments.layout == "gqa" else 0)
        row("put alone, from pinned memory", put_alone)
        row(
            "put from the device's pages", save, limits=["pinned copy from the device", "put alone, from pinned memory"]
        )
    name = torch.cuda.get_device_name() if cuda else "cpu"
    if arguments.json:
        figures = {row: value for row, value, _ in rows}
        print(
            json.dumps({"device": name, "layout": arguments.layout, "page_bytes": size, "GiB/s": figures, "same": same})
        )
    else:
        print(f"{name}, {arguments.layout}: {pages} pages of {size:,} bytes in {len(page_map.runs)} ranges")
        for row_name, value, note in rows:
            print(f"{row_name:34s} {value:8.2f} GiB/s  {note}")
        print("every page as it was" if same else "PAGES DIFFER")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
