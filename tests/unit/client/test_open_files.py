"""Open inodes and files: lengths, hints, truncation, what other clients see, batches."""

from __future__ import annotations

import io
import os
import random
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fsspec.callbacks import Callback

from fireflyfs.client import batch, range_reads
from fireflyfs.client.file import BufferedRandom, buffered, flags_of
from fireflyfs.client.fsspec.transfers import Transfers
from fireflyfs.client.inode_state import LIMIT_TRUSTED_S
from fireflyfs.client.scratch import Scratch
from fireflyfs.client.storage_codec import view_of
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.net.api import Slice
from fireflyfs.common.net.memory import SharedPool
from fireflyfs.common.net.methods import Method

if TYPE_CHECKING:
    from conftest import FakeCluster, FakeContext

SIZE = 1 << 16


def view(data: bytes | bytearray) -> memoryview:
    return memoryview(data)


def test_own_writes_are_read_back_and_others_see_them_after_close(
    cluster: FakeCluster, client: FakeContext, other: FakeContext
) -> None:
    handle = client.open(b"/a")
    assert handle.pwrite(SIZE - 2, view(b"hello")) == 5
    assert handle.length == SIZE + 3
    assert handle.pread(SIZE - 4, 100) == b"\0\0hello"
    assert other.open(b"/a").length == 0
    handle.close()
    assert other.open(b"/a").pread(SIZE - 2, 5) == b"hello"
    assert cluster.names[b"/a"].mtime_ns > 0


def test_handles_of_one_inode_share_its_length(client: FakeContext) -> None:
    writer = client.open(b"/a")
    reader = client.open(b"/a", os.O_RDONLY)
    writer.pwrite(0, view(b"hello"))
    assert reader.pread(0, 10) == b"hello"


def test_flush_makes_the_length_visible_and_says_it_once(cluster: FakeCluster, client: FakeContext) -> None:
    handle = client.open(b"/a")
    handle.pwrite(0, view(b"hello"))
    handle.flush()
    assert cluster.names[b"/a"].length == 5
    before = len(cluster.meta_servers[1].requests) + len(cluster.meta_servers[2].requests)
    handle.flush()
    assert len(cluster.meta_servers[1].requests) + len(cluster.meta_servers[2].requests) == before


def test_a_close_that_meta_did_not_take_in_time_is_told_later(cluster: FakeCluster, client: FakeContext) -> None:
    """Else its session stays for as long as the process does."""
    handles = [client.open(name) for name in (b"/a", b"/b")]
    for handle in handles:
        handle.pwrite(0, view(b"hello"))
    for server in cluster.meta_servers.values():
        server.down = True
    for handle in handles:
        with pytest.raises(FfsError) as away:
            handle.close()
        assert away.value.code is Code.TIMEOUT
        handle.close()  # it is closed
    client.late_closes.tell_all()
    assert (len(client.late_closes), len(cluster.sessions)) == (2, 2)
    for server in cluster.meta_servers.values():
        server.down = False
    del cluster.names[b"/b"]  # what meta refuses is over
    client.late_closes.tell_beside()
    for thread in threading.enumerate():
        if thread.name == "ffs-late-closes":
            thread.join(10)
    assert len(client.late_closes) == 0
    assert list(cluster.sessions.values()) == [handles[1].inode.id]
    assert cluster.names[b"/a"].length == 5
    client.late_closes.tell_beside()  # nothing to tell


def test_a_file_that_meta_did_not_close_in_time_asks_it_nothing_more(cluster: FakeCluster, client: FakeContext) -> None:
    """Python's own close flushes: that would wait once more, and say of a file that is gone that it was never there."""
    file = client.file(b"/a")
    file.write(b"hello")
    for server in cluster.meta_servers.values():
        server.down = True
    asked: list[str] = []
    for name in ("sync", "close"):
        call = getattr(client.meta, name)
        setattr(client.meta, name, lambda request, name=name, call=call: (asked.append(name), call(request))[1])
    with pytest.raises(TimeoutError):
        file.close()
    assert asked == ["close"]
    assert file.closed


def test_fsync_syncs_storage_then_meta(cluster: FakeCluster, client: FakeContext) -> None:
    handle = client.open(b"/a")
    handle.pwrite(0, view(b"hello"))
    handle.fsync()
    assert sorted(cluster.synced) == [1, 2, 3]
    assert cluster.names[b"/a"].length == 5


def test_fsync_of_a_file_open_for_reading_syncs_what_others_wrote(cluster: FakeCluster, client: FakeContext) -> None:
    client.open(b"/a").pwrite(0, view(b"hello"))
    client.open(b"/a", os.O_RDONLY).fsync()
    assert sorted(cluster.synced) == [1, 2, 3]


def test_truncate_of_unreported_writes_really_cuts(cluster: FakeCluster, client: FakeContext) -> None:
    handle = client.open(b"/a")
    handle.pwrite(0, view(b"x" * (3 * SIZE)))
    handle.truncate(SIZE + 10)
    assert handle.length == SIZE + 10
    handle.truncate(2 * SIZE)
    assert handle.pread(SIZE, SIZE) == b"x" * 10 + bytes(SIZE - 10)
    handle.close()
    assert cluster.names[b"/a"].length == 2 * SIZE


def test_a_truncation_elsewhere_voids_our_length(cluster: FakeCluster, client: FakeContext, other: FakeContext) -> None:
    handle = client.open(b"/a")
    handle.pwrite(0, view(b"x" * 1000))
    handle.flush()
    other.open(b"/a").truncate(10)
    handle.refresh()
    assert handle.length == 10
    handle.pwrite(10, view(b"yy"))
    handle.close()
    assert cluster.names[b"/a"].length == 12


def test_a_hint_from_before_a_truncation_does_not_lengthen(
    cluster: FakeCluster, client: FakeContext, other: FakeContext
) -> None:
    handle = client.open(b"/a")
    handle.pwrite(0, view(b"x" * 1000))
    handle.flush()
    handle.pwrite(0, view(b"y" * 1000))  # unreported
    other.open(b"/a").truncate(10)
    handle.close()
    assert cluster.names[b"/a"].length == 10


def test_what_was_written_after_a_truncation_elsewhere_counts_though_we_heard_of_it_later(
    cluster: FakeCluster, client: FakeContext, other: FakeContext
) -> None:
    handle = client.open(b"/a")
    handle.pwrite(0, view(b"x" * 10))
    handle.flush()
    other.open(b"/a").truncate(0)
    handle.pwrite(0, view(b"y" * 1000))  # we do not know of it
    handle.refresh()
    assert handle.length == 1000
    other.open(b"/a").truncate(0)
    handle.pwrite(0, view(b"z" * 1000))
    client.open(b"/a")  # meta tells of the truncation
    handle.pwrite(0, view(b"z" * 5))
    assert handle.pread(990, 100) == b"z" * 10
    handle.pwrite(0, view(b"z" * 5))
    handle.close()
    assert cluster.names[b"/a"].length == 1000


def test_a_write_that_a_truncation_overtook_is_not_taken_for_a_later_one(
    cluster: FakeCluster, client: FakeContext, other: FakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = client.open(b"/a")
    handle.pwrite(0, view(b"x" * 10))
    handle.flush()
    write = client.storage.write

    def overtaken(spans: list[Any]) -> Any:
        failed = write(spans)
        other.open(b"/a").truncate(0)
        handle.refresh()  # another thread hears of it before the write's answer is looked at
        return failed

    monkeypatch.setattr(client.storage, "write", overtaken)
    handle.pwrite(0, view(b"x" * 1000))
    assert handle.length == 0
    handle.close()
    assert cluster.names[b"/a"].length == 0


def test_sessions_are_given_back(cluster: FakeCluster, client: FakeContext) -> None:
    handles = [client.open(b"/a"), client.open(b"/a", os.O_RDONLY), client.open(b"/a", os.O_RDONLY, hold=False)]
    assert len(cluster.sessions) == 2
    for handle in handles:
        handle.close()
        handle.close()
    assert cluster.sessions == {}
    with pytest.raises(FfsError) as caught:
        handles[0].pread(0, 1)
    assert caught.value.code is Code.BAD_HANDLE


def test_access_modes_are_kept(client: FakeContext) -> None:
    client.open(b"/a").close()
    with pytest.raises(FfsError):
        client.open(b"/a", os.O_RDONLY).pwrite(0, view(b"x"))
    with pytest.raises(FfsError):
        client.open(b"/a", os.O_WRONLY).pread(0, 1)
    with pytest.raises(FfsError) as caught:
        client.open(b"/a").pwrite((1 << 63) - 2, view(b"xxx"))
    assert caught.value.code is Code.TOO_BIG


def test_scattered_writes_in_one_go(cluster: FakeCluster, client: FakeContext) -> None:
    handle = client.open(b"/a")
    handle.pwrite_many([(offset * 100, view(b"%02d" % offset)) for offset in range(50)])
    assert cluster.requests(Method.STORAGE_WRITE) == 1
    assert handle.pread(700, 2) == b"07"
    assert handle.length == 4902


def test_raw_file_position_append_and_errors(client: FakeContext) -> None:
    with client.file(b"/a") as file:
        assert file.write(b"hello world") == 11
        assert file.seek(-5, os.SEEK_END) == 6
        assert file.read() == b"world"
        assert file.read(10) == b""
        assert file.truncate(4) == 4
        assert file.pread(100, 0) == b"hell"
        buffer = np.zeros(2, np.uint16)
        assert file.readinto_at(buffer, 0) == 4
        assert buffer.tobytes() == b"hell"
    with pytest.raises(ValueError, match="closed"):
        file.read(1)
    with client.file(b"/a", os.O_WRONLY | os.O_APPEND) as file:
        file.seek(0)
        file.write(b"!")
        with pytest.raises(OSError, match="/a") as caught:
            file.readinto_at(bytearray(1), 0)
        assert caught.value.errno == 9
        with pytest.raises(io.UnsupportedOperation):
            file.fileno()
    assert client.file(b"/a").readall() == b"hell!"


def test_buffered_file_keeps_the_raw_methods_in_step(client: FakeContext) -> None:
    file = buffered(client.file(b"/a"))
    assert isinstance(file, BufferedRandom)
    for line in range(1000):
        file.write(b"line %d\n" % line)
    assert file.pread(6, 0) == b"line 0"
    file.seek(0)
    assert [*file] == [b"line %d\n" % line for line in range(1000)]
    length = file.length
    file.close()
    assert client.file(b"/a").length == length


def test_modes() -> None:
    assert flags_of("r") == os.O_RDONLY
    assert flags_of("w+b") == os.O_RDWR | os.O_CREAT | os.O_TRUNC
    assert flags_of("ab") == os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for wrong in ("", "rw", "q", "rr", "rbt", "+"):
        with pytest.raises(ValueError, match="invalid mode"):
            flags_of(wrong)


def test_batches_over_files(cluster: FakeCluster, client: FakeContext) -> None:
    files = [client.file(b"/%d" % number) for number in range(10)]
    counts = batch.write_batch(client, [(f, n, b"x%d" % n) for n, f in enumerate(files)])
    assert counts == [2] * 10
    assert cluster.requests(Method.STORAGE_WRITE) == 1  # all first chunks are on one chain
    memory = cluster.pool.allocate(100)
    counts = batch.read_batch(client, [(f, n, memory.slice(n * 10, 10)) for n, f in enumerate(files)])
    assert counts == [2] * 10
    assert bytes(memory.view[70:72]) == b"x7"
    files[3].close()
    with pytest.raises(OSError, match="/3"):
        batch.read_batch(client, [(f, 0, bytearray(1)) for f in files[3:]])


def test_blocks_of_one_file(cluster: FakeCluster, client: FakeContext) -> None:
    data = random.Random(1).randbytes(10 * SIZE + 100)
    file = client.file(b"/a")
    file.write(data)
    offsets = [0, 4096, 9 * SIZE, 3 * SIZE + 512]
    into = bytearray(4 * 512)
    assert batch.read_blocks(client, file, offsets, 512, into).tolist() == [512] * 4
    assert into == b"".join(data[o : o + 512] for o in offsets)
    offsets = [SIZE - 10, 10 * SIZE, len(data) - 7, len(data) + 9]  # across a border, and over the end
    into = bytearray(b"-" * 4 * 512)
    assert batch.read_blocks(client, file, offsets, 512, into).tolist() == [512, 100, 7, 0]
    assert into[:512] == data[SIZE - 10 : SIZE + 502]
    assert into[512:612] == data[10 * SIZE :]
    assert into[1024 : 1024 + 8] == data[-7:] + b"-"
    memory = cluster.pool.allocate(1024)
    batch.read_blocks(client, file, np.array([512, 0]), 512, Slice(memory, 0, 1024))
    assert bytes(memory.view) == data[512:1024] + data[:512]


def test_whole_small_files(cluster: FakeCluster, client: FakeContext) -> None:
    for number in range(20):
        with client.file(b"/%d" % number) as file:
            file.write(b"%d" % number * number)
    paths = [b"/%d" % number for number in range(20)] + [b"/missing"]
    got = range_reads.read_files(client, paths)
    assert got[:20] == [b"%d" % number * number for number in range(20)]
    assert isinstance(got[20], FileNotFoundError)
    assert got[20].filename == b"/missing"
    assert cluster.requests(Method.STORAGE_READ) <= 3


def test_a_writer_keeps_to_what_meta_grants_and_asks_again(cluster: FakeCluster, client: FakeContext) -> None:
    handle = client.open(b"/a")
    handle.pwrite(0, view(b"hello"))
    cluster.names[b"/a"].end_max = 8  # a quota was set while the file is open
    handle.pwrite(5, view(b"0123456789"))  # not known here yet
    cluster.clock.advance(LIMIT_TRUSTED_S)
    with pytest.raises(FfsError) as caught:
        handle.pwrite(15, view(b"x"))
    assert caught.value.code is Code.QUOTA_EXCEEDED
    assert cluster.names[b"/a"].length == 15, "what was written counts, and is not lost"
    handle.pwrite(0, view(b"HELLO"))
    cluster.names[b"/a"].end_max = 20
    handle.pwrite(15, view(b"more!"))
    with pytest.raises(FfsError):
        handle.pwrite(20, view(b"x"))
    handle.fsync()
    assert handle.pread(0, 100) == b"HELLO0123456789more!"
    cluster.names[b"/a"].ClearField("end_max")
    handle.pwrite(20, view(b"x"))


@pytest.mark.parametrize("in_a_batch", [False, True])
def test_what_a_failed_write_left_behind_is_not_beyond_the_end(
    cluster: FakeCluster, client: FakeContext, in_a_batch: bool
) -> None:
    file = client.file(b"/a")
    file.write(b"x" * 10)
    file.flush()
    for worker in cluster.workers.values():
        worker.item_codes[file.inode.id, 1] = [Code.NO_SPACE]
    data = b"y" * 3 * SIZE
    with pytest.raises(OSError, match="No space"):
        batch.write_batch(client, [(file, 0, data)]) if in_a_batch else file.pwrite(data, 0)
    assert (file.inode.id, 2) in cluster.chunks
    file.close()
    assert cluster.names[b"/a"].length == 3 * SIZE


def test_a_copy_keeps_to_the_quota(cluster: FakeCluster, client: FakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    source = client.open(b"/source")
    source.pwrite(0, view(b"x" * 100))
    client.open(b"/into").close()
    cluster.names[b"/into"].end_max = 50
    into = client.open(b"/into")
    copied: list[int] = []
    monkeypatch.setattr(client.storage.ranges, "copy", lambda *args: copied.append(args[-1]))
    assert into.copy_from(source, 0, 0, 50) == 50
    with pytest.raises(FfsError) as caught:
        into.copy_from(source, 0, 0, 100)
    assert caught.value.code is Code.QUOTA_EXCEEDED
    assert copied == [50]


def test_a_server_that_answers_too_late_changes_nothing_that_was_read(
    client: FakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.scratch = Scratch(SharedPool())
    client.file(b"/a").write(b"right")
    client.file(b"/b").write(b"other")
    late = 2

    def hang(pieces: list[Any]) -> None:
        """As if the first server asked had not answered in time, and wrote when another's bytes had been verified."""
        nonlocal late
        for piece in pieces:
            if late and isinstance(piece, Slice):
                late -= 1
                piece.memory.tainted = True  # type: ignore[attr-defined]
                view_of(piece)[:] = b"wrong"

    read, read_into = client.storage.read, client.storage.read_into
    monkeypatch.setattr(client.storage, "read", lambda spans: (read(spans), hang([span.into for span in spans]))[0])
    monkeypatch.setattr(client.storage, "read_into", lambda *args: (read_into(*args), hang([args[2]]))[0])
    assert range_reads.read_files(client, [b"/a", b"/b"]) == [b"right", b"other"]
    late = 1
    assert client.open(b"/a").pread(0, 5) == b"right"
    late = 1
    got = io.BytesIO()
    source = client.file(b"/a")
    transfers: Any = SimpleNamespace(client=SimpleNamespace(context=client))
    Transfers._copy_out(transfers, source, got, Callback())
    assert got.getvalue() == b"right"


def test_appends_of_one_client_through_several_handles_do_not_overlap(
    client: FakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = client.open(b"/a"), client.open(b"/a")
    write = client.storage.write
    beside = threading.Thread(target=lambda: two.append(view(b"second")))

    def slow(spans: list[Any]) -> Any:
        monkeypatch.setattr(client.storage, "write", write)
        beside.start()
        beside.join(0.2)
        return write(spans)

    monkeypatch.setattr(client.storage, "write", slow)
    assert one.append(view(b"first")) == 0
    beside.join()
    assert one.pread(0, 100) == b"firstsecond"
