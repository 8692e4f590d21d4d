"""An update is forwarded before it is stored only where it will certainly find room: a disk fills within a second."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from fireflyfs.common.clock import ManualClock
from fireflyfs.storage.engine.interface import Space
from fireflyfs.storage.service import replica


class Disk:
    """Free space that others take, too."""

    def __init__(self) -> None:
        self.free = 10 << 30
        self.fails = False
        self.looks = 0

    def space(self) -> Space:
        self.looks += 1
        if self.fails:
            raise OSError(errno.EIO, "broken")
        return Space(20 << 30, self.free, 0, 0)

    def done(self, after: Any, limit: int) -> list[Any]:
        return []

    def close(self) -> None:
        pass


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def local(disk: Any) -> Any:
    target = replica.LocalTarget(1, disk, clock=ManualClock())
    yield target
    target.close()


def test_what_others_took_since_the_last_report_counts(disk: Disk, local: Any) -> None:
    assert local.roomy(1 << 20)
    disk.free = replica.HEADROOM_BYTES
    local._clock.advance(replica.SPACE_BELIEVED_S * 1.1)
    assert not local.roomy(1)
    assert local.space.free_bytes == disk.free


def test_the_disk_is_not_asked_for_every_update(disk: Disk, local: Any) -> None:
    for _ in range(100):
        local.roomy(1)
    assert disk.looks == 1


def test_a_disk_that_cannot_say_has_no_room(disk: Disk, local: Any) -> None:
    disk.fails = True
    assert not local.roomy(1)
    disk.fails = False
    assert local.roomy(1)
