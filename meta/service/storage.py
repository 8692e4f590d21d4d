"""What metadata asks of routing and of storage; the client library's `AsyncStorageClient` has this shape."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, Protocol

from fireflyfs.client.routing import Routing
from fireflyfs.proto.common_pb2 import Layout
from fireflyfs.proto.storage_pb2 import TargetSpace


class RoutingNow(Protocol):
    """The newest routing that this process has."""

    def current(self) -> Routing: ...

    async def wait_newer(self, version: int, timeout_s: float) -> Routing:
        """The routing once it is newer than `version`, or the current one after `timeout_s`."""


class LastChunk(Protocol):
    """The highest chunk of a file."""

    @property
    def index(self) -> int: ...

    @property
    def length(self) -> int: ...


class Seen(Protocol):
    """Chunks beyond an end as storage showed them; `more`: there are others."""

    @property
    def more(self) -> bool: ...


class ChunkStore(Protocol):
    """Files' chunks. Every method retries by itself and raises FfsError when it gives up."""

    def query_last_chunk(self, inode: int, layout: Layout) -> Awaitable[LastChunk | None]: ...

    def see_beyond(self, inode: int, layout: Layout, length: int, limit: int = 1024) -> Awaitable[Any]:
        """The chunks with bytes from `length` on: a `Seen`, for `drop_seen`."""

    def drop_seen(self, seen: Any) -> Awaitable[bool]:
        """Drop what was seen, and nothing that was written since; whether that was all of it."""

    def remove_files(self, chain_id: int, inodes: Sequence[int], limit: int = 1024) -> Awaitable[list[int]]:
        """Remove chunks of whole files on one chain; the files that have more there."""

    def sync_chains(self, chains: Iterable[int] | Layout) -> Awaitable[None]: ...

    def space(self) -> Awaitable[Sequence[TargetSpace]]: ...
