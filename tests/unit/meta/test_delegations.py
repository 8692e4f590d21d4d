"""Delegations of a directory's names: who waits for whom, holders that hang, requests that come late."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import stat
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fireflyfs.common.clock import SystemClock
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.fuse.delegations import Delegations
from fireflyfs.meta.background.sessions import SessionReaper
from fireflyfs.meta.core import delegations as core
from fireflyfs.meta.core.delegations import HELD_MAX, HOLDERS_MAX, Holder
from fireflyfs.meta.service import recalls
from fireflyfs.proto import common_pb2, meta_pb2, mgmtd_pb2

ONE, TWO = b"1" * 16, b"2" * 16
CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY


def caller(client: bytes) -> common_pb2.Caller:
    return common_pb2.Caller(client_id=client)


class Clients:
    """Several clients in one directory."""

    def __init__(self, meta: Any) -> None:
        self.meta = meta
        self.inode = meta.mkdir(b"d").id
        self.numbers: dict[bytes, int] = {}
        self.requests = 0

    def delegate(self, client: bytes, names_max: int = 100) -> list[bytes] | None:
        request = meta_pb2.DelegateRequest(caller=caller(client), directory=self.inode, names_max=names_max)
        reply = self.meta.wait(self._delegate(request))
        if not reply.HasField("granted"):
            return None
        assert reply.granted.directory == self.inode
        self.numbers[client] = reply.granted.number
        return list(reply.names)

    async def _delegate(self, request: meta_pb2.DelegateRequest) -> meta_pb2.DelegateReply:
        return self.meta.handlers.delegate(request)

    def news(self, client: bytes, **fields: Any) -> Awaitable[meta_pb2.AwaitRecallsReply]:
        return self.meta.handlers.await_recalls(meta_pb2.AwaitRecallsRequest(caller=caller(client), **fields))

    def renew(self, client: bytes, wait_ms: int = 0) -> list[int]:
        return list(self.meta.wait(self.news(client, held=[self.of(client)], wait_ms=wait_ms)).recalled)

    def of(self, client: bytes, number: int = 0) -> meta_pb2.Delegation:
        return meta_pb2.Delegation(directory=self.inode, number=number or self.numbers[client])

    def give_back(self, client: bytes, number: int = 0) -> None:
        self.meta.wait(self.news(client, returned=[self.of(client, number)]))

    def holders(self) -> set[bytes]:
        with self.meta.kv.transaction(read_only=True) as txn:
            data = txn.get(b"N" + self.inode.to_bytes(8, "big"))
        return {holder.client_id for holder in core.unpack(data)} if data else set()

    async def make(self, client: bytes, name: bytes) -> None:
        request = meta_pb2.OpenRequest(
            caller=caller(client), at=meta_pb2.PathAt(dir=self.inode, path=name), flags=CREATE, mode=0o644
        )
        await self.send("open", request)

    async def send(self, method: str, request: Any) -> Any:
        self.requests += 1
        request.mutation.request_id = b"make" + self.requests.to_bytes(12, "big")
        answer = getattr(self.meta.handlers, method)(request)
        return await answer if inspect.isawaitable(answer) else answer


@pytest.fixture
def clients(meta: Any) -> Clients:
    return Clients(meta)


def test_all_names_come_with_it(clients: Clients, clock: Any) -> None:
    for name in (b"a", b"b"):
        clients.meta.create(b"d/" + name)
    assert clients.delegate(ONE) == [b"a", b"b"]
    assert clients.holders() == {ONE}
    first = clients.numbers[ONE]
    clock.advance(1)
    assert clients.delegate(ONE) == [b"a", b"b"]
    assert clients.numbers[ONE] != first
    assert clients.delegate(TWO) == [b"a", b"b"]
    assert clients.holders() == {ONE, TWO}
    assert not clients.renew(ONE)
    assert not clients.renew(TWO)


def test_not_with_more_names_than_wanted(clients: Clients) -> None:
    for number in range(4):
        clients.meta.create(b"d/%d" % number)
    assert clients.delegate(ONE, names_max=3) is None
    assert clients.holders() == set()
    assert len(clients.delegate(ONE, names_max=4) or ()) == 4


def test_only_of_a_directory_that_is_there(clients: Clients) -> None:
    clients.inode = clients.meta.create(b"f").id
    assert clients.meta.code(lambda: clients.delegate(ONE)) is Code.NOT_DIRECTORY
    clients.inode = 4711
    assert clients.meta.code(lambda: clients.delegate(ONE)) is Code.STALE_HANDLE
    clients.inode = clients.meta.mkdir(b"e").id
    assert clients.meta.code(lambda: clients.delegate(b"short")) is Code.INVALID


def test_absurd_requests_are_refused(clients: Clients) -> None:
    assert clients.delegate(ONE) == []
    many = [meta_pb2.Delegation(directory=number) for number in range(HELD_MAX + 1)]
    for fields in ({"held": many}, {"returned": many}):
        assert clients.meta.code(lambda fields=fields: clients.meta.wait(clients.news(ONE, **fields))) is Code.TOO_LARGE
    clients.numbers[b"short"] = 7
    assert clients.meta.code(lambda: clients.give_back(b"short")) is Code.INVALID


def test_a_bounded_number_of_holders(clients: Clients) -> None:
    for number in range(HOLDERS_MAX):
        assert clients.delegate(bytes([number]) * 16) == []
    assert clients.delegate(ONE) is None
    clients.give_back(b"\0" * 16)
    assert clients.delegate(ONE) == []


MAKE = {
    "a file": ("open", lambda at: meta_pb2.OpenRequest(at=at, flags=CREATE, mode=0o644)),
    "a directory": ("make_node", lambda at: meta_pb2.MakeNodeRequest(at=at, mode=stat.S_IFDIR | 0o755)),
    "directories": ("make_node", lambda at: meta_pb2.MakeNodeRequest(at=at, mode=stat.S_IFDIR | 0o755, parents=True)),
    "a symbolic link": ("symlink", lambda at: meta_pb2.SymlinkRequest(at=at, target=b"x")),
    "a hard link": ("link", lambda at: meta_pb2.LinkRequest(old=meta_pb2.PathAt(dir=1, path=b"other"), new=at)),
    "a rename": ("rename", lambda at: meta_pb2.RenameRequest(old=meta_pb2.PathAt(dir=1, path=b"other"), new=at)),
}


@pytest.mark.parametrize("what", MAKE)
def test_who_makes_a_name_waits_until_all_others_have_given_back(clients: Clients, what: str) -> None:
    clients.meta.create(b"other")
    assert clients.delegate(ONE) == []
    method, request_of = MAKE[what]
    request = request_of(meta_pb2.PathAt(dir=clients.inode, path=b"new"))
    request.caller.CopyFrom(caller(TWO))

    async def scene() -> None:
        asking = asyncio.ensure_future(clients.news(ONE, held=[clients.of(ONE)], wait_ms=1000))
        await asyncio.sleep(0.01)
        making = asyncio.ensure_future(clients.send(method, request))
        assert list((await asking).recalled) == [clients.inode]
        await asyncio.sleep(0.01)
        assert not making.done()
        assert list((await clients.news(ONE, held=[clients.of(ONE)])).recalled) == [clients.inode], "it is told again"
        await clients.news(ONE, returned=[clients.of(ONE)])
        await making

    clients.meta.wait(scene())
    assert clients.meta.names(b"d") == [b"new"]
    assert clients.holders() == set()
    assert clients.delegate(ONE) is None, "not while several clients make names"


def test_restoring_from_the_trash_waits_too(make_meta: Callable[..., Any]) -> None:
    clients = Clients(make_meta(trash_keep_s=3600))
    clients.meta.create(b"d/f")
    clients.meta.remove(b"d/f")
    (entry,) = clients.meta.call("list_trash", meta_pb2.ListTrashRequest()).entries
    assert clients.delegate(ONE) == []
    request = meta_pb2.RestoreTrashRequest(caller=caller(TWO), ref=entry.ref)

    async def scene() -> None:
        restoring = asyncio.ensure_future(clients.send("restore_trash", request))
        await asyncio.sleep(0.05)
        assert not restoring.done()
        await clients.news(ONE, returned=[clients.of(ONE)])
        await restoring

    clients.meta.wait(scene())
    assert clients.meta.names(b"d") == [b"f"]


def test_its_own_names_wait_for_nobody_and_stay_delegated(clients: Clients) -> None:
    assert clients.delegate(ONE) == []
    clients.meta.wait(asyncio.wait_for(clients.make(ONE, b"mine"), 0.5))
    assert not clients.renew(ONE)


def test_names_that_go_or_are_replaced_are_no_news(clients: Clients) -> None:
    for name in (b"d/a", b"d/b", b"d/c", b"e"):
        clients.meta.create(name)
    assert clients.delegate(ONE) == [b"a", b"b", b"c"]
    clients.meta.remove(b"d/a")
    clients.meta.rename(b"d/b", b"away")
    clients.meta.rename(b"e", b"d/c")
    clients.meta.rename(b"away", b"d/c", 2)
    assert not clients.renew(ONE)


def test_a_holder_that_hangs_is_not_waited_for_beyond_its_term(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recalls, "TERM_S", 0.3)
    monkeypatch.setattr(recalls, "MARGIN_S", 0.1)
    assert clients.delegate(ONE) == []
    began_s = time.monotonic()
    clients.meta.wait(clients.make(TWO, b"new"))
    assert time.monotonic() - began_s >= 0.4
    assert clients.renew(ONE) == [clients.inode]
    clients.meta.wait(asyncio.wait_for(clients.make(TWO, b"more"), 0.2))


def test_what_was_recalled_by_another_server_is_found(clients: Clients, make_meta: Callable[..., Any]) -> None:
    """Two servers on one store: the holder asks one, who makes the name the other."""
    other = make_meta(kv=clients.meta.kv, storage=clients.meta.storage)
    assert clients.delegate(ONE) == []

    async def scene() -> float:
        asking = asyncio.ensure_future(clients.news(ONE, held=[clients.of(ONE)], wait_ms=1000))
        await asyncio.sleep(0.01)
        request = meta_pb2.OpenRequest(
            caller=caller(TWO), at=meta_pb2.PathAt(dir=clients.inode, path=b"new"), flags=CREATE, mode=0o644
        )
        making = asyncio.ensure_future(other.handlers.open(request))
        assert list((await asking).recalled) == [clients.inode]
        began_s = time.monotonic()
        await clients.news(ONE, returned=[clients.of(ONE)])
        await making
        return time.monotonic() - began_s

    assert clients.meta.wait(scene()) < 1.0, "the term was waited out"
    other.loop.close()


def test_requests_that_come_late_neither_end_nor_renew_a_newer_grant(clients: Clients, clock: Any) -> None:
    assert clients.delegate(ONE) == []
    old = clients.numbers[ONE]
    clients.give_back(ONE)
    clock.advance(1)
    assert clients.delegate(ONE) == []
    clients.give_back(ONE, number=old)
    assert not clients.renew(ONE), "a late return ended another grant"
    reply = clients.meta.wait(clients.news(ONE, held=[clients.of(ONE, number=old)]))
    assert list(reply.recalled) == [clients.inode]


def test_of_clients_that_are_gone_nothing_stays(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recalls, "TERM_S", 0.1)
    monkeypatch.setattr(recalls, "MARGIN_S", 0.0)
    assert clients.delegate(ONE) == []

    async def listed() -> mgmtd_pb2.ListSessionsReply:
        return mgmtd_pb2.ListSessionsReply(sessions=[mgmtd_pb2.ClientSession(client_id=TWO)], complete=True)

    clients.meta.wait(SessionReaper(clients.meta.parts.runner, listed).reap())
    assert clients.holders() == set()


def test_who_does_not_answer_is_not_waited_for_at_each_directory(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recalls, "TERM_S", 0.4)
    monkeypatch.setattr(recalls, "MARGIN_S", 0.0)
    folders = [clients.inode]
    for number in range(20):
        folders.append(clients.meta.mkdir(b"e%d" % number).id)
    for clients.inode in folders:
        assert clients.delegate(ONE) == []

    async def make_everywhere() -> None:
        for clients.inode in folders:
            await clients.make(TWO, b"new")

    began_s = time.monotonic()
    clients.meta.wait(make_everywhere())
    assert time.monotonic() - began_s < 4 * 0.4, "the term was waited out at many of them"


def test_records_that_make_no_sense_are_refused() -> None:
    holders = (Holder(ONE, 7), Holder(TWO, 1 << 63, recalled=True))
    data = core.pack(holders)
    assert core.unpack(data) == holders
    for bad, code in (
        (b"", Code.IO_ERROR),
        (data[:-1], Code.IO_ERROR),
        (data + b"\0", Code.IO_ERROR),
        (b"\x09" + data[1:], Code.VERSION_MISMATCH),
    ):
        with pytest.raises(FfsError) as caught:
            core.unpack(bad)
        assert caught.value.code is code


class Remote:
    """The calls of a mount, from its threads to the server's loop: some hang on their way, some come twice."""

    def __init__(self, meta: Any, rng: random.Random) -> None:
        self._meta = meta
        self._rng = rng

    def _call(self, method: str, request: Any) -> Any:
        async def calls() -> Any:
            answer = getattr(self._meta.handlers, method)(request)
            return await answer if inspect.isawaitable(answer) else answer

        for _ in range(2):
            self._hang()
            reply = asyncio.run_coroutine_threadsafe(calls(), self._meta.loop).result(20)
            if self._rng.random() < 0.9:
                break  # else it comes a second time
        self._hang()
        return reply

    def _hang(self) -> None:
        if self._rng.random() < 0.05:
            time.sleep(self._rng.choice((0.01, 0.05, 0.6)))

    def delegate(self, request: meta_pb2.DelegateRequest) -> meta_pb2.DelegateReply:
        return self._call("delegate", request)

    def await_recalls(self, request: meta_pb2.AwaitRecallsRequest) -> meta_pb2.AwaitRecallsReply:
        return self._call("await_recalls", request)

    def open(self, request: meta_pb2.OpenRequest) -> meta_pb2.OpenReply:
        return self._call("open", request)


def test_a_name_that_was_made_is_never_missing_on_any_mount(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three mounts make names and look for each other's, with short terms and calls that hang for longer than those."""
    monkeypatch.setattr(recalls, "TERM_S", 0.2)
    monkeypatch.setattr(recalls, "MARGIN_S", 0.05)
    monkeypatch.setattr(recalls, "QUIET_S", 0.02)
    monkeypatch.setattr("fireflyfs.meta.ops.delegations.TERM_MS", 200)
    meta = clients.meta
    meta.parts.runner.clock = SystemClock()
    serving = threading.Thread(target=meta.loop.run_forever)
    serving.start()
    made: list[bytes] = []
    wrong: list[bytes] = []
    knew = [0]
    end_s = time.monotonic() + 4

    def mount(number: int) -> None:
        mine = random.Random(number)
        client = bytes([65 + number]) * 16
        remote = Remote(meta, random.Random(100 + number))
        names = Delegations(remote, caller(client), SystemClock())
        asking = threading.Thread(target=names.run)
        asking.start()

        def look(count: int) -> None:
            for _ in range(count):
                there = made[-20:]
                wrong.extend(name for name in there if names.absent(clients.inode, name))
                if names.absent(clients.inode, b"never"):
                    knew[0] += 1
                else:
                    names.missed(clients.inode)
                time.sleep(0.0005)

        while time.monotonic() < end_s:
            look(mine.randrange(60))
            name = b"%d-%d" % (number, mine.randrange(1 << 40))
            at = meta_pb2.PathAt(dir=clients.inode, path=name)
            with names.making(clients.inode, name):
                remote.open(meta_pb2.OpenRequest(caller=caller(client), at=at, flags=os.O_CREAT | os.O_WRONLY))
            made.append(name)
        names.stop()
        asking.join()

    mounts = [threading.Thread(target=mount, args=(number,)) for number in range(3)]
    for each in mounts:
        each.start()
    for each in mounts:
        each.join()
    meta.loop.call_soon_threadsafe(meta.loop.stop)
    serving.join()
    assert not wrong
    assert len(made) > 20
    assert knew[0] > 100
    assert clients.holders() == set(), "all was given back"
