"""Reads and updates through faults, against workers in memory."""

from __future__ import annotations

import math
import os
import random
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fireflyfs.client.retry import RetryPolicy
from fireflyfs.client.storage_client import ReadSpan, StorageClient, WriteSpan
from fireflyfs.client.striping import FileLayout, place
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.ids import InodeId
from fireflyfs.common.limits import MiB
from fireflyfs.common.net.methods import Method

if TYPE_CHECKING:
    from conftest import FakeCluster

SIZE = 1 << 16


def make_file(
    cluster: FakeCluster, inode: int = 7, chains: tuple[int, ...] = (1, 2, 3), size: int = SIZE
) -> FileLayout:
    cluster.file_chains[inode] = chains
    return FileLayout(InodeId(inode), size, chains)


def test_write_then_read_across_chunks(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster)
    data = random.Random(3).randbytes(10 * SIZE + 777)
    client.write_from(file, 100, memoryview(data))
    got = bytearray(b"\xff" * (len(data) + 300))
    client.read_into(file, 0, memoryview(got))
    assert bytes(got) == bytes(100) + data + bytes(200)
    # one request to each chain's head for the write
    assert cluster.requests(Method.STORAGE_WRITE) == 3


def test_holes_are_zeros_even_in_dirty_memory(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster)
    client.write_from(file, 5 * SIZE, memoryview(b"end"))
    client.write_from(file, SIZE + 10, memoryview(b"x"))
    got = bytearray(b"\xff" * (5 * SIZE + 3))
    client.read_into(file, 0, memoryview(got))
    want = bytearray(5 * SIZE + 3)
    want[SIZE + 10 : SIZE + 11] = b"x"
    want[5 * SIZE :] = b"end"
    assert got == want


def test_first_bytes_in_two_halves(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster)
    client.write_from(file, 0, memoryview(b"first"))
    got = bytearray(b"\xff" * 8)
    finish = client.begin_first(file, memoryview(got), 0.3)
    assert finish is not None
    assert cluster.requests(Method.STORAGE_READ) == 0
    assert finish()
    assert bytes(got) == b"first\0\0\0"
    assert [call.deadline_s for worker in cluster.workers.values() for call in worker.requests][-1] == 0.3


def test_first_bytes_that_cannot_be_had_are_tried_once(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster)
    client.write_from(file, 0, memoryview(b"first"))
    for worker in cluster.workers.values():
        worker.down = True
    got = memoryview(bytearray(5))
    finish = client.begin_first(file, got, 0.3)
    assert finish is not None
    assert not finish()
    assert cluster.requests(Method.STORAGE_READ) == 1
    for worker in cluster.workers.values():
        worker.down, worker.rot = False, True
    finish = client.begin_first(file, got, 0.3)
    assert finish is not None
    assert not finish()  # damaged on the way
    for worker in cluster.workers.values():
        worker.rot = False
    client.read_into(file, 0, got)
    assert bytes(got) == b"first"
    assert client.begin_first(FileLayout(InodeId(9), SIZE, (99,)), got, 0.3) is None


def test_a_batch_over_many_files(cluster: FakeCluster) -> None:
    client = cluster.client()
    files = [make_file(cluster, inode, (1 + inode % 3,)) for inode in range(10, 30)]
    assert client.write([WriteSpan(f, 50, memoryview(b"%d" % f.inode)) for f in files]) == {}
    assert cluster.requests(Method.STORAGE_WRITE) == 3
    outs = [bytearray(2) for _ in files]
    assert client.read([ReadSpan(f, 50, memoryview(o)) for f, o in zip(files, outs, strict=True)]) == {}
    assert [bytes(o) for o in outs] == [b"%d" % f.inode for f in files]


def test_scattered_small_writes_update_each_chunk_once(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster)
    spans = [WriteSpan(file, offset * 256, memoryview(bytes([offset % 251]) * 100)) for offset in range(700)]
    assert client.write(spans) == {}
    chunks = {offset * 256 // SIZE for offset in range(700)}
    assert sum(worker.applied for worker in cluster.workers.values()) == len(chunks)
    got = bytearray(700 * 256)
    client.read_into(file, 0, memoryview(got))
    for offset in range(700):
        assert got[offset * 256 : offset * 256 + 256] == bytes([offset % 251]) * 100 + bytes(156)


def test_overlapping_writes_of_one_chunk_keep_their_order_over_the_extent_bound(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster)
    spans = [WriteSpan(file, 0, memoryview(b"%04d" % turn)) for turn in range(600)]
    assert client.write(spans) == {}
    assert bytes(cluster.chunks[7, 0]) == b"0599"
    assert sum(worker.applied for worker in cluster.workers.values()) == 3  # 256 + 256 + 88


def test_packed_batch(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster)
    data = random.Random(5).randbytes(4 * MiB)
    client.write_from(file, 0, memoryview(data))
    offsets = np.array(random.Random(6).sample(range(0, 4 * MiB, 4096), 200), np.int64)
    ios = place(file, offsets, 4096)
    assert ios is not None
    buffer = memoryview(bytearray(200 * 4096))
    assert client.read_rows(ios, [buffer[i * 4096 : (i + 1) * 4096] for i in range(200)]) == {}
    assert bytes(buffer) == b"".join(data[o : o + 4096] for o in offsets.tolist())


def read_once(client: StorageClient, spans: list[tuple[FileLayout, int, int]]) -> tuple[list[int], list[bytes]]:
    into = [bytearray(b"\xff" * length) for _, _, length in spans]
    left = client.read_once(
        [ReadSpan(file, offset, memoryview(o)) for (file, offset, _), o in zip(spans, into, strict=True)]
    )
    return sorted(left), [bytes(o) for o in into]


def test_small_reads_that_come_together_are_one_request(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster, chains=(1, 2))
    cluster.set_chain(1, (1, 2))
    cluster.set_chain(2, (2, 1))
    data = random.Random(4).randbytes(4 * SIZE + 100)
    client.write_from(file, 0, memoryview(data))
    places = [5, SIZE + 7, 2 * SIZE + 100, 3 * SIZE + 1, 4 * SIZE + 50]
    left, got = read_once(client, [(file, at, 64) for at in places])
    assert left == []
    assert got == [data[at : at + 64].ljust(64, b"\0") for at in places]  # beyond the end there is nothing
    assert cluster.requests(Method.STORAGE_READ) == 1  # whom a chunk of one chain is asked of has the other chain, too


def test_what_is_not_read_in_one_attempt_is_left(cluster: FakeCluster) -> None:
    client = cluster.client()
    lost, good = make_file(cluster, 7, (1,)), make_file(cluster, 8, (2,))
    cluster.set_chain(1, (1,))
    cluster.set_chain(2, (2,))
    client.write([WriteSpan(lost, 0, memoryview(b"lost")), WriteSpan(good, 0, memoryview(b"good"))])
    cluster.workers[1].down = True
    nowhere = make_file(cluster, 9, (99,))
    left, got = read_once(client, [(lost, 0, 4), (good, 0, 4), (nowhere, 0, 4), (good, SIZE - 2, 4), (good, SIZE, 3)])
    assert left == [0, 2, 3]  # no server, no chain, two chunks
    assert (got[1], got[4]) == (b"good", bytes(3))
    assert cluster.waits == []


def test_a_dead_replica_is_left_for_another_at_once(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster, chains=(1,))
    client.write_from(file, 0, memoryview(b"hello"))
    cluster.workers[1].down = True
    for _ in range(20):
        got = bytearray(5)
        client.read_into(file, 0, memoryview(got))
        assert got == b"hello"
    assert cluster.waits == []
    assert sum(c.method == Method.STORAGE_READ for c in cluster.workers[1].requests) <= 2


def test_a_rotten_replica_is_not_believed(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster, chains=(1,))
    client.write_from(file, 0, memoryview(b"hello"))
    cluster.workers[2].rot = True
    for _ in range(20):
        got = bytearray(5)
        client.read_into(file, 0, memoryview(got))
        assert got == b"hello"


def test_when_all_replicas_rot_the_read_fails_in_bounded_tries(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster, chains=(1,))
    client.write_from(file, 0, memoryview(b"hello"))
    cluster.workers[1].rot = cluster.workers[2].rot = True
    with pytest.raises(FfsError) as caught:
        client.read_into(file, 0, memoryview(bytearray(5)))
    assert caught.value.code is Code.CHECKSUM
    assert cluster.requests(Method.STORAGE_READ) < 20


def test_reads_go_on_after_a_chain_change(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster, chains=(1,))
    client.write_from(file, 0, memoryview(b"hello"))
    cluster.workers[1].item_codes[7, 0] = [Code.CHAIN_VERSION] * 3
    cluster.workers[2].item_codes[7, 0] = [Code.CHAIN_VERSION] * 3
    cluster.on_wait = lambda: cluster.set_chain(1, [2, 1])
    got = bytearray(5)
    client.read_into(file, 0, memoryview(got))
    assert got == b"hello"


def test_pending_chunks_are_asked_elsewhere(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster, chains=(1,))
    client.write_from(file, 0, memoryview(b"hello"))
    for worker in cluster.workers.values():
        worker.item_codes[7, 0] = [Code.CHUNK_PENDING]
    got = bytearray(5)
    client.read_into(file, 0, memoryview(got))
    assert got == b"hello"


def test_a_dead_head_is_replaced_and_the_write_goes_on(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster, chains=(1,))
    cluster.workers[1].down = True
    turns = 0

    def fail_over() -> None:
        nonlocal turns
        turns += 1
        if turns == 4:
            cluster.set_chain(1, [2])

    cluster.on_wait = fail_over
    client.write_from(file, 0, memoryview(b"hello"))
    assert bytes(cluster.chunks[7, 0]) == b"hello"
    assert cluster.waits == sorted(cluster.waits) or len(cluster.waits) == 4


def test_a_lost_answer_does_not_write_twice(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster, chains=(1,))
    cluster.workers[1].lose_answers = 2
    client.write_from(file, 0, memoryview(b"hello"))
    assert cluster.workers[1].applied == 1
    assert len(cluster.workers[1].requests) == 3
    client.write_from(file, 0, memoryview(b"again"))
    assert cluster.workers[1].applied == 2


def test_partly_busy_update_repeats_only_what_failed(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster, chains=(1,))
    cluster.workers[1].item_codes[7, 1] = [Code.CHUNK_BUSY, Code.CHUNK_BUSY]
    client.write_from(file, 0, memoryview(bytes(3 * SIZE)))
    assert cluster.workers[1].applied == 3


def test_no_space_names_the_spans_that_failed(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster, chains=(1,))
    cluster.workers[1].item_codes[7, 1] = [Code.NO_SPACE]
    failed = client.write([WriteSpan(file, index * SIZE, memoryview(b"x" * SIZE)) for index in range(3)])
    assert {place: exc.code for place, exc in failed.items()} == {1: Code.NO_SPACE}


def test_everything_down_ends_at_the_deadline(cluster: FakeCluster) -> None:
    client, file = cluster.client(RetryPolicy(deadline_s=5.0)), make_file(cluster)
    for worker in cluster.workers.values():
        worker.down = True
    began = cluster.clock.monotonic_s()
    with pytest.raises(FfsError) as caught:
        client.write_from(file, 0, memoryview(b"hello"))
    assert caught.value.code is Code.TIMEOUT
    assert "down" in str(caught.value)
    with pytest.raises(FfsError):
        client.read_into(file, 0, memoryview(bytearray(5)))
    assert cluster.clock.monotonic_s() - began < 13


def test_a_chain_that_does_not_exist_is_named_soon(cluster: FakeCluster) -> None:
    client, file = cluster.client(RetryPolicy(deadline_s=math.inf)), make_file(cluster, chains=(77,))
    for attempt in (
        lambda: client.write_from(file, 0, memoryview(b"hello")),
        lambda: client.read_into(file, 0, memoryview(bytearray(5))),
        lambda: client.query_last(file),
    ):
        began = cluster.clock.monotonic_s()
        with pytest.raises(FfsError, match="chain 77 is not in routing") as caught:
            attempt()
        assert caught.value.code is Code.NO_CHAIN
        assert cluster.clock.monotonic_s() - began < 10


def test_a_request_that_makes_no_sense_is_not_repeated(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster, chains=(1,))
    for worker in cluster.workers.values():
        worker.refuse = [Code.PROTOCOL]
    with pytest.raises(FfsError) as caught:
        client.write_from(file, 0, memoryview(b"hello"))
    assert caught.value.code is Code.PROTOCOL
    assert len(cluster.workers[1].requests) == 1


def test_large_reads_and_writes_stay_within_the_request_bounds(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster, size=MiB)
    data = bytes(range(256)) * (50 * MiB // 256)
    client.write_from(file, 0, memoryview(data))
    got = bytearray(len(data))
    client.read_into(file, 0, memoryview(got))
    assert got == data
    for worker in cluster.workers.values():
        for call in worker.requests:
            assert sum(len(piece) for piece in [*call.out, *call.into]) <= 16 * MiB  # type: ignore[arg-type]


def test_truncate_query_remove_sync_space(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster)
    assert client.query_last(file) is None
    client.write_from(file, 0, memoryview(bytes(10 * SIZE + 5)))
    last = client.query_last(file)
    assert last is not None
    assert (last.end(SIZE), last.chunks, last.used_bytes) == (10 * SIZE + 5, 11, 10 * SIZE + 5)
    client.truncate(file, 4 * SIZE + 9)
    last = client.query_last(file)
    assert last is not None
    assert last.end(SIZE) == 4 * SIZE + 9
    client.truncate(file, 4 * SIZE)
    assert len(cluster.chunks) == 4
    step = client.remove(file, limit=1)
    assert (step.removed, step.more) == (3, True)
    assert client.remove(file, limit=100).more is False
    assert cluster.chunks == {}
    client.sync(file.chain_set)
    assert sorted(cluster.synced) == [1, 2, 3]
    cluster.workers[2].down = True
    assert sorted(space.target_id for space in client.space()) == [1, 3]


def test_many_threads(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster)
    problems: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                mark = bytes([number * 10 + turn]) * 1000
                client.write_from(file, number * SIZE + turn * 1000, memoryview(mark))
                got = bytearray(1000)
                client.read_into(file, number * SIZE + turn * 1000, memoryview(got))
                assert got == mark
        except BaseException as exc:
            problems.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    # The lowest free channel is taken first: never more than there are threads.
    assert max(channel for worker in cluster.workers.values() for _, channel in worker.seen) <= 16


def test_reads_of_one_chain_are_spread_over_its_replicas(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster, chains=(1,))
    for _ in range(60):
        client.read_into(file, 0, memoryview(bytearray(10)))
    counts = [sum(c.method == Method.STORAGE_READ for c in cluster.workers[t].requests) for t in (1, 2)]
    assert min(counts) >= 10


def test_a_fork_is_told_to_connect_again(cluster: FakeCluster) -> None:
    client, file = cluster.client(), make_file(cluster)
    child = os.fork()
    if child == 0:
        wrong = 0
        for ask in (
            lambda: client.read_into(file, 0, memoryview(bytearray(1))),
            lambda: client.ranges.copy(file, 0, file, 1 << 20, 10),  # its update would pass for one of the parent's
        ):
            try:
                ask()
                wrong |= 1
            except BaseException as exc:
                wrong |= 0 if "connect again" in str(exc) else 2
        os._exit(wrong)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_chunk_that_all_have_lost_does_not_fail_others_that_wait_for_their_servers(cluster: FakeCluster) -> None:
    client = cluster.client()
    lost, waits = make_file(cluster, inode=1, chains=(1,)), make_file(cluster, inode=2, chains=(2,))
    client.write_from(lost, 0, memoryview(b"lost"))
    client.write_from(waits, 0, memoryview(b"here"))
    for worker in cluster.workers.values():
        worker.item_codes[1, 0] = [Code.CHECKSUM] * 100
    down = [cluster.workers[target] for target in cluster.routing.chains[2].serving]
    for worker in down:
        worker.down = True
    began_s = cluster.clock.monotonic_s()

    def on_wait() -> None:
        for worker in down:
            worker.down = cluster.clock.monotonic_s() - began_s < 20

    cluster.on_wait = on_wait
    into = [memoryview(bytearray(4)) for _ in range(2)]
    failed = client.read([ReadSpan(lost, 0, into[0]), ReadSpan(waits, 0, into[1])])
    assert {place: exc.code for place, exc in failed.items()} == {0: Code.CHECKSUM}
    assert bytes(into[1]) == b"here"
    began_s = cluster.clock.monotonic_s()
    on_wait()
    failed = client.write([WriteSpan(lost, 1, memoryview(b"?")), WriteSpan(waits, 0, memoryview(b"more"))])
    assert {place: exc.code for place, exc in failed.items()} == {0: Code.CHECKSUM}
    assert bytes(cluster.chunks[2, 0]) == b"more"
