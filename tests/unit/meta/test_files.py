"""Open files: sessions, length hints, truncation, removal while open, and what a dead client leaves."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.meta.background import trims
from fireflyfs.meta.background.sessions import GRACE_NS, SessionReaper
from fireflyfs.proto import common_pb2, meta_pb2, mgmtd_pb2

CHUNK = 65536
ONE, TWO = b"1" * 16, b"2" * 16


def truncate(meta: Any, path: bytes, length: int, **options: Any) -> Any:
    return meta.set_attr(path, length=length, **options)


def test_close_takes_the_hint_and_ends_the_session(meta: Any) -> None:
    inode = meta.create(b"f", session=ONE)
    assert meta.records(b"S") == 1
    closed = meta.close(inode.id, ONE, 1000)
    assert closed.length == meta.stat(b"f").length == 1000
    assert meta.records(b"S") == 0
    assert meta.storage.calls == []
    meta.open(b"f", os.O_RDWR, session=ONE)
    assert meta.close(inode.id, ONE, 10).length == 1000


def test_close_sets_the_times_it_is_given_and_only_those(meta: Any) -> None:
    inode = meta.create(b"f", session=ONE)
    meta.set_attr(b"f", mtime_ns=5, atime_ns=6)
    meta.clock.advance(1)
    closed = meta.close(inode.id, ONE, 10)
    assert (closed.mtime_ns, closed.atime_ns) == (5, 6)
    assert closed.ctime_ns == meta.clock.unix_ns()
    request = meta_pb2.SyncRequest(inode=inode.id, mtime=meta_pb2.Timestamp(ns=77), durable=True)
    assert meta.call("sync", request).inode.mtime_ns == 77


def test_a_hint_of_another_truncate_version_is_checked_with_storage(meta: Any) -> None:
    inode = meta.create(b"f", session=ONE)
    meta.close(inode.id, ONE, 3 * CHUNK)
    meta.open(b"f", os.O_RDWR, session=ONE)
    assert truncate(meta, b"f", 10).truncate_version == 1
    meta.storage.chunks[inode.id, 0] = 10
    meta.storage.chunks[inode.id, 2] = 7
    assert meta.close(inode.id, ONE, 99 * CHUNK, version=0).length == 2 * CHUNK + 7
    assert "query" in meta.storage.calls


def test_shrinking_removes_chunks_and_shortens_the_last(meta: Any) -> None:
    inode = meta.create(b"f", session=ONE)
    for index in range(5):
        meta.storage.chunks[inode.id, index] = CHUNK
    meta.close(inode.id, ONE, 5 * CHUNK)
    changed = truncate(meta, b"f", CHUNK + 100)
    assert (changed.length, changed.truncate_version) == (CHUNK + 100, 1)
    assert meta.storage.chunks == {(inode.id, 0): CHUNK, (inode.id, 1): 100}
    assert meta.records(b"T") == 0
    assert truncate(meta, b"f", 0).length == 0
    assert meta.storage.chunks == {}


def test_growing_a_closed_file_needs_no_storage(meta: Any) -> None:
    inode = meta.create(b"f", session=ONE)
    meta.close(inode.id, ONE, 100)
    assert truncate(meta, b"f", 1 << 40).length == 1 << 40
    assert meta.stat(b"f").truncate_version == 0
    assert meta.storage.calls == []
    assert meta.code(lambda: truncate(meta, b"f", 1 << 63)) is Code.TOO_BIG


def test_truncating_below_what_an_open_writer_may_have_written_trims(meta: Any) -> None:
    inode = meta.create(b"f", session=ONE)
    meta.storage.chunks[inode.id, 3] = 9  # written, not yet synced: the recorded length is 0
    truncate(meta, b"f", 5)
    assert meta.storage.chunks == {}
    assert meta.close(inode.id, ONE, 4 * CHUNK, version=0).length == 5


def test_open_with_truncation(meta: Any) -> None:
    inode = meta.create(b"f", session=ONE)
    meta.storage.chunks[inode.id, 0] = 10
    meta.close(inode.id, ONE, 10)
    meta.clock.advance(1)
    reply = meta.open(b"f", os.O_WRONLY | os.O_TRUNC, session=TWO)
    assert (reply.inode.length, reply.inode.truncate_version) == (0, 1)
    assert reply.inode.mtime_ns == meta.clock.unix_ns()
    assert meta.storage.chunks == {}
    calls = len(meta.storage.calls)
    meta.close(inode.id, TWO, 0, version=1)
    meta.open(b"f", os.O_WRONLY | os.O_TRUNC)
    assert len(meta.storage.calls) == calls  # empty and nobody has it open: nothing to trim


def test_a_trim_cut_off_by_a_crash_is_finished_before_the_length_is_touched(meta: Any, unavailable: FfsError) -> None:
    inode = meta.create(b"f", session=ONE)
    for index in range(4):
        meta.storage.chunks[inode.id, index] = CHUNK
    meta.close(inode.id, ONE, 4 * CHUNK)
    meta.storage.fail = unavailable
    assert meta.code(lambda: truncate(meta, b"f", CHUNK)) is Code.UNAVAILABLE
    assert meta.records(b"T") == 1
    after = meta.restarted()
    after.requests = 1000
    assert after.stat(b"f").length == 4 * CHUNK  # nobody was told that it has another one
    assert after.code(lambda: truncate(after, b"f", 3 * CHUNK)) is Code.UNAVAILABLE
    assert after.stat(b"f").length == 4 * CHUNK
    meta.storage.fail = None
    assert truncate(after, b"f", 3 * CHUNK).length == 3 * CHUNK
    assert meta.storage.chunks == {(inode.id, 0): CHUNK}
    assert after.records(b"T") == 0


def test_recorded_trims_are_finished_at_start(meta: Any, unavailable: FfsError) -> None:
    inode = meta.create(b"f", session=ONE)
    meta.storage.chunks[inode.id, 0] = CHUNK
    meta.close(inode.id, ONE, CHUNK)
    meta.storage.fail = unavailable
    assert meta.code(lambda: truncate(meta, b"f", 1)) is Code.UNAVAILABLE
    meta.storage.fail = None
    after = meta.restarted()
    after.wait(after.trimmer.finish_recorded())
    assert meta.storage.chunks == {(inode.id, 0): 1}
    assert after.records(b"T") == 0


def test_a_trim_that_its_request_gave_up_is_finished_later(
    meta: Any, unavailable: FfsError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trims, "LOOK_AGAIN_S", 0.001)
    inode = meta.create(b"f", session=ONE)
    meta.storage.chunks[inode.id, 0] = CHUNK
    meta.close(inode.id, ONE, CHUNK)

    async def scenario() -> None:
        job = asyncio.ensure_future(meta.trimmer.run())
        await asyncio.sleep(0)  # it has found nothing to do
        meta.storage.fail = unavailable
        with pytest.raises(FfsError):
            await meta.handlers.set_attr(
                meta_pb2.SetAttrRequest(at=meta_pb2.PathAt(dir=1, path=b"f"), length=1, caller=common_pb2.Caller())
            )
        meta.storage.fail = None
        for _ in range(1000):
            await asyncio.sleep(0.001)
            if not meta.trimmer.recorded():
                break
        job.cancel()

    meta.wait(scenario())
    assert meta.storage.chunks == {(inode.id, 0): 1}
    assert meta.records(b"T") == 0


def test_nobody_sees_the_new_length_while_the_trim_could_still_take_what_they_write(meta: Any) -> None:
    """Who appends at the new end writes to chunks that the trim has yet to shorten."""
    inode = meta.create(b"f", session=ONE)
    meta.storage.chunks[inode.id, 0] = CHUNK
    meta.close(inode.id, ONE, CHUNK)
    seen: list[tuple[int, int]] = []

    async def before_drop() -> None:
        for reply in (
            meta.handlers.stat(meta_pb2.StatRequest(at=meta_pb2.PathAt(dir=1, path=b"f"))),
            meta.handlers.open(meta_pb2.OpenRequest(at=meta_pb2.PathAt(dir=1, path=b"f"), flags=os.O_WRONLY)),
        ):
            seen.append((reply.inode.length, reply.inode.truncate_version))

    meta.storage.before_drop = before_drop
    told = truncate(meta, b"f", 100)
    assert seen == [(CHUNK, 0)] * 2
    assert (told.length, told.truncate_version) == (100, 1)
    assert (meta.stat(b"f").length, meta.stat(b"f").truncate_version) == (100, 1)


def test_a_server_that_is_late_with_a_trim_takes_nothing_that_was_written_since(meta: Any) -> None:
    inode = meta.create(b"f", session=ONE)
    for index in range(3):
        meta.storage.chunks[inode.id, index] = CHUNK
    meta.close(inode.id, ONE, 3 * CHUNK)
    other = type(meta)(meta.kv, meta.storage, meta.clock)

    async def before_drop() -> None:
        """This server hangs. Another one finishes its trim, and a client writes again."""
        meta.storage.before_drop = nothing
        await other.trimmer.finish(inode.id)
        assert meta.storage.chunks == {(inode.id, 0): 100}
        meta.storage.write(inode.id, 0, CHUNK)
        meta.storage.write(inode.id, 1, CHUNK)

    async def nothing() -> None:
        pass

    meta.storage.before_drop = before_drop
    truncate(meta, b"f", 100)
    assert meta.storage.chunks == {(inode.id, 0): CHUNK, (inode.id, 1): CHUNK}
    assert meta.records(b"T") == 0
    other.loop.close()


def test_waiting_for_a_trim_that_has_just_ended_ends(meta: Any) -> None:
    inode = meta.create(b"f")

    class Watched(dict[int, "asyncio.Task[None]"]):
        looks = 0

        def get(self, key: int, default: Any = None) -> Any:
            self.looks += 1
            assert self.looks < 100, "the event loop never gets a turn"
            return super().get(key, default)

    async def scenario() -> None:
        ended = asyncio.ensure_future(asyncio.sleep(0))
        await ended
        meta.trimmer._running = Watched({inode.id: ended})  # as between a task's end and its done callback
        await meta.trimmer.finish(inode.id)

    meta.wait(scenario())


def test_a_repeated_truncation_does_not_cut_later_writes(meta: Any, unavailable: FfsError) -> None:
    inode = meta.create(b"f", session=ONE)
    meta.storage.chunks[inode.id, 0] = 100
    meta.close(inode.id, ONE, 100)

    def request() -> Any:
        at = meta_pb2.PathAt(dir=1, path=b"f")
        return meta_pb2.SetAttrRequest(at=at, length=10, mutation=meta_pb2.Mutation(request_id=b"t" * 16, retry=True))

    meta.storage.fail = unavailable
    assert meta.code(lambda: meta.call("set_attr", request())) is Code.UNAVAILABLE
    meta.storage.fail = None
    assert meta.call("set_attr", request()).inode.length == 10
    assert meta.storage.chunks == {(inode.id, 0): 10}
    meta.open(b"f", os.O_WRONLY, session=TWO)
    meta.storage.chunks[inode.id, 0] = 50
    meta.close(inode.id, TWO, 50, version=1)
    assert meta.call("set_attr", request()).inode.length == 10  # the old answer, for what was done once
    assert meta.stat(b"f").length == 50
    assert meta.storage.chunks == {(inode.id, 0): 50}


def test_concurrent_truncations_end_with_one_of_the_lengths_and_its_chunks(meta: Any) -> None:
    inode = meta.create(b"f", session=ONE)
    for index in range(20):
        meta.storage.chunks[inode.id, index] = CHUNK
    meta.close(inode.id, ONE, 20 * CHUNK)

    async def both() -> list[Any]:
        def one(number: int, length: int) -> Any:
            request = meta_pb2.SetAttrRequest(at=meta_pb2.PathAt(dir=inode.id), length=length)
            request.mutation.request_id = bytes([number]) * 16
            return meta.handlers.set_attr(request)

        return await asyncio.gather(one(1, 9 * CHUNK), one(2, 3 * CHUNK), one(3, 5 * CHUNK))

    meta.loop.run_until_complete(both())
    assert meta.stat(b"f").length == 5 * CHUNK
    assert sorted(index for _, index in meta.storage.chunks) == [0, 1, 2]
    assert meta.records(b"T") == 0


def test_a_removed_file_keeps_its_data_while_it_is_open(meta: Any) -> None:
    inode = meta.create(b"f", session=ONE)
    meta.storage.chunks[inode.id, 0] = 5
    meta.open(b"f", os.O_RDONLY, session=TWO)
    meta.remove(b"f")
    assert meta.collect() == 0
    assert meta.fstat(inode.id).nlink == 0
    meta.close(inode.id, ONE, 5)
    assert meta.collect() == 0
    assert meta.storage.chunks
    meta.close(inode.id, TWO)
    assert meta.collect() == 1
    assert meta.storage.chunks == {}
    assert meta.code(lambda: meta.fstat(inode.id)) is Code.STALE_HANDLE
    assert [meta.records(letter) for letter in (b"G", b"S", b"T", b"I")] == [0, 0, 0, 1]


def test_a_file_being_collected_cannot_be_opened_again(meta: Any, unavailable: FfsError) -> None:
    inode = meta.create(b"f", session=ONE)
    meta.remove(b"f")

    def reopen() -> Any:
        return meta.call("open", meta_pb2.OpenRequest(at=meta_pb2.PathAt(dir=inode.id), session=TWO))

    reopen()
    meta.close(inode.id, ONE)
    meta.close(inode.id, TWO)
    meta.storage.fail = unavailable
    meta.wait(meta.collector.collect_all())
    assert meta.code(reopen) is Code.STALE_HANDLE
    meta.storage.fail = None
    assert meta.collect() == 1


def test_many_files_are_collected_in_few_requests_and_a_chain_that_is_away_keeps_only_its_own(meta: Any) -> None:
    layouts = {}
    for number in range(100):
        name = b"f%d" % number
        inode = meta.create(name, session=ONE)
        meta.close(inode.id, ONE, 5 << 20)
        for index in range(5):
            meta.storage.chunks[inode.id, index] = 100
        layouts[inode.id] = set(inode.layout.chains)
        meta.remove(name)
    away = next(iter(next(iter(layouts.values()))))
    meta.storage.chains_away = {away}
    meta.storage.calls.clear()
    assert meta.collect() == sum(away not in chains for chains in layouts.values())
    assert meta.records(b"G") == sum(away in chains for chains in layouts.values()) > 0
    meta.storage.chains_away = set()
    meta.collect()
    assert meta.storage.chunks == {}
    assert [meta.records(letter) for letter in (b"G", b"S", b"T", b"I")] == [0, 0, 0, 1]
    assert len(meta.storage.calls) < 40


def test_many_sessions_end_at_once(meta: Any) -> None:
    files = [meta.create(b"f%d" % number, session=ONE) for number in range(3)]
    meta.open(b"f1", os.O_RDONLY, session=TWO)
    meta.remove(b"f0")
    meta.remove(b"f1")

    def end(*sessions: tuple[int, bytes]) -> Any:
        ended = [meta_pb2.EndedSession(inode=inode, session=session) for inode, session in sessions]
        return meta.call("end_sessions", meta_pb2.EndSessionsRequest(sessions=ended))

    other = meta_pb2.EndSessionsRequest(sessions=[meta_pb2.EndedSession(inode=files[0].id, session=ONE)])
    other.caller.client_id = b"somebody else..."
    meta.handlers.end_sessions(other)
    assert meta.records(b"S") == 4
    end(*((inode.id, ONE) for inode in files), (12345, ONE), (files[0].id, b"short"))
    assert meta.records(b"S") == 1
    assert meta.collect() == 1  # the other is still open
    end((files[1].id, TWO))
    assert meta.collect() == 1
    assert meta.code(lambda: end(*[(1, ONE)] * 41)) is Code.TOO_LARGE


def test_an_open_file_that_was_never_written_is_kept_too(meta: Any) -> None:
    at = meta_pb2.PathAt(dir=1, path=b"f")
    inode = meta.call("make_node", meta_pb2.MakeNodeRequest(at=at, mode=0o100644)).inode
    meta.open(b"f", os.O_RDONLY, session=ONE)
    meta.remove(b"f")
    assert meta.fstat(inode.id).nlink == 0
    meta.close(inode.id, ONE)
    assert meta.collect() == 1
    assert meta.storage.calls == []


def test_recursive_removal_is_one_step_and_gives_everything_back(meta: Any) -> None:
    meta.mkdir(b"top/a/b", parents=True)
    inodes = [meta.create(b"top/a/f%03d" % number, session=b"%016d" % number) for number in range(100)]
    kept = meta.create(b"top/a/b/kept")
    meta.link(b"top/a/b/kept", b"outside")
    meta.symlink(b"top/a/link", b"x")
    for number, inode in enumerate(inodes):
        meta.storage.chunks[inode.id, 0] = 5
        meta.close(inode.id, b"%016d" % number, 5)
    assert meta.code(lambda: meta.rmdir(b"top")) is Code.NOT_EMPTY
    meta.remove(b"top", meta_pb2.REMOVE_RECURSIVE)
    assert meta.names() == [b"outside"]
    assert meta.stat(b"/").nlink == 2
    meta.collect()
    assert meta.storage.chunks == {}
    assert meta.stat(b"outside").id == kept.id
    assert meta.stat(b"outside").nlink == 1
    assert [meta.records(letter) for letter in (b"G", b"D", b"I")] == [0, 1, 2]


def test_nothing_is_made_in_a_removed_directory(meta: Any) -> None:
    directory = meta.mkdir(b"d")
    meta.create(b"d/f")
    meta.remove(b"d", meta_pb2.REMOVE_RECURSIVE)
    at = meta_pb2.PathAt(dir=directory.id, path=b"new")
    request = meta_pb2.OpenRequest(at=at, flags=os.O_CREAT | os.O_WRONLY, mode=0o600)
    assert meta.code(lambda: meta.call("open", request)) is Code.NO_ENTRY


def test_sessions_of_dead_clients_end_with_the_length_that_storage_knows(meta: Any) -> None:
    inode = meta.create(b"f", session=ONE)
    meta.storage.chunks[inode.id, 1] = 10
    alive: list[bytes] = []
    complete = False

    async def list_sessions() -> mgmtd_pb2.ListSessionsReply:
        sessions = [mgmtd_pb2.ClientSession(client_id=client) for client in alive]
        return mgmtd_pb2.ListSessionsReply(sessions=sessions, complete=complete)

    reaper = SessionReaper(meta.parts.runner, list_sessions)
    meta.clock.advance(GRACE_NS / 1e9 + 1)
    assert meta.wait(reaper.reap()) == 0  # absence proves nothing yet
    complete = True
    alive.append(b"c" * 16)
    assert meta.wait(reaper.reap()) == 0
    alive.clear()
    assert meta.wait(reaper.reap()) == 1
    assert meta.stat(b"f").length == CHUNK + 10
    assert meta.records(b"S") == 0


def test_storage_that_is_away_holds_up_only_the_sessions_that_need_it(meta: Any, unavailable: FfsError) -> None:
    meta.create(b"f", session=ONE)
    meta.open(b"f", os.O_RDONLY, session=TWO)

    async def nobody() -> mgmtd_pb2.ListSessionsReply:
        return mgmtd_pb2.ListSessionsReply(complete=True)

    reaper = SessionReaper(meta.parts.runner, nobody)
    meta.clock.advance(GRACE_NS / 1e9 + 1)
    meta.storage.fail = unavailable
    assert meta.wait(reaper.reap()) == 1
    assert meta.records(b"S") == 1
    meta.storage.fail = None
    assert meta.wait(reaper.reap()) == 1


def test_a_session_too_young_is_not_reaped(meta: Any) -> None:
    meta.create(b"f", session=ONE)

    async def nobody() -> mgmtd_pb2.ListSessionsReply:
        return mgmtd_pb2.ListSessionsReply(complete=True)

    assert meta.wait(SessionReaper(meta.parts.runner, nobody).reap()) == 0


def test_a_stranger_cannot_speak_for_somebody_elses_writes(meta: Any) -> None:
    inode = meta.create(b"f", 0o600, session=ONE)
    request = meta_pb2.SyncRequest(inode=inode.id, hint=meta_pb2.LengthHint(length=99))
    request.caller.CopyFrom(common_pb2.Caller(uid=7, gid=7, client_id=b"x" * 16))
    assert meta.code(lambda: meta.handlers.sync(request)) is Code.BAD_HANDLE
    request.caller.client_id = b"c" * 16
    assert meta.handlers.sync(request).inode.length == 99
