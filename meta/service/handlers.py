"""The metadata service's methods, named like the rpcs of proto/meta.proto; both lanes call them.

A method returns its reply, or an awaitable of it when storage or the disk must be waited for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from fireflyfs.common.net.methods import Method
from fireflyfs.meta.ops import append, attributes, create, files, inventory, locks, query, remove, rename, trash, xattr
from fireflyfs.meta.service.accounting import Accounting
from fireflyfs.meta.service.lock_news import LockNews
from fireflyfs.meta.service.recalls import Recalls
from fireflyfs.meta.service.runner import GroupSync, Runner
from fireflyfs.meta.service.space import Space
from fireflyfs.proto import meta_pb2

InodeAnswer = meta_pb2.InodeReply | Awaitable[meta_pb2.InodeReply]


class MetaHandlers:
    """One object for both lanes."""

    def __init__(
        self,
        runner: Runner,
        sync: GroupSync,
        space: Space,
        lock_news: LockNews,
        accounting: Accounting,
        recalls: Recalls,
    ) -> None:
        self._runner = runner
        self._query = runner.query
        self._mutate = runner.mutate
        self._group_sync = sync
        self._space = space
        self._lock_news = lock_news
        self._accounting = accounting
        self._recalls = recalls
        self.link_counts: Callable[[], Mapping[str, float]] = dict  # set once there are doors

    def stat(self, request: meta_pb2.StatRequest) -> meta_pb2.InodeReply:
        return self._query(request, query.stat)

    def batch_stat(self, request: meta_pb2.BatchStatRequest) -> meta_pb2.BatchStatReply:
        return self._query(request, query.batch_stat)

    def batch_stat_path(self, request: meta_pb2.BatchStatPathRequest) -> meta_pb2.BatchStatPathReply:
        return self._query(request, query.batch_stat_path)

    def lookup(self, request: meta_pb2.LookupRequest) -> meta_pb2.InodeReply:
        return self._query(request, query.lookup)

    def readlink(self, request: meta_pb2.ReadlinkRequest) -> meta_pb2.ReadlinkReply:
        return self._query(request, query.readlink)

    def access(self, request: meta_pb2.AccessRequest) -> meta_pb2.InodeReply:
        return self._query(request, query.access)

    def list(self, request: meta_pb2.ListRequest) -> meta_pb2.ListReply:
        return self._query(request, query.list_directory)

    def real_path(self, request: meta_pb2.RealPathRequest) -> meta_pb2.RealPathReply:
        return self._query(request, query.real_path)

    def list_files(self, request: meta_pb2.ListFilesRequest) -> meta_pb2.ListFilesReply:
        next_inode = self._runner.next_inode()  # before the files: one made meanwhile is not below it
        reply = self._query(request, inventory.list_files)
        reply.next_inode = next_inode
        return reply

    def open(self, request: meta_pb2.OpenRequest) -> meta_pb2.OpenReply | Awaitable[meta_pb2.OpenReply]:
        if files.only_looks(request):
            return self._query(request, files.open_file)
        return self._mutate(Method.META_OPEN, request, files.open_file)

    def close(self, request: meta_pb2.CloseRequest) -> InodeAnswer:
        return self._mutate(Method.META_CLOSE, request, files.close_file)

    def end_sessions(
        self, request: meta_pb2.EndSessionsRequest
    ) -> meta_pb2.EndSessionsReply | Awaitable[meta_pb2.EndSessionsReply]:
        return self._mutate(Method.META_END_SESSIONS, request, files.end_sessions)

    def sync(self, request: meta_pb2.SyncRequest) -> InodeAnswer:
        answer = self._mutate(Method.META_SYNC, request, files.sync_file)
        return self._durably(answer) if request.durable else answer

    async def _durably(self, answer: InodeAnswer) -> meta_pb2.InodeReply:
        reply = answer if isinstance(answer, meta_pb2.InodeReply) else await answer
        await self._group_sync()
        return reply

    def make_node(self, request: meta_pb2.MakeNodeRequest) -> InodeAnswer:
        return self._mutate(Method.META_MAKE_NODE, request, create.make_node)

    def symlink(self, request: meta_pb2.SymlinkRequest) -> InodeAnswer:
        return self._mutate(Method.META_SYMLINK, request, create.symlink)

    def link(self, request: meta_pb2.LinkRequest) -> InodeAnswer:
        return self._mutate(Method.META_LINK, request, create.link)

    def remove(self, request: meta_pb2.RemoveRequest) -> meta_pb2.RemoveReply | Awaitable[meta_pb2.RemoveReply]:
        return self._mutate(Method.META_REMOVE, request, remove.remove)

    def rename(self, request: meta_pb2.RenameRequest) -> meta_pb2.RenameReply | Awaitable[meta_pb2.RenameReply]:
        return self._mutate(Method.META_RENAME, request, rename.rename)

    def set_attr(self, request: meta_pb2.SetAttrRequest) -> InodeAnswer:
        return self._mutate(Method.META_SET_ATTR, request, attributes.set_attributes)

    def list_trash(self, request: meta_pb2.ListTrashRequest) -> meta_pb2.ListTrashReply:
        return self._query(request, trash.list_trash)

    def restore_trash(self, request: meta_pb2.RestoreTrashRequest) -> InodeAnswer:
        return self._mutate(Method.META_RESTORE_TRASH, request, trash.restore)

    def empty_trash(
        self, request: meta_pb2.EmptyTrashRequest
    ) -> meta_pb2.EmptyTrashReply | Awaitable[meta_pb2.EmptyTrashReply]:
        return self._mutate(Method.META_EMPTY_TRASH, request, trash.empty)

    def get_xattr(self, request: meta_pb2.GetXattrRequest) -> meta_pb2.GetXattrReply:
        return self._query(request, xattr.get_xattr)

    def list_xattr(self, request: meta_pb2.ListXattrRequest) -> meta_pb2.ListXattrReply:
        return self._query(request, xattr.list_xattr)

    def set_xattr(self, request: meta_pb2.SetXattrRequest) -> InodeAnswer:
        return self._mutate(Method.META_SET_XATTR, request, xattr.set_xattr)

    def remove_xattr(self, request: meta_pb2.RemoveXattrRequest) -> InodeAnswer:
        return self._mutate(Method.META_REMOVE_XATTR, request, xattr.remove_xattr)

    async def stat_fs(self, request: meta_pb2.StatFsRequest) -> meta_pb2.StatFsReply:
        reply = await self._space.reply()
        self._accounting.limit_space(request.inode, reply)
        return reply

    async def get_usage(self, request: meta_pb2.GetUsageRequest) -> meta_pb2.GetUsageReply:
        return await self._accounting.get(request)

    async def set_quota(self, request: meta_pb2.SetQuotaRequest) -> meta_pb2.SetQuotaReply:
        return await self._accounting.set(request)

    async def list_quotas(self, request: meta_pb2.ListQuotasRequest) -> meta_pb2.ListQuotasReply:
        return await self._accounting.list(request)

    async def check_usage(self, request: meta_pb2.CheckUsageRequest) -> meta_pb2.CheckUsageReply:
        return await self._accounting.check(request)

    def append(self, request: meta_pb2.AppendRequest) -> meta_pb2.AppendReply | Awaitable[meta_pb2.AppendReply]:
        return self._mutate(Method.META_APPEND, request, append.append)

    def get_lock(self, request: meta_pb2.GetLockRequest) -> meta_pb2.GetLockReply:
        return self._query(request, locks.get_lock)

    def set_lock(self, request: meta_pb2.SetLockRequest) -> meta_pb2.SetLockReply | Awaitable[meta_pb2.SetLockReply]:
        return self._mutate(Method.META_SET_LOCK, request, locks.set_lock)

    def cancel_lock(
        self, request: meta_pb2.CancelLockRequest
    ) -> meta_pb2.CancelLockReply | Awaitable[meta_pb2.CancelLockReply]:
        return self._mutate(Method.META_CANCEL_LOCK, request, locks.cancel_lock)

    async def await_locks(self, request: meta_pb2.AwaitLocksRequest) -> meta_pb2.AwaitLocksReply:
        return await self._lock_news.wait(request)

    def delegate(self, request: meta_pb2.DelegateRequest) -> meta_pb2.DelegateReply:
        return self._recalls.delegate(request)

    async def await_recalls(self, request: meta_pb2.AwaitRecallsRequest) -> meta_pb2.AwaitRecallsReply:
        return await self._recalls.wait(request)

    def stats(self, request: meta_pb2.MetaStatsRequest) -> meta_pb2.MetaStatsReply:
        values = {"commits": self._runner.commits, **self._recalls.counts(), **self.link_counts()}
        return meta_pb2.MetaStatsReply(values=values)
