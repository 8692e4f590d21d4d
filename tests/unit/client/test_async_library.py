"""The library for asyncio: what becomes of calls whose task is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import pytest

from fireflyfs.client import aio
from fireflyfs.client.aio import AsyncFile, AsyncFileSystem


class SlowFile:
    """Fills what it is given when `go_on` is set."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.entered = threading.Event()
        self.calls = 0

    def readinto_at(self, buffer: bytearray, offset: int) -> int:
        self.calls += 1
        self.entered.set()
        self.go_on.wait()
        buffer[:] = b"x" * len(buffer)
        return len(buffer)

    def pread(self, length: int, offset: int) -> bytes:
        buffer = bytearray(length)
        self.readinto_at(buffer, offset)
        return bytes(buffer)


class SlowFileSystem:
    """Connects when `go_on` is set."""

    go_on = threading.Event()
    open = 0

    @classmethod
    def connect(cls, mgmtd: str) -> SlowFileSystem:
        cls.go_on.wait()
        cls.open += 1
        return cls()

    def close(self) -> None:
        type(self).open -= 1


async def entered(file: SlowFile) -> None:
    await asyncio.to_thread(file.entered.wait)


def test_memory_of_a_cancelled_task_is_not_filled_after_it_has_ended() -> None:
    file: Any = SlowFile()

    async def main() -> None:
        threads = aio._Threads(1, 1)
        buffer = bytearray(8)
        task = asyncio.create_task(AsyncFile(file, threads).readinto_at(buffer, 0))
        await entered(file)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0.01)
        early = task.done()
        file.go_on.set()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await threads.close()
        assert not early
        assert task.cancelled()
        assert buffer == b"x" * 8

    asyncio.run(main())


def test_calls_of_cancelled_tasks_count_until_a_thread_comes_by_and_are_not_done_late() -> None:
    file: Any = SlowFile()

    async def main() -> None:
        threads = aio._Threads(1, 2)
        slow = AsyncFile(file, threads)
        for number in range(20):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await slow.pread(8, number)
            assert threads._executor._work_queue.qsize() <= 2
        assert file.calls == 1
        file.go_on.set()
        assert await slow.pread(8, 0) == b"x" * 8
        assert file.calls == 2, "what nobody wants any more is not done"
        await threads.close()

    asyncio.run(main())


def test_a_client_that_connects_for_a_cancelled_task_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "FileSystem", SlowFileSystem)

    async def main() -> None:
        task = asyncio.create_task(AsyncFileSystem.connect("anywhere:1"))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0.01)
        SlowFileSystem.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.get_running_loop().shutdown_default_executor()

    asyncio.run(main())
    assert SlowFileSystem.open == 0
