"""Advisory locks through the metadata service: two clients, waits, restarts, clients that die."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.limits import LOCKS_CLIENT_MAX, LOCKS_INODE_MAX, LOCKS_QUEUED_MAX
from fireflyfs.meta.background.sessions import LOCK_GRACE_NS, SessionReaper
from fireflyfs.meta.core import lock_keys
from fireflyfs.meta.core.locks import RANGE_END, Kind, Owner
from fireflyfs.proto import common_pb2, meta_pb2, mgmtd_pb2

ONE, TWO = b"1" * 16, b"2" * 16
READ, WRITE, UNLOCK = meta_pb2.LOCK_READ, meta_pb2.LOCK_WRITE, meta_pb2.LOCK_UNLOCK
RANGE, FLOCK = meta_pb2.LOCK_RANGE, meta_pb2.LOCK_FLOCK


class Locks:
    """Calls of several clients on one file."""

    def __init__(self, meta: Any) -> None:
        self.meta = meta
        self.inode = meta.create(b"f").id
        self.requests = 0

    def request_id(self) -> bytes:
        self.requests += 1
        return b"lock" + self.requests.to_bytes(12, "big")

    def set(
        self, client: bytes, owner: int, type_: int, start: int = 0, end: int = RANGE_END, *, wait: bool = False,
        kind: int = RANGE, inode: int = 0, pid: int = 0, request_id: bytes = b"",
    ) -> meta_pb2.SetLockReply:  # fmt: skip
        lock = meta_pb2.Lock(kind=kind, type=type_, start=start, end=end, owner=owner, pid=pid or owner)
        request = meta_pb2.SetLockRequest(
            caller=common_pb2.Caller(client_id=client), inode=inode or self.inode, lock=lock, wait=wait
        )
        request.mutation.request_id = request_id or self.request_id()
        reply = self.meta.handlers.set_lock(request)
        assert isinstance(reply, meta_pb2.SetLockReply)
        return reply

    def get(self, client: bytes, owner: int, type_: int, start: int, end: int) -> meta_pb2.Lock | None:
        lock = meta_pb2.Lock(type=type_, start=start, end=end, owner=owner)
        request = meta_pb2.GetLockRequest(caller=common_pb2.Caller(client_id=client), inode=self.inode, lock=lock)
        reply = self.meta.handlers.get_lock(request)
        return reply.conflict if reply.HasField("conflict") else None

    def news(self, client: bytes, *, heard: list[bytes] | None = None, **waiting: Any) -> meta_pb2.AwaitLocksReply:
        request = meta_pb2.AwaitLocksRequest(
            caller=common_pb2.Caller(client_id=client), heard=heard or [], wait_ms=0, **waiting
        )
        return self.meta.wait(self.meta.handlers.await_locks(request))

    def cancel(self, client: bytes, ticket: int, request_id: bytes, kind: int = RANGE) -> bool:
        queued = meta_pb2.QueuedLock(inode=self.inode, kind=kind, ticket=ticket, request_id=request_id)
        request = meta_pb2.CancelLockRequest(caller=common_pb2.Caller(client_id=client), queued=queued)
        return self.meta.handlers.cancel_lock(request).granted

    def records(self) -> list[bytes]:
        with self.meta.kv.transaction(read_only=True) as txn:
            return [key for key, _ in txn.scan(b"L", b"M")]


@pytest.fixture
def locks(meta: Any) -> Locks:
    return Locks(meta)


def test_readers_share_a_writer_does_not_and_unlocking_leaves_nothing(locks: Locks) -> None:
    assert locks.set(ONE, 7, READ, 0, 99).granted
    assert locks.set(TWO, 7, READ, 50, 149).granted  # the same number, another client's
    refused = locks.set(TWO, 7, WRITE, 0, 10)
    assert not refused.granted
    assert (refused.conflict.type, refused.conflict.start, refused.conflict.end, refused.conflict.pid) == (
        READ,
        0,
        99,
        7,
    )
    found = locks.get(ONE, 8, WRITE, 120, 200)
    assert found is not None
    assert (found.start, found.end) == (50, 149)
    assert locks.get(ONE, 8, WRITE, 150, 200) is None
    assert locks.set(ONE, 7, UNLOCK).granted
    assert locks.set(TWO, 7, UNLOCK).granted
    assert locks.set(TWO, 7, UNLOCK).granted  # nothing to unlock is no error
    assert locks.records() == []


def test_a_part_is_unlocked_and_downgraded(locks: Locks) -> None:
    locks.set(ONE, 1, WRITE, 0, 99)
    locks.set(ONE, 1, UNLOCK, 40, 59)
    locks.set(ONE, 1, READ, 0, 9)
    assert locks.set(TWO, 1, WRITE, 40, 59).granted
    assert locks.set(TWO, 1, READ, 0, 9).granted
    assert not locks.set(TWO, 1, READ, 0, 10).granted
    assert not locks.set(TWO, 1, READ, 99, 99).granted


def test_own_locks_are_told_to_who_asks_with_unlock(locks: Locks) -> None:
    assert locks.get(ONE, 1, UNLOCK, 0, RANGE_END) is None
    locks.set(ONE, 1, WRITE, 10, 19)
    locks.set(ONE, 1, READ, 30, 39)
    locks.set(TWO, 1, READ, 32, 51)

    def seen(client: bytes, start: int, end: int = RANGE_END) -> tuple[int, int, int] | None:
        found = locks.get(client, 1, UNLOCK, start, end)
        return (found.type, found.start, found.end) if found is not None else None

    assert seen(ONE, 0) == seen(ONE, 15, 16) == seen(ONE, 19, 100) == (WRITE, 10, 19)
    assert seen(ONE, 20) == seen(ONE, 39) == (READ, 30, 39)
    assert seen(TWO, 0) == (READ, 32, 51)
    assert seen(ONE, 0, 9) is seen(ONE, 20, 29) is seen(ONE, 40) is seen(TWO, 0, 31) is None


def test_the_oldest_who_waits_gets_the_lock_in_the_same_transaction(locks: Locks) -> None:
    locks.set(ONE, 1, WRITE)
    ids = [locks.request_id() for _ in range(3)]
    tickets = [locks.set(TWO, n, WRITE, wait=True, request_id=ids[n]).ticket for n in range(3)]
    assert tickets == [1, 2, 3]
    assert locks.news(TWO).granted == []
    locks.set(ONE, 1, UNLOCK)
    assert not locks.set(ONE, 1, WRITE).granted  # nobody comes in between
    assert locks.news(TWO).granted == [ids[0]]
    assert locks.news(TWO).granted == [ids[0]]  # until it is heard
    assert locks.news(TWO, heard=[ids[0]]).granted == []
    locks.set(TWO, 0, UNLOCK)
    assert locks.news(TWO).granted == [ids[1]]
    assert locks.cancel(TWO, 2, ids[1])  # too late: it has it
    assert not locks.cancel(TWO, 3, ids[2])
    locks.set(TWO, 1, UNLOCK)
    assert locks.records() == []


def test_all_of_it_survives_a_restart(locks: Locks) -> None:
    locks.set(ONE, 1, WRITE, 0, 9)
    waiting = locks.request_id()
    assert locks.set(TWO, 2, READ, wait=True, request_id=waiting).ticket == 1
    locks.meta = locks.meta.restarted()
    assert not locks.set(TWO, 3, READ, 5, 5).granted
    assert locks.set(TWO, 2, READ, wait=True, request_id=waiting).ticket == 1  # asked again: in its place
    locks.set(ONE, 1, UNLOCK)
    locks.meta = locks.meta.restarted()
    assert locks.news(TWO).granted == [waiting]


def test_many_readers_are_let_in_though_one_transaction_does_not_hold_them(locks: Locks) -> None:
    locks.set(ONE, 1, WRITE)
    ids = [locks.request_id() for _ in range(60)]
    for number, request_id in enumerate(ids):
        locks.set(TWO, number, READ, wait=True, request_id=request_id)
    locks.set(ONE, 1, UNLOCK)
    assert sorted(locks.news(TWO).granted) == sorted(ids)


def test_a_ring_of_waits_is_refused(locks: Locks) -> None:
    other = locks.meta.create(b"g").id
    locks.set(ONE, 1, WRITE)
    locks.set(TWO, 2, WRITE, inode=other)
    assert locks.set(ONE, 1, WRITE, inode=other, wait=True).ticket
    with pytest.raises(FfsError) as caught:
        locks.set(TWO, 2, READ, 100, 200, wait=True)
    assert caught.value.code is Code.DEADLOCK
    assert locks.set(TWO, 3, READ, 100, 200, wait=True).ticket  # another process of it may wait


def test_flock_is_another_world_and_converting_takes_the_old_lock_away(locks: Locks) -> None:
    locks.set(ONE, 1, WRITE)
    assert locks.set(ONE, 1, READ, kind=FLOCK).granted
    assert locks.set(TWO, 2, READ, kind=FLOCK).granted
    one = locks.set(ONE, 1, WRITE, kind=FLOCK, wait=True, request_id=b"one".ljust(16))
    assert one.ticket
    assert locks.set(TWO, 2, WRITE, kind=FLOCK, wait=True, request_id=b"two".ljust(16)).ticket  # both: no deadlock
    assert locks.news(ONE).granted == [b"one".ljust(16)]
    locks.set(ONE, 1, UNLOCK, kind=FLOCK)
    assert locks.news(TWO).granted == [b"two".ljust(16)]


def test_who_waits_is_woken_and_what_is_lost_is_told(locks: Locks) -> None:
    locks.set(ONE, 1, WRITE)
    mine, gone = locks.request_id(), locks.request_id()
    ticket = locks.set(TWO, 2, WRITE, wait=True, request_id=mine).ticket
    waiting = [
        meta_pb2.QueuedLock(inode=locks.inode, ticket=ticket, request_id=mine),
        meta_pb2.QueuedLock(inode=locks.inode, ticket=9, request_id=gone),
    ]
    assert locks.news(TWO, waiting=waiting).lost == [gone]

    async def scene() -> tuple[meta_pb2.AwaitLocksReply, float]:
        request = meta_pb2.AwaitLocksRequest(
            caller=common_pb2.Caller(client_id=TWO), waiting=waiting[:1], wait_ms=10_000
        )
        task = asyncio.ensure_future(locks.meta.handlers.await_locks(request))
        await asyncio.sleep(0.01)
        assert not task.done()
        began = asyncio.get_running_loop().time()
        locks.set(ONE, 1, UNLOCK)
        reply = await task
        return reply, asyncio.get_running_loop().time() - began

    reply, took_s = locks.meta.wait(scene())
    assert reply.granted == [mine]
    assert took_s < 0.3, "woken, not found by looking again"


def test_a_reader_behind_a_waiting_writer_goes_on_after_a_while(locks: Locks) -> None:
    """Two who wait behind each other's queues would else wait for ever."""
    locks.set(ONE, 1, READ)
    locks.set(TWO, 2, WRITE, wait=True)
    reader = locks.request_id()
    assert locks.set(ONE, 3, READ, wait=True, request_id=reader).ticket
    locks.meta.clock.advance(1.1)
    waiting = [meta_pb2.QueuedLock(inode=locks.inode, ticket=2, request_id=reader)]
    request = meta_pb2.AwaitLocksRequest(caller=common_pb2.Caller(client_id=ONE), waiting=waiting, wait_ms=5000)
    assert locks.meta.wait(locks.meta.handlers.await_locks(request)).granted == [reader]


def test_a_dead_clients_locks_go_to_those_who_wait(locks: Locks) -> None:
    locks.set(ONE, 1, WRITE, 0, 9)
    for number in range(20):
        locks.set(ONE, number + 10, READ, 100 + number, 100 + number)
    locks.set(TWO, 1, WRITE, 0, 4, wait=True, request_id=b"w".ljust(16))
    locks.set(ONE, 2, WRITE, 0, 4, wait=True)

    async def sessions() -> mgmtd_pb2.ListSessionsReply:
        return mgmtd_pb2.ListSessionsReply(complete=True, sessions=[mgmtd_pb2.ClientSession(client_id=TWO)])

    reaper = SessionReaper(locks.meta.parts.runner, sessions)
    locks.meta.wait(reaper.reap())
    assert locks.news(TWO).granted == [], "too young to be judged"
    locks.meta.clock.advance(LOCK_GRACE_NS / 1e9 + 1)
    locks.meta.wait(reaper.reap())
    assert locks.news(TWO).granted == [b"w".ljust(16)]
    locks.set(TWO, 1, UNLOCK)
    locks.news(TWO, heard=[b"w".ljust(16)])
    assert locks.records() == []


def held(inode: int, owner: int, start: int = 0, end: int = RANGE_END, kind: int = RANGE) -> meta_pb2.HeldRange:
    return meta_pb2.HeldRange(inode=inode, owner=owner, start=start, end=end, kind=kind)


def test_a_client_that_was_cut_off_hears_what_it_has_lost(locks: Locks) -> None:
    for start in range(0, 200, 10):
        locks.set(ONE, 1, WRITE if start % 20 else READ, start, start + 9)
    locks.set(ONE, 2, WRITE, kind=FLOCK)
    mine = [held(locks.inode, 1, 0, 199), held(locks.inode, 1, 5, 205), held(locks.inode, 2, kind=FLOCK)]
    assert locks.news(ONE, held=mine).dropped == [1]
    assert locks.news(TWO, held=mine).dropped == [0, 1, 2]
    alive: list[mgmtd_pb2.ClientSession] = []

    async def sessions() -> mgmtd_pb2.ListSessionsReply:
        return mgmtd_pb2.ListSessionsReply(complete=True, sessions=alive)

    reaper = SessionReaper(locks.meta.parts.runner, sessions)
    locks.meta.clock.advance(LOCK_GRACE_NS / 1e9 - 1)
    assert locks.news(ONE, held=mine).dropped == [1]  # which keeps them for another while
    locks.meta.clock.advance(2)
    locks.meta.wait(reaper.reap())
    assert locks.news(ONE, held=mine).dropped == [1]
    locks.meta.clock.advance(LOCK_GRACE_NS / 1e9 + 1)
    locks.meta.wait(reaper.reap())
    locks.set(ONE, 1, WRITE, 190, 199)
    assert locks.news(ONE, held=mine).dropped == [0, 1, 2]
    assert locks.news(ONE, held=[held(locks.inode, 1, 195, 199)]).dropped == []


def test_a_client_that_comes_back_while_it_is_being_dropped_keeps_what_it_locks(locks: Locks) -> None:
    locks.set(ONE, 1, WRITE, 0, 9)
    locks.meta.clock.advance(LOCK_GRACE_NS / 1e9 + 1)
    reaper = SessionReaper(locks.meta.parts.runner, nobody_alive)
    drop = reaper._drop_some_locks

    def late(client_id: bytes, *args: Any) -> bool:
        if locks.requests == 1:
            locks.set(ONE, 1, WRITE, 20, 29)
        return drop(client_id, *args)

    reaper._drop_some_locks = late  # type: ignore[method-assign]
    locks.meta.wait(reaper.reap())
    assert locks.get(TWO, 1, WRITE, 20, 29) is not None


async def nobody_alive() -> mgmtd_pb2.ListSessionsReply:
    return mgmtd_pb2.ListSessionsReply(complete=True)


def test_marks_that_lead_nowhere_do_not_keep_a_dead_client(locks: Locks) -> None:
    """Damage that no code makes must not have the reaper go round for ever."""
    owner = Owner(ONE, 5)
    with locks.meta.kv.transaction() as txn:
        for inode in range(100, 130):
            txn.put(lock_keys.owned(owner, Kind.RANGE, inode), lock_keys.MARK)
            txn.put(lock_keys.blocked(owner, inode, Kind.RANGE, 3), lock_keys.MARK)
        txn.put(lock_keys.count(ONE), lock_keys.pack_count(lock_keys.Count(3, 4, 0)))
        txn.commit()

    async def sessions() -> mgmtd_pb2.ListSessionsReply:
        return mgmtd_pb2.ListSessionsReply(complete=True)

    locks.meta.clock.advance(LOCK_GRACE_NS / 1e9 + 1)
    locks.meta.wait(SessionReaper(locks.meta.parts.runner, sessions).reap())
    assert locks.records() == []


def test_nothing_stays_of_clients_that_died_before_they_heard_of_a_grant(
    locks: Locks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fireflyfs.meta.background.sessions.PAGE", 3)
    dying = [bytes([number]) * 16 for number in range(1, 9)]
    for client in dying:
        locks.set(ONE, 1, WRITE, 0, 9)
        locks.set(client, 1, WRITE, 0, 9, wait=True)
        locks.set(ONE, 1, UNLOCK, 0, 9)
        locks.set(client, 1, UNLOCK, 0, 9)  # by close(2), while the answer was on its way
    assert len(locks.records()) == len(dying)
    living = dying[4]

    async def one_alive() -> mgmtd_pb2.ListSessionsReply:
        return mgmtd_pb2.ListSessionsReply(complete=True, sessions=[mgmtd_pb2.ClientSession(client_id=living)])

    locks.meta.clock.advance(LOCK_GRACE_NS / 1e9 + 1)
    locks.meta.wait(SessionReaper(locks.meta.parts.runner, one_alive).reap())
    assert len(locks.records()) == 1
    assert len(locks.news(living).granted) == 1


def test_bounds(locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (LOCKS_INODE_MAX, LOCKS_CLIENT_MAX, LOCKS_QUEUED_MAX) == (8192, 65_536, 1024)
    table = "fireflyfs.meta.store.lock_table."
    monkeypatch.setattr(table + "LOCKS_INODE_MAX", 4)
    monkeypatch.setattr(table + "LOCKS_CLIENT_MAX", 6)
    monkeypatch.setattr(table + "LOCKS_QUEUED_MAX", 2)

    def refused(*args: Any, **kwargs: Any) -> bool:
        try:
            locks.set(*args, **kwargs)
        except FfsError as exc:
            return exc.code is Code.NO_LOCKS
        return False

    for place in range(4):
        locks.set(ONE, 1, WRITE, 10 * place, 10 * place)
    assert refused(ONE, 1, WRITE, 100, 100)
    assert refused(TWO, 1, WRITE, 100, 100)
    assert not refused(ONE, 1, WRITE, 0, 1)  # no range more
    assert not refused(TWO, 1, WRITE, 0, 0, wait=True)
    assert not refused(TWO, 2, WRITE, 0, 0, wait=True)
    assert refused(TWO, 3, WRITE, 0, 0, wait=True)
    other = locks.meta.create(b"g").id
    for place in range(2):
        locks.set(ONE, 1, WRITE, 10 * place, 10 * place, inode=other)
    assert refused(ONE, 1, WRITE, 50, 50, inode=other)


def test_nonsense_is_refused(locks: Locks) -> None:
    def code(*args: Any, **kwargs: Any) -> Code:
        with pytest.raises(FfsError) as caught:
            locks.set(*args, **kwargs)
        return caught.value.code

    assert code(ONE, 1, WRITE, 5, 4) is Code.INVALID
    assert code(ONE, 1, WRITE, 0, RANGE_END + 1) is Code.INVALID
    assert code(ONE, 1, 3, 0, 1) is Code.INVALID
    assert code(ONE, 1, WRITE, 0, 1, kind=2) is Code.INVALID
    assert code(ONE, 1, WRITE, 0, 1, kind=FLOCK) is Code.INVALID
    assert code(b"short", 1, WRITE) is Code.INVALID
    assert code(ONE, 1, WRITE, inode=99) is Code.STALE_HANDLE
    assert locks.records() == []


@pytest.mark.parametrize("seed", range(8))
def test_any_sequence_of_owners_leaves_what_single_bytes_say(locks: Locks, seed: int) -> None:
    """Against a model that keeps for each byte who has it; restarts, cancellations and grants in between."""
    rng = random.Random(seed)
    cells = 10
    owners = [(client, number) for client in (ONE, TWO) for number in (1, 2)]
    held: dict[tuple[bytes, int], list[bool | None]] = {owner: [None] * cells for owner in owners}
    waiting: dict[bytes, tuple[tuple[bytes, int], int, int, bool, int]] = {}

    def free(owner: tuple[bytes, int], start: int, end: int, write: bool) -> bool:
        return not any(
            other != owner and any(cell is not None and (cell or write) for cell in cells_of[start : end + 1])
            for other, cells_of in held.items()
        )

    def put(owner: tuple[bytes, int], start: int, end: int, write: bool | None) -> None:
        held[owner][start : end + 1] = [write] * (end + 1 - start)

    def hear() -> None:
        for client in (ONE, TWO):
            granted = list(locks.news(client).granted)
            for request_id in granted:
                owner, start, end, write, _ = waiting.pop(request_id)
                put(owner, start, end, write)
            locks.news(client, heard=granted)

    for _ in range(250):
        owner = rng.choice(owners)
        start = rng.randrange(cells)
        end = rng.randrange(start, cells)
        action = rng.choice(["lock", "lock", "wait", "unlock", "unlock", "cancel", "get", "restart"])
        if action == "unlock":
            locks.set(*owner, UNLOCK, start, end)
            put(owner, start, end, None)
        elif action in ("lock", "get"):
            write = rng.random() < 0.5
            wanted = free(owner, start, end, write)
            if action == "get":
                assert (locks.get(*owner, WRITE if write else READ, start, end) is None) is wanted
            else:
                assert locks.set(*owner, WRITE if write else READ, start, end).granted is wanted
                if wanted:
                    put(owner, start, end, write)
        elif action == "wait" and len(waiting) < 6:
            write, request_id = rng.random() < 0.5, locks.request_id()
            try:
                reply = locks.set(*owner, WRITE if write else READ, start, end, wait=True, request_id=request_id)
            except FfsError as exc:
                if exc.code is not Code.DEADLOCK or free(owner, start, end, write):
                    raise
                continue
            if reply.granted:
                assert free(owner, start, end, write)
                put(owner, start, end, write)
            else:
                waiting[request_id] = (owner, start, end, write, reply.ticket)
        elif action == "cancel" and waiting:
            request_id = rng.choice(sorted(waiting))
            who, begin, last, write, ticket = waiting.pop(request_id)
            if locks.cancel(who[0], ticket, request_id):
                put(who, begin, last, write)
        elif action == "restart" and rng.random() < 0.2:
            locks.meta = locks.meta.restarted()
        hear()
        for place in range(cells):
            modes = [cells_of[place] for cells_of in held.values() if cells_of[place] is not None]
            assert len(modes) < 2 or not any(modes), "a writer beside somebody"
    for _ in range(20):
        for owner in owners:
            locks.set(*owner, UNLOCK)
            put(owner, 0, cells - 1, None)
        hear()
    assert not waiting, "nobody has anything, and somebody waits"
    for owner in owners:
        locks.set(*owner, UNLOCK)
    assert locks.records() == []
