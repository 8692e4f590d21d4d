"""The storage nodes as one store of files' bytes: blocking, batched, with retry. Safe to use from several threads.

Nothing here knows names or file lengths: a file is a `FileLayout`. Errors are FfsError.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from fireflyfs.client import storage_calls
from fireflyfs.client.channels import ChannelPool
from fireflyfs.client.forkguard import ForkGuard
from fireflyfs.client.replica_choice import ReplicaChoice
from fireflyfs.client.retry import Retry, RetryPolicy
from fireflyfs.client.routing import Chain, Routing
from fireflyfs.client.routing_view import RoutingView
from fireflyfs.client.storage_calls import LastChunk, Removed
from fireflyfs.client.storage_codec import WriteSpan, length_of, part_of
from fireflyfs.client.storage_ranges import StorageRanges
from fireflyfs.client.storage_reader import Ios, Row, StorageReader, single_io
from fireflyfs.client.storage_writer import StorageWriter
from fireflyfs.client.striping import FileLayout, chunk_pieces
from fireflyfs.common.clock import Clock, SystemClock
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.ids import ClientId
from fireflyfs.common.net.api import Address, BlockingLink, Call, Piece, Reply
from fireflyfs.common.net.methods import Method
from fireflyfs.proto import storage_pb2
from fireflyfs.proto.storage_wire import READ_IO

R = TypeVar("R", bound=Message)
T = TypeVar("T")

__all__ = ["ReadSpan", "StorageClient", "WriteSpan"]


class ReadSpan(NamedTuple):
    """Bytes of the file from `offset` on are wanted in `into`, all of it. Bytes never written are zeros."""

    file: FileLayout
    offset: int
    into: Piece


class StorageClient:
    """Reads and updates of files' chunks on all storage nodes."""

    def __init__(
        self,
        link: BlockingLink,
        routing: RoutingView,
        client_id: ClientId,
        *,
        policy: RetryPolicy | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        sleep: Callable[[float], None] = time.sleep,
        channels: ChannelPool | None = None,
    ) -> None:
        self._link = link
        self._routing = routing
        self._client_id = client_id
        self._policy = policy or RetryPolicy()
        self._clock = clock or SystemClock()
        self._random = rng or random.Random()
        self._sleep = sleep
        self._channels = channels or ChannelPool()
        self._guard = ForkGuard()
        self._reader = StorageReader(
            link, routing, ReplicaChoice(self._clock, self._random), self._policy, self._clock, self._random, sleep
        )
        self._writer = StorageWriter(
            link, routing, client_id, self._channels, self._policy, self._clock, self._random, sleep
        )

        self.ranges = StorageRanges(
            link,
            client_id,
            self._channels,
            self._on_chain,
            self.write,
            lambda file, begin, end: self.remove(file, begin=begin, end=end),
            routing.current,
        )

    def read(self, spans: Sequence[ReadSpan]) -> dict[int, FfsError]:
        """Fill all spans; returns those that failed, by place, with why (their memory is unspecified then)."""
        self._guard.check()
        rows: list[tuple[int, int, int, int, int, int]] = []
        pieces: list[Piece] = []
        owners: list[int] = []
        for place, span in enumerate(spans):
            file, into = span.file, span.into
            length = length_of(into)
            size = file.chunk_size
            index, inside = divmod(span.offset, size)
            if 0 < length <= size - inside and span.offset >= 0:
                rows.append((file.inode, index, file.chains[index % len(file.chains)], 0, inside, length))
                pieces.append(into)
                owners.append(place)
                continue
            for piece in chunk_pieces(span.offset, length, size):
                rows.append((file.inode, piece.chunk, file.chain_of(piece.chunk), 0, piece.offset, piece.length))
                pieces.append(part_of(into, piece.start, piece.length))
                owners.append(place)
        if not rows:
            return {}
        failed: dict[int, FfsError] = {}
        for row, exc in self._reader.read(np.array(rows, READ_IO), pieces).items():
            failed.setdefault(owners[row], exc)
        return failed

    def read_rows(self, ios: Ios, pieces: Sequence[Piece]) -> dict[int, FfsError]:
        """The same for a batch that stands packed (`striping.place`): row `i` lands in `pieces[i]`."""
        self._guard.check()
        return self._reader.read(ios, pieces) if len(pieces) else {}

    def read_into(self, file: FileLayout, offset: int, into: Piece) -> None:
        """Fill `into` from `offset` on. Raises the first error."""
        length = length_of(into)
        index, inside = divmod(offset, file.chunk_size)
        if 0 < length <= file.chunk_size - inside and offset >= 0:  # one chunk: the mount's usual request
            self._guard.check()
            chain_id = file.chains[index % len(file.chains)]
            if self._reader.read_one(file.inode, index, chain_id, inside, into, length):
                return
            failed = self._reader.read(single_io(file.inode, index, chain_id, inside, length), [into])
        else:
            failed = self.read([ReadSpan(file, offset, into)])
        if failed:
            raise next(iter(failed.values()))

    def begin_first(self, file: FileLayout, into: Piece, limit_s: float) -> Callable[[], bool] | None:
        """Begin to fill `into`, which is no longer than a chunk, with the file's first bytes; see `begin_one`.

        It is tried once: False says that `read_into` should be asked.
        """
        self._guard.check()
        return self._reader.begin_one(file.inode, 0, file.chains[0], 0, into, length_of(into), limit_s)

    def read_once(self, spans: Sequence[ReadSpan]) -> list[int]:
        """Fill small spans in one attempt, without waiting for anybody who is away. Returns those that are not filled:
        their memory is unspecified, and `read` may fill them."""
        self._guard.check()
        rows: list[Row] = []
        pieces: list[Piece] = []
        places: list[int] = []
        left: list[int] = []
        for place, (file, offset, into) in enumerate(spans):
            length = length_of(into)
            index, inside = divmod(offset, file.chunk_size)
            if 0 < length <= file.chunk_size - inside and offset >= 0:
                rows.append((file.inode, index, file.chain_of(index), inside, length))
                pieces.append(into)
                places.append(place)
            else:
                left.append(place)
        return left + [places[row] for row in self._reader.read_once(rows, pieces)]

    def write(self, spans: Sequence[WriteSpan], still: Callable[[], None] | None = None) -> dict[int, FfsError]:
        """Store all spans, on all replicas when it returns; the spans that failed, by place, with why.

        Spans may be of many files and scattered: each chunk is updated once. Where spans overlap, the later one wins.
        `still` is called before anything is sent again, and raises when it should not be.
        """
        self._guard.check()
        return self._writer.write(spans, still)

    def write_from(self, file: FileLayout, offset: int, data: Piece) -> None:
        """Store `data` at `offset`. Raises the first error; parts of the range may be stored then."""
        failed = self.write([WriteSpan(file, offset, data)])
        if failed:
            raise failed[0]

    def query_last(self, file: FileLayout, *, begin: int = 0, end: int = 0) -> LastChunk | None:
        """The highest chunk with begin <= index < end (0: no end) and sums over the range; None: no chunk."""
        self._guard.check()

        def ask(chain: Chain, routing: Routing) -> LastChunk | None:
            request = storage_calls.query_last_request(chain, file.inode, begin, end)
            address = routing.address(storage_calls.serving_head(chain))
            reply = self._call(address, Method.STORAGE_QUERY_LAST_CHUNK, request, storage_pb2.QueryLastChunkReply())
            return storage_calls.query_last_result(reply)

        return storage_calls.fold_last([self._on_chain(chain, ask) for chain in file.chain_set])

    def remove(self, file: FileLayout, *, begin: int = 0, end: int = 0, limit: int = 1024) -> Removed:
        """Remove up to `limit` chunks of each chain with begin <= index < end (0: no end); `more`: call again."""
        self._guard.check()
        removed, more = 0, False
        for chain_id in file.chain_set:
            with self._channels.take(1) as ((channel, sequence),):

                def ask(chain: Chain, routing: Routing, c: int = channel, s: int = sequence) -> Removed:
                    request = storage_calls.remove_request(chain, file.inode, begin, end, limit, self._client_id, c, s)
                    address = routing.address(storage_calls.serving_head(chain))
                    reply = self._call(address, Method.STORAGE_REMOVE_CHUNKS, request, storage_pb2.RemoveChunksReply())
                    return Removed(reply.removed, reply.more)

                part = self._on_chain(chain_id, ask)
            removed += part.removed
            more = more or part.more
        return Removed(removed, more)

    def drop_chunks(self, chain_id: int, chunks: Sequence[storage_pb2.SeenChunk]) -> list[Code]:
        """Remove or shorten chunks of one chain, each while it is what was seen, else STALE_UPDATE; codes."""
        self._guard.check()
        with self._channels.take(1) as ((channel, sequence),):

            def ask(chain: Chain, routing: Routing) -> list[Code]:
                request = storage_calls.drop_request(chain, chunks, self._client_id, channel, sequence)
                address = routing.address(storage_calls.serving_head(chain))
                reply = self._call(address, Method.STORAGE_DROP_CHUNKS, request, storage_pb2.DropChunksReply())
                if len(reply.statuses) != len(chunks):
                    raise error(Code.PROTOCOL, f"{len(reply.statuses)} answers for {len(chunks)} chunks")
                return [error(status).code if status else Code.OK for status in reply.statuses]

            return self._on_chain(chain_id, ask)

    def truncate(self, file: FileLayout, length: int) -> None:
        """Drop all bytes from `length` on: whole chunks, then the end of the last one."""
        self._guard.check()
        index, inside = divmod(length, file.chunk_size)
        while self.remove(file, begin=index + 1 if inside else index).more:
            pass
        if not inside:
            return
        with self._channels.take(1) as ((channel, sequence),):

            def ask(chain: Chain, routing: Routing) -> None:
                request = storage_calls.truncate_request(chain, file, index, inside, self._client_id, channel, sequence)
                address = routing.address(storage_calls.serving_head(chain))
                try:
                    self._call(address, Method.STORAGE_TRUNCATE_CHUNK, request, storage_pb2.TruncateChunkReply())
                except FfsError as exc:
                    if exc.code is not Code.CHUNK_NOT_FOUND:
                        raise

            self._on_chain(file.chain_of(index), ask)

    def sync(self, chains: Iterable[int]) -> None:
        """Everything acknowledged on these chains survives a power cut when this returns."""
        self._guard.check()
        ids = tuple(dict.fromkeys(chains))
        retry = Retry(self._policy, self._clock, self._random)
        while ids:
            routing = self._routing.current()
            left: list[int] = []
            worst: FfsError | None = None
            try:
                groups = list(storage_calls.heads_of(routing, ids).items())
                requests = [
                    (routing.address(target), storage_pb2.SyncChainsRequest(chains=members))
                    for target, members in groups
                ]
            except FfsError as exc:
                worst, left = exc, list(ids)
            else:
                calls = [
                    (address, Call(Method.STORAGE_SYNC_CHAINS, request.SerializeToString(), deadline_s=60.0))
                    for address, request in requests
                ]
                for (_, members), answer in zip(groups, self._link.call_many(calls), strict=True):
                    if isinstance(answer, FfsError):
                        worst = answer
                        left += members
            if worst is not None:
                self._pause(retry, routing, worst)
            ids = tuple(left)

    def space(self) -> list[storage_pb2.TargetSpace]:
        """Every reachable target's space. Workers that do not answer are left out."""
        self._guard.check()
        addresses = list(dict.fromkeys(self._routing.current().addresses.values()))
        body = storage_pb2.SpaceRequest().SerializeToString()
        answers = self._link.call_many(
            [(a, Call(Method.STORAGE_SPACE, body, deadline_s=self._policy.call_deadline_s)) for a in addresses]
        )
        replies = [_decode(storage_pb2.SpaceReply(), a) for a in answers if isinstance(a, Reply)]
        return [target for reply in replies for target in reply.targets]

    def _call(self, address: Address, method: Method, request: Message, reply: R) -> R:
        call = Call(method, request.SerializeToString(), deadline_s=self._policy.call_deadline_s)
        return _decode(reply, self._link.call(address, call))

    def _on_chain(self, chain_id: int, ask: Callable[[Chain, Routing], T]) -> T:
        retry = Retry(self._policy, self._clock, self._random)
        while True:
            routing = self._routing.current()
            try:
                return ask(routing.chain(chain_id), routing)
            except FfsError as exc:
                self._pause(retry, routing, exc)

    def _pause(self, retry: Retry, routing: Routing, exc: FfsError) -> None:
        step = retry.after(exc)
        if step.refresh:
            self._routing.wait_newer(routing.version, step.pause_s)
        else:
            self._sleep(step.pause_s)


def _decode(message: R, reply: Reply) -> R:
    try:
        message.MergeFromString(bytes(reply.body))
    except DecodeError as exc:
        raise error(Code.PROTOCOL, f"the answer is no {type(message).__name__}") from exc
    return message
