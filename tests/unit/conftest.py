"""Fixtures of unit tests of several packages."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest


@pytest.fixture
def suspend(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """suspend(seconds): the machine sleeps for so long. Only one of its clocks notices."""
    slept_s = 0.0
    real = time.clock_gettime

    def clock_gettime(which: int) -> float:
        return real(which) + (slept_s if which == time.CLOCK_BOOTTIME else 0.0)

    def sleep(seconds: float) -> None:
        nonlocal slept_s
        slept_s += seconds

    monkeypatch.setattr(time, "clock_gettime", clock_gettime)
    return sleep
