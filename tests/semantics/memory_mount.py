"""A mount of the real metadata service, with its store and the files' bytes in memory, on the directory it is given.

Everything that decides about names and permissions is the product's; only disks and sockets are left out. Prints
"ready" when it is mounted, and serves until SIGTERM.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fireflyfs.client.routing import Chain, Routing
from fireflyfs.client.storage_ranges import DataRange
from fireflyfs.client.striping import FileLayout
from fireflyfs.common.clock import SystemClock
from fireflyfs.common.kv.memory import MemoryKv
from fireflyfs.common.limits import MiB
from fireflyfs.common.net.api import Piece, Slice
from fireflyfs.common.net.memory import PrivatePool
from fireflyfs.fuse.mount import Mount
from fireflyfs.meta.core.layout import LayoutRule
from fireflyfs.meta.service.assembly import assemble
from fireflyfs.proto import mgmtd_pb2
from fireflyfs.proto.common_pb2 import Layout
from fireflyfs.proto.storage_pb2 import TargetSpace

CHUNK = MiB


class End(NamedTuple):
    index: int
    length: int


class Seen(NamedTuple):
    """Chunks as they were."""

    inode: int
    begin: int
    keep: int  # bytes of chunk `begin`
    chunks: dict[int, bytes]
    more: bool


class Bytes:
    """What all files hold: for the mount (blocking) and for meta (asyncio)."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.files: dict[int, dict[int, bytearray]] = {}

    def read(self, file: FileLayout, offset: int, into: Piece) -> None:
        view = into.view if isinstance(into, Slice) else into
        with self.lock:
            chunks = self.files.get(file.inode, {})
            done = 0
            while done < len(view):
                index, start = divmod(offset + done, file.chunk_size)
                count = min(len(view) - done, file.chunk_size - start)
                found = chunks.get(index, bytearray())[start : start + count]
                view[done : done + count] = bytes(found) + bytes(count - len(found))
                done += count

    def begin_first(self, file: FileLayout, into: Piece) -> Callable[[], bool]:
        self.read(file, 0, into)
        return lambda: True

    def read_once(self, spans):
        for file, offset, into in spans:
            self.read(file, offset, into)
        return []

    def write(self, file: FileLayout, extents: Sequence[tuple[int, Piece]], still=None) -> None:
        with self.lock:
            chunks = self.files.setdefault(file.inode, {})
            for offset, piece in extents:
                view = piece.view if isinstance(piece, Slice) else piece
                done = 0
                while done < len(view):
                    index, start = divmod(offset + done, file.chunk_size)
                    count = min(len(view) - done, file.chunk_size - start)
                    chunk = chunks.setdefault(index, bytearray())
                    if len(chunk) < start:
                        chunk.extend(bytes(start - len(chunk)))
                    chunk[start : start + count] = view[done : done + count]
                    done += count

    def ranges(self, file: FileLayout, start: int, end: int, *, few: bool = False) -> Iterator[DataRange]:
        with self.lock:
            chunks = sorted(self.files.get(file.inode, {}).items())
        for index, chunk in chunks:
            begin = max(start, index * file.chunk_size)
            stop = min(end, index * file.chunk_size + len(chunk))
            if begin < stop:
                yield DataRange(begin, stop)

    def punch(self, file: FileLayout, offset: int, length: int) -> None:
        with self.lock:
            for index, chunk in list(self.files.get(file.inode, {}).items()):
                begin = max(0, offset - index * file.chunk_size)
                stop = min(len(chunk), offset + length - index * file.chunk_size)
                if begin < stop:
                    chunk[begin:stop] = bytes(stop - begin)

    def copy(self, source: FileLayout, source_offset: int, into: FileLayout, into_offset: int, length: int) -> None:
        view = memoryview(bytearray(length))
        self.read(source, source_offset, view)
        self.write(into, [(into_offset, view)])

    def sync(self, file: FileLayout) -> None:
        pass

    async def query_last_chunk(self, inode: int, layout: Layout) -> End | None:
        with self.lock:
            chunks = self.files.get(inode)
            return End(max(chunks), len(chunks[max(chunks)])) if chunks else None

    async def see_beyond(self, inode: int, layout: Layout, length: int, limit: int = 1024) -> Seen:
        begin, keep = divmod(length, layout.chunk_size)
        with self.lock:
            chunks = self.files.get(inode, {})
            found = {
                index: bytes(chunk)
                for index, chunk in chunks.items()
                if index > begin or (index == begin and len(chunk) > keep)
            }
        return Seen(inode, begin, keep, found, False)

    async def drop_seen(self, seen: Seen) -> bool:
        with self.lock:
            chunks = self.files.get(seen.inode, {})
            same = [index for index, data in seen.chunks.items() if chunks.get(index) == data]
            for index in same:
                if index == seen.begin and seen.keep:
                    del chunks[index][seen.keep :]
                else:
                    del chunks[index]
        return len(same) == len(seen.chunks)

    async def remove_files(self, chain_id: int, inodes: Sequence[int], limit: int = 1024) -> list[int]:
        with self.lock:
            for inode in inodes:
                self.files.pop(inode, None)
        return []

    async def sync_chains(self, chains: Iterable[int] | Layout) -> None:
        pass

    async def space(self) -> list[TargetSpace]:
        return [TargetSpace(target_id=1, capacity_bytes=1 << 40, free_bytes=1 << 39)]


class OneChain:
    """Chain table 1 with chain 1."""

    def __init__(self) -> None:
        table = mgmtd_pb2.ChainTableInfo(table_id=1, version=1, chains=[1])
        chains = {1: Chain(1, 1, ((1, mgmtd_pb2.PUBLIC_SERVING),))}
        self.routing = Routing(version=1, chains=chains, chain_tables={1: table})

    def current(self) -> Routing:
        return self.routing

    async def wait_newer(self, version: int, timeout_s: float) -> Routing:
        return self.routing


class MetaDoor:
    """The service's handlers as blocking calls: each runs in the service's event loop."""

    def __init__(self, handlers: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._handlers = handlers
        self._loop = loop
        self._requests = 0

    def __getattr__(self, name: str) -> Any:
        handler = getattr(self._handlers, name)

        async def answer(request: Any) -> Any:
            if "mutation" in request.DESCRIPTOR.fields_by_name and not request.mutation.request_id:
                self._requests += 1
                request.mutation.request_id = self._requests.to_bytes(16, "big")
            reply = handler(request)
            return await reply if inspect.isawaitable(reply) else reply

        def call(request: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(answer(request), self._loop).result()

        setattr(self, name, call)
        return call


class Backend:
    def __init__(self) -> None:
        self.data = Bytes()
        self.pool = PrivatePool()
        self.client_id = b"m" * 16
        self.waits = 0
        self.lease_clock = SystemClock()
        loop = asyncio.new_event_loop()
        parts = assemble(
            MemoryKv(), SystemClock(), self.data, OneChain(), root=(0, 0, 0o755), layout=LayoutRule(CHUNK, 1, 1)
        )
        self.meta: Any = MetaDoor(parts.handlers, loop)
        threading.Thread(target=loop.run_forever, name="meta", daemon=True).start()
        self.collecting = asyncio.run_coroutine_threadsafe(parts.collector.run(), loop)

    def traffic(self) -> list[dict[str, str | int]]:
        return []

    def lease(self) -> tuple[int, float]:
        return 0, float("inf")

    def give_up(self) -> None:
        pass


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    mount = Mount(Backend(), Path(sys.argv[1]))
    mount.start()
    print("ready", flush=True)
    mount.run()


if __name__ == "__main__":
    main()
