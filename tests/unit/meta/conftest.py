"""A metadata service on the in-memory store, with a storage that keeps chunk lengths in a dictionary."""

from __future__ import annotations

import asyncio
import inspect
import os
import stat
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from fireflyfs.client.routing import Chain, Routing
from fireflyfs.common.clock import ManualClock
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.kv.interface import read
from fireflyfs.common.kv.memory import MemoryKv
from fireflyfs.meta.background.garbage import GarbageCollector
from fireflyfs.meta.background.trims import Trimmer
from fireflyfs.meta.core.layout import LayoutRule
from fireflyfs.meta.service.assembly import MetaParts, assemble
from fireflyfs.proto import common_pb2, meta_pb2, mgmtd_pb2, storage_pb2

CLIENT = b"c" * 16
CHUNK = 65536


@dataclass
class StoredEnd:
    index: int
    length: int


@dataclass
class Look:
    """Seen chunks: (inode, index) to (length, version, bytes to keep)."""

    chunks: dict[tuple[int, int], tuple[int, int, int]]
    more: bool


async def _nothing() -> None:
    pass


@dataclass
class FakeStorage:
    """Chunks as (inode, index) to length. `fail` makes every call raise; `calls` counts them by name."""

    chunks: dict[tuple[int, int], int] = field(default_factory=dict)
    fail: FfsError | None = None
    calls: list[str] = field(default_factory=list)
    chains_away: set[int] = field(default_factory=set)
    version: Counter[tuple[int, int]] = field(default_factory=Counter)
    before_drop: Callable[[], Awaitable[None]] = _nothing

    def _enter(self, name: str) -> None:
        self.calls.append(name)
        if self.fail is not None:
            raise self.fail

    async def query_last_chunk(self, inode: int, layout: common_pb2.Layout) -> StoredEnd | None:
        self._enter("query")
        found = [index for owner, index in self.chunks if owner == inode]
        return StoredEnd(max(found), self.chunks[inode, max(found)]) if found else None

    async def see_beyond(self, inode: int, layout: common_pb2.Layout, length: int, limit: int = 1024) -> Look:
        self._enter("see")
        begin, keep = divmod(length, CHUNK)
        found = {
            (inode, index): (size, self.version[inode, index], keep if index == begin else 0)
            for (owner, index), size in sorted(self.chunks.items())
            if owner == inode and (index > begin or (index == begin and size > keep))
        }
        await asyncio.sleep(0)
        return Look(dict(list(found.items())[:2]), len(found) > 2)

    async def drop_seen(self, seen: Look) -> bool:
        self._enter("drop")
        await self.before_drop()
        whole = True
        for key, (_, version, keep) in seen.chunks.items():
            if self.version[key] != version:
                whole = False
            elif keep:
                self.write(*key, keep)
            else:
                self.chunks.pop(key, None)
        return whole

    def write(self, inode: int, index: int, length: int) -> None:
        self.chunks[inode, index] = length
        self.version[inode, index] += 1

    async def remove_files(self, chain_id: int, inodes: Sequence[int], limit: int = 1024) -> list[int]:
        self._enter("remove")
        if chain_id in self.chains_away:
            raise error(Code.UNAVAILABLE, f"chain {chain_id} is away")
        left = []
        for inode in inodes:
            found = sorted(index for owner, index in self.chunks if owner == inode)
            for index in found[:2]:
                del self.chunks[inode, index]
            if len(found) > 2:
                left.append(inode)
        await asyncio.sleep(0)
        return left

    async def sync_chains(self, chains: Iterable[int] | common_pb2.Layout) -> None:
        self._enter("sync")

    async def space(self) -> list[storage_pb2.TargetSpace]:
        return [storage_pb2.TargetSpace(target_id=t, capacity_bytes=1000 * t, free_bytes=500 * t) for t in (1, 2)]


class FixedRouting:
    """Chain table 1 with chains 1 to 3, all serving."""

    def __init__(self) -> None:
        chains = {number: Chain(number, 1, ((number, mgmtd_pb2.PUBLIC_SERVING),)) for number in (1, 2, 3)}
        table = mgmtd_pb2.ChainTableInfo(table_id=1, version=1, chains=[1, 2, 3])
        self.routing = Routing(version=1, chains=chains, chain_tables={1: table})
        self.next: Routing | None = None  # what comes when somebody waits for it

    def current(self) -> Routing:
        return self.routing

    async def wait_newer(self, version: int, timeout_s: float) -> Routing:
        if self.next is not None:
            self.routing, self.next = self.next, None
        return self.routing


class Service:
    """The handlers behind plain calls: awaits what must be awaited, and fills in the messages' common parts."""

    def __init__(self, kv: MemoryKv, storage: FakeStorage, clock: ManualClock, **options: Any) -> None:
        self.kv, self.storage, self.clock = kv, storage, clock
        self.loop = asyncio.new_event_loop()
        self.routing = FixedRouting()
        self.parts: MetaParts = assemble(
            kv,
            clock,
            storage,
            self.routing,
            root=(0, 0, 0o755),
            layout=LayoutRule(CHUNK, 2, 1),
            **options,
        )
        self.handlers = self.parts.handlers
        self.trimmer: Trimmer = self.parts.trimmer
        self.collector: GarbageCollector = self.parts.collector
        self.requests = 0

    def restarted(self) -> Service:
        """The same store and storage under a new process."""
        self.loop.close()
        return Service(self.kv, self.storage, self.clock)

    def call(self, name: str, request: Any, *, uid: int = 0, gid: int = 0, gids: tuple[int, ...] = ()) -> Any:
        request.caller.CopyFrom(common_pb2.Caller(uid=uid, gid=gid, gids=gids, client_id=CLIENT))
        if "mutation" in request.DESCRIPTOR.fields_by_name and not request.mutation.request_id:
            self.requests += 1
            request.mutation.request_id = self.requests.to_bytes(16, "big")
        answer = getattr(self.handlers, name)(request)
        return self.wait(answer) if inspect.isawaitable(answer) else answer

    def wait(self, awaitable: Any) -> Any:
        async def waits() -> Any:
            return await awaitable

        return self.loop.run_until_complete(waits())

    def open(self, path: bytes, flags: int = os.O_RDONLY, mode: int = 0o644, session: bytes = b"", **who: Any) -> Any:
        at = meta_pb2.PathAt(dir=1, path=path, follow=True)
        request = meta_pb2.OpenRequest(at=at, flags=flags, mode=mode, session=session)
        return self.call("open", request, **who)

    def create(self, path: bytes, mode: int = 0o644, session: bytes = b"", **who: Any) -> Any:
        return self.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode, session, **who).inode

    def close(self, inode: int, session: bytes, length: int | None = None, version: int = 0, **who: Any) -> Any:
        request = meta_pb2.CloseRequest(inode=inode, session=session)
        if length is not None:
            request.hint.CopyFrom(meta_pb2.LengthHint(length=length, truncate_version=version))
        return self.call("close", request, **who).inode

    def mkdir(self, path: bytes, mode: int = 0o755, parents: bool = False, **who: Any) -> Any:
        at = meta_pb2.PathAt(dir=1, path=path)
        request = meta_pb2.MakeNodeRequest(at=at, mode=stat.S_IFDIR | mode, parents=parents)
        return self.call("make_node", request, **who).inode

    def symlink(self, path: bytes, target: bytes, **who: Any) -> Any:
        at = meta_pb2.PathAt(dir=1, path=path)
        return self.call("symlink", meta_pb2.SymlinkRequest(at=at, target=target), **who).inode

    def link(self, old: bytes, new: bytes, **who: Any) -> Any:
        request = meta_pb2.LinkRequest(old=meta_pb2.PathAt(dir=1, path=old), new=meta_pb2.PathAt(dir=1, path=new))
        return self.call("link", request, **who).inode

    def stat(self, path: bytes, follow: bool = True, **who: Any) -> Any:
        at = meta_pb2.PathAt(dir=1, path=path, follow=follow)
        return self.call("stat", meta_pb2.StatRequest(at=at), **who).inode

    def fstat(self, inode: int) -> Any:
        return self.call("stat", meta_pb2.StatRequest(at=meta_pb2.PathAt(dir=inode))).inode

    def remove(self, path: bytes, kind: int = meta_pb2.REMOVE_UNLINK, **who: Any) -> None:
        at = meta_pb2.PathAt(dir=1, path=path)
        self.call("remove", meta_pb2.RemoveRequest(at=at, kind=kind), **who)

    def rmdir(self, path: bytes, **who: Any) -> None:
        self.remove(path, meta_pb2.REMOVE_RMDIR, **who)

    def rename(self, old: bytes, new: bytes, flags: int = 0, **who: Any) -> None:
        request = meta_pb2.RenameRequest(
            old=meta_pb2.PathAt(dir=1, path=old), new=meta_pb2.PathAt(dir=1, path=new), flags=flags
        )
        self.call("rename", request, **who)

    def set_attr(
        self, path: bytes, uid: int = 0, gid: int = 0, gids: tuple[int, ...] = (), follow: bool = True, **changes: Any
    ) -> Any:
        renamed = {"owner": "uid", "group": "gid"}
        at = meta_pb2.PathAt(dir=1, path=path, follow=follow)
        request = meta_pb2.SetAttrRequest(at=at, **{renamed.get(key, key): value for key, value in changes.items()})
        return self.call("set_attr", request, uid=uid, gid=gid, gids=gids).inode

    def names(self, path: bytes = b"/", **options: Any) -> list[bytes]:
        who = {key: options.pop(key) for key in ("uid", "gid") if key in options}
        at = meta_pb2.PathAt(dir=1, path=path, follow=True)
        reply = self.call("list", meta_pb2.ListRequest(at=at, **options), **who)
        return [entry.name for entry in reply.entries]

    def code(self, body: Callable[[], object]) -> Code:
        with pytest.raises(FfsError) as caught:
            body()
        return caught.value.code

    def collect(self) -> int:
        return sum(iter(lambda: self.wait(self.collector.collect_all()), 0))

    def records(self, letter: bytes) -> int:
        end = bytes((letter[0] + 1,))
        return read(self.kv, lambda txn: len(list(txn.scan(letter, end))))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def meta(clock: ManualClock) -> Iterator[Service]:
    service = Service(MemoryKv(), FakeStorage(), clock)
    yield service
    service.loop.close()


@pytest.fixture
def new_meta(clock: ManualClock) -> Callable[[], Service]:
    return lambda: Service(MemoryKv(), FakeStorage(), clock)


@pytest.fixture
def make_meta(clock: ManualClock) -> Callable[..., Service]:
    """`make_meta(trash_keep_s=3600)`; `kv=` and `storage=`: those of another one."""

    def make(kv: MemoryKv | None = None, storage: FakeStorage | None = None, **options: Any) -> Service:
        return Service(kv or MemoryKv(), storage or FakeStorage(), clock, **options)

    return make


@pytest.fixture
def unavailable() -> FfsError:
    return error(Code.UNAVAILABLE)
