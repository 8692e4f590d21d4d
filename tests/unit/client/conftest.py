"""A cluster in memory behind the link's contract: chunk workers that answer the storage methods, and a routing to them.

Faults: a worker can be down, refuse the next requests with a code, lose the next answers (done, but not heard), flip a
bit of what it reads, or give short replies.
"""

from __future__ import annotations

import dataclasses
import os
import random
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c
from google.protobuf.message import Message

from fireflyfs.client.file import File
from fireflyfs.client.handle import OpenInode, open_inode
from fireflyfs.client.inode_state import InodeTable
from fireflyfs.client.late_closes import LateCloses
from fireflyfs.client.meta_client import MetaClient
from fireflyfs.client.retry import RetryPolicy
from fireflyfs.client.routing import SERVING, Chain, Routing
from fireflyfs.client.scratch import Scratch
from fireflyfs.client.storage_client import StorageClient
from fireflyfs.client.storage_codec import view_of
from fireflyfs.common.clock import ManualClock
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.ids import ClientId
from fireflyfs.common.net.api import Address, Call, MemoryPool, Reply
from fireflyfs.common.net.memory import PrivatePool
from fireflyfs.common.net.methods import Method
from fireflyfs.proto import meta_pb2, mgmtd_pb2, storage_pb2
from fireflyfs.proto.common_pb2 import NODE_TYPE_META, Endpoint, Layout
from fireflyfs.proto.storage_wire import (
    EXTENT,
    READ_IO,
    READ_RESULT,
    UPDATE_HEADER,
    UPDATE_ITEM,
    UPDATE_RESULT,
    UpdateKind,
)


class FakeWorker:
    """One target. All workers of a cluster share `chunks`: replication is instant."""

    def __init__(self, target: int, cluster: FakeCluster) -> None:
        self.target = target
        self.cluster = cluster
        self.down = False
        self.refuse: list[Code] = []
        self.lose_answers = 0
        self.rot = False
        self.requests: list[Call] = []
        self.seen: dict[tuple[bytes, int], tuple[int, dict[tuple[int, int], int]]] = {}
        self.item_codes: dict[tuple[int, int], list[Code]] = {}
        self.applied = 0

    def serve(self, call: Call) -> Reply:
        self.requests.append(call)
        if self.down:
            raise error(Code.UNAVAILABLE, f"worker of target {self.target} is down")
        if self.refuse:
            raise error(self.refuse.pop(0), "refused by the test")
        reply = self.HANDLERS[Method(call.method)](self, call)
        if self.lose_answers:
            self.lose_answers -= 1
            raise error(Code.TIMEOUT, "the answer was lost")
        return reply

    def check_chain(self, chain_id: int, version: int) -> None:
        if self.cluster.routing.chain(chain_id).version != version:
            raise error(Code.CHAIN_VERSION)

    def read(self, call: Call) -> Reply:
        ios = np.frombuffer(call.body, READ_IO)
        assert len(ios) == len(call.into)
        results = np.zeros(len(ios), READ_RESULT)
        for io, result, piece in zip(ios, results, call.into, strict=True):
            view = view_of(piece)
            assert len(view) == io["length"]
            if self.cluster.routing.chain(int(io["chain_id"])).version != io["chain_version"]:
                result["status"] = Code.CHAIN_VERSION
                continue
            codes = self.item_codes.get((int(io["inode"]), int(io["index"])))
            if codes:
                result["status"] = codes.pop(0)
                continue
            chunk = self.cluster.chunks.get((int(io["inode"]), int(io["index"])))
            if chunk is None:
                result["status"] = Code.CHUNK_NOT_FOUND
                continue
            part = bytes(chunk[int(io["offset"]) : int(io["offset"]) + int(io["length"])])
            result["crc32c"] = crc32c(part)
            if self.rot and part:
                part = bytes([part[0] ^ 1]) + part[1:]
            view[: len(part)] = part
            result["length"] = len(part)
            result["chunk_length"] = len(chunk)
        return Reply(results.tobytes(), [int(n) for n in results["length"]])

    def write(self, call: Call) -> Reply:
        header = np.frombuffer(call.body, UPDATE_HEADER, 1)[0]
        count = int(header["items"])
        items = np.frombuffer(call.body, UPDATE_ITEM, count, UPDATE_HEADER.itemsize)
        extents = np.frombuffer(
            call.body, EXTENT, int(header["extents"]), UPDATE_HEADER.itemsize + count * UPDATE_ITEM.itemsize
        )
        assert len(extents) == len(call.out)
        chain = self.cluster.routing.chain(int(header["chain_id"]))
        if chain.version != header["chain_version"]:
            raise error(Code.CHAIN_VERSION)
        if chain.serving[0] != self.target:
            raise error(Code.NOT_HEAD)
        key = (bytes(header["client_id"]), int(header["channel"]))
        sequence, done = self.seen.get(key, (0, {}))
        if header["sequence"] < sequence:
            raise error(Code.STALE_UPDATE)
        if header["sequence"] > sequence:
            done = {}
        results = np.zeros(count, UPDATE_RESULT)
        at = 0
        for item, result in zip(items, results, strict=True):
            chunk_key = (int(item["inode"]), int(item["index"]))
            mine = range(at, at + int(item["extents"]))
            at = mine.stop
            codes = self.item_codes.get(chunk_key)
            if codes:
                result["status"] = codes.pop(0)
                continue
            if chunk_key not in done:
                assert item["kind"] == UpdateKind.WRITE
                chunk = self.cluster.chunks.setdefault(chunk_key, bytearray())
                for place in mine:
                    data = bytes(view_of(call.out[place]))
                    offset, length = int(extents[place]["offset"]), int(extents[place]["length"])
                    assert len(data) == length
                    assert offset + length <= item["chunk_size"]
                    assert crc32c(data) == extents[place]["crc32c"]
                    if len(chunk) < offset:
                        chunk.extend(bytes(offset - len(chunk)))
                    chunk[offset : offset + length] = data
                self.applied += 1
                done[chunk_key] = len(chunk)
            result["length"] = done[chunk_key]
        self.seen[key] = (int(header["sequence"]), done)
        return Reply(results.tobytes())

    def query_last(self, call: Call) -> Reply:
        reply = storage_pb2.QueryLastChunkReply()
        for wanted in storage_pb2.QueryLastChunkRequest.FromString(bytes(call.body)).ranges:
            self.check_chain(wanted.chain_id, wanted.chain_version)
            found = self.on_chain(wanted)
            result = reply.results.add(found=bool(found), chunks=len(found))
            if found:
                result.index = max(found)
                result.length = len(self.cluster.chunks[wanted.inode, max(found)])
                result.used_bytes = sum(len(self.cluster.chunks[wanted.inode, index]) for index in found)
        return Reply(reply.SerializeToString())

    def on_chain(self, wanted: storage_pb2.ChunkRange) -> list[int]:
        chains = self.cluster.file_chains[wanted.inode]
        return [
            index
            for inode, index in self.cluster.chunks
            if inode == wanted.inode
            and wanted.begin <= index
            and (not wanted.end or index < wanted.end)
            and chains[index % len(chains)] == wanted.chain_id
        ]

    def remove(self, call: Call) -> Reply:
        request = storage_pb2.RemoveChunksRequest.FromString(bytes(call.body))
        self.check_chain(request.range.chain_id, request.range.chain_version)
        found = sorted(self.on_chain(request.range), reverse=True)
        for index in found[: request.limit]:
            del self.cluster.chunks[request.range.inode, index]
        reply = storage_pb2.RemoveChunksReply(removed=len(found[: request.limit]), more=len(found) > request.limit)
        return Reply(reply.SerializeToString())

    def remove_files(self, call: Call) -> Reply:
        request = storage_pb2.RemoveFilesRequest.FromString(bytes(call.body))
        reply = storage_pb2.RemoveFilesReply()
        for inode in request.inodes:
            where = storage_pb2.ChunkRange(chain_id=request.chain_id, chain_version=request.chain_version, inode=inode)
            self.check_chain(where.chain_id, where.chain_version)
            found = self.on_chain(where)
            room = request.limit - reply.removed
            for index in found[:room]:
                del self.cluster.chunks[inode, index]
                reply.removed += 1
            if len(found) > room:
                reply.left.append(inode)
        return Reply(reply.SerializeToString())

    def truncate(self, call: Call) -> Reply:
        request = storage_pb2.TruncateChunkRequest.FromString(bytes(call.body))
        self.check_chain(request.chain_id, request.chain_version)
        chunk = self.cluster.chunks.get((request.chunk.inode, request.chunk.index))
        if chunk is None:
            raise error(Code.CHUNK_NOT_FOUND)
        del chunk[request.length :]
        return Reply(storage_pb2.TruncateChunkReply(version=2, length=len(chunk)).SerializeToString())

    def see(self, call: Call) -> Reply:
        request = storage_pb2.SeeChunksRequest.FromString(bytes(call.body))
        self.check_chain(request.range.chain_id, request.range.chain_version)
        reply = storage_pb2.SeeChunksReply()
        for index in sorted(self.on_chain(request.range)):
            chunk = self.cluster.chunks[request.range.inode, index]
            keep = request.keep_bytes if index == request.range.begin else 0
            if len(chunk) > keep:
                where = storage_pb2.ChunkId(inode=request.range.inode, index=index)
                reply.chunks.add(chunk=where, version=crc32c(chunk), keep_bytes=keep)
        reply.more = len(reply.chunks) > request.limit
        del reply.chunks[request.limit :]
        return Reply(reply.SerializeToString())

    def drop(self, call: Call) -> Reply:
        request = storage_pb2.DropChunksRequest.FromString(bytes(call.body))
        self.check_chain(request.chain_id, request.chain_version)
        reply = storage_pb2.DropChunksReply()
        for one in request.chunks:
            key = (one.chunk.inode, one.chunk.index)
            codes = self.item_codes.get(key)
            chunk = self.cluster.chunks.get(key)
            if codes:
                reply.statuses.append(codes.pop(0))
            elif chunk is not None and crc32c(chunk) != one.version:
                reply.statuses.append(Code.STALE_UPDATE)
            else:
                reply.statuses.append(0)
                if chunk is not None:
                    del chunk[one.keep_bytes :]
                if not chunk:
                    self.cluster.chunks.pop(key, None)
        return Reply(reply.SerializeToString())

    def sync(self, call: Call) -> Reply:
        self.cluster.synced += list(storage_pb2.SyncChainsRequest.FromString(bytes(call.body)).chains)
        return Reply(b"")

    def space(self, call: Call) -> Reply:
        return Reply(
            storage_pb2.SpaceReply(
                targets=[storage_pb2.TargetSpace(target_id=self.target, capacity_bytes=100)]
            ).SerializeToString()
        )

    HANDLERS: dict[Method, Callable[[FakeWorker, Call], Reply]] = {  # noqa: RUF012
        Method.STORAGE_READ: read,
        Method.STORAGE_WRITE: write,
        Method.STORAGE_QUERY_LAST_CHUNK: query_last,
        Method.STORAGE_REMOVE_CHUNKS: remove,
        Method.STORAGE_REMOVE_FILES: remove_files,
        Method.STORAGE_TRUNCATE_CHUNK: truncate,
        Method.STORAGE_SEE_CHUNKS: see,
        Method.STORAGE_DROP_CHUNKS: drop,
        Method.STORAGE_SYNC_CHAINS: sync,
        Method.STORAGE_SPACE: space,
    }


class FakeMeta:
    """A metadata server with one flat directory; both share the cluster's names. Enough for open files."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.down = False
        self.refuse: list[Code] = []
        self.lose_answers = 0
        self.requests: list[Message] = []

    def serve(self, call: Call) -> Reply:
        if self.down:
            raise error(Code.UNAVAILABLE, "meta is down")
        if self.refuse:
            raise error(self.refuse.pop(0), "refused by the test")
        handler, kind = self.HANDLERS[Method(call.method)]
        request = kind.FromString(bytes(call.body))
        self.requests.append(request)
        mutation = getattr(request, "mutation", None)
        assert len(request.caller.client_id) == 16
        if mutation is not None:
            assert len(mutation.request_id) == 16
            if mutation.retry and mutation.request_id in self.cluster.outcomes:
                return Reply(self.cluster.outcomes[mutation.request_id])
        body = handler(self, request).SerializeToString()
        if mutation is not None:
            self.cluster.outcomes[mutation.request_id] = body
        if self.lose_answers:
            self.lose_answers -= 1
            raise error(Code.TIMEOUT, "the answer was lost")
        return Reply(body)

    def find(self, at: meta_pb2.PathAt) -> meta_pb2.Inode:
        if at.path:
            if at.path not in self.cluster.names:
                raise error(Code.NO_ENTRY)
            return self.cluster.names[at.path]
        return self.by_id(at.dir)

    def by_id(self, inode_id: int) -> meta_pb2.Inode:
        for inode in self.cluster.names.values():
            if inode.id == inode_id:
                return inode
        raise error(Code.NO_ENTRY)

    def append(self, request: meta_pb2.AppendRequest) -> meta_pb2.AppendReply:
        inode = self.by_id(request.inode)
        others = [
            end
            for (appended, client_id), end in self.cluster.appended.items()
            if appended == inode.id and client_id != request.caller.client_id
        ]
        offset = max(inode.length, request.hint.length, *others, 0)
        self.cluster.appended[inode.id, request.caller.client_id] = offset + request.size
        return meta_pb2.AppendReply(offset=offset, inode=inode)

    def open(self, request: meta_pb2.OpenRequest) -> meta_pb2.OpenReply:
        created = False
        if request.at.path not in self.cluster.names:
            if not request.flags & os.O_CREAT:
                raise error(Code.NO_ENTRY)
            created = True
            self.cluster.next_inode += 1
            layout = request.layout if request.HasField("layout") else Layout(chunk_size=1 << 16, chains=[1, 2, 3])
            self.cluster.file_chains[self.cluster.next_inode] = tuple(layout.chains)
            self.cluster.names[request.at.path] = meta_pb2.Inode(
                id=self.cluster.next_inode, mode=request.mode, nlink=1, layout=layout
            )
        elif request.flags & os.O_EXCL:
            raise error(Code.EXISTS)
        inode = self.find(request.at)
        if request.flags & os.O_TRUNC:
            self.set_length(inode, 0)
        if request.session:
            self.cluster.sessions[request.session] = inode.id
        return meta_pb2.OpenReply(inode=inode, created=created)

    def report(self, request: meta_pb2.CloseRequest | meta_pb2.SyncRequest) -> meta_pb2.InodeReply:
        inode = self.by_id(request.inode)
        if request.HasField("hint"):
            if request.hint.truncate_version == inode.truncate_version:
                inode.length = max(inode.length, request.hint.length)
            else:
                ends = [i * (1 << 16) + len(c) for (n, i), c in self.cluster.chunks.items() if n == inode.id]
                inode.length = max([inode.length, *ends])
        if request.HasField("mtime"):
            inode.mtime_ns = request.mtime.ns
        if isinstance(request, meta_pb2.CloseRequest):
            self.cluster.sessions.pop(request.session, None)
        return meta_pb2.InodeReply(inode=inode)

    def set_length(self, inode: meta_pb2.Inode, length: int) -> None:
        if length < inode.length:
            inode.truncate_version += 1
            size = inode.layout.chunk_size
            for key in [key for key in self.cluster.chunks if key[0] == inode.id and key[1] * size >= length]:
                del self.cluster.chunks[key]
            last = self.cluster.chunks.get((inode.id, length // size))
            if last is not None:
                del last[length % size :]
        inode.length = length

    def set_attr(self, request: meta_pb2.SetAttrRequest) -> meta_pb2.InodeReply:
        inode = self.find(request.at)
        if request.HasField("length"):
            self.set_length(inode, request.length)
        return meta_pb2.InodeReply(inode=inode)

    def stat(self, request: meta_pb2.StatRequest) -> meta_pb2.InodeReply:
        return meta_pb2.InodeReply(inode=self.find(request.at))

    def batch_stat(self, request: meta_pb2.BatchStatRequest) -> meta_pb2.BatchStatReply:
        known = {inode.id: inode for inode in self.cluster.names.values()}
        return meta_pb2.BatchStatReply(inodes=[known.get(i, meta_pb2.Inode()) for i in request.inodes])

    def batch_stat_path(self, request: meta_pb2.BatchStatPathRequest) -> meta_pb2.BatchStatPathReply:
        reply = meta_pb2.BatchStatPathReply()
        for at in request.paths:
            if at.path in self.cluster.names:
                reply.results.add(inode=self.cluster.names[at.path])
            else:
                reply.results.add(status=Code.NO_ENTRY)
        return reply

    def remove(self, request: meta_pb2.RemoveRequest) -> meta_pb2.RemoveReply:
        self.find(request.at)
        del self.cluster.names[request.at.path]
        return meta_pb2.RemoveReply()

    HANDLERS: dict[Method, tuple[Callable[[FakeMeta, Any], Message], type[Any]]] = {  # noqa: RUF012
        Method.META_APPEND: (append, meta_pb2.AppendRequest),
        Method.META_OPEN: (open, meta_pb2.OpenRequest),
        Method.META_CLOSE: (report, meta_pb2.CloseRequest),
        Method.META_SYNC: (report, meta_pb2.SyncRequest),
        Method.META_SET_ATTR: (set_attr, meta_pb2.SetAttrRequest),
        Method.META_STAT: (stat, meta_pb2.StatRequest),
        Method.META_BATCH_STAT: (batch_stat, meta_pb2.BatchStatRequest),
        Method.META_BATCH_STAT_PATH: (batch_stat_path, meta_pb2.BatchStatPathRequest),
        Method.META_REMOVE: (remove, meta_pb2.RemoveRequest),
    }


class FakeContext:
    """One client of the cluster, with what open files need."""

    def __init__(self, cluster: FakeCluster, number: int = 1) -> None:
        self.clock = cluster.clock
        self.storage = cluster.client()
        client_id = ClientId(bytes([number]) * 16)
        self.meta = MetaClient(
            cluster, cluster, client_id, clock=cluster.clock, rng=random.Random(number), sleep=cluster.sleep
        )
        self.inodes = InodeTable()
        self.late_closes = LateCloses()
        self.scratch = Scratch(cluster.pool)

    def open(self, path: bytes, flags: int = os.O_RDWR | os.O_CREAT, **options: Any) -> OpenInode:
        return open_inode(self, meta_pb2.PathAt(dir=1, path=path, follow=True), flags, **options)

    def file(self, path: bytes, flags: int = os.O_RDWR | os.O_CREAT) -> File:
        return File(self.open(path, flags), path)


class FakeCluster:
    """`targets` workers; chain i has `replicas` of them, the head rotating. Also a BlockingLink and a RoutingView."""

    pool: MemoryPool

    def __init__(self, targets: int = 3, chains: int = 3, replicas: int = 2) -> None:
        self.chunks: dict[tuple[int, int], bytearray] = {}
        self.file_chains: dict[int, tuple[int, ...]] = {}
        self.synced: list[int] = []
        self.workers = {target: FakeWorker(target, self) for target in range(1, targets + 1)}
        self.clock = ManualClock()
        self.on_wait: Callable[[], None] = lambda: None
        self.waits: list[float] = []
        self.lock = threading.Lock()
        self.pool = PrivatePool()
        self.names: dict[bytes, meta_pb2.Inode] = {}
        self.appended: dict[tuple[int, bytes], int] = {}  # by inode and client, as meta keeps it in sessions
        self.outcomes: dict[bytes, bytes] = {}
        self.sessions: dict[bytes, int] = {}
        self.meta_servers = {number: FakeMeta(self) for number in (1, 2)}
        self.next_inode = 100
        self.routing = Routing(
            version=1,
            nodes={
                number: mgmtd_pb2.NodeInfo(
                    node_id=number,
                    type=NODE_TYPE_META,
                    alive=True,
                    workers=[mgmtd_pb2.WorkerInfo(alive=True, endpoint=Endpoint(tcp=f"meta:{number}"))],
                )
                for number in self.meta_servers
            },
            chains={
                chain: Chain(chain, 1, tuple((1 + (chain - 1 + k) % targets, int(SERVING)) for k in range(replicas)))
                for chain in range(1, chains + 1)
            },
            addresses={target: Address(tcp=f"fake:{target}") for target in self.workers},
        )

    # RoutingView
    def current(self) -> Routing:
        return self.routing

    def wait_newer(self, version: int, timeout_s: float) -> Routing:
        self.waits.append(timeout_s)
        self.on_wait()
        self.clock.advance(timeout_s)
        return self.routing

    def sleep(self, seconds: float) -> None:
        self.wait_newer(0, seconds)

    # BlockingLink
    def call(self, address: Address, call: Call) -> Reply:
        with self.lock:
            self.clock.advance(0.0001)
            if address.tcp.startswith("meta:"):
                return self.meta_servers[int(address.tcp.removeprefix("meta:"))].serve(call)
            return self.workers[int(address.tcp.removeprefix("fake:"))].serve(call)

    def begin(self, address: Address, call: Call) -> Any:
        return SimpleNamespace(finish=lambda: self.call(address, call))

    def call_many(self, calls: Sequence[tuple[Address, Call]]) -> list[Reply | FfsError]:
        answers: list[Reply | FfsError] = []
        for address, call in calls:
            try:
                answers.append(self.call(address, call))
            except FfsError as exc:
                answers.append(exc)
        return answers

    def close(self) -> None: ...

    def set_chain(self, chain_id: int, targets: Sequence[int]) -> None:
        """A new version of the chain with these SERVING targets."""
        old = self.routing.chains[chain_id]
        chains = dict(self.routing.chains)
        chains[chain_id] = Chain(chain_id, old.version + 1, tuple((target, int(SERVING)) for target in targets))
        self.routing = dataclasses.replace(self.routing, version=self.routing.version + 1, chains=chains)

    def client(self, policy: RetryPolicy | None = None) -> StorageClient:
        return StorageClient(
            self,
            self,
            ClientId(b"c" * 16),
            policy=policy or RetryPolicy(deadline_s=30.0),
            clock=self.clock,
            rng=random.Random(1),
            sleep=self.sleep,
        )

    def requests(self, method: Method) -> int:
        return sum(call.method == method for worker in self.workers.values() for call in worker.requests)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def client(cluster: FakeCluster) -> FakeContext:
    return FakeContext(cluster)


@pytest.fixture
def other(cluster: FakeCluster) -> FakeContext:
    """A second client of the same cluster."""
    return FakeContext(cluster, 2)
