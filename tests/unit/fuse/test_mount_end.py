"""The end of a mount, which two threads come to: the one that ran it and the one that was told to stop it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from fireflyfs.fuse.mount import Mount

pytestmark = pytest.mark.e2e


class SlowRings:
    """Rings whose agents take their time to end."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.may_end = threading.Event()

    def stop(self) -> None:
        self.asked.set()
        assert self.may_end.wait(30)


def test_who_comes_second_waits_until_all_is_over(backend: Any, mounts: Callable[..., Mount]) -> None:
    """It may be the main thread: its process would end while the other one still stores what is open."""
    mount = mounts(backend)
    rings: Any = SlowRings()
    mount.volume.rings = rings
    stopping = threading.Thread(target=mount.stop)
    stopping.start()
    assert rings.asked.wait(30)
    running = threading.Thread(target=mount.run)
    running.start()
    running.join(0.3)
    assert running.is_alive()
    rings.may_end.set()
    for thread in (stopping, running):
        thread.join(30)
        assert not thread.is_alive()
