"""Sessions, locks and delegations of clients that are gone.

Sessions end after what was written was given its length, locks go, and directories are not theirs to know any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from fireflyfs.common.errors import FfsError
from fireflyfs.common.kv.interface import Transaction, read
from fireflyfs.common.net.methods import Method
from fireflyfs.meta.core import keys
from fireflyfs.meta.core.lock_keys import Count
from fireflyfs.meta.core.records import Session
from fireflyfs.meta.ops import locks
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.ops.files import end_session
from fireflyfs.meta.service.runner import Runner
from fireflyfs.meta.store.lock_table import LockTable
from fireflyfs.proto import common_pb2, meta_pb2, mgmtd_pb2

PAGE = 500
LOCKS_AT_ONCE = 8  # of each kind of record: up to ten writes of one transaction
GRACE_NS = 60 * 1_000_000_000  # a session this young is kept: its client's lease may not have been seen yet
LOCK_GRACE_NS = 10 * 1_000_000_000  # the same of a lock: shorter, because others wait for it
log = logging.getLogger(__name__)

ListSessions = Callable[[], Awaitable[mgmtd_pb2.ListSessionsReply]]


class SessionReaper:
    """Compares recorded sessions with the clients that mgmtd knows, every `interval_s`."""

    def __init__(self, runner: Runner, list_sessions: ListSessions, *, interval_s: float = 15.0) -> None:
        self._runner = runner
        self._list_sessions = list_sessions
        self._interval_s = interval_s

    async def run(self) -> None:
        """Reaps until it is cancelled."""
        while True:
            try:
                await self.reap()
            except FfsError as exc:
                log.warning("sessions of dead clients wait: %s", exc)
            await asyncio.sleep(self._interval_s)

    async def reap(self) -> int:
        """One pass; how many sessions were ended. Nothing while mgmtd's list is not complete."""
        asked_ns = self._runner.clock.unix_ns()
        listed = await self._list_sessions()
        if not listed.complete:
            return 0
        alive = {session.client_id for session in listed.sessions}
        oldest = asked_ns - GRACE_NS
        begin, end = keys.table(b"S")
        ended = 0
        while True:

            def page(txn: Transaction, start: bytes = begin) -> list[tuple[bytes, bytes]]:
                return list(txn.scan(start, end, limit=PAGE))

            found = read(self._runner.engine, page)
            for key, value in found:
                session = Session.unpack(value)
                if session.client_id not in alive and session.opened_ns < oldest:
                    ended += await self._end(keys.id_of(key), keys.session_of(key), session)
            if len(found) < PAGE:
                break
            begin = found[-1][0] + b"\0"
            await asyncio.sleep(0)
        await self._drop_locks(alive, asked_ns - LOCK_GRACE_NS)
        # One of them may only be cut off from mgmtd: so each is told, or waited for.
        await self._runner.recall_clients(lambda client_id: client_id not in alive)
        return ended

    async def _drop_locks(self, alive: set[bytes], oldest_ns: int) -> None:
        """Locks, and requests for them, of clients that are not `alive` and asked for the last one before then."""
        after = b""
        while True:

            def page(txn: Transaction, start: bytes = after) -> list[tuple[bytes, Count]]:
                return LockTable(txn, 0).clients(start, PAGE)

            found = read(self._runner.engine, page)
            for client_id, count in found:
                if client_id not in alive and count.changed_ns < oldest_ns:
                    more = True
                    while more:
                        more = self._drop_some_locks(client_id, oldest_ns)
                        await asyncio.sleep(0)
                    if count.spans:
                        log.info("dropped %d locks of client %s, which is gone", count.spans, client_id.hex())
            if len(found) < PAGE:
                return
            after = found[-1][0]
            await asyncio.sleep(0)

    def _drop_some_locks(self, client_id: bytes, oldest_ns: int) -> bool:
        more = False

        def body(op: Op, _: meta_pb2.SetLockRequest) -> meta_pb2.SetLockReply:
            nonlocal more
            more = locks.drop_some_of(op, client_id, LOCKS_AT_ONCE, oldest_ns)
            return meta_pb2.SetLockReply()

        self._runner.mutate(Method.META_SET_LOCK, meta_pb2.SetLockRequest(), body)
        return more

    async def _end(self, inode_id: int, session_id: bytes, session: Session) -> bool:
        request = meta_pb2.CloseRequest(
            caller=common_pb2.Caller(client_id=session.client_id), inode=inode_id, session=session_id
        )

        def body(op: Op, asked: meta_pb2.CloseRequest) -> meta_pb2.InodeReply:
            return end_session(op, asked, settle=session.write)

        try:
            answer = self._runner.mutate(Method.META_CLOSE, request, body)
            if not isinstance(answer, meta_pb2.InodeReply):
                await answer
        except FfsError as exc:  # storage of this file is away: the next pass tries again, the others go on
            log.warning("a dead client's session of inode %d waits: %s", inode_id, exc)
            return False
        log.info("ended a session of inode %d: its client %s is gone", inode_id, session.client_id.hex())
        return True
