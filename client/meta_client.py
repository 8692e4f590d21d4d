"""The metadata service: one method for each rpc, taking and returning its messages. Safe to use from several threads.

Every request is repeated until it is answered or the deadline passes: a mutation keeps its request id, so it is done
once whatever is lost on the way. Requests go to one server while it answers and to the next one when it does not.
Errors are FfsError with the operation's own code. The request object is filled in (caller, mutation) and may be reused
for another request only after `Mutation` is cleared.
"""

from __future__ import annotations

import copy
import dataclasses
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from fireflyfs.client.forkguard import ForkGuard
from fireflyfs.client.retry import Retry, RetryPolicy
from fireflyfs.client.routing import Routing, link_address
from fireflyfs.client.routing_view import RoutingView
from fireflyfs.common.clock import Clock, SystemClock
from fireflyfs.common.errors import Code, FfsError, Reaction, error
from fireflyfs.common.ids import ClientId, new_request_id
from fireflyfs.common.net.api import Address, BlockingLink, Call
from fireflyfs.common.net.methods import Method
from fireflyfs.proto import meta_pb2
from fireflyfs.proto.common_pb2 import Caller

R = TypeVar("R", bound=Message)

CALL_DEADLINE_S = 15.0


class MetaClient:
    """Names and attributes. `caller` is on whose behalf requests run that do not name a caller themselves."""

    def __init__(
        self,
        link: BlockingLink,
        routing: RoutingView,
        client_id: ClientId,
        *,
        caller: Caller | None = None,
        policy: RetryPolicy | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._link = link
        self._routing = routing
        self._client_id = client_id
        self._caller = Caller()
        self._caller.CopyFrom(caller or Caller())
        self._caller.client_id = client_id
        # One operation may shorten a large file: asked again too early it would only wait behind itself.
        policy = policy or RetryPolicy()
        self._policy = dataclasses.replace(policy, call_deadline_s=max(policy.call_deadline_s, CALL_DEADLINE_S))
        self._clock = clock or SystemClock()
        self._random = rng or random.Random()
        self._sleep = sleep
        self._guard = ForkGuard()
        self._lock = threading.Lock()
        self._seen: Routing | None = None  # what _servers was made of
        self._servers: tuple[Address, ...] = ()
        self._turn = self._random.randrange(1 << 16)  # clients spread over the servers

    @property
    def caller(self) -> Caller:
        """Not to be changed."""
        return self._caller

    def acting_for(self, caller: Caller) -> MetaClient:
        """The same connections with another caller."""
        other = copy.copy(self)
        other._caller = Caller()
        other._caller.CopyFrom(caller)
        other._caller.client_id = self._client_id
        return other

    # Reading
    def stat(self, request: meta_pb2.StatRequest) -> meta_pb2.InodeReply:
        return self._read(Method.META_STAT, request, request.caller, meta_pb2.InodeReply())

    def batch_stat(self, request: meta_pb2.BatchStatRequest) -> meta_pb2.BatchStatReply:
        return self._read(Method.META_BATCH_STAT, request, request.caller, meta_pb2.BatchStatReply())

    def batch_stat_path(self, request: meta_pb2.BatchStatPathRequest) -> meta_pb2.BatchStatPathReply:
        return self._read(Method.META_BATCH_STAT_PATH, request, request.caller, meta_pb2.BatchStatPathReply())

    def lookup(self, request: meta_pb2.LookupRequest) -> meta_pb2.InodeReply:
        return self._read(Method.META_LOOKUP, request, request.caller, meta_pb2.InodeReply())

    def readlink(self, request: meta_pb2.ReadlinkRequest) -> meta_pb2.ReadlinkReply:
        return self._read(Method.META_READLINK, request, request.caller, meta_pb2.ReadlinkReply())

    def list(self, request: meta_pb2.ListRequest) -> meta_pb2.ListReply:
        return self._read(Method.META_LIST, request, request.caller, meta_pb2.ListReply())

    def stat_fs(self, request: meta_pb2.StatFsRequest) -> meta_pb2.StatFsReply:
        return self._read(Method.META_STAT_FS, request, request.caller, meta_pb2.StatFsReply())

    def real_path(self, request: meta_pb2.RealPathRequest) -> meta_pb2.RealPathReply:
        return self._read(Method.META_REAL_PATH, request, request.caller, meta_pb2.RealPathReply())

    def list_files(self, request: meta_pb2.ListFilesRequest) -> meta_pb2.ListFilesReply:
        return self._read(Method.META_LIST_FILES, request, request.caller, meta_pb2.ListFilesReply())

    def list_trash(self, request: meta_pb2.ListTrashRequest) -> meta_pb2.ListTrashReply:
        return self._read(Method.META_LIST_TRASH, request, request.caller, meta_pb2.ListTrashReply())

    def get_usage(self, request: meta_pb2.GetUsageRequest) -> meta_pb2.GetUsageReply:
        return self._read(Method.META_GET_USAGE, request, request.caller, meta_pb2.GetUsageReply())

    def list_quotas(self, request: meta_pb2.ListQuotasRequest) -> meta_pb2.ListQuotasReply:
        return self._read(Method.META_LIST_QUOTAS, request, request.caller, meta_pb2.ListQuotasReply())

    def check_usage(self, request: meta_pb2.CheckUsageRequest) -> meta_pb2.CheckUsageReply:
        """A repair that is asked for twice finds nothing the second time."""
        return self._read(Method.META_CHECK_USAGE, request, request.caller, meta_pb2.CheckUsageReply())

    def access(self, request: meta_pb2.AccessRequest) -> meta_pb2.InodeReply:
        return self._read(Method.META_ACCESS, request, request.caller, meta_pb2.InodeReply())

    def get_xattr(self, request: meta_pb2.GetXattrRequest) -> meta_pb2.GetXattrReply:
        return self._read(Method.META_GET_XATTR, request, request.caller, meta_pb2.GetXattrReply())

    def list_xattr(self, request: meta_pb2.ListXattrRequest) -> meta_pb2.ListXattrReply:
        return self._read(Method.META_LIST_XATTR, request, request.caller, meta_pb2.ListXattrReply())

    def get_lock(self, request: meta_pb2.GetLockRequest) -> meta_pb2.GetLockReply:
        return self._read(Method.META_GET_LOCK, request, request.caller, meta_pb2.GetLockReply())

    def await_locks(self, request: meta_pb2.AwaitLocksRequest) -> meta_pb2.AwaitLocksReply:
        """Returns when there is news, or after the request's `wait_ms`, which is below a call's deadline."""
        return self._read(Method.META_AWAIT_LOCKS, request, request.caller, meta_pb2.AwaitLocksReply())

    def delegate(self, request: meta_pb2.DelegateRequest) -> meta_pb2.DelegateReply:
        """Asked for twice it is the same delegation."""
        return self._read(Method.META_DELEGATE, request, request.caller, meta_pb2.DelegateReply())

    def await_recalls(self, request: meta_pb2.AwaitRecallsRequest) -> meta_pb2.AwaitRecallsReply:
        """Returns when something was recalled, or after the request's `wait_ms`, which is below a call's deadline."""
        return self._read(Method.META_AWAIT_RECALLS, request, request.caller, meta_pb2.AwaitRecallsReply())

    def stats(self, request: meta_pb2.MetaStatsRequest) -> meta_pb2.MetaStatsReply:
        """Of one metadata server: the one that this client's requests go to now."""
        return self._read(Method.META_STATS, request, request.caller, meta_pb2.MetaStatsReply())

    # Changing
    def open(self, request: meta_pb2.OpenRequest) -> meta_pb2.OpenReply:
        return self._change(Method.META_OPEN, request, request.caller, request.mutation, meta_pb2.OpenReply())

    def close(self, request: meta_pb2.CloseRequest) -> meta_pb2.InodeReply:
        return self._change(Method.META_CLOSE, request, request.caller, request.mutation, meta_pb2.InodeReply())

    def end_sessions(self, request: meta_pb2.EndSessionsRequest) -> meta_pb2.EndSessionsReply:
        reply = meta_pb2.EndSessionsReply()
        return self._change(Method.META_END_SESSIONS, request, request.caller, request.mutation, reply)

    def sync(self, request: meta_pb2.SyncRequest) -> meta_pb2.InodeReply:
        return self._change(Method.META_SYNC, request, request.caller, request.mutation, meta_pb2.InodeReply())

    def make_node(self, request: meta_pb2.MakeNodeRequest) -> meta_pb2.InodeReply:
        return self._change(Method.META_MAKE_NODE, request, request.caller, request.mutation, meta_pb2.InodeReply())

    def symlink(self, request: meta_pb2.SymlinkRequest) -> meta_pb2.InodeReply:
        return self._change(Method.META_SYMLINK, request, request.caller, request.mutation, meta_pb2.InodeReply())

    def link(self, request: meta_pb2.LinkRequest) -> meta_pb2.InodeReply:
        return self._change(Method.META_LINK, request, request.caller, request.mutation, meta_pb2.InodeReply())

    def remove(self, request: meta_pb2.RemoveRequest) -> meta_pb2.RemoveReply:
        return self._change(Method.META_REMOVE, request, request.caller, request.mutation, meta_pb2.RemoveReply())

    def rename(self, request: meta_pb2.RenameRequest) -> meta_pb2.RenameReply:
        return self._change(Method.META_RENAME, request, request.caller, request.mutation, meta_pb2.RenameReply())

    def set_attr(self, request: meta_pb2.SetAttrRequest) -> meta_pb2.InodeReply:
        return self._change(Method.META_SET_ATTR, request, request.caller, request.mutation, meta_pb2.InodeReply())

    def restore_trash(self, request: meta_pb2.RestoreTrashRequest) -> meta_pb2.InodeReply:
        return self._change(Method.META_RESTORE_TRASH, request, request.caller, request.mutation, meta_pb2.InodeReply())

    def empty_trash(self, request: meta_pb2.EmptyTrashRequest) -> meta_pb2.EmptyTrashReply:
        return self._change(
            Method.META_EMPTY_TRASH, request, request.caller, request.mutation, meta_pb2.EmptyTrashReply()
        )

    def set_xattr(self, request: meta_pb2.SetXattrRequest) -> meta_pb2.InodeReply:
        return self._change(Method.META_SET_XATTR, request, request.caller, request.mutation, meta_pb2.InodeReply())

    def remove_xattr(self, request: meta_pb2.RemoveXattrRequest) -> meta_pb2.InodeReply:
        return self._change(Method.META_REMOVE_XATTR, request, request.caller, request.mutation, meta_pb2.InodeReply())

    def append(self, request: meta_pb2.AppendRequest) -> meta_pb2.AppendReply:
        return self._change(Method.META_APPEND, request, request.caller, request.mutation, meta_pb2.AppendReply())

    def set_lock(self, request: meta_pb2.SetLockRequest) -> meta_pb2.SetLockReply:
        return self._change(Method.META_SET_LOCK, request, request.caller, request.mutation, meta_pb2.SetLockReply())

    def cancel_lock(self, request: meta_pb2.CancelLockRequest) -> meta_pb2.CancelLockReply:
        reply = meta_pb2.CancelLockReply()
        return self._change(Method.META_CANCEL_LOCK, request, request.caller, request.mutation, reply)

    def set_quota(self, request: meta_pb2.SetQuotaRequest) -> meta_pb2.SetQuotaReply:
        return self._change(Method.META_SET_QUOTA, request, request.caller, request.mutation, meta_pb2.SetQuotaReply())

    def _read(self, method: Method, request: Message, caller: Caller, reply: R) -> R:
        self._fill(request, caller)
        return self._run(method, request, None, reply)

    def _change(self, method: Method, request: Message, caller: Caller, mutation: meta_pb2.Mutation, reply: R) -> R:
        self._fill(request, caller)
        if not mutation.request_id:
            mutation.request_id = new_request_id()
        return self._run(method, request, mutation, reply)

    def _fill(self, request: Message, caller: Caller) -> None:
        if not request.HasField("caller"):
            caller.CopyFrom(self._caller)
        elif not caller.client_id:
            caller.client_id = self._client_id

    def _run(self, method: Method, request: Message, mutation: meta_pb2.Mutation | None, reply: R) -> R:
        self._guard.check()
        body = request.SerializeToString()
        retry: Retry | None = None
        tried = 0  # servers that failed since the last pause
        while True:
            routing = self._routing.current()
            servers = self._servers_of(routing)
            turn = self._turn
            limit_s = self._policy.call_deadline_s if retry is None else retry.call_deadline_s()
            try:
                if not servers:
                    raise error(Code.UNAVAILABLE, f"no metadata server is up in routing version {routing.version}")
                answer = self._link.call(servers[turn % len(servers)], Call(method, body, deadline_s=limit_s))
            except FfsError as exc:
                if exc.reaction is Reaction.GIVE_UP:
                    raise
                if retry is None:
                    retry = Retry(self._policy, self._clock, self._random)
                if mutation is not None and not mutation.retry:
                    mutation.retry = True  # it may have happened: the server looks for its outcome
                    body = request.SerializeToString()
                if exc.reaction is Reaction.REFRESH and servers:
                    tried += 1
                    with self._lock:
                        if self._turn == turn:  # else another thread moved on already
                            self._turn += 1
                step = retry.after(exc, replicas_left=tried < len(servers))
                if step.refresh:
                    tried = 0
                    self._routing.wait_newer(routing.version, step.pause_s)
                elif step.pause_s:
                    self._sleep(step.pause_s)
                continue
            try:
                reply.MergeFromString(bytes(answer.body))
            except DecodeError as exc:
                raise error(Code.PROTOCOL, f"the answer to {method.name} is no {type(reply).__name__}") from exc
            return reply

    def _servers_of(self, routing: Routing) -> tuple[Address, ...]:
        if routing is not self._seen:
            servers = tuple(link_address(endpoint) for endpoint in routing.meta_servers())
            if not servers:
                # A server that mgmtd holds for dead may be back before mgmtd says so.
                servers = self._servers
            self._seen, self._servers = routing, servers
        return self._servers
