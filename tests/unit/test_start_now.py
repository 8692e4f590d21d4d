"""Tasks that begin at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from fireflyfs.common.start_now import answer_now, start_now


def from_a_callback(do: Callable[[], None]) -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(do)
        await asyncio.sleep(0.01)

    asyncio.run(main())


def test_the_first_step_is_taken_at_once_and_the_rest_in_its_turn() -> None:
    seen: list[object] = []

    async def short() -> int:
        seen.append(asyncio.current_task())
        return 7

    async def long() -> None:
        seen.append("first")
        async with asyncio.timeout(1):  # needs the task that it runs in
            await asyncio.sleep(0)
        seen.append("second")

    def do() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(seen.append, "queued before")
        done = start_now(loop, short())
        assert done.done()
        assert done.result() == 7
        assert seen == [done]
        started = start_now(loop, long())
        assert not started.done()
        assert seen == [done, "first"]

    from_a_callback(do)
    assert seen[1:] == ["first", "queued before", "second"]


def test_what_the_first_step_raises_is_the_tasks() -> None:
    async def broken() -> None:
        raise ValueError("broken")

    def do() -> None:
        task = start_now(asyncio.get_running_loop(), broken())
        with pytest.raises(ValueError, match="broken"):
            task.result()
        seen.append(task)

    seen: list[object] = []
    from_a_callback(do)
    assert seen


def test_who_waits_for_an_answer_goes_on_at_once() -> None:
    seen: list[object] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()

        async def waiting() -> None:
            seen.append(await answer)
            async with asyncio.timeout(1):
                await asyncio.sleep(0)
            seen.append("later")

        def do() -> None:
            loop.call_soon(seen.append, "queued before")
            answer_now(loop, answer, "answered")
            assert seen == ["answered"]
            nobody: asyncio.Future[str] = loop.create_future()
            answer_now(loop, nobody, "kept")
            assert nobody.result() == "kept"
            assert seen == ["answered"]

        task = loop.create_task(waiting())
        await asyncio.sleep(0)
        loop.call_soon(do)
        await task

    asyncio.run(main())
    assert seen == ["answered", "queued before", "later"]


def test_within_a_task_another_one_gets_its_turn() -> None:
    """Two tasks cannot run at a time: asyncio would lose the step."""
    seen: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()

        async def waiting() -> None:
            seen.append(await answer)

        async def short() -> int:
            seen.append("short")
            return 7

        task = loop.create_task(waiting())
        await asyncio.sleep(0)
        answer_now(loop, answer, "answered")
        assert await start_now(loop, short()) == 7
        await task

    asyncio.run(main())
    assert sorted(seen) == ["answered", "short"]
