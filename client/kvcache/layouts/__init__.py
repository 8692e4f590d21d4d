"""Where the pages of inference engines lie in their tensors: a page is a block of the KV cache without a copy."""

from fireflyfs.client.kvcache.layouts.engines import (
    FLASHMLA_FP8_TOKEN,
    flashmla_pages,
    layer_first,
    page_first,
    sglang_device_pages,
    sglang_host_pages,
    vllm_pages,
)
from fireflyfs.client.kvcache.layouts.pages import HostPages, PageMap, Run, map_pages

__all__ = [
    "FLASHMLA_FP8_TOKEN",
    "HostPages",
    "PageMap",
    "Run",
    "flashmla_pages",
    "layer_first",
    "map_pages",
    "page_first",
    "sglang_device_pages",
    "sglang_host_pages",
    "vllm_pages",
]
