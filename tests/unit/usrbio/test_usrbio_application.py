"""The application's side without a mount: regions and their slices, which mount a path is on, who waits for memory."""

from __future__ import annotations

import gc
import os
import threading
import uuid
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from fireflyfs.client.usrbio import futex, mountpoint
from fireflyfs.client.usrbio.iovec import iovec
from fireflyfs.common.net.memory import SharedPool
from fireflyfs.fuse.usrbio.ends import Ends
from fireflyfs.fuse.usrbio.stages import Stages
from hf3fs_fuse.io import make_iovec

ID = str(uuid.uuid4())


def test_slices_of_a_region() -> None:
    memory = bytearray(range(100))
    region = iovec(memory, ID, "/mnt")
    assert bytes(region) == bytes(range(100))
    piece = region[10:30]
    assert (len(memoryview(piece)), piece.base_off, piece.result, piece.userdata) == (20, 10, 0, None)
    assert memoryview(piece).format == "B"
    assert (piece[5:].base_off, bytes(piece[5:8])) == (15, bytes([15, 16, 17]))
    piece[0:2] = b"ab"
    assert memory[10:12] == b"ab"
    assert bytes(region[200:300]) == b""
    assert (piece == region[10:30], piece == piece, bool(piece), piece in {piece}) == (False, True, True, True)
    for bad, kind in ((slice(0, 10, 2), ValueError), (3, TypeError)):
        with pytest.raises(kind):
            region[bad]
    assert region.slice_by(memoryview(memory)[40:50]).base_off == 40
    for outside in (bytearray(10), memoryview(memory)[5:40]):
        with pytest.raises(IndexError):
            region[10:30].slice_by(outside)


def test_regions_that_are_none() -> None:
    for base, id_, kind in ((b"readonly", ID, BufferError), (bytearray(1), "no-uuid", ValueError), (3, ID, TypeError)):
        with pytest.raises(kind):
            iovec(base, id_, "/mnt")
    with pytest.raises(BufferError):
        iovec(memoryview(bytearray(10))[::2], ID, "/mnt")
    with pytest.raises(OSError, match="too long"):
        iovec(bytearray(1), ID, "/" + "m" * 256)


def test_a_region_that_cannot_be_made_leaves_no_link(tmp_path: Path) -> None:
    point = tmp_path / ("d" * 200) / ("e" * 100)
    links = point / "3fs-virt/iovs"
    links.mkdir(parents=True)
    shm = SharedMemory(create=True, size=4096)
    try:
        with pytest.raises(OSError, match="too long"):
            make_iovec(shm, str(point))
        assert list(links.iterdir()) == []
    finally:
        shm.unlink()
        shm.close()


def test_shared_memory_is_closed_with_slices_around() -> None:
    """Programs do: the region stays its owner's."""
    shm = SharedMemory(create=True, size=4096)
    region = iovec(shm.buf, ID, "/mnt")
    pieces = [region[0:10], region[5:]]
    shm.close()
    shm.unlink()
    assert [piece.base_off for piece in pieces] == [0, 5]
    gc.collect()


MOUNTINFO = """\
22 1 254:1 / / rw - ext4 /dev/root rw
40 22 0:50 / /mnt/a rw - fuse.hf3fs fireflyfs rw
41 40 0:51 / /mnt/a/deep\\040er rw - fuse.fireflyfs fireflyfs rw
42 22 0:52 / /mnt/other rw - fuse.sshfs x rw
43 40 0:53 / /mnt/a/proc rw - proc proc rw
"""


@pytest.mark.parametrize(
    ("path", "want"),
    [
        ("/mnt/a", "/mnt/a"),
        ("/mnt/a/b/c", "/mnt/a"),
        ("/mnt/ab", None),
        ("/mnt/a/deep er/x", "/mnt/a/deep er"),
        ("/mnt/a/proc/1", None),
        ("/mnt/other/x", None),
        ("/", None),
    ],
)
def test_which_mount_a_path_is_on(path: str, want: str | None) -> None:
    assert mountpoint.find(path, MOUNTINFO.splitlines(), any_type=False) == want


def test_any_type_of_mount() -> None:
    assert mountpoint.find("/mnt/other/x", MOUNTINFO.splitlines(), any_type=True) == "/mnt/other"
    assert mountpoint.extract_mount_point("/proc/self") is None
    with pytest.raises(OSError, match="too long"):
        mountpoint.extract_mount_point("/x" * 3000)


def test_ends_begin_anew_after_each_look() -> None:
    mount = Ends()
    agent = Ends(os.dup(mount.fd))
    none = (0, 0)
    assert mount.look(3, none) is None
    agent.wrote(3, 100)
    agent.wrote(3, 200)
    assert mount.look(3, none) == ((2, 0), 200)
    assert agent.epoch(3) == 1
    assert mount.look(3, (2, 0)) is None
    agent.wrote(3, 50)
    assert mount.look(3, (2, 0)) == ((3, 0), 50)
    agent.torn(3, 20)
    assert mount.look(3, (3, 0)) == ((4, 1), 20)
    before = agent.turn(3)
    mount.shortened(3)
    assert agent.turn(3) != before
    mount.clear(3)
    assert mount.look(3, none) is None


def test_futexes_of_memory_that_is_gone() -> None:
    import ctypes
    import mmap

    fd = os.memfd_create("test")
    os.ftruncate(fd, 4096)
    mapped = mmap.mmap(fd, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    futex.wait(address, 0, 0.001)
    futex.wait(address, 1, 60)  # it is another value already
    os.ftruncate(fd, 0)
    with pytest.raises(OSError, match="address"):
        futex.wait(address, 0, 60)
    futex.wake(address)
    os.close(fd)


def test_stages_go_by_priority() -> None:
    stages = Stages(SharedPool(), pairs_max=1)
    order: list[int] = []

    def user(priority: int) -> None:
        with stages.take(priority):
            order.append(priority)

    with stages.take():
        threads = [threading.Thread(target=user, args=(priority,)) for priority in (1, 0, -1)]
        for thread in threads:
            thread.start()
        while len(stages._waiting) < 3:
            threading.Event().wait(0.001)
    for thread in threads:
        thread.join()
    assert order == [-1, 0, 1]
    with pytest.raises(ZeroDivisionError), stages.take():
        raise ZeroDivisionError
    with stages.take():  # the pair whose user failed has been replaced
        pass
    stages.close()
