"""Applications that die, lie, or cut their memory off, and agents that are killed: only who did it is harmed."""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fireflyfs.client.filesystem import FileSystem

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"),
]

MIB = 1 << 20


@pytest.fixture
def mounted(cluster: Any, mount_of: Any) -> Any:
    return mount_of(cluster, "--subtype", "hf3fs")


def agents(mounted: Any) -> list[int]:
    """Processes of the mount's agents."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == mounted.process.pid and b"usrbio.agent" in command:
                found.append(int(folder.name))
    return sorted(found)


def until(what: Callable[[], bool], within_s: float = 20.0) -> None:
    end_s = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_a_dead_application(mounted: Any, ring_programs: Any) -> None:
    """What it had registered goes; what was completed stays; the file that it held open is let go."""
    point = mounted.point
    victim, other = ring_programs(point), ring_programs(point)
    assert other("move(False, 'other', [(0, 1000, 0)])") == [1000]
    victim("shm.buf[:4000000] = b'v' * 4000000")
    assert victim("move(False, 'victim', [(0, 4000000, 0)])") == [4000000]
    (point / "victim").rename(point / "moved")
    victim("f = files['victim', os.O_RDWR | os.O_CREAT]")
    victim("for n in range(64): ring(False).prepare(region[0:200000], False, f, n * 1000)")
    victim.process.send_signal(signal.SIGKILL)
    victim.process.wait()
    until(lambda: len(os.listdir(point / "3fs-virt/iovs")) == 2)
    assert (point / "moved").read_bytes()[:4000000] == b"v" * 4000000
    assert other("move(True, 'other', [(0, 1000, 0)])") == [1000]
    (point / "moved").unlink()
    # Nothing of it is held by the mount any more: it says how many inodes are open when it ends.
    other("closed('other')")
    other.end()
    until(lambda: os.listdir(point / "3fs-virt/iovs") == [])
    mounted.end()
    said = re.findall(r"unmounted .*?(\{.*\})", mounted.log.read_text())
    assert said, mounted.log.read_text()[-2000:]
    assert "'live_inodes': 0" in said[-1], said[-1]


HOSTILE = """
import numpy, random
from fireflyfs.client.usrbio import layout
def raw(r, file, region_offset, length, offset, id=None):
    "An entry as no library would write it."
    where, head = r._layout, r._head
    slot = head % r._entries
    at = where.sqes + slot * layout.SQE.size
    layout.SQE.pack_into(r._map, at, id or region.iov._id, region_offset, file, offset, length, 0)
    r._pieces[slot] = (region[0:1], None)
    r._head = head + 1
    r._sq_seq[slot] = head + 1
    return [piece.result for piece in r.submit().wait(min_results=1, timeout=30)]
"""


def test_a_hostile_application(mounted: Any, ring_programs: Any) -> None:
    """Garbage in every field of an entry, in the bells and sequence words; then memory that is gone. The agent lives,
    and serves it as soon as it makes sense again."""
    point = mounted.point
    good, bad = ring_programs(point), ring_programs(point)
    (point / "file").write_bytes(b"d" * MIB)
    assert good("move(True, 'file', [(0, 1000, 0)])") == [1000]
    before = agents(mounted)
    bad(HOSTILE)
    bad("from fireflyfs.client.usrbio.files import registered; f = opened('file'); token = registered(f).token")
    bad("r = ring(True, 8).ior; w = ring(False, 8).ior; size = region_bytes")
    assert bad("raw(r, token, 0, 100, 0)") == [100]
    assert bad("raw(w, token, 0, 100, 0)") == [-errno.EACCES]
    for entry, number in (
        ("token, size - 10, 11, 0", errno.EINVAL),
        ("token, (1 << 64) - 8, 16, 0", errno.EINVAL),
        ("token, 0, (1 << 64) - 1, 0", errno.EINVAL),
        ("token, 0, 0, 0", errno.EINVAL),
        ("token, 0, 100, (1 << 64) - 50", errno.EINVAL),
        ("token ^ 1, 0, 100, 0", errno.EBADF),
        ("0, 0, 100, 0", errno.EBADF),
        ("token, 0, 100, 0, b'x' * 16", errno.EINVAL),
    ):
        assert bad(f"raw(r, {entry})") == [-number], entry
    # A ring is no region, and a file of one application is known to the others by its token alone.
    bad("ring_id = bytes.fromhex(r._link.rpartition('/')[2].partition('.')[0])")
    assert bad("raw(r, token, 0, 100, 0, ring_id)") == [-errno.EINVAL]
    # Words that no library writes: what is not the next position is not there.
    bad("r._words[layout.SQ_DOORBELL_AT // 4] = 0xFFFFFFFF; r._sq_seq[(r._head + 3) % 8] = 1 << 63; r.submit(); 0")
    assert bad("raw(r, token, 0, 100, 0)") == [100]
    # Its region is cut off under the agent: those pages, and no others, fail.
    bad("shm2 = SharedMemory(create=True, size=4 << 20); cut = io.make_iovec(shm2, point); mib = 1 << 20")
    bad("ios = [cut[at:at + 4096] for at in (0, mib - 2048, 2 * mib, 4096)]")
    bad("for piece in ios: r.prepare(piece, True, f, 0)")
    assert bad("[piece.result for piece in r.submit().wait(min_results=4, timeout=30)]") == [4096] * 4
    bad("os.ftruncate(shm2._fd, mib)")
    bad("for piece in ios: r.prepare(piece, True, f, 0)")
    results = bad("[piece.result for piece in r.submit().wait(min_results=4, timeout=30)]")
    assert results == [4096, -errno.EFAULT, -errno.EFAULT, 4096]
    bad("g = opened('mine', os.O_RDWR | os.O_CREAT)")
    bad("for piece in ios: w.prepare(piece, False, g, 0)")
    results = bad("[piece.result for piece in w.submit().wait(min_results=4, timeout=30)]")
    assert results == [4096, -errno.EFAULT, -errno.EFAULT, 4096]
    # Random bytes all over the ring, its header included.
    bad("rng, m = random.Random(1), w._map")
    bad("for at in rng.choices(range(len(m) - 64), k=300): m[at:at + 64] = rng.randbytes(64); w.submit()")
    assert bad("raw(r, token, 0, 100, 0)") == [100]
    assert set(before) <= set(agents(mounted))
    assert good("move(True, 'file', [(0, 1000, 0), (0, 1000, 5)])") == [1000, 1000]


def test_a_ring_that_is_cut_off(mounted: Any, ring_programs: Any) -> None:
    """Its memory goes away in the middle of service: the ring is given up, and nothing else."""
    point = mounted.point
    (point / "file").write_bytes(b"d" * 4096)
    good, bad = ring_programs(point), ring_programs(point)
    assert good("move(True, 'file', [(0, 1000, 0)])") == [1000]
    # The library unlinks a ring's memory at once: here it keeps the name, as a program of its own might.
    bad("import fireflyfs.client.usrbio.ring as module; real, kept = os.unlink, []; module.os = os")
    bad("os.unlink = lambda path: kept.append(path) if str(path).startswith('/dev/shm') else real(path)")
    assert bad("move(True, 'file', [(0, 1000, 0)])") == [1000]
    before = agents(mounted)
    bad("os.unlink = real; os.truncate(kept[0], 0); os.unlink(kept[0])")
    logs = mounted.log.parent
    until(lambda: any("the ring was cut off" in log.read_text() for log in logs.glob("*.agent*.log")))
    assert agents(mounted) == before
    assert good("move(True, 'file', [(0, 1000, 0)])") == [1000]


def test_a_killed_agent(mounted: Any, ring_programs: Any) -> None:
    """Another one goes on where the rings stand: the application notices a pause. Also while I/O is under way."""
    point = mounted.point
    app = ring_programs(point)
    app("shm.buf[:8000000] = b'k' * 8000000")
    assert app("move(False, 'file', [(0, 8000000, 0)])") == [8000000]
    for _ in range(2):
        (agent,) = agents(mounted)
        app("for n in range(50): ring(True).prepare(region[0:100000], True, opened('file'), n * 1000)")
        app("f, at = files['file', os.O_RDWR | os.O_CREAT], 9000000")
        app("for n in range(0, 5000, 100): ring(False).prepare(region[n:n + 100], False, f, at + n)")
        app("a, b = ring(True).submit(), ring(False).submit()")
        os.kill(agent, signal.SIGKILL)
        assert app("[p.result for p in a.wait(min_results=50, timeout=50)]") == [100000] * 50
        assert app("[p.result for p in b.wait(min_results=50, timeout=50)]") == [100] * 50
        assert app("os.fstat(opened('file')).st_size") == 9005000
    app("closed('file')")
    assert (point / "file").read_bytes() == b"k" * 8000000 + bytes(1000000) + b"k" * 5000


def test_a_ring_that_is_refused(mounted: Any, ring_programs: Any) -> None:
    """One that makes no sense any more when another agent takes it over: whoever waits is told, others are served."""
    point = mounted.point
    (point / "file").write_bytes(b"d" * 4096)
    app = ring_programs(point)
    assert app("move(True, 'file', [(0, 1000, 0)])") == [1000]
    app("other = ring(True, 8); bad = ring(True).ior; bad._map[136:144] = bytes([255] * 8)")
    (agent,) = agents(mounted)
    os.kill(agent, signal.SIGKILL)
    with pytest.raises(OSError, match=r".*") as info:
        app("bad.wait(min_results=1, timeout=30)")
    assert info.value.errno == errno.EINVAL
    assert app("move(True, 'file', [(0, 1000, 0)], entries=8)") == [1000]


@pytest.mark.parametrize("how", ["end", "kill"])
def test_the_mount_ends_under_a_ring(cluster: Any, mounted: Any, ring_programs: Any, how: str) -> None:
    """Unmounted or killed: whoever waits is told, and agents are gone. An unmount records what was written."""
    point = mounted.point
    app = ring_programs(point)
    assert app("move(False, 'end', [(0, 5000, 0)])") == [5000]
    app.send("ring(False).ior.wait(min_results=1)")
    pids = agents(mounted)
    assert pids
    mounted.end() if how == "end" else mounted.kill()
    with pytest.raises(OSError, match=r".*") as info:
        app.answer()
    assert info.value.errno == errno.ENOLINK
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    if how == "end":
        with FileSystem.connect(cluster.mgmtd_addresses()) as fs:
            assert fs.stat("/end").st_size == 5000


def test_many_applications_share_few_agents(mounted: Any, ring_programs: Any) -> None:
    point = mounted.point
    apps = [ring_programs(point) for _ in range(5)]
    for number, app in enumerate(apps):
        assert app(f"shm.buf[:100] = bytes([{number}]) * 100; move(False, 'f{number}', [(0, 100, 0)])") == [100]
    assert 1 < len(agents(mounted)) <= 4
    for number, app in enumerate(apps):
        app(f"closed('f{number}')")
        assert (point / f"f{number}").read_bytes() == bytes([number]) * 100
