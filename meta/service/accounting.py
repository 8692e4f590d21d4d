"""What the doors ask about usage: folded first, so that the answer holds everything that was done before."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial

from fireflyfs.common.errors import Code, error
from fireflyfs.common.kv.interface import KvEngine, Transaction, read, run
from fireflyfs.common.net.methods import Method
from fireflyfs.meta.core import keys
from fireflyfs.meta.core.usage import NO_LIMIT, Kind, shown
from fireflyfs.meta.ops import usage
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.service.runner import Runner, who_of
from fireflyfs.meta.store import usage_check
from fireflyfs.meta.store.usage_check import Look
from fireflyfs.proto import meta_pb2

OWNERS_WAIT_S = 5.0  # for the check of all owners, before the client is told to ask again
RELOAD_EVERY_S = 1.0
STALE_EVERY_S = 60.0
STALE_AT_ONCE = 50


class Accounting:
    """Usage and quotas of one server."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._owners: dict[bool, asyncio.Task[Look]] = {}  # checks of all owners under way, by whether they repair

    async def get(self, request: meta_pb2.GetUsageRequest) -> meta_pb2.GetUsageReply:
        await self._runner.fold()
        return self._runner.query(request, usage.get_usage)

    async def list(self, request: meta_pb2.ListQuotasRequest) -> meta_pb2.ListQuotasReply:
        await self._runner.fold()
        return self._runner.query(request, usage.list_quotas)

    async def set(self, request: meta_pb2.SetQuotaRequest) -> meta_pb2.SetQuotaReply:
        await self._runner.fold()
        answer = self._runner.mutate(Method.META_SET_QUOTA, request, usage.set_quota)
        reply = await answer if isinstance(answer, Awaitable) else answer
        self._runner.quotas.reload()
        return reply

    async def check(self, request: meta_pb2.CheckUsageRequest) -> meta_pb2.CheckUsageReply:
        if who_of(request.caller).uid != 0:
            raise error(Code.NOT_PERMITTED, "only root may check usage")
        if not request.owners:
            await self._runner.fold()
            look = await asyncio.to_thread(_look_at_directories, self._runner.engine, request.after)
            if request.repair:
                self._repair(look)
            return self._reply(request, look)
        task = self._owners.get(request.repair)
        if task is None:
            task = self._owners[request.repair] = asyncio.create_task(self._check_owners(request.repair))
        done, _ = await asyncio.wait({task}, timeout=OWNERS_WAIT_S)
        if not done:
            return meta_pb2.CheckUsageReply(more=True)
        self._owners.pop(request.repair, None)
        return self._reply(request, task.result())

    async def _check_owners(self, repair: bool) -> Look:
        await self._runner.fold()
        look = await asyncio.to_thread(_look_at_owners, self._runner.engine)
        if repair:
            self._repair(look)
        return look

    def _repair(self, look: Look) -> None:
        if look.missing:
            key = self._runner.change_keys.next(self._runner.clock.unix_ns())
            run(self._runner.engine, partial(usage_check.repair, look=look, key=key))
            self._runner.commits += 1

    def _reply(self, request: meta_pb2.CheckUsageRequest, look: Look) -> meta_pb2.CheckUsageReply:
        def body(op: Op, _: meta_pb2.CheckUsageRequest) -> meta_pb2.CheckUsageReply:
            return meta_pb2.CheckUsageReply(
                differences=usage.differences(op, look.missing),
                looked_at=look.looked_at,
                last=look.last,
                more=look.more,
                counting=usage.is_counting(op.tree),
            )

        return self._runner.query(request, body)

    def limit_space(self, inode: int, reply: meta_pb2.StatFsReply) -> None:
        """Make `reply` say what the quotas of a directory, and of those it is in, leave of the file system."""
        quotas = self._runner.quotas
        if not inode or not quotas.any:
            return

        def body(op: Op, _: meta_pb2.StatFsRequest) -> meta_pb2.StatFsReply:
            for quota, used in quotas.tightest(op.tree, inode):
                if quota.bytes_max != NO_LIMIT:
                    free = max(0, quota.bytes_max - used.bytes)
                    if free <= reply.free_bytes:
                        reply.free_bytes = free
                        reply.capacity_bytes = free + max(0, shown(used.bytes))
                if quota.inodes_max != NO_LIMIT:
                    free = max(0, quota.inodes_max - used.inodes)
                    if not reply.HasField("free_files") or free <= reply.free_files:
                        reply.free_files = free
                        reply.files = max(0, used.inodes)
            return reply

        self._runner.query(meta_pb2.StatFsRequest(), body)

    async def run(self) -> None:
        """Learn of quotas that other servers set, and drop those of directories that are gone. Until cancelled."""
        since_stale_s = 0.0
        while True:
            await asyncio.sleep(RELOAD_EVERY_S)
            self._runner.quotas.reload()
            since_stale_s += RELOAD_EVERY_S
            if since_stale_s >= STALE_EVERY_S:
                since_stale_s = 0.0
                self.drop_stale()

    def drop_stale(self) -> int:
        """Drop quotas of directories that are gone, some of them; how many."""
        dropped = run(self._runner.engine, _drop_stale)
        if dropped:
            self._runner.commits += 1
            self._runner.quotas.reload()
        return dropped


def _look_at_directories(engine: KvEngine, after: int) -> Look:
    return read(engine, partial(usage_check.directories, after=after))


def _look_at_owners(engine: KvEngine) -> Look:
    return read(engine, usage_check.owners)


def _drop_stale(txn: Transaction) -> int:
    begin, end = keys.quota(Kind.DIRECTORY, 0), keys.quota(Kind.USER, 0)
    dropped = 0
    for key, _ in txn.scan(begin, end, snapshot=True):
        if dropped < STALE_AT_ONCE and txn.get(keys.inode(keys.subject_of(key)[1])) is None:
            txn.delete(key)
            dropped += 1
    return dropped
