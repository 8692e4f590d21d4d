"""Passes of the scrubber, and the chunks that are suspected between them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.proto import storage_pb2
from fireflyfs.storage.background import scrub as scrubbing
from fireflyfs.storage.core.scrub import Missing, Outcome, Progress, Suspects, pieces
from fireflyfs.storage.engine.interface import ChunkKey
from rot.replicas import DATA, MakeCluster, MakeItem, run, scrubber, writer


def test_a_pass_finds_and_mends_and_counts(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        count = 600  # more than a page
        for start in range(0, count, 100):
            items = [write_item(index, b"x" * (index + 1)) for index in range(start, start + 100)]
            await cluster.update(10, items, writer(start + 1))
        tail = cluster.servers[20]
        for index in (0, 255, 256, 599):
            tail.engine.rot(ChunkKey(7, index))
        cluster.servers[10].engine.rot(ChunkKey(7, 599))
        await scrubber(cluster, 20).once()
        progress = tail.target.scrub
        assert (progress.chunks, progress.total, progress.bytes) == (count, count, count * (count + 1) // 2)
        assert (progress.damaged, progress.repaired, progress.lost) == (4, 3, 1)
        assert (progress.passes, progress.running, progress.after) == (1, False, None)
        report = tail.target.report().scrub
        assert (report.repaired_chunks, report.damaged_chunks, report.done_chunks) == (3, 1, count)
        assert report.ended_unix_ns > 0
        await scrubber(cluster, 20).once()
        assert (tail.target.scrub.damaged, tail.target.scrub.lost, tail.target.scrub.passes) == (1, 1, 2)
        cluster.close()

    run(scenario)


def test_a_pass_goes_on_where_it_was_cut_off(
    make_cluster: MakeCluster, write_item: MakeItem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrubbing, "KEEP_EVERY_S", 0.0)

    async def scenario() -> None:
        cluster = make_cluster(1)
        server = cluster.servers[10]
        server.target.path = tmp_path
        for start in range(0, 400, 100):
            await cluster.update(
                10, [write_item(index, b"x") for index in range(start, start + 100)], writer(start + 1)
            )
        looked: list[ChunkKey] = []
        verify = server.engine.verify

        def slow(key: ChunkKey) -> int:
            looked.append(key)
            size: int = verify(key)
            return size

        server.engine.verify = slow
        server.target.scrub_asked.set()
        job = asyncio.ensure_future(scrubber(cluster, 10).run())
        while len(looked) < 150:
            await asyncio.sleep(0)
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
        before = len(looked)
        server.target.scrub = Progress()
        server.target.scrub_asked.clear()
        job = asyncio.ensure_future(scrubber(cluster, 10, bytes_s=1 << 40, every_s=3600).run())
        async with asyncio.timeout(10):
            while not server.target.scrub.passes:
                await asyncio.sleep(0.001)
        assert 400 <= len(looked) <= 402
        assert looked[before].chunk_index >= before - 1
        assert server.target.scrub.chunks in (400, 401)
        await asyncio.sleep(0.05)
        assert not server.target.scrub.running  # the next one is an hour away
        job.cancel()
        (tmp_path / scrubbing.STATE_FILE).write_text("[]")
        assert scrubbing.load(tmp_path / scrubbing.STATE_FILE) == Progress()
        cluster.close()

    run(scenario)


def test_a_target_that_begins_empty_is_not_due(
    make_cluster: MakeCluster, write_item: MakeItem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written from now on is as young as the target: it is read when the first pass is due. The target serves a
    moment after the scrubber has begun, and has data by then."""
    monkeypatch.setattr(scrubbing, "IDLE_S", 0.01)

    async def scenario() -> None:
        cluster = make_cluster(1)
        server = cluster.servers[10]
        server.target.path = tmp_path
        job_of = scrubber(cluster, 10, bytes_s=1 << 40, every_s=3600)
        serves = False
        monkeypatch.setattr(job_of, "_serves", lambda: serves)
        job = asyncio.ensure_future(job_of.run())
        await asyncio.sleep(0.03)
        await cluster.update(10, [write_item(0, b"x")], writer(1))
        serves = True
        await asyncio.sleep(0.05)
        assert server.target.scrub.passes == 0
        assert server.target.scrub.chunks == 0
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
        again = scrubber(cluster, 10, bytes_s=1 << 40, every_s=3600)  # after a restart
        server.target.scrub = Progress()
        job = asyncio.ensure_future(again.run())
        await asyncio.sleep(0.05)
        assert server.target.scrub.passes == 0
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
        (tmp_path / scrubbing.STATE_FILE).unlink()  # nobody knows: a pass
        server.target.scrub = Progress()
        job = asyncio.ensure_future(scrubber(cluster, 10, bytes_s=1 << 40, every_s=3600).run())
        async with asyncio.timeout(10):
            while not server.target.scrub.passes:
                await asyncio.sleep(0.001)
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
        cluster.close()

    run(scenario)


def test_a_pass_is_asked_for(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(1)
        server = cluster.servers[10]
        await cluster.update(10, [write_item(0, DATA)], writer(1))
        job = asyncio.ensure_future(scrubber(cluster, 10).run())
        await asyncio.sleep(0.05)
        assert server.target.scrub.passes == 0
        with pytest.raises(FfsError) as caught:
            await server.service.scrub(storage_pb2.ScrubRequest(targets=[10, 11], start=True))
        assert caught.value.code is Code.INVALID
        assert not server.target.scrub_asked.is_set()
        await server.service.scrub(storage_pb2.ScrubRequest(targets=[10], start=True))
        async with asyncio.timeout(5):
            while not (await server.service.scrub(storage_pb2.ScrubRequest())).targets[0].report.passes:
                await asyncio.sleep(0.01)
        job.cancel()
        cluster.close()

    run(scenario)


def test_suspects_are_bounded_and_wait_between_tries() -> None:
    suspects = Suspects(suspects_max=2)
    keys = [ChunkKey(1, index) for index in range(3)]
    assert [suspects.add(key, 0.0) for key in (keys[0], keys[0], keys[1], keys[2])] == [True, False, True, False]
    assert suspects.dropped == 1
    assert suspects.take(0.0) == keys[0]
    assert not suspects.add(keys[0], 0.0)  # it is being mended
    assert suspects.put_back(keys[0], Outcome.LATER, 0.0)
    assert suspects.take(0.0) == keys[1]
    assert not suspects.put_back(keys[1], Outcome.REPAIRED, 0.0)
    assert suspects.take(0.0) is None
    tries, now_s = 1, 0.0
    while (due_s := suspects.next_due_s()) is not None:
        assert now_s < due_s <= now_s + 30
        now_s = due_s
        assert suspects.take(now_s) == keys[0]
        suspects.put_back(keys[0], Outcome.LATER, now_s)
        tries += 1
    assert tries == 8
    assert not suspects.add(keys[0], now_s + 59)
    assert suspects.add(keys[0], now_s + 60)
    assert suspects.add(keys[1], now_s)


def test_pieces_are_cut_at_multiples() -> None:
    assert pieces([Missing(0, 10)], 4) == [Missing(0, 4), Missing(4, 4), Missing(8, 2)]
    assert pieces([Missing(8, 4), Missing(12, 1)], 8) == [Missing(8, 4), Missing(12, 1)]
    assert pieces([Missing(6, 5)], 4) == [Missing(6, 2), Missing(8, 3)]
    assert pieces([], 4) == []
