"""Storage for an event loop: what the metadata service needs of it. No bulk reads or writes.

Every method retries by itself until its policy's deadline. Removing and truncating go to the chain's head under an
update channel, so a repeated one happens once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from fireflyfs.client import storage_calls
from fireflyfs.client.retry import Retry, RetryPolicy
from fireflyfs.client.routing import Chain, Routing
from fireflyfs.client.routing_view import AsyncRoutingView
from fireflyfs.client.storage_calls import LastChunk, Seen
from fireflyfs.client.striping import FileLayout
from fireflyfs.common.clock import Clock, SystemClock
from fireflyfs.common.errors import Code, FfsError, Reaction, error
from fireflyfs.common.ids import ClientId, new_client_id
from fireflyfs.common.net.api import Address, AsyncLink, Call
from fireflyfs.common.net.methods import Method
from fireflyfs.proto import storage_pb2
from fireflyfs.proto.common_pb2 import Layout

CHANNELS_MAX = 256
SPACE_WORKERS_AT_ONCE_MAX = 64
META_POLICY = RetryPolicy(deadline_s=20.0, call_deadline_s=8.0)

R = TypeVar("R", bound=Message)
T = TypeVar("T")


class AsyncStorageClient:
    """Belongs to one event loop."""

    def __init__(
        self,
        link: AsyncLink,
        routing: AsyncRoutingView,
        client_id: ClientId | None = None,
        *,
        policy: RetryPolicy = META_POLICY,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._link = link
        self._routing = routing
        self._client_id = client_id or new_client_id()
        self._policy = policy
        self._clock = clock or SystemClock()
        self._random = rng or random.Random()
        self._sleep = sleep
        self._free = list(range(CHANNELS_MAX, 0, -1))
        self._sequences = [0] * (CHANNELS_MAX + 1)
        self._slots = asyncio.Semaphore(CHANNELS_MAX)

    async def query_last_chunk(self, inode: int, layout: Layout, *, begin: int = 0, end: int = 0) -> LastChunk | None:
        """The highest committed chunk with begin <= index < end (0: no end) and sums over the range; None: no chunk."""
        file = FileLayout.of(inode, layout)

        async def ask(chain: Chain, routing: Routing) -> LastChunk | None:
            request = storage_calls.query_last_request(chain, inode, begin, end)
            address = routing.address(storage_calls.serving_head(chain))
            reply = await self._call(
                address, Method.STORAGE_QUERY_LAST_CHUNK, request, storage_pb2.QueryLastChunkReply()
            )
            return storage_calls.query_last_result(reply)

        parts = await asyncio.gather(*(self._on_chain(chain, ask) for chain in file.chain_set))
        return storage_calls.fold_last(parts)

    async def see_beyond(self, inode: int, layout: Layout, length: int, limit: int = 1024) -> Seen:
        """The chunks that hold bytes from `length` on, as they are committed now, up to `limit` of each chain."""
        file = FileLayout.of(inode, layout)
        begin, keep = divmod(length, file.chunk_size)

        async def ask(chain: Chain, routing: Routing) -> storage_pb2.SeeChunksReply:
            request = storage_calls.see_request(chain, inode, begin, keep, limit)
            address = routing.address(storage_calls.serving_head(chain))
            return await self._call(address, Method.STORAGE_SEE_CHUNKS, request, storage_pb2.SeeChunksReply())

        parts = await asyncio.gather(*(self._on_chain(chain, ask) for chain in file.chain_set))
        chunks = {chain: list(part.chunks) for chain, part in zip(file.chain_set, parts, strict=True) if part.chunks}
        return Seen(chunks, any(part.more for part in parts))

    async def drop_seen(self, seen: Seen) -> bool:
        """Drop what was seen, and nothing that was written since; whether that was all of it."""

        async def drop(chain_id: int, chunks: Sequence[storage_pb2.SeenChunk]) -> bool:
            async def ask(chain: Chain, routing: Routing) -> storage_pb2.DropChunksReply:
                request = storage_calls.drop_request(chain, chunks, self._client_id, channel, sequence)
                address = routing.address(storage_calls.serving_head(chain))
                reply = await self._call(address, Method.STORAGE_DROP_CHUNKS, request, storage_pb2.DropChunksReply())
                if len(reply.statuses) != len(chunks):
                    raise error(Code.PROTOCOL, f"{len(reply.statuses)} answers for {len(chunks)} chunks")
                for status in reply.statuses:
                    if status and error(status).reaction is not Reaction.GIVE_UP:
                        raise error(status)  # the same request again: what is done of it stays done
                return reply

            async with self._channel() as (channel, sequence):
                reply = await self._on_chain(chain_id, ask)
            for status in reply.statuses:
                if status not in (Code.OK, Code.STALE_UPDATE):
                    raise error(status)
            return not any(reply.statuses)

        return all(await asyncio.gather(*(drop(chain_id, chunks) for chain_id, chunks in seen.chunks.items())))

    async def remove_files(self, chain_id: int, inodes: Sequence[int], limit: int = 1024) -> list[int]:
        """Remove all chunks of these files on one chain, at most `limit`; the files that have more there."""

        async def ask(chain: Chain, routing: Routing) -> list[int]:
            request = storage_calls.remove_files_request(chain, inodes, limit, self._client_id, channel, sequence)
            address = routing.address(storage_calls.serving_head(chain))
            reply = await self._call(address, Method.STORAGE_REMOVE_FILES, request, storage_pb2.RemoveFilesReply())
            return list(reply.left)

        async with self._channel() as (channel, sequence):
            return await self._on_chain(chain_id, ask)

    async def sync_chains(self, chains: Iterable[int] | Layout) -> None:
        """Everything acknowledged on these chains survives a power cut when this returns."""
        ids = tuple(dict.fromkeys(chains.chains if isinstance(chains, Layout) else chains))
        retry = Retry(self._policy, self._clock, self._random)
        while ids:
            routing = self._routing.current()
            left: list[int] = []
            worst: FfsError | None = None
            try:
                groups = storage_calls.heads_of(routing, ids)
                addresses = {target: routing.address(target) for target in groups}
            except FfsError as exc:
                worst, left = exc, list(ids)
            else:
                calls = [
                    self._call(
                        addresses[target],
                        Method.STORAGE_SYNC_CHAINS,
                        storage_pb2.SyncChainsRequest(chains=members),
                        storage_pb2.SyncChainsReply(),
                    )
                    for target, members in groups.items()
                ]
                for members, outcome in zip(
                    groups.values(), await asyncio.gather(*calls, return_exceptions=True), strict=True
                ):
                    if isinstance(outcome, FfsError):
                        worst = outcome
                        left += members
                    elif isinstance(outcome, BaseException):
                        raise outcome
            if worst is not None:
                await self._pause(retry, routing, worst)
            ids = tuple(left)

    async def space(self) -> list[storage_pb2.TargetSpace]:
        """Every reachable target's space. Workers that do not answer are left out."""
        addresses = list(dict.fromkeys(self._routing.current().addresses.values()))
        bound = asyncio.Semaphore(SPACE_WORKERS_AT_ONCE_MAX)

        async def ask(address: Address) -> Sequence[storage_pb2.TargetSpace]:
            async with bound:
                try:
                    reply = await self._call(
                        address, Method.STORAGE_SPACE, storage_pb2.SpaceRequest(), storage_pb2.SpaceReply()
                    )
                except FfsError:
                    return []
                return list(reply.targets)

        return [target for part in await asyncio.gather(*map(ask, addresses)) for target in part]

    @contextlib.asynccontextmanager
    async def _channel(self) -> AsyncIterator[tuple[int, int]]:
        """An update channel and its next sequence: one request's, however often it is sent."""
        async with self._slots:
            channel = self._free.pop()
            self._sequences[channel] += 1
            try:
                yield channel, self._sequences[channel]
            finally:
                self._free.append(channel)

    async def _call(self, address: Address, method: Method, request: Message, reply: R) -> R:
        answer = await self._link.call(
            address, Call(method, request.SerializeToString(), deadline_s=self._policy.call_deadline_s)
        )
        try:
            reply.MergeFromString(bytes(answer.body))
        except DecodeError as exc:
            raise error(Code.PROTOCOL, f"{method.name} was answered with something that is no {type(reply)}") from exc
        return reply

    async def _on_chain(self, chain_id: int, ask: Callable[[Chain, Routing], Awaitable[T]]) -> T:
        """`ask` with the newest routing until it succeeds or there is no hope."""
        retry = Retry(self._policy, self._clock, self._random)
        while True:
            routing = self._routing.current()
            try:
                return await ask(routing.chain(chain_id), routing)
            except FfsError as exc:
                await self._pause(retry, routing, exc)

    async def _pause(self, retry: Retry, routing: Routing, exc: FfsError) -> None:
        step = retry.after(exc)
        if step.refresh:
            await self._routing.wait_newer(routing.version, step.pause_s)
        else:
            await self._sleep(step.pause_s)
