"""Busy polling: when it looks again, and when it lets others run."""

from __future__ import annotations

import asyncio
import os
import selectors
import time

import pytest

from fireflyfs.common.errors import FfsError
from fireflyfs.common.net import busy_poll
from fireflyfs.common.net.busy_poll import BusyPollSelector, Waiters, Worthwhile


@pytest.mark.parametrize(("text", "seconds"), [("", 100e-6), ("0", 0.0), (" 200 ", 200e-6)])
def test_the_setting(monkeypatch: pytest.MonkeyPatch, text: str, seconds: float) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setenv(busy_poll.ENVIRONMENT, text)
    assert busy_poll.busy_poll_s() == seconds
    assert busy_poll.busy_poll_s(300) == (seconds if text else 300e-6), "what a process does unless it is told"
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert busy_poll.busy_poll_s() == 0


@pytest.mark.parametrize("text", ["-1", "5us", "10001", "1.5"])
def test_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(busy_poll.ENVIRONMENT, text)
    with pytest.raises(FfsError, match=busy_poll.ENVIRONMENT):
        busy_poll.busy_poll_s()


def test_looking_in_vain_is_given_up_and_tried_again_now_and_then() -> None:
    worthwhile = Worthwhile()
    for _ in range(busy_poll.CREDIT_MAX):
        assert worthwhile
        worthwhile.note(False)
    assert [bool(worthwhile) for _ in range(2 * busy_poll.TRY_EVERY)].count(True) == 2
    worthwhile.note(True)
    assert all(bool(worthwhile) for _ in range(100))


class FakeProcessor:
    """Time passes only when the processor is offered; whoever takes it keeps it for `taken_s`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, taken_s: float) -> None:
        self.now_s = 1.0
        self.offers = 0
        self._taken_s = taken_s
        monkeypatch.setattr(busy_poll, "yield_processor", self.offer)
        monkeypatch.setattr(busy_poll.time, "perf_counter", lambda: self.now_s)

    def offer(self) -> None:
        self.now_s += self._taken_s
        self.offers += 1


def offers_of_one_wait(selector: BusyPollSelector, processor: FakeProcessor) -> int:
    before = processor.offers
    selector.select(None)
    return processor.offers - before


@pytest.mark.parametrize("patient", [False, True])
def test_who_has_the_processor_for_short_ends_the_looking_of_the_impatient(
    monkeypatch: pytest.MonkeyPatch, patient: bool
) -> None:
    processor = FakeProcessor(monkeypatch, 50e-6)
    with BusyPollSelector(300e-6, patient=patient) as selector:
        monkeypatch.setattr(selectors.EpollSelector, "select", lambda *_: [])
        first = offers_of_one_wait(selector, processor)
    assert first == (6 if patient else 1)


def test_after_somebody_kept_the_processor_long_the_patient_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = FakeProcessor(monkeypatch, 2e-3)
    with BusyPollSelector(300e-6, patient=True) as selector:
        monkeypatch.setattr(selectors.EpollSelector, "select", lambda *_: [])
        offers = [offers_of_one_wait(selector, processor) for _ in range(2 * busy_poll.REST + 1)]
    assert [at for at, count in enumerate(offers) if count] == [0, busy_poll.REST, 2 * busy_poll.REST]


def test_only_who_waits_alone_looks_again() -> None:
    waiters = Waiters(1.0)
    assert not waiters.alone
    waiters.enter(1)
    assert waiters.alone
    waiters.enter(2)
    assert not waiters.alone
    waiters.leave(1)
    waiters.leave(1)
    assert waiters.alone


def test_the_selector_returns_what_is_ready_and_keeps_timeouts() -> None:
    read_end, write_end = os.pipe()
    with BusyPollSelector(0.2) as selector:
        selector.register(read_end, selectors.EVENT_READ)
        began = time.monotonic()
        assert selector.select(0.01) == []
        assert selector.select(0) == []
        assert time.monotonic() - began < 0.15  # the loop's timer, not the time that may be spent looking
        os.write(write_end, b"x")
        ((key, events),) = selector.select(None)
        assert (key.fd, events) == (read_end, selectors.EVENT_READ)
    os.close(read_end)
    os.close(write_end)


def test_a_loop_that_polls_runs_timers_and_threads() -> None:
    async def main() -> str:
        await asyncio.sleep(0.01)
        return await asyncio.to_thread(lambda: "done")

    assert busy_poll.run(main) == "done"
