"""Disks that can lose power, run full and fail: images mounted through loop devices."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from fireflyfs.common.limits import MiB

OUTER_SLACK_BYTES = 256 * MiB
UMOUNT_TRIES_MAX = 50
EXT4_IOC_SHUTDOWN = 0x8004587D
EXT4_GOING_FLAGS_NOLOGFLUSH = 2


def run(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr.strip()}"


def make_image(path: Path, size_bytes: int) -> Path:
    """A sparse file with an empty ext4."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", path)
    return path


def shut_down(point: Path) -> None:
    """From now on a mounted ext4 answers every request with EIO: images on it are disks that have failed."""
    fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", EXT4_GOING_FLAGS_NOLOGFLUSH))
    finally:
        os.close(fd)


class Disks:
    """Mounts of images. Everything is unmounted by `close`, whatever state it is in."""

    def __init__(self) -> None:
        self._mounted: list[Path] = []

    def mount(self, image: Path, point: Path, options: str = "loop,noatime") -> None:
        point.mkdir(parents=True, exist_ok=True)
        run("mount", "-o", options, image, point)
        self._mounted.append(point)

    def unmount(self, point: Path) -> None:
        """Waits for those who still use it: a process that was killed lets go of its files a little later."""
        for _ in range(UMOUNT_TRIES_MAX):
            if subprocess.run(["umount", point], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)
        else:
            run("umount", point)  # says why not
        self._mounted.remove(point)

    def close(self) -> None:
        for point in reversed(self._mounted):
            if subprocess.run(["umount", point], capture_output=True, check=False).returncode != 0:
                subprocess.run(["umount", "-l", point], capture_output=True, check=False)
        self._mounted.clear()


class PoweredDisks(Disks):
    """Disks that lose power at the same moment.

    Their images lie in a file system of their own, the *outer* one. To freeze that one holds still what the disks hold:
    no write reaches an image any more. It does not flush what the file systems *on* the images have in the page cache,
    nor their journals: what is copied from the images meanwhile is what a power cut leaves.
    """

    def __init__(self, folder: Path, points: Iterable[Path], size_bytes: int) -> None:
        """`points` become mount points of new, empty disks."""
        super().__init__()
        self._folder = folder
        self._points = list(points)
        self._frozen = False
        self._cuts = 0
        self._outer_bytes = len(self._points) * size_bytes + OUTER_SLACK_BYTES
        self._images = self._new_outer()
        for point in self._points:
            self.mount(make_image(self._image(self._images, point), size_bytes), point)

    def hold_still(self) -> float:
        """From now on nothing reaches a disk. The time before which everything that was said to be durable must be."""
        cut_s = time.monotonic()
        self._frozen = True
        run("fsfreeze", "--freeze", self._images)
        return cut_s

    def copy(self) -> Path:
        """What the disks hold now, on disks that are not mounted yet."""
        copies = self._new_outer()
        for point in self._points:
            run("cp", "--sparse=always", self._image(self._images, point), self._image(copies, point))
        return copies

    def go_on(self) -> None:
        """Let writes through, so that what waits for them can die."""
        self._frozen = False
        run("fsfreeze", "--unfreeze", self._images)

    def replace(self, copies: Path) -> None:
        """Mount the copies where the disks were; their journals are replayed. Nobody uses the old disks any more."""
        for point in self._points:
            self.unmount(point)
        self.unmount(self._images)
        self._images.with_suffix(".img").unlink()
        self._images = copies
        for point in self._points:
            self.mount(self._image(copies, point), point)

    def close(self) -> None:
        if self._frozen:
            with suppress(AssertionError):
                self.go_on()
        super().close()

    def _new_outer(self) -> Path:
        self._cuts += 1
        outer = self._folder / f"outer-{self._cuts}"
        self.mount(make_image(outer.with_suffix(".img"), self._outer_bytes), outer)
        return outer

    @staticmethod
    def _image(outer: Path, point: Path) -> Path:
        return outer / f"{point.name}.img"
