"""Tells clients that wait for locks, and keeps queues moving.

Locks stand in the store, so any metadata server may grant them and any may be asked. Whoever waits here is woken when
this server grants; what another one grants, or what time alone allows, is found by looking again every LOOK_S.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import Final

from fireflyfs.common.errors import FfsError
from fireflyfs.common.kv.interface import read
from fireflyfs.common.net.methods import Method
from fireflyfs.common.waiting import set_within
from fireflyfs.meta.core.locks import Kind
from fireflyfs.meta.ops import locks
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.service.runner import Runner
from fireflyfs.meta.store.lock_table import LockTable
from fireflyfs.proto import meta_pb2

LOOK_S: Final = 0.5
WAIT_S_MAX: Final = 10.0  # shorter than a client waits for an answer
QUEUES_MAX: Final = 64  # looked at again at a time for one client
log = logging.getLogger(__name__)


class LockNews:
    """Belongs to the server's event loop."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._waiting: defaultdict[bytes, set[asyncio.Event]] = defaultdict(set)
        self._regrant: list[tuple[int, int]] = []
        self._granting = False
        runner.on_grants = self.granted

    def granted(self, clients: set[bytes], regrant: list[tuple[int, int]]) -> None:
        """A transaction gave locks to `clients`, and left queues with more to give."""
        for client_id in clients:
            for event in self._waiting.get(client_id, ()):
                event.set()
        self._regrant += regrant
        if self._granting:
            return  # further out in this very call
        self._granting = True
        try:
            while self._regrant:
                self.give(*self._regrant.pop())
        finally:
            self._granting = False

    def give(self, inode_id: int, kind: int) -> None:
        """Grant what can be granted of one queue, in a transaction of its own."""

        def body(op: Op, request: meta_pb2.SetLockRequest) -> meta_pb2.SetLockReply:
            locks.give(op, inode_id, Kind(kind))
            return meta_pb2.SetLockReply()

        try:
            self._runner.mutate(Method.META_SET_LOCK, meta_pb2.SetLockRequest(), body)
        except FfsError as exc:  # those who wait look again
            log.warning("locks of inode %d wait: %s", inode_id, exc)

    def _can_give(self, inode_id: int, kind: int) -> bool:
        now_ns = self._runner.clock.unix_ns()
        return read(self._runner.engine, lambda txn: locks.can_give(LockTable(txn, now_ns), inode_id, kind, now_ns))

    def _keep(self, request: meta_pb2.AwaitLocksRequest) -> meta_pb2.AwaitLocksReply:
        reply = meta_pb2.AwaitLocksReply()

        def body(op: Op, _: meta_pb2.SetLockRequest) -> meta_pb2.SetLockReply:
            reply.dropped[:] = locks.keep(op, request)
            return meta_pb2.SetLockReply()

        self._runner.mutate(Method.META_SET_LOCK, meta_pb2.SetLockRequest(caller=request.caller), body)
        return reply

    async def wait(self, request: meta_pb2.AwaitLocksRequest) -> meta_pb2.AwaitLocksReply:
        """As soon as there is something to tell, or after the time that the client gives."""
        client_id = request.caller.client_id
        if request.heard:
            told = meta_pb2.SetLockRequest(caller=request.caller)
            self._runner.mutate(Method.META_SET_LOCK, told, lambda op, _: locks.hear(op, request))
        if request.held:
            return self._keep(request)
        loop = asyncio.get_running_loop()
        end_s = loop.time() + min(request.wait_ms / 1000, WAIT_S_MAX)
        queues = sorted({(queued.inode, int(queued.kind)) for queued in request.waiting})
        event = asyncio.Event()
        self._waiting[client_id].add(event)
        try:
            while True:
                event.clear()
                reply = self._runner.query(request, locks.news)
                left_s = end_s - loop.time()
                if reply.granted or reply.lost or left_s <= 0:
                    return reply
                if not await set_within(event, min(LOOK_S, left_s)):
                    for queue in queues[:QUEUES_MAX]:
                        if self._can_give(*queue):
                            self.give(*queue)
                    queues = queues[QUEUES_MAX:] + queues[:QUEUES_MAX]
        finally:
            events = self._waiting[client_id]
            events.discard(event)
            if not events:
                del self._waiting[client_id]
