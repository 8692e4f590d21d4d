"""Updates, reads, failover and resync on a chain of replicas in one event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crc32c as crc32c_module
import numpy as np
import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.net.api import Address, Call
from fireflyfs.common.net.methods import Method
from fireflyfs.proto import storage_pb2
from fireflyfs.proto.storage_wire import READ_IO, READ_RESULT, UpdateKind
from fireflyfs.storage.background import pending
from fireflyfs.storage.background.disk import DiskWatcher
from fireflyfs.storage.background.pending import PendingResolver
from fireflyfs.storage.background.resync import Resync
from fireflyfs.storage.core import forward
from fireflyfs.storage.core.target import Local, Public, TargetState
from fireflyfs.storage.engine.interface import ChunkKey, Update, WouldBlock, Writer
from fireflyfs.storage.service.wire import Item

ALICE = b"a" * 16
S, Y, X = Public.SERVING, Public.SYNCING, Public.OFFLINE
KEY = ChunkKey(7, 0)
MakeCluster = Callable[[int], Any]
MakeItem = Callable[..., Item]


def writer(sequence: int, channel: int = 1) -> Writer:
    return Writer(ALICE, channel, sequence)


async def read(cluster: Any, target_id: int, index: int = 0, length: int = 100, version: int = 0) -> tuple[int, bytes]:
    """(status, data)."""
    body = np.array([(7, index, 1, version or cluster.version, 0, length)], READ_IO).tobytes()
    into = memoryview(bytearray(length))
    reply = await cluster.net.call(Address(tcp=str(target_id)), Call(Method.STORAGE_READ, body, into=[into]))
    status, got, _, crc, _ = np.frombuffer(reply.body, READ_RESULT).tolist()[0]
    data = bytes(into[:got])
    assert crc == (crc32c_module.crc32c(data) if got else crc)
    return status, data


def contents(cluster: Any, target_id: int) -> dict[ChunkKey, tuple[int, bytes]]:
    chunks = cluster.servers[target_id].engine.chunks
    assert not [key for key, chunk in chunks.items() if chunk.pending]
    return {key: (chunk.committed[0].version, chunk.committed[1]) for key, chunk in chunks.items()}


def run(scenario: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_a_write_is_committed_on_every_replica_before_it_is_acknowledged(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    async def scenario() -> None:
        cluster = make_cluster(3)
        results = await cluster.update(10, [write_item(0, b"hello"), write_item(1, b"x" * 70, 5)], writer(1))
        assert [(r.code, r.version, r.length) for r in results] == [(0, 1, 5), (0, 1, 75)]
        for target_id in cluster.servers:
            assert contents(cluster, target_id)[KEY] == (1, b"hello")
            assert await read(cluster, target_id) == (0, b"hello")
        cluster.close()

    run(scenario)


@pytest.mark.parametrize(
    ("to", "version", "code"), [(20, 0, Code.NOT_HEAD), (10, 1, Code.CHAIN_VERSION), (10, 9, Code.CHAIN_VERSION)]
)
def test_the_head_alone_takes_writes_and_only_at_the_exact_chain_version(
    make_cluster: MakeCluster, write_item: MakeItem, to: int, version: int, code: Code
) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        with pytest.raises(FfsError) as caught:
            await cluster.update(to, [write_item(0, b"x")], writer(1), version=version)
        assert caught.value.code is code

    run(scenario)


def test_a_request_that_is_ahead_of_routing_waits_for_it(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    """mgmtd tells clients and servers at the same moment: whoever hears first must not be refused for it."""

    async def scenario() -> None:
        cluster = make_cluster(2)
        service = cluster.servers[10].service
        newer = cluster.version + 1
        chunk = storage_pb2.ChunkId(inode=7, index=0)
        data = b"early"
        write = storage_pb2.WriteChunkRequest(
            chain_id=1, chain_version=newer, chunk=chunk, chunk_size=4096, data=data, crc32c=crc32c_module.crc32c(data)
        )
        last = storage_pb2.QueryLastChunkRequest(
            ranges=[storage_pb2.ChunkRange(chain_id=1, chain_version=newer, inode=7)]
        )
        early = [
            asyncio.ensure_future(cluster.update(10, [write_item(1, b"x")], writer(1), version=newer)),
            asyncio.ensure_future(service.write_chunk(write)),
            asyncio.ensure_future(service.query_last_chunk(last)),
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not any(request.done() for request in early)
        cluster.publish((10, Public.SERVING), (20, Public.SERVING))
        updated, written, found = await asyncio.gather(*early)
        assert ([result.code for result in updated], written.length) == ([Code.OK], len(data))
        assert found.results[0].status == Code.OK
        read = storage_pb2.ReadChunkRequest(chain_id=1, chain_version=newer, chunk=chunk, length=10)
        assert (await service.read_chunk(read)).data == data
        cluster.close()

    run(scenario)


def test_damaged_data_is_refused_chunk_by_chunk(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        bad = write_item(0, b"x")
        bad.extents[0] = bad.extents[0]._replace(crc32c=1)
        results = await cluster.update(10, [bad, write_item(1, b"y")], writer(1))
        assert [r.code for r in results] == [Code.CHECKSUM, Code.OK]
        assert KEY not in contents(cluster, 20)

    run(scenario)


def test_a_repeated_request_is_answered_and_not_done_again(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        first = await cluster.update(10, [write_item(0, b"one")], writer(1))
        assert await cluster.update(10, [write_item(0, b"one")], writer(1)) == first
        await cluster.update(10, [write_item(0, b"two")], writer(2))
        with pytest.raises(FfsError) as caught:
            await cluster.update(10, [write_item(0, b"one")], writer(1))
        assert caught.value.code is Code.STALE_UPDATE
        # The new head knows what it was forwarded, and after a restart what is stored with the chunk.
        cluster.publish((20, S), (10, X))
        again = await cluster.update(20, [write_item(0, b"two")], writer(2))
        assert again[0].version == 2
        cluster.servers[20].target.once.clear()
        again = await cluster.update(20, [write_item(0, b"two")], writer(2))
        assert (again[0].code, again[0].version) == (Code.OK, 2)
        cluster.close()

    run(scenario)


def test_an_update_follows_the_chain_when_the_successor_dies(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        for broken in ("down", "hung"):
            cluster = make_cluster(3)
            getattr(cluster.net, broken).add("20")
            work = asyncio.ensure_future(cluster.update(10, [write_item(0, b"data")], writer(1)))
            await asyncio.sleep(0.15)
            assert not work.done()
            cluster.publish((10, S), (30, S), (20, X))
            assert (await work)[0].code is Code.OK
            assert contents(cluster, 10) == contents(cluster, 30) == {KEY: (1, b"data")}
            cluster.close()

    run(scenario)


def test_a_write_that_outlives_its_deadline_is_finished_by_its_retry(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        cluster.net.down.add("20")
        try:
            code = (await cluster.update(10, [write_item(0, b"data")], writer(1), deadline_s=0.2))[0].code
        except FfsError as exc:  # its caller looked at the clock before the head did
            code = exc.code
        assert code is Code.TIMEOUT
        cluster.net.down.clear()
        results = await cluster.update(10, [write_item(0, b"data")], writer(1))
        assert (results[0].code, results[0].version) == (Code.OK, 1)
        assert contents(cluster, 20) == {KEY: (1, b"data")}
        cluster.close()

    run(scenario)


def test_a_lost_answer_is_not_a_lost_or_doubled_write(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        cluster.net.lose_answers_of.add("20")
        work = asyncio.ensure_future(cluster.update(10, [write_item(0, b"data")], writer(1)))
        await asyncio.sleep(0.1)
        cluster.net.lose_answers_of.clear()
        assert (await work)[0].version == 1
        assert contents(cluster, 10) == contents(cluster, 20) == {KEY: (1, b"data")}
        cluster.close()

    run(scenario)


def test_a_new_head_finishes_what_the_dead_one_left(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(3)
        await cluster.update(10, [write_item(0, b"old!")], writer(1))
        item = write_item(0, b"new")
        update = Update(KEY, UpdateKind.WRITE, 2, cluster.version, 65536, 0, item.extents, writer(2))
        cluster.servers[20].engine.apply([update])
        # A read there asks the tail, which has not committed it.
        assert await read(cluster, 20) == (0, b"old!")
        cluster.publish((20, S), (30, S), (10, X))
        new_head = cluster.servers[20]
        resolver = PendingResolver(new_head.replicas, new_head.service.updater, new_head.target)
        assert await resolver.once() == 1
        assert contents(cluster, 20) == contents(cluster, 30) == {KEY: (2, b"new!")}
        # The client's retry finds it done.
        results = await cluster.update(20, [write_item(0, b"new")], writer(2))
        assert (results[0].code, results[0].version) == (Code.OK, 2)
        cluster.close()

    run(scenario)


def test_what_cannot_be_finished_keeps_nothing_behind_it_waiting(
    make_cluster: MakeCluster, write_item: MakeItem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a page of chunks whose updates are under way, and one that is taken just as it is looked at."""
    monkeypatch.setattr(pending, "PAGE", 2)
    monkeypatch.setattr(pending, "CHUNK_DEADLINE_S", 0.05)

    async def scenario() -> None:
        cluster = make_cluster(2)
        head = cluster.servers[10]
        keys = [ChunkKey(7, index) for index in range(6)]
        for index, key in enumerate(keys):
            extents = write_item(index, b"new").extents
            head.engine.apply([Update(key, UpdateKind.WRITE, 1, cluster.version, 65536, 0, extents, writer(index))])
        held = type(head.target.locks).held
        with monkeypatch.context() as patched:
            patched.setattr(type(head.target.locks), "held", lambda locks, key: key != keys[2] and held(locks, key))
            async with head.target.locks.hold(keys[:3], 1.0):
                with pytest.raises(FfsError) as busy:
                    await PendingResolver(head.replicas, head.service.updater, head.target).once()
        assert busy.value.code is Code.CHUNK_BUSY
        assert sorted(contents(cluster, 20)) == keys[3:]
        cluster.close()

    run(scenario)


def test_a_pending_version_is_finished_before_the_next_writer(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        update = Update(
            KEY, UpdateKind.WRITE, 1, cluster.version, 65536, 0, write_item(0, b"abc").extents, writer(1, channel=9)
        )
        cluster.servers[10].engine.apply([update])
        results = await cluster.update(10, [write_item(0, b"X")], writer(1))
        assert results[0].version == 2
        assert contents(cluster, 10) == contents(cluster, 20) == {KEY: (2, b"Xbc")}
        cluster.close()

    run(scenario)


def test_a_full_successor_refuses_and_a_removal_still_goes_through(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        await cluster.update(10, [write_item(0, b"abc")], writer(1))
        cluster.servers[20].engine.full = True
        results = await cluster.update(10, [write_item(0, b"more")], writer(2))
        assert results[0].code is Code.NO_SPACE
        assert await read(cluster, 10) == (0, b"abc")
        reply = await cluster.servers[10].service.remove_chunks(
            storage_pb2.RemoveChunksRequest(
                range=storage_pb2.ChunkRange(chain_id=1, chain_version=cluster.version, inode=7)
            )
        )
        assert reply.removed == 1
        assert contents(cluster, 10) == contents(cluster, 20) == {}
        cluster.close()

    run(scenario)


def test_whole_files_are_removed_on_every_replica(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(3)
        for number in range(5):
            await cluster.update(10, [write_item(number, b"abc")], writer(number + 1))
        service = cluster.servers[10].service

        async def remove(inodes: list[int], limit: int, sequence: int = 0) -> storage_pb2.RemoveFilesReply:
            return await service.remove_files(
                storage_pb2.RemoveFilesRequest(
                    chain_id=1,
                    chain_version=cluster.version,
                    inodes=inodes,
                    limit=limit,
                    client_id=b"m" * 16 if sequence else b"",
                    channel=1,
                    sequence=sequence,
                )
            )

        reply = await remove([99, 7, 100], 3, sequence=1)
        assert (reply.removed, list(reply.left)) == (3, [7])
        reply = await remove([7], 3, sequence=2)
        assert (reply.removed, list(reply.left)) == (2, [])
        assert (await remove([7], 3)).removed == 0
        assert contents(cluster, 10) == contents(cluster, 20) == contents(cluster, 30) == {}
        for inodes in ([], list(range(1025))):
            with pytest.raises(FfsError) as caught:
                await remove(inodes, 3)
            assert caught.value.code is Code.INVALID
        cluster.close()

    run(scenario)


def test_a_fenced_worker_serves_nothing(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(1)
        await cluster.update(10, [write_item(0, b"abc")], writer(1))
        cluster.heartbeat_age_s = 3.5
        assert (await read(cluster, 10))[0] == Code.FENCED
        with pytest.raises(FfsError) as caught:
            await cluster.update(10, [write_item(0, b"abc")], writer(2))
        assert caught.value.code is Code.FENCED
        cluster.close()

    run(scenario)


def test_reads_that_would_block_run_in_threads_and_holes_are_told_apart(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        await cluster.update(10, [write_item(0, b"abc")], writer(1))
        cluster.servers[20].engine.cold = True
        assert await read(cluster, 20) == (0, b"abc")
        assert (await read(cluster, 20, index=5))[0] == Code.CHUNK_NOT_FOUND
        assert (await read(cluster, 20, version=cluster.version + 1))[0] == Code.CHAIN_VERSION
        cluster.close()

    run(scenario)


def test_truncate_and_last_chunk(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        await cluster.update(10, [write_item(0, b"abc"), write_item(3, b"defgh")], writer(1))
        service = cluster.servers[10].service
        where = storage_pb2.ChunkRange(chain_id=1, chain_version=cluster.version, inode=7)
        reply = await service.query_last_chunk(storage_pb2.QueryLastChunkRequest(ranges=[where]))
        assert (reply.results[0].index, reply.results[0].length, reply.results[0].chunks) == (3, 5, 2)
        chunk = storage_pb2.ChunkId(inode=7, index=3)
        await service.truncate_chunk(
            storage_pb2.TruncateChunkRequest(chain_id=1, chain_version=cluster.version, chunk=chunk, length=2)
        )
        assert contents(cluster, 20)[ChunkKey(7, 3)] == (2, b"de")
        await service.sync_chains(storage_pb2.SyncChainsRequest(chains=[1]))
        assert [server.engine.syncs for server in cluster.servers.values()] == [1, 1]
        cluster.close()

    run(scenario)


def test_a_returning_replica_is_brought_up_to_date_while_clients_write(
    make_cluster: MakeCluster, write_item: MakeItem
) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        for number in range(30):
            await cluster.update(10, [write_item(number, bytes([number]) * 100)], writer(number + 1))
        cluster.publish((10, S), (20, X))
        returning = cluster.servers[20]
        returning.target.set_state(TargetState(Local.ONLINE, returning=False))
        for number in range(10):
            await cluster.update(10, [write_item(number, b"changed")], writer(number + 100))
        extra = Update(ChunkKey(99, 1), UpdateKind.WRITE, 4, 1, 65536, 0, write_item(0, b"extra").extents, writer(3))
        returning.engine.apply([extra])
        returning.engine.commit([(extra.key, 4)], 1)
        await cluster.servers[10].service.remove_chunks(
            storage_pb2.RemoveChunksRequest(
                range=storage_pb2.ChunkRange(chain_id=1, chain_version=cluster.version, inode=7, begin=25)
            )
        )
        cluster.publish((10, S), (20, Y))
        assert (await read(cluster, 20))[0] == Code.TARGET_OFFLINE
        head = cluster.servers[10]
        hop = forward.next_hop(head.target.chain, 10)
        assert hop is not None
        job = Resync(head.replicas, head.service.updater, head.service.repairer, head.target)
        chain = head.target.chain

        async def write_on() -> None:
            for number in range(40):
                await cluster.update(10, [write_item(number % 12, b"while", 2)], writer(number + 1, channel=2))

        await asyncio.gather(job.once(chain, hop), write_on())
        assert returning.target.state.local is Local.UPTODATE
        cluster.publish((10, S), (20, S))
        await cluster.update(10, [write_item(0, b"after")], writer(500))
        assert contents(cluster, 10) == contents(cluster, 20)
        assert len(contents(cluster, 20)) == 25
        cluster.close()

    run(scenario)


def test_many_writers_and_readers_see_one_history(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    """Readers of any replica never see an older value than one that some reader has already returned."""

    async def scenario() -> None:
        cluster = make_cluster(3)
        await cluster.update(10, [write_item(0, (0).to_bytes(8, "big"))], writer(1))
        newest = 0
        stop = False

        async def reader(target_id: int) -> None:
            nonlocal newest
            while not stop:
                floor = newest
                status, data = await read(cluster, target_id, length=8)
                if status == Code.CHUNK_PENDING:
                    continue
                assert status == 0
                value = int.from_bytes(data, "big")
                assert value >= floor
                newest = max(newest, value)
                await asyncio.sleep(0)

        readers = [asyncio.ensure_future(reader(target_id)) for target_id in (10, 20, 30)]
        for number in range(1, 200):
            await cluster.update(10, [write_item(0, number.to_bytes(8, "big"))], writer(number + 1))
            newest = max(newest, number)
        stop = True
        await asyncio.gather(*readers)
        assert newest == 199
        cluster.close()

    run(scenario)


def test_a_cancelled_caller_waits_for_what_works_on_its_memory(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(1)
        engine = cluster.servers[10].engine
        apply = engine.apply
        stored = []
        working, go_on = threading.Event(), threading.Event()

        def slow(updates: Any, *, nowait: bool) -> Any:
            if nowait:
                raise WouldBlock
            working.set()
            assert go_on.wait(30)
            stored.append(bytes(updates[0].extents[0].data))
            return apply(updates)

        engine.apply = slow
        service = cluster.servers[10].service
        request = storage_pb2.WriteChunkRequest(
            chain_id=1,
            chain_version=cluster.version,
            chunk=storage_pb2.ChunkId(inode=7),
            data=b"abc",
            crc32c=crc32c_module.crc32c(b"abc"),
            chunk_size=65536,
        )
        task = asyncio.ensure_future(service.write_chunk(request))
        assert await asyncio.to_thread(working.wait, 30)
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stored == [b"abc"]
        assert contents(cluster, 10) == {KEY: (1, b"abc")}
        cluster.close()

    run(scenario)


def test_a_failed_disk_takes_its_target_out(make_cluster: MakeCluster, tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = make_cluster(1)
        local = cluster.servers[10].target
        local.path = tmp_path / "gone"
        with pytest.raises(FfsError):
            await DiskWatcher(local).once()
        assert local.state.local is Local.OFFLINE
        assert (await read(cluster, 10))[0] == Code.TARGET_OFFLINE
        cluster.close()

    run(scenario)


def test_too_much_in_flight_is_refused(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        cluster.servers[10].replicas.client_gate.requests_max = 1
        cluster.net.hung.add("20")
        work = asyncio.ensure_future(cluster.update(10, [write_item(0, b"a")], writer(1), deadline_s=30))
        while not [name for name, _ in cluster.net.calls if name == "20"]:
            await asyncio.sleep(0)
        with pytest.raises(FfsError) as caught:
            await cluster.update(10, [write_item(1, b"b")], writer(1, channel=2))
        assert caught.value.code is Code.OVERLOADED
        work.cancel()
        cluster.publish((10, S), (20, X))  # the update needs to wait for nobody any more
        assert await cluster.servers[10].target.drain(30)
        assert len(cluster.servers[10].target.locks) == 0
        assert cluster.servers[10].replicas.client_gate.bytes == 0
        cluster.close()

    run(scenario)


def test_an_update_that_cannot_be_stored_here_goes_no_further(make_cluster: MakeCluster, write_item: MakeItem) -> None:
    async def scenario() -> None:
        cluster = make_cluster(2)
        await cluster.update(10, [write_item(0, b"abc")], writer(1))
        cluster.servers[10].engine.full = True
        results = await cluster.update(10, [write_item(0, b"more"), write_item(1, b"x")], writer(2))
        assert [result.code for result in results] == [Code.NO_SPACE, Code.NO_SPACE]
        assert cluster.servers[10].target.state.local is Local.UPTODATE
        assert contents(cluster, 20) == contents(cluster, 10) == {KEY: (1, b"abc")}
        cluster.close()

    run(scenario)
