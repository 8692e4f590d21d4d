"""Tells clients that know a directory's names when that is over, and keeps new names back until it is.

Delegations stand in the store, so any metadata server may grant and recall them, and any may be asked. A client that
asks here is woken when this server recalls; what another one recalls is found by looking again every LOOK_S.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Final, TypeVar

from fireflyfs.common.kv.interface import Transaction, read
from fireflyfs.common.net.methods import Method
from fireflyfs.common.waiting import set_within
from fireflyfs.meta.core import keys
from fireflyfs.meta.core.delegations import MARGIN_S, TERM_S, Holders, unpack
from fireflyfs.meta.ops import delegations
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.service.runner import Runner
from fireflyfs.meta.store.tree import Tree
from fireflyfs.proto import common_pb2, meta_pb2

LOOK_S: Final = 0.2
WAIT_S_MAX: Final = 1.0  # of one call: a client whose call is answered late must have time to renew
QUIET_S: Final = 30.0  # a directory in which several clients make names is not delegated for so long
CONTENDED_MAX: Final = 4096
PAGE: Final = 500
TOLD_MAX: Final = 64  # directories that a client which asks is told of without having named them
log = logging.getLogger(__name__)

T = TypeVar("T")


class _Asking:
    """A client that waits here for news."""

    __slots__ = ("event", "recalled")

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.recalled: set[int] = set()


class Recalls:
    """Belongs to the server's event loop."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._asking: defaultdict[bytes, set[_Asking]] = defaultdict(set)
        self._contended: dict[int, float] = {}  # by directory, until when
        self._clearing: dict[int, asyncio.Task[None]] = {}
        self._returned: dict[int, asyncio.Event] = {}
        self._forgetting: asyncio.Task[None] | None = None
        self._granted = self._recalled = 0

    def counts(self) -> dict[str, int]:
        """What became of delegations since this server started."""
        return {"delegations_granted": self._granted, "delegations_recalled": self._recalled}

    def delegate(self, request: meta_pb2.DelegateRequest) -> meta_pb2.DelegateReply:
        until_s = self._contended.get(request.directory)
        if until_s is not None:
            if asyncio.get_running_loop().time() < until_s:
                return meta_pb2.DelegateReply()
            del self._contended[request.directory]
        reply = self._mutate(lambda op: delegations.delegate(op, request), request.caller)
        self._granted += reply.HasField("granted")
        return reply

    async def wait(self, request: meta_pb2.AwaitRecallsRequest) -> meta_pb2.AwaitRecallsReply:
        """As soon as there is something to tell, or after the time that the client gives."""
        delegations.check_size(request)
        if request.returned:
            self._mutate(lambda op: delegations.give_back(op, request), request.caller)
            for returned in request.returned:
                if returned.directory in self._returned:
                    self._returned[returned.directory].set()
        loop = asyncio.get_running_loop()
        end_s = loop.time() + min(request.wait_ms / 1000, WAIT_S_MAX)
        client_id = request.caller.client_id
        asking = _Asking()
        self._asking[client_id].add(asking)
        try:
            while True:
                reply = self._runner.query(request, delegations.lost)
                reply.recalled.extend(asking.recalled.difference(reply.recalled))
                left_s = end_s - loop.time()
                if reply.recalled or left_s <= 0:
                    return reply
                await set_within(asking.event, min(LOOK_S, left_s))
        finally:
            others = self._asking[client_id]
            others.discard(asking)
            if not others:
                del self._asking[client_id]

    async def clear(self, inode_id: int) -> None:
        """Returns when no client relies on knowing all names of a directory."""
        task = self._clearing.get(inode_id)
        if task is None:
            task = self._clearing[inode_id] = asyncio.create_task(self._clear(inode_id))
            task.add_done_callback(lambda _: self._clearing.pop(inode_id, None))
        await asyncio.shield(task)

    async def _clear(self, inode_id: int) -> None:
        loop = asyncio.get_running_loop()
        self._note_contended(inode_id, loop.time())
        event = self._returned[inode_id] = asyncio.Event()
        try:
            told = self._mutate(lambda op: delegations.recall(op, inode_id))
            self._recalled += len(told)
            end_s = loop.time() + TERM_S + MARGIN_S
            for holder in told:
                for asking in self._asking.get(holder.client_id, ()):
                    if len(asking.recalled) < TOLD_MAX:
                        asking.recalled.add(inode_id)
                    asking.event.set()
            left = self._left_of(inode_id, told)
            while left and loop.time() < end_s:
                await set_within(event, min(LOOK_S, max(0.0, end_s - loop.time())))
                event.clear()
                left = self._left_of(inode_id, told)
            if left:
                self._mutate(lambda op: delegations.end(op, inode_id, told))
                log.info("%d clients did not give directory %d back in time", len(left), inode_id)
                self._forget_soon({holder.client_id for holder in left})
        finally:
            del self._returned[inode_id]

    async def clear_clients(self, which: Callable[[bytes], bool]) -> None:
        """Returns when none of these clients relies on knowing any directory; others that know it are told, too."""
        begin, end = keys.table(b"N")
        while True:

            def page(txn: Transaction, start: bytes = begin) -> list[tuple[bytes, bytes]]:
                return list(txn.scan(start, end, limit=PAGE))

            found = read(self._runner.engine, page)
            held = ((keys.id_of(key), unpack(value)) for key, value in found)
            theirs = [inode for inode, holders in held if any(which(holder.client_id) for holder in holders)]
            await asyncio.gather(*map(self.clear, theirs))
            if len(found) < PAGE:
                return
            begin = found[-1][0] + b"\0"

    def _forget_soon(self, client_ids: set[bytes]) -> None:
        """Who did not answer once is not waited for again at each of its directories."""
        if self._forgetting is None or self._forgetting.done():
            self._forgetting = asyncio.create_task(self.clear_clients(client_ids.__contains__))

    def _left_of(self, inode_id: int, told: Holders) -> Holders:
        """Who of those that were told has not given back. Whoever has, and was granted it again since, is not meant."""
        holders = read(self._runner.engine, lambda txn: Tree(txn).delegations(inode_id))
        return tuple(each for each in holders if each in told)

    def _note_contended(self, inode_id: int, now_s: float) -> None:
        if len(self._contended) >= CONTENDED_MAX:
            self._contended = {inode: until_s for inode, until_s in self._contended.items() if until_s > now_s}
            if len(self._contended) >= CONTENDED_MAX:
                self._contended.clear()
        self._contended[inode_id] = now_s + QUIET_S

    def _mutate(self, body: Callable[[Op], T], caller: common_pb2.Caller | None = None) -> T:
        """One transaction; what is asked for twice is the same, so it needs no request id."""
        done: list[T] = []

        def transact(op: Op, _: meta_pb2.SetLockRequest) -> meta_pb2.SetLockReply:
            done[:] = [body(op)]
            return meta_pb2.SetLockReply()

        self._runner.mutate(Method.META_DELEGATE, meta_pb2.SetLockRequest(caller=caller), transact)
        return done[0]
