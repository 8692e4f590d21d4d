"""What directories, users and groups use, and how much they may: asked of the metadata service, which keeps count."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.paths import StrPath, path_at
from fireflyfs.common.errors import FfsError
from fireflyfs.proto import meta_pb2

KINDS = ("directory", "user", "group")  # by meta_pb2.UsageKind

Q = TypeVar("Q")
R = TypeVar("R")


@dataclass(frozen=True)
class Usage:
    """Bytes are recorded lengths in whole blocks of 4 KiB. Limits: None where there is none."""

    kind: str  # directory, user or group
    id: int  # the directory's inode, uid, gid
    path: str  # of a directory, as it is named now; empty: it is in the trash, or that was not found out
    bytes: int
    inodes: int
    bytes_max: int | None = None
    inodes_max: int | None = None


@dataclass(frozen=True)
class Difference:
    """What the records of a directory, user or group lack; negative: have too much."""

    kind: str
    id: int
    path: str
    bytes: int
    inodes: int


@dataclass(frozen=True)
class CheckStep:
    """A part of a check: what it found, and how many directories or inodes it looked at."""

    differences: list[Difference]
    looked_at: int
    counting: bool  # what an older release made is not counted yet


class Quotas:
    """Usage and quotas as the user of `fs` may see and set them. Raises OSError."""

    def __init__(self, fs: FileSystem) -> None:
        self._meta = fs.context.meta

    def usage(self, path: StrPath) -> tuple[Usage, list[Usage]]:
        """Of a directory, and of those above it that have a quota, the nearest first."""
        request = meta_pb2.GetUsageRequest(at=path_at(path))
        reply = _asked(self._meta.get_usage, request, path)
        return _usage(reply.usage), [_usage(one) for one in reply.above]

    def owner(self, kind: str, number: int) -> Usage:
        """Of a user or group."""
        request = meta_pb2.GetUsageRequest(kind=_kind(kind), id=number)
        return _usage(_asked(self._meta.get_usage, request).usage)

    def list(self) -> Iterator[Usage]:
        """All quotas for root; those of one's own user and groups for others."""
        reply = meta_pb2.ListQuotasReply(more=True)
        request = meta_pb2.ListQuotasRequest()
        while reply.more:
            reply = _asked(self._meta.list_quotas, request)
            yield from map(_usage, reply.quotas)
            if reply.more:
                last = reply.quotas[-1]
                request = meta_pb2.ListQuotasRequest(begun=True, after_kind=last.kind, after_id=last.id)

    def set_directory(self, path: StrPath, *, bytes_max: int | None, inodes_max: int | None) -> Usage:
        """None: no limit; with neither the quota is removed."""
        request = meta_pb2.SetQuotaRequest(at=path_at(path), quota=_limits(bytes_max, inodes_max))
        return _usage(_asked(self._meta.set_quota, request, path).usage)

    def set_owner(self, kind: str, number: int, *, bytes_max: int | None, inodes_max: int | None) -> Usage:
        """The same for a user or group."""
        request = meta_pb2.SetQuotaRequest(kind=_kind(kind), id=number, quota=_limits(bytes_max, inodes_max))
        return _usage(_asked(self._meta.set_quota, request).usage)

    def check(self, *, repair: bool) -> Iterator[CheckStep]:
        """Compare all records with what is there, directories first; `repair`: and put them right."""
        for owners in (False, True):
            reply = meta_pb2.CheckUsageReply(more=True)
            while reply.more:
                request = meta_pb2.CheckUsageRequest(owners=owners, after=reply.last, repair=repair)
                reply = _asked(self._meta.check_usage, request)
                yield CheckStep([_difference(one) for one in reply.differences], reply.looked_at, reply.counting)


def _asked(method: Callable[[Q], R], request: Q, path: StrPath | None = None) -> R:
    try:
        return method(request)
    except FfsError as exc:
        raise exc.to_oserror(os.fspath(path) if path is not None else None) from exc


def _kind(kind: str) -> meta_pb2.UsageKind:
    return {"user": meta_pb2.USAGE_USER, "group": meta_pb2.USAGE_GROUP}[kind]


def _limits(bytes_max: int | None, inodes_max: int | None) -> meta_pb2.QuotaLimits:
    return meta_pb2.QuotaLimits(bytes_max=bytes_max, inodes_max=inodes_max)


def _usage(message: meta_pb2.Usage) -> Usage:
    quota = message.quota
    return Usage(
        KINDS[message.kind],
        message.id,
        os.fsdecode(message.path),
        message.bytes,
        message.inodes,
        quota.bytes_max if quota.HasField("bytes_max") else None,
        quota.inodes_max if quota.HasField("inodes_max") else None,
    )


def _difference(message: meta_pb2.UsageDifference) -> Difference:
    return Difference(KINDS[message.kind], message.id, os.fsdecode(message.path), message.bytes, message.inodes)
