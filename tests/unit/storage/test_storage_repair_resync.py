"""A resync among rotten chunks: what its source has lost, and what its successor has."""

from __future__ import annotations

import numpy as np
import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.net.api import Address, Call
from fireflyfs.common.net.methods import Method
from fireflyfs.proto.storage_wire import READ_IO, READ_RESULT, UpdateKind
from fireflyfs.storage.core.scrub import Outcome
from fireflyfs.storage.core.target import Local
from fireflyfs.storage.engine.interface import ChunkKey
from fireflyfs.storage.service.wire import Item
from rot.replicas import DATA, KEY, MakeCluster, MakeItem, S, X, Y, chunk, demote, mend, read, resync, run, writer


@pytest.mark.parametrize("known", [False, True], ids=["found by the resync", "quarantined before"])
@pytest.mark.parametrize("rewritten", [False, True], ids=["the successor has it", "nobody has it"])
def test_a_resync_goes_on_past_a_chunk_that_its_source_has_lost(
    make_cluster: MakeCluster, write_item: MakeItem, known: bool, rewritten: bool
) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        items = [write_item(index, DATA) for index in range(6)]
        await cluster.update(10, items, writer(1))
        demote(cluster, 20, (10, S), (20, X))
        for index in (3, 4) if rewritten else (4,):
            await cluster.update(10, [write_item(index, b"while it was away")], writer(index + 10))
        source = cluster.servers[10].engine
        lost = ChunkKey(7, 3)
        source.rot(lost, 100)
        if known:
            source.quarantine(lost, "rot")
        cluster.publish((10, S), (20, Y))
        await resync(cluster, 10)
        assert cluster.servers[20].target.state.local is Local.UPTODATE
        cluster.publish((10, S), (20, S))
        for index in (0, 1, 2, 4, 5):
            assert await read(cluster, 20, index) == await read(cluster, 10, index)
        if not known and not rewritten:  # both say the same of it: the rot is found by whoever reads
            assert await mend(cluster, 10, lost) is Outcome.REPAIRED
        for target_id in (10, 20):
            status, data = await read(cluster, target_id, 3)
            assert (status, data) == ((Code.CHECKSUM, b"") if rewritten else (0, DATA))
        both = [chunk(cluster, target_id, lost).committed[0] for target_id in (10, 20)]
        assert len({(version.version, version.length, version.crc32c, version.writer) for version in both}) == 1
        if rewritten:
            assert both[1].damaged
            # A second resync finds them equal, and a write over all of it ends it everywhere.
            demote(cluster, 20, (10, S), (20, Y))
            await resync(cluster, 10)
            cluster.publish((10, S), (20, S))
            results = await cluster.update(10, [write_item(3, b"new " * 6000)], writer(99))
            assert results[0].code is Code.OK
            assert await read(cluster, 20, 3) == (0, b"new " * 6000)
        cluster.close()

    run(scenario)


def test_a_resync_takes_from_another_replica_what_its_source_has_lost(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    async def scenario() -> None:
        cluster = make_cluster(3)
        demote(cluster, 30, (10, S), (20, S), (30, X))
        await cluster.update(10, [write_item(index, DATA) for index in range(3)], writer(1))
        cluster.servers[20].engine.rot(KEY, 100)
        cluster.publish((10, S), (20, S), (30, Y))
        await resync(cluster, 20)
        cluster.publish((10, S), (20, S), (30, S))
        for target_id in (20, 30):
            assert await read(cluster, target_id) == (0, DATA)
        cluster.close()

    run(scenario)


def test_a_damaged_successor_is_mended_by_the_resync(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        await cluster.update(10, [write_item(0, DATA)], writer(1))
        demote(cluster, 20, (10, S), (20, X))
        cluster.servers[20].engine.quarantine(KEY, "rot")
        cluster.publish((10, S), (20, Y))
        await resync(cluster, 10)
        cluster.publish((10, S), (20, S))
        assert await read(cluster, 20) == (0, DATA)
        cluster.close()

    run(scenario)


def test_only_a_syncing_replica_is_told_of_lost_bytes(make_cluster: MakeCluster) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        lost = Item(KEY, UpdateKind.DAMAGED, 1, 65536, 5, 77)
        with pytest.raises(FfsError) as caught:
            await cluster.update(10, [lost], writer(1))
        assert caught.value.code is Code.PROTOCOL
        body = np.array([(7, 0, 1, cluster.version, 0, 10)], READ_IO).tobytes()
        into = memoryview(bytearray(10))
        reply = await cluster.net.call(Address(tcp="20"), Call(Method.STORAGE_SYNC_READ, body, into=[into]))
        assert np.frombuffer(reply.body, READ_RESULT)["status"][0] == Code.TARGET_OFFLINE
        cluster.close()

    run(scenario)
