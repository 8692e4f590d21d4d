"""The mount's part of rings by itself: what it holds for applications."""

from __future__ import annotations

import errno
import os
import resource
import threading
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fireflyfs.client.cli import serving_mount
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.fuse.inodes import FileHandle, LiveInode
from fireflyfs.fuse.options import MountOptions
from fireflyfs.fuse.usrbio.ends import Ends
from fireflyfs.fuse.usrbio.host import RingHost
from fireflyfs.fuse.usrbio.known import Region
from fireflyfs.fuse.usrbio.links import Links
from fireflyfs.fuse.usrbio.registrations import Registrations
from fireflyfs.fuse.volume import Volume
from fireflyfs.proto import meta_pb2
from fireflyfs.proto.common_pb2 import Layout

LAYOUT = Layout(chunk_size=1 << 20, stripe_size=1, chains=[1])


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Limits of the process come back."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("descriptors")
def test_regions_leave_descriptors_for_the_mount() -> None:
    most = 2 * (len(os.listdir("/proc/self/fd")) + 100)  # whatever else is open here
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    memory = os.memfd_create("memory")
    os.write(memory, b"m")
    links = Links()

    def add() -> None:
        links.add(str(uuid.uuid4()).encode(), b"/dev/shm/m", os.dup(memory), os.getpid(), 0, 0, 0)

    try:
        for _ in range(most // 2):
            add()
        with pytest.raises(OSError, match="are registered") as info:
            add()
    finally:
        os.close(memory)
        for link in links.all():
            links.remove(link)
    assert info.value.errno == errno.ENOSPC


@pytest.mark.usefixtures("descriptors")
def test_a_mount_may_have_all_descriptors_it_is_allowed() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, most))
    serving_mount._raise_descriptors()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most)


class OneFile:
    """A volume of one open file, whose writer is counted. `no_session`: meta gives none."""

    def __init__(self) -> None:
        inode = meta_pb2.Inode(id=9, nlink=1, layout=LAYOUT)
        self.live = LiveInode(inode, 0.0)
        self.live.handles = self.live.writers = 1
        self.handle = FileHandle(1, self.live, os.O_RDWR, writes=True)
        self.no_session = False
        self.table: Any = SimpleNamespace(hold=self._hold, leave=self._leave)
        self.ahead: Any = SimpleNamespace(forget=lambda _: None)

    def _hold(self, _: int) -> LiveInode:
        self.live.handles += 1
        return self.live

    def _leave(self, live: LiveInode) -> bool:
        live.handles -= 1
        return False

    def flush(self, live: LiveInode) -> None: ...

    def record(self, live: LiveInode, **_: Any) -> None: ...

    def notify(self, _: bytes) -> None: ...

    def ensure_session(self, live: LiveInode) -> bytes:
        if self.no_session:
            raise error(Code.UNAVAILABLE, "no metadata server")
        return b"session"

    def release(self, live: LiveInode, *, writes: bool) -> None:
        Volume.release(self, live, writes=writes)  # type: ignore[arg-type]


def test_a_registration_that_fails_leaves_the_writers_counted() -> None:
    volume = OneFile()
    files = Registrations(volume)  # type: ignore[arg-type]
    volume.no_session = True
    with pytest.raises(FfsError):
        files.register(volume.handle)
    assert (volume.live.handles, volume.live.writers) == (1, 1)


def test_an_agent_that_writes_over_a_file_need_not_ask_each_time() -> None:
    volume: Any = OneFile()
    volume.clock = SimpleNamespace(monotonic_s=lambda: 100.0)
    volume.options = MountOptions()
    volume.ensure_room = lambda live, end: None
    volume.live.inode.length = 5000
    host = RingHost(volume, [], None)
    assert host._room(volume.live, 4000) == {"room_end": 5000, "room_s": 1.0}
    volume.live.limit.learn(meta_pb2.Inode(end_max=9000), 90.0)
    assert host._room(volume.live, 6000) == {"room_end": 9000, "room_s": 20.0}
    host.stop()


class Agent:
    """Finishes with a file when the test says so."""

    def __init__(self) -> None:
        self.ends = Ends()
        self.free_slots = list(range(4))
        self.told: list[int] = []

    def forget_file(self, token: int) -> bool:
        self.told.append(token)
        return True


def test_a_closing_file_is_answered_for_to_agents_that_have_it() -> None:
    volume = OneFile()
    files = Registrations(volume)  # type: ignore[arg-type]
    token = files.register(volume.handle)
    agent, other = Agent(), Agent()
    known, slot = files.resolve(token, agent)
    files.released(volume.handle)
    assert agent.told == [token]
    assert files.resolve(token, agent) == (known, slot)
    with pytest.raises(FfsError):
        files.resolve(token, other)
    files.forgotten(token, agent)
    ending = threading.Thread(target=files.run)
    ending.start()
    files.stop()
    ending.join(30)
    with pytest.raises(FfsError):
        files.resolve(token, agent)
    assert (volume.live.handles, volume.live.writers) == (1, 1)


def sparse(nbytes: int) -> int:
    fd = os.memfd_create("sparse")
    os.ftruncate(fd, nbytes)
    return fd


def test_regions_without_bounds_are_refused() -> None:
    """Sparse memory costs its owner nothing, and agents the addresses that all share."""
    links = Links()

    def add(nbytes: int, pid: int, uid: int) -> None:
        fd = sparse(nbytes)
        try:
            links.add(str(uuid.uuid4()).encode(), b"/dev/shm/m", fd, pid, uid, uid, 0)
        except BaseException:
            os.close(fd)
            raise

    def refused(whose: str, *arguments: int) -> bool:
        with pytest.raises(OSError, match=f"regions of {whose} have over") as info:
            add(*arguments)
        return info.value.errno == errno.ENOSPC

    tebibyte = 1 << 40
    add(3 * tebibyte, 10, 7)
    assert refused("process 10", 2 * tebibyte, 10, 7)
    for pid in (11, 12, 13):
        add(4 * tebibyte, pid, 7)
    assert refused("user 7", 2 * tebibyte, 14, 7)
    add(tebibyte, 14, 7)
    for pid in range(20, 32):
        add(4 * tebibyte, pid, 0)
    assert refused("this mount", 1, 40, 8)
    for link in links.all():
        links.remove(link)
    add(4 * tebibyte, 10, 7)
    for link in links.all():
        links.remove(link)


def test_an_agent_maps_what_was_registered_and_not_what_it_has_become() -> None:
    links = Links()
    fd = sparse(1 << 20)
    link = links.add(str(uuid.uuid4()).encode(), b"/dev/shm/m", fd, 10, 7, 7, 0)
    os.ftruncate(fd, 1 << 45)
    region = Region(fd, link.nbytes)
    assert (region.size, len(region.view)) == (1 << 20, 1 << 20)
    links.remove(link)
