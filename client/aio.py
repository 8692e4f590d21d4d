"""The library for asyncio programs: the same methods, awaited. Each runs on one of a few threads of its own.

Blocking requests on threads are the fastest shape of a Python client (docs/ARCHITECTURE.md), so this is a face on the
blocking library, not a second one. Calls beyond the number of threads wait in order; what waits is bounded, and who
asks for more waits before it is queued. Cancelling a task does not undo a request that is under way: it goes on, and
takes its place among those that are bounded. A task whose memory it reads or fills is cancelled when it has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, ParamSpec, TypeVar

from fireflyfs.client.file import BufferedFile, File
from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.paths import DirEntry, StrPath
from fireflyfs.common.errors import Code, error
from fireflyfs.common.to_its_end import opened_in_thread, to_its_end
from fireflyfs.proto import meta_pb2
from fireflyfs.proto.common_pb2 import Layout

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 8
WAITING_MAX = 1024


class _Job(Generic[T]):
    """One call for a thread."""

    ended: asyncio.Future[T]  # done when a thread has come by it, whether anybody waits or not

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = [call]

    def __call__(self) -> T:
        try:
            call = self._call.pop()
        except IndexError:
            raise error(Code.CANCELLED) from None
        return call()

    def drop(self) -> bool:
        """It is not wanted any more. False: a thread has begun with it."""
        try:
            self._call.pop()
        except IndexError:
            return False
        return True


class _Threads:
    """A bounded executor."""

    def __init__(self, threads: int, waiting_max: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="ffs-aio")
        self._slots = asyncio.Semaphore(threads + waiting_max)

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        job = await self._start(functools.partial(function, *args, **kwargs))
        try:
            return await asyncio.shield(job.ended)
        except asyncio.CancelledError:
            job.drop()
            raise

    async def run_with_memory(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """The same with memory of the caller's among the arguments, which must stay as it is while a thread uses it:
        who is cancelled still waits for that."""
        job = await self._start(functools.partial(function, *args, **kwargs))
        try:
            return await asyncio.shield(job.ended)
        except asyncio.CancelledError:
            if not job.drop():
                with contextlib.suppress(Exception):  # who was cancelled is not told
                    await to_its_end(job.ended)
            raise

    async def _start(self, call: Callable[[], T]) -> _Job[T]:
        await self._slots.acquire()
        job = _Job(call)
        try:
            job.ended = asyncio.get_running_loop().run_in_executor(self._executor, job)
        except BaseException:
            self._slots.release()
            raise
        job.ended.add_done_callback(self._ended)
        return job

    def _ended(self, ended: asyncio.Future[Any]) -> None:
        self._slots.release()
        if not ended.cancelled():
            ended.exception()  # nobody may be left to be told

    async def close(self) -> None:
        await asyncio.to_thread(self._executor.shutdown, wait=True)


class AsyncFile:
    """An open file: bytes at offsets, and a position for `read` and `write`."""

    def __init__(self, file: File, threads: _Threads) -> None:
        self.file = file
        self._run = threads.run
        self._run_with_memory = threads.run_with_memory

    @property
    def length(self) -> int:
        return self.file.length

    async def pread(self, length: int, offset: int) -> bytes:
        return await self._run(self.file.pread, length, offset)

    async def readinto_at(self, buffer: Any, offset: int) -> int:
        return await self._run_with_memory(self.file.readinto_at, buffer, offset)

    async def pwrite(self, data: Any, offset: int) -> int:
        return await self._run_with_memory(self.file.pwrite, data, offset)

    async def pwrite_many(self, extents: Sequence[tuple[Any, int]]) -> int:
        return await self._run_with_memory(self.file.pwrite_many, extents)

    async def read(self, size: int = -1) -> bytes:
        return await self._run(self.file.read, size)

    async def readinto(self, buffer: Any) -> int:
        return await self._run_with_memory(self.file.readinto, buffer)

    async def write(self, data: Any) -> int:
        return await self._run_with_memory(self.file.write, data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    async def truncate(self, size: int | None = None) -> int:
        return await self._run(self.file.truncate, size)

    async def flush(self) -> None:
        await self._run(self.file.flush)

    async def fsync(self) -> None:
        await self._run(self.file.fsync)

    async def refresh(self) -> meta_pb2.Inode:
        return await self._run(self.file.refresh)

    async def close(self) -> None:
        await self._run(self.file.close)

    async def __aenter__(self) -> AsyncFile:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncFileSystem:
    """`FileSystem` for one event loop. `async with await AsyncFileSystem.connect(...)`."""

    def __init__(self, fs: FileSystem, *, threads: int = THREADS, waiting_max: int = WAITING_MAX) -> None:
        self.fs = fs
        self._threads = _Threads(threads, waiting_max)
        self._run = self._threads.run

    @staticmethod
    async def connect(mgmtd: str | Sequence[str], *, threads: int = THREADS, **options: Any) -> AsyncFileSystem:
        """As `FileSystem.connect`."""
        connecting = functools.partial(FileSystem.connect, mgmtd, **options)
        return AsyncFileSystem(await opened_in_thread(connecting), threads=threads)

    async def close(self) -> None:
        await to_its_end(asyncio.ensure_future(self._close()))

    async def _close(self) -> None:
        await self._threads.close()
        await asyncio.to_thread(self.fs.close)

    async def __aenter__(self) -> AsyncFileSystem:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(
        self, path: StrPath, flags: int = os.O_RDONLY, mode: int = 0o666, *, layout: Layout | None = None
    ) -> AsyncFile:
        """With O_* flags, like os.open."""
        file = await self._run(self.fs.open_file, path, flags, mode, layout=layout)
        return AsyncFile(file, self._threads)

    async def read_bytes(self, path: StrPath) -> bytes:
        return await self._run(self.fs.read_bytes, path)

    async def write_bytes(self, path: StrPath, data: Any) -> int:
        return await self._threads.run_with_memory(self.fs.write_bytes, path, data)

    async def read_batch(self, requests: Sequence[tuple[AsyncFile | File | BufferedFile, int, Any]]) -> list[int]:
        return await self._threads.run_with_memory(
            self.fs.read_batch, [(_raw(file), offset, buf) for file, offset, buf in requests]
        )

    async def write_batch(self, requests: Sequence[tuple[AsyncFile | File | BufferedFile, int, Any]]) -> list[int]:
        return await self._threads.run_with_memory(
            self.fs.write_batch, [(_raw(file), offset, data) for file, offset, data in requests]
        )

    async def read_files(self, paths: Sequence[StrPath]) -> list[bytes | OSError]:
        return await self._run(self.fs.read_files, paths)

    async def stat(self, path: StrPath, *, follow_symlinks: bool = True) -> os.stat_result:
        return await self._run(self.fs.stat, path, follow_symlinks=follow_symlinks)

    async def stat_batch(self, paths: Sequence[StrPath]) -> list[os.stat_result | OSError]:
        return await self._run(self.fs.stat_batch, paths)

    async def exists(self, path: StrPath) -> bool:
        return await self._run(self.fs.exists, path)

    async def listdir(self, path: StrPath = "/") -> list[Any]:
        return await self._run(self.fs.listdir, path)

    async def scandir(self, path: str = "/") -> AsyncIterator[DirEntry[str]]:
        """The directory is read as a whole first."""
        for entry in await self._run(lambda: list(self.fs.scandir(path))):
            yield entry

    async def mkdir(self, path: StrPath, mode: int = 0o777, *, layout: Layout | None = None) -> None:
        await self._run(self.fs.mkdir, path, mode, layout=layout)

    async def makedirs(self, path: StrPath, mode: int = 0o777, exist_ok: bool = False) -> None:
        await self._run(self.fs.makedirs, path, mode, exist_ok)

    async def unlink(self, path: StrPath) -> None:
        await self._run(self.fs.unlink, path)

    async def rmdir(self, path: StrPath) -> None:
        await self._run(self.fs.rmdir, path)

    async def rmtree(self, path: StrPath) -> None:
        await self._run(self.fs.rmtree, path)

    async def rename(self, old: StrPath, new: StrPath, *, flags: int = 0) -> None:
        await self._run(self.fs.rename, old, new, flags=flags)

    async def link(self, src: StrPath, dst: StrPath) -> None:
        await self._run(self.fs.link, src, dst)

    async def symlink(self, target: StrPath, path: StrPath) -> None:
        await self._run(self.fs.symlink, target, path)

    async def readlink(self, path: StrPath) -> Any:
        return await self._run(self.fs.readlink, path)

    async def chmod(self, path: StrPath, mode: int) -> None:
        await self._run(self.fs.chmod, path, mode)

    async def chown(self, path: StrPath, uid: int, gid: int) -> None:
        await self._run(self.fs.chown, path, uid, gid)

    async def utime(self, path: StrPath, times: tuple[float, float] | None = None) -> None:
        await self._run(self.fs.utime, path, times)

    async def truncate(self, path: StrPath, length: int) -> None:
        await self._run(self.fs.truncate, path, length)

    async def getxattr(self, path: StrPath, attribute: str | bytes, *, follow_symlinks: bool = True) -> bytes:
        return await self._run(self.fs.getxattr, path, attribute, follow_symlinks=follow_symlinks)

    async def listxattr(self, path: StrPath, *, follow_symlinks: bool = True) -> list[str]:
        return await self._run(self.fs.listxattr, path, follow_symlinks=follow_symlinks)

    async def setxattr(
        self, path: StrPath, attribute: str | bytes, value: bytes, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None:
        await self._run(self.fs.setxattr, path, attribute, value, flags, follow_symlinks=follow_symlinks)

    async def removexattr(self, path: StrPath, attribute: str | bytes, *, follow_symlinks: bool = True) -> None:
        await self._run(self.fs.removexattr, path, attribute, follow_symlinks=follow_symlinks)

    async def statvfs(self, path: StrPath = "/") -> os.statvfs_result:
        return await self._run(self.fs.statvfs, path)


def _raw(file: AsyncFile | File | BufferedFile) -> File | BufferedFile:
    return file.file if isinstance(file, AsyncFile) else file
