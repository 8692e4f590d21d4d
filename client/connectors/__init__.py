"""What inference engines and data loaders load from FireflyFS: docs/engines.md.

Each module is imported by name and needs its host installed: `sglang`, `vllm`, `lmcache`. `records` needs nothing.
"""
