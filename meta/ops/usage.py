"""Looking at usage, and setting quotas."""

from __future__ import annotations

from collections.abc import Mapping

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import QUOTAS_MAX
from fireflyfs.meta.core import keys
from fireflyfs.meta.core.permission import READ, require
from fireflyfs.meta.core.records import Inode
from fireflyfs.meta.core.usage import NO_LIMIT, Kind, Quota, Subject, Usage, pack_quota, shown, unpack_quota
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.ops.resolve import target
from fireflyfs.meta.ops.trash import path_of
from fireflyfs.meta.store import accounts
from fireflyfs.meta.store.tree import Tree
from fireflyfs.proto import meta_pb2

LIST_MAX = 1000
ID_MAX = 0xFFFFFFFE  # of users and groups; one more is (uid_t) -1


def get_usage(op: Op, request: meta_pb2.GetUsageRequest) -> meta_pb2.GetUsageReply:
    """As folded. Raises NOT_PERMITTED for users and groups that are not the caller's own, unless root asks."""
    tree = op.tree
    reply = meta_pb2.GetUsageReply(counting=is_counting(tree))
    if request.kind == meta_pb2.USAGE_DIRECTORY:
        directory = _directory(op, request.at)
        require(directory, op.who, READ)
        for one in tree.ancestors(directory) if directory.nlink else (directory,):
            quota = _quota(tree, (Kind.DIRECTORY, one.id))
            if one.id == directory.id:
                reply.usage.CopyFrom(_message(op, (Kind.DIRECTORY, one.id), quota))
            elif quota is not None:
                reply.above.append(_message(op, (Kind.DIRECTORY, one.id), quota))
        return reply
    subject = _owner(request.kind, request.id)
    if not _is_own(op, subject):
        raise error(Code.NOT_PERMITTED, "only root may see what others use")
    reply.usage.CopyFrom(_message(op, subject, _quota(tree, subject)))
    return reply


def set_quota(op: Op, request: meta_pb2.SetQuotaRequest) -> meta_pb2.SetQuotaReply:
    """What is used already does not matter: with less allowed than there is, there can only be less of it."""
    if op.who.uid != 0:
        raise error(Code.NOT_PERMITTED, "only root may set quotas")
    if request.kind == meta_pb2.USAGE_DIRECTORY:
        directory = _directory(op, request.at)
        if not directory.nlink:
            raise error(Code.NO_ENTRY, "the directory was removed")
        subject: Subject = (Kind.DIRECTORY, directory.id)
    else:
        subject = _owner(request.kind, request.id)
    limits = request.quota
    if not limits.HasField("bytes_max") and not limits.HasField("inodes_max"):
        op.tree.txn.delete(keys.quota(*subject))
        return meta_pb2.SetQuotaReply(usage=_message(op, subject, None))
    known = op.tree.txn.scan(*keys.table(b"Q"), limit=QUOTAS_MAX)
    if _quota(op.tree, subject) is None and sum(1 for _ in known) == QUOTAS_MAX:
        raise error(Code.TOO_LARGE, f"there are {QUOTAS_MAX} quotas, and no more are allowed")
    quota = Quota(
        min(limits.bytes_max, NO_LIMIT - 1) if limits.HasField("bytes_max") else NO_LIMIT,
        min(limits.inodes_max, NO_LIMIT - 1) if limits.HasField("inodes_max") else NO_LIMIT,
    )
    op.tree.txn.put(keys.quota(*subject), pack_quota(quota))
    return meta_pb2.SetQuotaReply(usage=_message(op, subject, quota))


def list_quotas(op: Op, request: meta_pb2.ListQuotasRequest) -> meta_pb2.ListQuotasReply:
    """A page in order of kind and id: all for root, those of the caller's own user and groups for others."""
    limit = min(request.limit or LIST_MAX, LIST_MAX)
    begin, end = keys.table(b"Q")
    if request.begun:
        begin = keys.quota(request.after_kind, request.after_id) + b"\0"
    reply = meta_pb2.ListQuotasReply(counting=is_counting(op.tree))
    for key, value in op.tree.txn.scan(begin, end):
        subject = keys.subject_of(key)
        if not _is_own(op, subject):
            continue
        if len(reply.quotas) == limit:
            reply.more = True
            break
        reply.quotas.append(_message(op, subject, unpack_quota(value)))
    return reply


def is_counting(tree: Tree) -> bool:
    """Whether what an older release made is not all in the usage records yet."""
    return tree.txn.get(keys.UNCOUNTED, snapshot=True) is not None


def differences(op: Op, found: Mapping[Subject, Usage]) -> list[meta_pb2.UsageDifference]:
    return [
        meta_pb2.UsageDifference(
            kind=_kind(kind), id=subject, bytes=shown(missing.bytes), inodes=missing.inodes,
            path=path_of(op, subject) if kind == Kind.DIRECTORY else b"",
        )
        for (kind, subject), missing in found.items()
    ]  # fmt: skip


def _directory(op: Op, at: meta_pb2.PathAt) -> Inode:
    directory = target(op.tree, op.who, at)
    if not directory.is_dir:
        raise error(Code.NOT_DIRECTORY, "usage is kept of directories, users and groups")
    return directory


def _owner(kind: int, number: int) -> Subject:
    if kind not in (Kind.USER, Kind.GROUP):
        raise error(Code.INVALID, f"kind of usage {kind}")
    if number > ID_MAX:
        raise error(Code.INVALID, f"{number} is no id of a user or group")
    return (kind, number)


def _is_own(op: Op, subject: Subject) -> bool:
    kind, number = subject
    if op.who.uid == 0:
        return True
    return (kind == Kind.USER and number == op.who.uid) or (kind == Kind.GROUP and op.who.in_group(number))


def _quota(tree: Tree, subject: Subject) -> Quota | None:
    stored = tree.txn.get(keys.quota(*subject))
    return unpack_quota(stored) if stored is not None else None


def _kind(kind: int) -> meta_pb2.UsageKind:
    return (meta_pb2.USAGE_DIRECTORY, meta_pb2.USAGE_USER, meta_pb2.USAGE_GROUP)[kind]


def _message(op: Op, subject: Subject, quota: Quota | None) -> meta_pb2.Usage:
    kind, number = subject
    used = accounts.usage(op.tree.txn, kind, number)
    message = meta_pb2.Usage(kind=_kind(kind), id=number, bytes=shown(used.bytes), inodes=used.inodes)
    if kind == Kind.DIRECTORY:
        message.path = path_of(op, number)
    if quota is not None:
        message.quota.SetInParent()
        if quota.bytes_max != NO_LIMIT:
            message.quota.bytes_max = quota.bytes_max
        if quota.inodes_max != NO_LIMIT:
            message.quota.inodes_max = quota.inodes_max
    return message
