"""Ranges of files as a whole: where data is, making holes, copying from file to file. Safe to use from several threads.

Nothing here is atomic: a range that others write to at the same time may end as any mixture of both, chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

from fireflyfs.client import storage_calls
from fireflyfs.client.channels import ChannelPool, ChannelUse
from fireflyfs.client.forkguard import ForkGuard
from fireflyfs.client.routing import Chain, Routing
from fireflyfs.client.storage_calls import Removed
from fireflyfs.client.storage_codec import WriteSpan
from fireflyfs.client.striping import FileLayout, chunk_pieces
from fireflyfs.common.errors import Code, FfsError, Reaction, error
from fireflyfs.common.limits import COPY_BYTES_MAX, COPY_PIECES_MAX, RANGE_CHUNKS_MAX, MiB
from fireflyfs.common.net.api import Address, BlockingLink, Call
from fireflyfs.common.net.methods import Method
from fireflyfs.proto import storage_pb2

T = TypeVar("T")

COPIES_AT_ONCE_MAX = 16  # requests under way for one caller
COPY_DEADLINE_S = 20.0  # of one of them: it reads elsewhere, then writes through a chain
_ZEROS = memoryview(bytes(MiB))


class OneChain(Protocol):
    """`StorageClient`'s loop: asks with the newest routing until it succeeds or there is no hope."""

    def __call__(self, chain_id: int, ask: Callable[[Chain, Routing], T]) -> T: ...


class DataRange(NamedTuple):
    """Bytes [start, end) of a file that storage has; all before and behind them are a hole."""

    start: int
    end: int


class _Copy(NamedTuple):
    """Pieces of one request, all for chunks of one chain of `file`."""

    chain_id: int
    file: FileLayout
    pieces: list[storage_pb2.CopyPiece]


def copy_pieces(
    source: FileLayout, source_offset: int, into: FileLayout, into_offset: int, length: int
) -> Iterator[storage_pb2.CopyPiece]:
    """The range cut where a chunk of either file ends, and so that each fits into one request."""
    for outer in chunk_pieces(into_offset, length, into.chunk_size):
        for piece in chunk_pieces(source_offset + outer.start, outer.length, source.chunk_size):
            for start in range(0, piece.length, COPY_BYTES_MAX):
                yield storage_pb2.CopyPiece(
                    source=storage_pb2.ChunkId(inode=source.inode, index=piece.chunk),
                    source_chain=source.chain_of(piece.chunk),
                    source_offset=piece.offset + start,
                    target=storage_pb2.ChunkId(inode=into.inode, index=outer.chunk),
                    target_offset=outer.offset + piece.start + start,
                    length=min(COPY_BYTES_MAX, piece.length - start),
                )


def plan_copy(into: FileLayout, pieces: Iterator[storage_pb2.CopyPiece]) -> Iterator[_Copy]:
    """Requests within their bounds, in the order in which they are full."""
    open_ones: dict[int, tuple[_Copy, int]] = {}
    for piece in pieces:
        chain_id = into.chain_of(piece.target.index)
        copy, size = open_ones.get(chain_id, (_Copy(chain_id, into, []), 0))
        if copy.pieces and (size + piece.length > COPY_BYTES_MAX or len(copy.pieces) == COPY_PIECES_MAX):
            yield copy
            copy, size = _Copy(chain_id, into, []), 0
        copy.pieces.append(piece)
        open_ones[chain_id] = copy, size + piece.length
    yield from (copy for copy, _ in open_ones.values())


class StorageRanges:
    """Part of a `StorageClient`, which gives it its links, channels, loop and plain calls."""

    def __init__(
        self,
        link: BlockingLink,
        client_id: bytes,
        channels: ChannelPool,
        on_chain: OneChain,
        write: Callable[[Sequence[WriteSpan]], dict[int, FfsError]],
        remove: Callable[[FileLayout, int, int], Removed],
        routing: Callable[[], Routing],
    ) -> None:
        self._link = link
        self._client_id = client_id
        self._channels = channels
        self._on_chain = on_chain
        self._write = write
        self._remove = remove
        self._routing = routing
        self._guard = ForkGuard()

    def data(self, file: FileLayout, start: int, end: int, *, page: int = RANGE_CHUNKS_MAX) -> Iterator[DataRange]:
        """Where storage has bytes of [start, end), in order, at the granularity of chunks; neighbours are joined.

        `page`: chunks of each chain asked for at a time. Raises FfsError.
        """
        self._guard.check()
        size = file.chunk_size
        found: DataRange | None = None
        for index, length in self._chunks(file, start // size, -(-end // size), page):
            low, high = max(start, index * size), min(end, index * size + length)
            if low >= high:
                continue
            if found is not None and found.end == low:
                found = DataRange(found.start, high)
                continue
            if found is not None:
                yield found
            found = DataRange(low, high)
        if found is not None:
            yield found

    def punch(self, file: FileLayout, offset: int, length: int) -> None:
        """[offset, offset + length) reads as zeros; whole chunks of it are given back. Raises the first error."""
        end = offset + length
        first, last = -(-offset // file.chunk_size), end // file.chunk_size
        if first < last:
            while self._remove(file, first, last).more:
                pass
        if first > last:
            self._zero(file, last, offset, end)
            return
        if offset < first * file.chunk_size:
            self._zero(file, first - 1, offset, first * file.chunk_size)
        if last * file.chunk_size < end:
            self._zero(file, last, last * file.chunk_size, end)

    def copy(self, source: FileLayout, source_offset: int, into: FileLayout, into_offset: int, length: int) -> None:
        """Make bytes of `into` those of `source`; holes stay holes. Ranges must not overlap. Raises the first error."""
        done = source_offset
        shift = into_offset - source_offset
        end = source_offset + length
        for data in self.data(source, source_offset, end):
            if data.start > done:
                self.punch(into, done + shift, data.start - done)
            self._copy(into, copy_pieces(source, data.start, into, data.start + shift, data.end - data.start))
            done = data.end
        if done < end:
            self.punch(into, done + shift, end - done)

    def _chunks(self, file: FileLayout, begin: int, end: int, page: int) -> Iterator[tuple[int, int]]:
        """(index, length) of the chunks of [begin, end), in order."""
        while begin < end:
            found: list[tuple[int, int]] = []
            known_to = end
            for chain_id in file.chain_set:
                reply = self._list(chain_id, file.inode, begin, end, page)
                found += zip(reply.indexes, reply.lengths, strict=True)
                if reply.more:
                    known_to = min(known_to, reply.indexes[-1] + 1)
            yield from sorted(pair for pair in found if pair[0] < known_to)
            begin = known_to

    def _list(self, chain_id: int, inode: int, begin: int, end: int, limit: int) -> storage_pb2.ListRangeReply:
        def ask(chain: Chain, routing: Routing) -> storage_pb2.ListRangeReply:
            where = storage_calls.chunk_range(chain, inode, begin, end)
            body = storage_pb2.ListRangeRequest(range=where, limit=limit).SerializeToString()
            address = routing.address(storage_calls.serving_head(chain))
            answer = self._link.call(address, Call(Method.STORAGE_LIST_RANGE, body, deadline_s=COPY_DEADLINE_S))
            reply = storage_pb2.ListRangeReply.FromString(bytes(answer.body))
            if len(reply.indexes) != len(reply.lengths) or (reply.more and not reply.indexes):
                raise error(Code.PROTOCOL, f"{len(reply.indexes)} chunks with {len(reply.lengths)} lengths")
            return reply

        return self._on_chain(chain_id, ask)

    def _zero(self, file: FileLayout, index: int, start: int, end: int) -> None:
        """Zero what chunk `index` has of [start, end); a missing one stays missing."""
        reply = self._list(file.chain_of(index), file.inode, index, index + 1, 1)
        if not reply.indexes:
            return
        end = min(end, index * file.chunk_size + reply.lengths[0])
        spans = [WriteSpan(file, at, _ZEROS[: min(len(_ZEROS), end - at)]) for at in range(start, end, len(_ZEROS))]
        if spans:
            failed = self._write(spans)
            if failed:
                raise next(iter(failed.values()))

    def _copy(self, into: FileLayout, pieces: Iterator[storage_pb2.CopyPiece]) -> None:
        wave: list[_Copy] = []
        for copy in plan_copy(into, pieces):
            wave.append(copy)
            if len(wave) == COPIES_AT_ONCE_MAX:
                self._copy_wave(wave)
                wave = []
        if wave:
            self._copy_wave(wave)

    def _copy_wave(self, wave: list[_Copy]) -> None:
        """All at once; those that fail are asked again one by one, under the same channels: each happens once."""
        with self._channels.take(len(wave)) as uses:
            routing = self._routing()
            calls: list[tuple[Address, Call]] = []
            left: list[tuple[_Copy, ChannelUse]] = []
            sent: list[tuple[_Copy, ChannelUse]] = []
            for pair in zip(wave, uses, strict=True):
                try:
                    calls.append(self._copy_call(routing.chain(pair[0].chain_id), routing, *pair))
                    sent.append(pair)
                except FfsError:
                    left.append(pair)
            for pair, answer in zip(sent, self._link.call_many(calls) if calls else [], strict=True):
                try:
                    if isinstance(answer, FfsError):
                        raise answer
                    _check_copied(pair[0], answer.body)
                except FfsError as exc:
                    if exc.reaction is Reaction.GIVE_UP:
                        raise
                    left.append(pair)
            for copy, use in left:

                def ask(chain: Chain, routing: Routing, copy: _Copy = copy, use: ChannelUse = use) -> None:
                    _check_copied(copy, self._link.call(*self._copy_call(chain, routing, copy, use)).body)

                self._on_chain(copy.chain_id, ask)

    def _copy_call(self, chain: Chain, routing: Routing, copy: _Copy, use: ChannelUse) -> tuple[Address, Call]:
        request = storage_pb2.CopyChunksRequest(
            chain_id=chain.chain_id,
            chain_version=chain.version,
            chunk_size=copy.file.chunk_size,
            pieces=copy.pieces,
            client_id=self._client_id,
            channel=use.channel,
            sequence=use.sequence,
        )
        address = routing.address(storage_calls.serving_head(chain))
        return address, Call(Method.STORAGE_COPY_CHUNKS, request.SerializeToString(), deadline_s=COPY_DEADLINE_S)


def _check_copied(copy: _Copy, body: bytes | memoryview) -> None:
    """Raises the error of a piece that was not copied, one that cannot be helped first."""
    statuses = storage_pb2.CopyChunksReply.FromString(bytes(body)).statuses
    if len(statuses) != len(copy.pieces):
        raise error(Code.PROTOCOL, f"{len(statuses)} answers for {len(copy.pieces)} pieces")
    failed = [error(status, "storage could not copy into a chunk") for status in statuses if status]
    if failed:
        raise min(failed, key=lambda exc: exc.reaction is not Reaction.GIVE_UP)
