"""When what was removed is collected: not while more is being removed, but not much later either."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fireflyfs.meta.background import garbage

CHUNK = 1 << 20


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "PAUSE_S", 0.05)
    monkeypatch.setattr(garbage, "PAUSES_S", 3600.0)


def remove_many(meta: Any, pause_s: float, count: int) -> list[int]:
    """Files are removed with a pause after each; how many had been collected then."""
    for number in range(count):
        inode = meta.create(b"f%d" % number, session=b"s" * 16)
        meta.storage.chunks[inode.id, 0] = CHUNK
        meta.close(inode.id, b"s" * 16, CHUNK)

    async def scenario() -> list[int]:
        job = asyncio.ensure_future(meta.collector.run())
        await asyncio.sleep(0)  # it has found nothing to do
        collected = []
        for number in range(count):
            meta.remove(b"f%d" % number)
            await asyncio.sleep(pause_s)
            collected.append(count - len(meta.storage.chunks))
        while meta.records(b"G"):
            await asyncio.sleep(0.001)
        job.cancel()
        await asyncio.wait([job])
        return collected

    collected: list[int] = meta.wait(scenario())
    assert not meta.storage.chunks
    return collected


def test_removals_go_first_while_they_come(meta: Any) -> None:
    assert remove_many(meta, 0.0, 20) == [0] * 20


def test_but_not_for_longer_than_they_may(meta: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "PAUSES_S", 0.0)
    assert remove_many(meta, 0.02, 20)[-1] > 0
