"""What connectors open in tests: caches in a dict, or those of a real cluster."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from engines.interfaces import stand_in
from engines.memory_cache import MemoryCache
from fireflyfs.client.connectors.settings import CacheSettings
from fireflyfs.client.kvcache.api import Cache

OPEN = "fireflyfs.client.connectors.settings.CacheSettings.open"


class Opened:
    """Caches that connectors opened: with which settings, block size and fingerprint.

    With `mgmtd` they are real ones, of namespaces of this object's own; else they share one dict.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, mgmtd: str = "") -> None:
        self.mgmtd = mgmtd or "h:1"
        self.blocks: dict[bytes, bytes] = {}
        self.calls: list[tuple[CacheSettings, str, int, str]] = []
        self.caches: list[Any] = []
        real = CacheSettings.open
        name = os.urandom(4).hex()

        def opened(settings: CacheSettings, host: str, block_size: int, fingerprint: str) -> Cache:
            self.calls.append((settings, host, block_size, fingerprint))
            if mgmtd:
                cache: Any = real(settings, f"{host}-{name}", block_size, fingerprint)
            else:
                cache = MemoryCache(self.blocks, block_size)
            self.caches.append(cache)
            return cache

        monkeypatch.setattr(OPEN, opened)

    @property
    def fingerprints(self) -> list[str]:
        return [fingerprint for _, _, _, fingerprint in self.calls]


@contextmanager
def playing(
    host: Callable[[dict[str, Any], Any, Opened], Any],
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    mgmtd: str,
    **classes: type,
) -> Iterator[Any]:
    """Within: `package` can be imported, as recorded but for real `classes`, and our connector with it."""
    with stand_in(package, **classes) as names:
        played = host(
            names, importlib.import_module(f"fireflyfs.client.connectors.{package}"), Opened(monkeypatch, mgmtd)
        )
        try:
            yield played
        finally:
            played.end()
