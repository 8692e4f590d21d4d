"""A chain of replicas in one event loop: engines in memory, calls from one to the next without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import crc32c as crc32c_module
import pytest

from fireflyfs.client.routing import Chain, Routing
from fireflyfs.common import native
from fireflyfs.common.clock import SystemClock
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.ids import ClientId
from fireflyfs.common.net.api import Address, Call, Handler, Peer, Reply
from fireflyfs.common.net.methods import Method, service_methods
from fireflyfs.proto import mgmtd_pb2, storage_pb2
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.core.target import Local, Public, TargetState
from fireflyfs.storage.engine.cache_blocks import BlocksByState
from fireflyfs.storage.engine.interface import (
    ChunkKey,
    ChunkState,
    Done,
    DoneChunk,
    Extent,
    LastChunk,
    Quarantined,
    ReadResult,
    Space,
    Update,
    Version,
    WouldBlock,
    Writer,
)
from fireflyfs.storage.service.local_target import LocalTarget
from fireflyfs.storage.service.operations import StorageService
from fireflyfs.storage.service.replica import Replicas
from fireflyfs.storage.service.wire import Item, Result, decode_results, encode_update

CHUNK = 65536


@pytest.fixture(params=["library", "python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Blocks of a batch by the library in C, and without it."""
    if request.param == "python":
        monkeypatch.setattr(native, "blocks", None)
    elif native.blocks is None:
        pytest.skip("the library in C was not built")
    return str(request.param)


UNIT = 4096  # under one checksum


@dataclass
class _Chunk:
    """Contents are what they should be. `rotten`: units of the committed one whose bytes are not."""

    chunk_size: int
    committed: tuple[Version, bytes] | None = None
    pending: tuple[Version, bytes] | None = None
    rotten: set[int] = field(default_factory=set)
    pending_rotten: set[int] = field(default_factory=set)


class MemoryEngine(BlocksByState):
    """Keeps the engine contract in a dictionary. `cold`: all would block. `full`: nothing more is stored."""

    def __init__(self) -> None:
        self.chunks: dict[ChunkKey, _Chunk] = {}
        self.reasons: dict[ChunkKey, str] = {}  # of damaged chunks
        self.cold = False
        self.full = False
        self.syncs = 0
        self.disk_id = "disk"
        self.lost_power = False
        self.writers: dict[tuple[bytes, int], tuple[int, dict[ChunkKey, DoneChunk]]] = {}

    def _state(self, key: ChunkKey, chunk: _Chunk) -> ChunkState:
        return ChunkState(
            key,
            chunk.chunk_size,
            chunk.committed[0] if chunk.committed else None,
            chunk.pending[0] if chunk.pending else None,
        )

    def stat(self, key: ChunkKey) -> ChunkState | None:
        chunk = self.chunks.get(key)
        return self._state(key, chunk) if chunk else None

    def read(
        self, key: ChunkKey, offset: int, into: memoryview, *, pending: bool = False, nowait: bool = False
    ) -> ReadResult:
        if nowait and self.cold:
            raise WouldBlock
        chunk = self.chunks.get(key)
        chosen = (chunk.pending if pending and chunk.pending else chunk.committed) if chunk else None
        if chunk is None or chosen is None or chosen[0].removed:
            raise error(Code.CHUNK_NOT_FOUND)
        rotten = chunk.rotten if chosen is chunk.committed else chunk.pending_rotten
        if chosen[0].damaged or _touches(rotten, offset, min(len(into), len(chosen[1]) - offset)):
            into[:] = bytes(len(into))
            raise error(Code.CHECKSUM)
        data = chosen[1][offset : offset + len(into)]
        into[: len(data)] = data
        return ReadResult(
            len(data), crc32c_module.crc32c(data), chosen[0].version, len(chosen[1]), chunk.pending is not None
        )

    def apply(self, updates: Sequence[Update], *, nowait: bool = False) -> list[Version]:
        if nowait and self.cold:
            raise WouldBlock
        versions = []
        for update in updates:
            if self.full and update.kind is not UpdateKind.REMOVE:
                raise error(Code.NO_SPACE)
            chunk = self.chunks.setdefault(update.key, _Chunk(update.chunk_size))
            old = chunk.committed[1] if chunk.committed else b""
            rotten = self._building_on(chunk, update)
            whole = update.kind in (UpdateKind.REPLACE, UpdateKind.REMOVE, UpdateKind.PUT)
            data = bytearray(b"" if whole else old)
            for extent in update.extents:
                end = extent.offset + len(extent.data)
                data.extend(bytes(max(0, end - len(data))))
                data[extent.offset : end] = extent.data
            if update.kind is UpdateKind.TRUNCATE:
                del data[update.length :]
            removed = update.kind is UpdateKind.REMOVE
            version = Version(
                update.version,
                update.chain_version,
                len(data),
                crc32c_module.crc32c(bytes(data)),
                update.writer,
                removed,
                name=update.name,
            )
            if update.kind is UpdateKind.DAMAGED:
                version = version._replace(length=update.length, crc32c=update.crc32c, damaged=True)
            chunk.pending = (version, bytes(data))
            chunk.pending_rotten = rotten
            versions.append(version)
        return versions

    def _building_on(self, chunk: _Chunk, update: Update) -> set[int]:
        """Rotten units that the update leaves as they are. Raises CHECKSUM where it would have to read one."""
        if chunk.committed is None or update.kind not in (UpdateKind.WRITE, UpdateKind.TRUNCATE):
            return set()
        length = len(chunk.committed[1]) if not chunk.committed[0].damaged else chunk.committed[0].length
        if update.kind is UpdateKind.TRUNCATE:
            written = set(range(update.length, length))
        else:
            written = {at for e in update.extents for at in range(e.offset, e.offset + len(e.data))}
        left = set()
        for unit in set(range(-(-length // UNIT))) if chunk.committed[0].damaged else chunk.rotten:
            inside = set(range(unit * UNIT, min((unit + 1) * UNIT, length)))
            if inside & written and inside - written:
                raise error(Code.CHECKSUM)
            if inside - written:
                left.add(unit)
        if left and chunk.committed[0].damaged:
            raise error(Code.CHECKSUM)
        return left

    def rot(self, key: ChunkKey, at: int = 0) -> None:
        """The committed bytes of the unit that holds `at` go bad."""
        self.chunks[key].rotten.add(at // UNIT)

    def verify(self, key: ChunkKey) -> int:
        chunk = self.chunks.get(key)
        if chunk is None or chunk.committed is None:
            raise error(Code.CHUNK_NOT_FOUND)
        if chunk.committed[0].damaged or chunk.rotten:
            raise error(Code.CHECKSUM)
        return len(chunk.committed[1])

    def done(self, after: Writer | None, limit: int) -> list[Done]:
        later = sorted(channel for channel in self.writers if after is None or channel > after[:2])
        return [
            Done(Writer(*channel, self.writers[channel][0]), tuple(self.writers[channel][1].values()))
            for channel in later[:limit]
        ]

    def adopt(self, done: Sequence[Done]) -> None:
        for writer, chunks in done:
            self._remember(writer, chunks)

    def _remember(self, writer: Writer, chunks: Sequence[DoneChunk]) -> None:
        sequence, known = self.writers.get(writer[:2], (-1, {}))
        if sequence > writer.sequence:
            return
        if sequence < writer.sequence:
            known = {}
        self.writers[writer[:2]] = writer.sequence, known | {chunk.key: chunk for chunk in chunks}

    def commit(
        self,
        keys: Sequence[tuple[ChunkKey, int]],
        chain_version: int,
        *,
        remember: bool = True,
        nowait: bool = False,
    ) -> None:
        if nowait and self.cold:
            raise WouldBlock
        for key, number in keys:
            chunk = self.chunks.get(key)
            if chunk is None:
                continue
            if chunk.pending and chunk.pending[0].version == number:
                version, data = chunk.pending
                chunk.committed = (version._replace(chain_version=chain_version), data)
                chunk.rotten, chunk.pending_rotten = chunk.pending_rotten, set()
                chunk.pending = None
                self.reasons.pop(key, None)
                if version.damaged:
                    self.reasons[key] = "lost elsewhere"
                if remember:
                    done = DoneChunk(key, number, chain_version, version.length, version.crc32c)
                    self._remember(version.writer, [done])
                if version.removed:
                    del self.chunks[key]
            elif not (chunk.committed and chunk.committed[0].version == number):
                raise error(Code.INVALID, f"{key} has no version {number}")

    def apply_committed(
        self, updates: Sequence[Update], chain_version: int, *, remember: bool = True, nowait: bool = False
    ) -> list[Version]:
        versions = self.apply(updates, nowait=nowait)
        self.commit([(update.key, update.version) for update in updates], chain_version, remember=remember)
        return versions

    def last_chunk(self, inode: int, begin: int, end: int) -> LastChunk | None:
        states = [s for s in self.scan_inode(inode, begin, end, 1 << 30) if s.committed]
        if not states or states[-1].committed is None:
            return None
        lengths = [s.committed.length for s in states if s.committed]
        return LastChunk(states[-1].key.chunk_index, lengths[-1], len(states), sum(lengths))

    def scan(self, after: ChunkKey | None, limit: int) -> list[ChunkState]:
        keys = sorted(key for key in self.chunks if after is None or key > after)[:limit]
        return [self._state(key, self.chunks[key]) for key in keys]

    def scan_inode(self, inode: int, begin: int, end: int, limit: int) -> list[ChunkState]:
        keys = [k for k in self.chunks if k.inode == inode and begin <= k.chunk_index and (not end or k[1] < end)]
        return [self._state(key, self.chunks[key]) for key in sorted(keys)[:limit]]

    def pending(self, limit: int, after: ChunkKey | None = None) -> list[ChunkState]:
        return [state for state in self.scan(after, len(self.chunks)) if state.pending is not None][:limit]

    def quarantine(self, key: ChunkKey, reason: str) -> None:
        chunk = self.chunks.get(key)
        if chunk is not None and chunk.committed is not None and not chunk.committed[0].damaged:
            chunk.committed = (chunk.committed[0]._replace(damaged=True), b"")
            chunk.rotten = set()
            self.reasons[key] = reason

    def quarantined(self, limit: int) -> list[Quarantined]:
        found = [(key, reason, self.chunks[key].committed) for key, reason in sorted(self.reasons.items())]
        return [
            Quarantined(key, reason, kept[0].version, kept[0].length, 0, 0, False)
            for key, reason, kept in found[:limit]
            if kept is not None
        ]

    def vouch(self) -> None:
        self.lost_power = False

    def sync(self) -> None:
        self.syncs += 1

    def space(self) -> Space:
        used = sum(len(chunk.committed[1]) for chunk in self.chunks.values() if chunk.committed)
        return Space(1 << 40, 1 << 39, used, len(self.chunks), len(self.reasons))

    def stats(self) -> dict[str, float]:
        return {"chunks": float(len(self.chunks))}

    def close(self) -> None:
        pass


def _touches(rotten: set[int], offset: int, length: int) -> bool:
    return any(unit * UNIT < offset + length and (unit + 1) * UNIT > offset for unit in rotten)


class FakeRequest:
    """A ServerRequest whose answer lands in a future."""

    def __init__(self, call: Call) -> None:
        self.method = call.method
        self.body = memoryview(bytes(call.body))
        self.peer = Peer(ClientId(b"p" * 16), "test")
        self.deadline_s = SystemClock().monotonic_s() + call.deadline_s
        self._out = [piece if isinstance(piece, memoryview) else piece.view for piece in call.out]
        self._into = [piece if isinstance(piece, memoryview) else piece.view for piece in call.into]
        self.pull_lengths = [len(piece) for piece in self._out]
        self.push_lengths = [len(piece) for piece in self._into]
        self.answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    async def pull(self) -> list[memoryview]:
        return [memoryview(bytes(piece)) for piece in self._out]

    def push_views(self) -> list[memoryview]:
        return self._into

    def reply(self, body: bytes | bytearray | memoryview = b"", pushed: Sequence[int] = ()) -> None:
        if not self.answer.done():
            self.answer.set_result(Reply(bytes(body), list(pushed)))

    def fail(self, code: Code, message: str = "") -> None:
        if not self.answer.done():
            self.answer.set_exception(error(code, message))


class Net:
    """Who answers at which address. `down`: connection refused. `hung`: never answers."""

    def __init__(self) -> None:
        self.handlers: dict[str, dict[int, Handler]] = {}
        self.down: set[str] = set()
        self.hung: set[str] = set()
        self.calls: list[tuple[str, int]] = []
        self.pool: Any = None
        self.lose_answers_of: set[str] = set()

    async def call(self, address: Address, call: Call) -> Reply:
        name = address.tcp
        self.calls.append((name, call.method))
        if name in self.down:
            raise error(Code.UNAVAILABLE, name)
        if name in self.hung:
            await asyncio.sleep(call.deadline_s)
            raise error(Code.TIMEOUT, name)
        request = FakeRequest(call)

        async def serve() -> None:
            try:
                waiting: Awaitable[None] | None = self.handlers[name][call.method](request)
                if waiting is not None:
                    await waiting
            except FfsError as exc:
                request.fail(exc.code, exc.message)

        task = asyncio.ensure_future(serve())
        try:
            async with asyncio.timeout(call.deadline_s):
                reply = await request.answer
        except TimeoutError:
            raise error(Code.TIMEOUT, name) from None
        await task
        if name in self.lose_answers_of:
            raise error(Code.UNAVAILABLE, f"{name}: answer lost")
        return reply

    async def close(self) -> None:
        pass


@dataclass
class Server:
    target: LocalTarget
    replicas: Replicas
    service: StorageService
    engine: MemoryEngine


@dataclass
class Cluster:
    """Targets 10, 20, ... in chain 1, with states that the test sets."""

    net: Net
    servers: dict[int, Server] = field(default_factory=dict)
    version: int = 1
    states: list[tuple[int, Public]] = field(default_factory=list)
    heartbeat_age_s: float = 0.0

    def add(self, target_id: int, engine: Any = None) -> Server:
        engine = engine or MemoryEngine()
        local = LocalTarget(target_id, engine, threads=2)
        local.space = engine.space()
        clock = SystemClock()
        replicas = Replicas(
            [local], self.net, clock, last_heartbeat_s=lambda: clock.monotonic_s() - self.heartbeat_age_s
        )
        service = StorageService(replicas)
        handlers = service.bulk_handlers()
        for name, number in service_methods("STORAGE").items():
            if number in handlers:
                continue
            snake = "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")
            handlers[number] = _protobuf(getattr(service, snake), getattr(storage_pb2, name + "Request"))
        self.net.handlers[str(target_id)] = handlers
        self.servers[target_id] = Server(local, replicas, service, engine)
        return self.servers[target_id]

    def routing(self) -> Routing:
        return Routing(
            version=self.version,
            targets={target_id: mgmtd_pb2.TargetInfo(target_id=target_id, chain_id=1) for target_id, _ in self.states},
            chains={1: Chain(1, self.version, tuple((t, int(s)) for t, s in self.states))},
            addresses={target_id: Address(tcp=str(target_id)) for target_id, _ in self.states},
        )

    def publish(self, *states: tuple[int, Public], only: Sequence[int] = (), bump: bool = True) -> None:
        if states:
            self.states = list(states)
            self.version += bump
        routing = self.routing()
        for target_id, server in self.servers.items():
            if not only or target_id in only:
                server.replicas.install(routing)

    async def update(
        self, to: int, items: Sequence[Item], writer: Writer, *, deadline_s: float = 5.0, version: int = 0
    ) -> list[Result]:
        body, pieces = encode_update(1, version or self.version, writer, 0, items)
        call = Call(Method.STORAGE_WRITE, body, out=pieces, deadline_s=deadline_s)
        reply = await self.net.call(Address(tcp=str(to)), call)
        return decode_results(reply.body, len(items))

    def close(self) -> None:
        for server in self.servers.values():
            server.target.close()


def _protobuf(method: Callable[[Any], Awaitable[Any]], kind: Any) -> Handler:
    async def handle(request: Any) -> None:
        reply = await method(kind.FromString(bytes(request.body)))
        request.reply(reply.SerializeToString())

    return handle


def _write(index: int, data: bytes, offset: int = 0, kind: UpdateKind = UpdateKind.WRITE) -> Item:
    extents = [Extent(offset, memoryview(data), crc32c_module.crc32c(data))] if data else []
    return Item(ChunkKey(7, index), kind, 0, CHUNK, 0, 0, extents)


@pytest.fixture
def write_item() -> Callable[..., Item]:
    return _write


@pytest.fixture
def make_cluster() -> Callable[..., Cluster]:
    """A cluster of n serving replicas; made inside the test's event loop. `engine(target id)`: not in memory."""

    def make(count: int, engine: Callable[[int], Any] = lambda _: None) -> Cluster:
        cluster = Cluster(Net())
        for number in range(1, count + 1):
            server = cluster.add(number * 10, engine(number * 10))
            server.target.state = TargetState(Local.UPTODATE, returning=False)
        cluster.publish(*((number * 10, Public.SERVING) for number in range(1, count + 1)))
        return cluster

    return make
