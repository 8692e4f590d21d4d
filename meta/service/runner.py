"""Runs operations: one transaction each, once for each request id, with whatever storage must say or do.

An operation that needs only its transaction is answered at once, in the caller's turn of the loop. One that must ask
storage, or leaves chunks to trim, becomes a coroutine; both return values are what the lanes' handlers may return.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message

from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.kv.interface import KvEngine, Transaction, read, run
from fireflyfs.common.limits import GROUPS_MAX
from fireflyfs.common.net.methods import Method
from fireflyfs.meta.core.keys import ID_BYTES
from fireflyfs.meta.core.permission import Who
from fireflyfs.meta.core.records import Outcome
from fireflyfs.meta.core.usage import NO_LIMIT
from fireflyfs.meta.ops.context import ChooseChains, Op
from fireflyfs.meta.ops.needs import AskRouting, AskStorage, FoldFirst, RecallFirst, TrimFirst
from fireflyfs.meta.ops.reply import layout_of
from fireflyfs.meta.service.quotas import Quotas
from fireflyfs.meta.service.storage import ChunkStore
from fireflyfs.meta.store import outcomes
from fireflyfs.meta.store.accounts import ChangeKeys, changes_of, record, settle_unseen
from fireflyfs.meta.store.ids import InodeIds
from fireflyfs.meta.store.tree import Tree
from fireflyfs.proto import common_pb2, meta_pb2

NEEDS_MAX = 16  # times that one request may ask storage or wait for a trim before it is told to come again
log = logging.getLogger(__name__)

R = TypeVar("R", bound=Message)
Body = Callable[[Op, Any], R]
Need = TrimFirst | AskStorage | AskRouting | FoldFirst | RecallFirst
NEEDS = (TrimFirst, AskStorage, AskRouting, FoldFirst, RecallFirst)


class Trims(Protocol):
    """Finishes recorded trims."""

    async def finish(self, inode_id: int) -> None: ...


def who_of(caller: common_pb2.Caller) -> Who:
    groups = caller.gids
    if len(groups) > GROUPS_MAX:
        raise error(Code.INVALID, f"{len(groups)} groups, at most {GROUPS_MAX} are allowed")
    return Who(caller.uid, caller.gid, tuple(groups), caller.client_id)


class Runner:
    """The transactions of one metadata server. What is declared here is set once, before the first request."""

    trims: Trims
    fold: Callable[[], Awaitable[int]]  # folds what was changed so far into usage
    recall: Callable[[int], Awaitable[None]]  # until no client relies on knowing all names of a directory
    recall_clients: Callable[[Callable[[bytes], bool]], Awaitable[None]]  # of all directories that some clients know

    def __init__(
        self,
        engine: KvEngine,
        clock: Clock,
        ids: InodeIds,
        choose_chains: ChooseChains,
        storage: ChunkStore,
        *,
        confirm_routing: Callable[[int], Awaitable[None]],
        trash: bool = False,
    ) -> None:
        """`confirm_routing` waits a moment for routing newer than a version that lacks what `choose_chains` needs.

        `trash`: what loses its last name is kept (ops/trash.py).
        """
        self.engine = engine
        self.clock = clock
        self.storage = storage
        self.on_garbage: Callable[[], None] = lambda: None
        self.on_grants: Callable[[set[bytes], list[tuple[int, int]]], None] = lambda granted, regrant: None
        self.files = 0  # change in the number of inodes since this process started
        self.commits = 0  # grows with every mutation; says whether there is something to sync
        self.change_keys = ChangeKeys(ids.take())
        self.quotas = Quotas(engine)
        self._ids = ids
        self._choose_chains = choose_chains
        self._confirm_routing = confirm_routing
        self._trash = trash

    def query(self, request: Any, body: Body[R]) -> R:
        """A read-only operation on one snapshot."""
        who = who_of(request.caller)
        return read(self.engine, lambda txn: body(self._op(txn, who, {}), request))

    def next_inode(self) -> int:
        """This server gives out no inode id below it any more."""
        return self._ids.floor()

    def mutate(self, method: Method, request: Any, body: Body[R]) -> R | Awaitable[R]:
        try:
            reply, op = self._attempt(method, request, body, {})
        except NEEDS as need:
            return self._mutate_slowly(method, request, body, need)
        except FfsError as exc:
            self._record_failure(method, request, exc)
            raise
        return self._trimmed(reply, op.trims) if op.trims else reply

    async def _mutate_slowly(self, method: Method, request: Any, body: Body[R], need: Need) -> R:
        learned: dict[int, tuple[int, int]] = {}
        folded = False
        for _ in range(NEEDS_MAX):
            await self._satisfy(need, learned)
            folded = folded or isinstance(need, FoldFirst)
            try:
                reply, op = self._attempt(method, request, body, learned, folded=folded)
            except NEEDS as again:
                need = again
                continue
            except FfsError as exc:
                self._record_failure(method, request, exc)
                raise
            return await self._trimmed(reply, op.trims)
        raise error(Code.OVERLOADED, "the file's length, or routing, changes all the time")

    async def _satisfy(self, need: Need, learned: dict[int, tuple[int, int]]) -> None:
        if isinstance(need, TrimFirst):
            await self.trims.finish(need.inode_id)
            return
        if isinstance(need, FoldFirst):
            await self.fold()
            return
        if isinstance(need, RecallFirst):
            await self.recall(need.inode_id)
            return
        if isinstance(need, AskRouting):
            await self._confirm_routing(need.version)
            return
        inode = need.inode
        last = await self.storage.query_last_chunk(inode.id, layout_of(inode))
        end = last.index * inode.chunk_size + last.length if last is not None else 0
        learned[inode.id] = (inode.truncate_version, end)

    async def _trimmed(self, reply: R, inode_ids: Iterable[int]) -> R:
        for inode_id in inode_ids:
            await self.trims.finish(inode_id)
        return reply

    def _attempt(
        self, method: Method, request: Any, body: Body[R], learned: dict[int, tuple[int, int]], *, folded: bool = False
    ) -> tuple[R, Op]:
        who = who_of(request.caller)
        mutation = request.mutation
        request_id = mutation.request_id
        if request_id and len(request_id) != ID_BYTES:
            raise error(Code.INVALID, f"a request id has {ID_BYTES} bytes")

        def transact(txn: Transaction) -> tuple[R, Op]:
            op = self._op(txn, who, learned)
            op.folded = folded
            if self.quotas.any:
                op.end_max = self.quotas.end_max
            if request_id:
                done = outcomes.find(txn, request_id, op.now_ns, retry=mutation.retry)
                if done is not None:
                    return self._replay(method, done, op), op
            reply = body(op, request)
            self._account(method, op)
            if self.quotas.any and method in GRANTING:
                self._grant(op, request, reply)
            if request_id:
                outcome = Outcome(0, method & 0xFF, op.now_ns, reply.SerializeToString())
                outcomes.record(txn, request_id, outcome)
            return reply, op

        reply, op = run(self.engine, transact)
        self.commits += 1
        self.files += op.files_delta
        if op.gains:
            self.quotas.let_through(op.gains)
        if op.garbage:
            self.on_garbage()
        if op.granted or op.regrant:
            self.on_grants(op.granted, op.regrant)
        return reply, op

    def _account(self, method: Method, op: Op) -> None:
        """Record what the operation does to usage. Raises QUOTA_EXCEEDED, FoldFirst."""
        if not self.quotas.any:
            settle_unseen(op.tree, self.change_keys, op.now_ns)
            return
        changes = changes_of(op.tree)
        op.gains = self.quotas.limited(op.tree, changes)
        if (op.gains or op.further_names) and method not in NEVER_REFUSED:
            self.quotas.check(op.tree, self.quotas.asked_of(op), folded=op.folded)
        record(op.tree, changes, self.change_keys.next(op.now_ns))

    def _grant(self, op: Op, request: Any, reply: Any) -> None:
        """Say how long the file may get. Raises FoldFirst when that seems to be less than the client wants."""
        inode = op.tree.find(reply.inode.id)
        if inode is None or not inode.is_file:
            return
        wanted_end = request.wanted_end if isinstance(request, meta_pb2.SyncRequest) else 0
        end_max = self.quotas.end_max(op.tree, inode, wanted_end, op.gains)
        if end_max < wanted_end and not op.folded:
            raise FoldFirst
        if end_max != NO_LIMIT:
            reply.inode.end_max = end_max

    def _op(self, txn: Transaction, who: Who, learned: dict[int, tuple[int, int]]) -> Op:
        now_ns = self.clock.unix_ns()
        return Op(Tree(txn), who, now_ns, self._ids.take, self._choose_chains, learned, trash=self._trash)

    def _replay(self, method: Method, done: Outcome, op: Op) -> Any:
        """The reply that was given the first time; a truncation's chunks may still have to be seen to."""
        if done.method != method & 0xFF:
            raise error(Code.INVALID, "this request id was used for another kind of request")
        if done.code:
            raise error(done.code, done.body.decode(errors="replace"))
        reply: Any = REPLIES[method]()
        reply.MergeFromString(done.body)
        if method in (Method.META_OPEN, Method.META_SET_ATTR):
            trim = op.tree.trim(reply.inode.id)
            if trim is not None:
                op.trims[reply.inode.id] = trim
        return reply

    def _record_failure(self, method: Method, request: Any, exc: FfsError) -> None:
        """A failed retry is remembered: its first sending, still on the way, must not succeed after it."""
        mutation = request.mutation
        if not mutation.retry or exc.code >= 1000 or len(mutation.request_id) != ID_BYTES:
            return
        outcome = Outcome(exc.code, method & 0xFF, self.clock.unix_ns(), exc.message.encode()[:256])
        run(self.engine, lambda txn: outcomes.record(txn, mutation.request_id, outcome))


# What a client has stored already is never refused: bytes that no length covers would be lost, or stay behind.
# Nor is a removal: where a file's last name in one directory goes, it counts in another one, which may be full.
NEVER_REFUSED = frozenset({Method.META_CLOSE, Method.META_SYNC, Method.META_END_SESSIONS, Method.META_REMOVE})
# Who is told how long a file may get under its quotas.
GRANTING = frozenset({Method.META_OPEN, Method.META_SYNC, Method.META_SET_ATTR, Method.META_APPEND})

REPLIES: dict[Method, type[Message]] = {
    Method.META_OPEN: meta_pb2.OpenReply,
    Method.META_CLOSE: meta_pb2.InodeReply,
    Method.META_END_SESSIONS: meta_pb2.EndSessionsReply,
    Method.META_SYNC: meta_pb2.InodeReply,
    Method.META_MAKE_NODE: meta_pb2.InodeReply,
    Method.META_SYMLINK: meta_pb2.InodeReply,
    Method.META_LINK: meta_pb2.InodeReply,
    Method.META_REMOVE: meta_pb2.RemoveReply,
    Method.META_RENAME: meta_pb2.RenameReply,
    Method.META_SET_ATTR: meta_pb2.InodeReply,
    Method.META_RESTORE_TRASH: meta_pb2.InodeReply,
    Method.META_EMPTY_TRASH: meta_pb2.EmptyTrashReply,
    Method.META_SET_XATTR: meta_pb2.InodeReply,
    Method.META_REMOVE_XATTR: meta_pb2.InodeReply,
    Method.META_APPEND: meta_pb2.AppendReply,
    Method.META_SET_LOCK: meta_pb2.SetLockReply,
    Method.META_CANCEL_LOCK: meta_pb2.CancelLockReply,
    Method.META_SET_QUOTA: meta_pb2.SetQuotaReply,
}


class GroupSync:
    """Makes commits durable; everyone who asks while one sync runs shares the next."""

    def __init__(self, engine: KvEngine) -> None:
        self._engine = engine
        self._next: asyncio.Future[None] | None = None
        self._running = False

    async def __call__(self) -> None:
        """Returns when everything committed before the call survives a power cut."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            if not self._running:
                self._running = True
                self._task = asyncio.create_task(self._run())
        await asyncio.shield(self._next)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._next is not None:
            waiting, self._next = self._next, None
            try:
                await loop.run_in_executor(None, self._engine.sync)
            except Exception as exc:
                log.error("the metadata store cannot be synced: %s", exc)
                if not waiting.cancelled():
                    waiting.set_exception(error(Code.IO_ERROR, f"the metadata store cannot be synced: {exc}"))
                    waiting.exception()
            else:
                if not waiting.cancelled():
                    waiting.set_result(None)
        self._running = False
