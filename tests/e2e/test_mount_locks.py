"""flock(2) and fcntl(2) locks between two mounts, in real processes."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"),
]

SHORT_S = 0.3  # for something that must not happen


@pytest.fixture
def two(cluster: Any, mount_of: Any, programs: Callable[..., Any]) -> tuple[Any, Any]:
    """Two programs, each with a file `fd` open on a mount of its own."""
    points = [mount_of(cluster).point for _ in range(2)]
    path = f"f{time.time_ns()}"
    (points[0] / path).write_bytes(bytes(1000))
    return _open(programs(path=str(points[0] / path))), _open(programs(path=str(points[1] / path)))


def _open(program: Any) -> Any:
    program(
        "def try_flock(how, fd=None):\n"
        "    fcntl.flock(g_fd if fd is None else fd, how)\n"
        "g_fd = fd = os.open(path, os.O_RDWR)\n"
        "SH, EX, UN, NB = fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN, fcntl.LOCK_NB\n"
        "def lock(how, length=0, start=0, fd=None):\n"
        "    fcntl.lockf(g_fd if fd is None else fd, how, length, start)\n"
        "def getlk(kind, start, length):\n"
        "    asked = struct.pack('hhqqi4x', kind, 0, start, length, 0)\n"
        "    kind, _, start, length, pid = struct.unpack('hhqqi4x', fcntl.fcntl(g_fd, fcntl.F_GETLK, asked))\n"
        "    return kind, start, length, pid\n"
    )
    return program


def refused(program: Any, lines: str) -> bool:
    try:
        program(lines)
    except OSError as exc:
        if exc.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return True
    return False


@pytest.mark.parametrize("call", ["try_flock", "lock"])
def test_one_writer_or_many_readers(two: tuple[Any, Any], call: str) -> None:
    one, other = two
    one(f"{call}(EX)")
    assert refused(other, f"{call}(SH | NB)")
    one(f"{call}(SH)")  # downgraded
    other(f"{call}(SH | NB)")
    assert refused(one, f"{call}(EX | NB)")
    other(f"{call}(UN)")
    one(f"{call}(EX | NB)")
    one(f"{call}(UN)")
    other(f"{call}(EX | NB)")


def test_ranges_are_split_and_the_owner_is_named(two: tuple[Any, Any]) -> None:
    one, other = two
    one("lock(EX, 100, 0)")
    one("lock(UN, 20, 40)")
    one("lock(SH, 10, 0)")
    assert refused(other, "lock(EX | NB, 1, 39)")
    other("lock(EX | NB, 20, 40)")
    other("lock(SH | NB, 10, 0)")
    assert refused(other, "lock(EX | NB, 10, 0)")
    assert other("getlk(fcntl.F_WRLCK, 60, 0)") == (1, 60, 40, one.pid)
    assert other("getlk(fcntl.F_RDLCK, 0, 10)")[0] == 2  # F_UNLCK
    assert one("getlk(fcntl.F_RDLCK, 0, 0)") == (1, 40, 20, other.pid)
    one("lock(EX, 0, 2000)")  # from there to the end of all files
    assert other("getlk(fcntl.F_WRLCK, 1 << 62, 1)")[0] == 1
    assert refused(other, "lock(EX | NB, 1, (1 << 63) - 2)")


OFD = """
OFD_GETLK, OFD_SETLK = 36, 37
fds = [fd, os.open(path, os.O_RDWR)]
def ofd(which, command, kind, start, length):
    asked = struct.pack('hhqqi4x', kind, 0, start, length, 0)
    try:
        answer = fcntl.fcntl(fds[which], command, asked)
    except OSError as exc:
        return exc.errno
    return struct.unpack('hhqqi4x', answer)
def own_locks():
    for which, kind, start, length in ((0, 1, 10, 10), (0, 0, 30, 10), (1, 0, 32, 20), (1, 1, 100, 0), (0, 2, 12, 3)):
        ofd(which, OFD_SETLK, kind, start, length)
    ranges = ((0, 0), (0, 5), (13, 2), (15, 2), (20, 10), (25, 10), (35, 0), (12, 100))
    return [ofd(which, OFD_GETLK, 2, *span) for which in (0, 1) for span in ranges]
"""


def test_own_locks_of_an_open_file_are_told_as_on_this_machines_file_system(
    two: tuple[Any, Any], programs: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "plain").write_bytes(bytes(1000))
    plain = _open(programs(path=str(tmp_path / "plain")))
    for program in (plain, two[0]):
        program(OFD)
    expected = plain("own_locks()")
    assert two[0]("own_locks()") == expected


@pytest.mark.parametrize("call", ["try_flock", "lock"])
def test_who_waits_gets_it_when_it_is_dropped(two: tuple[Any, Any], call: str) -> None:
    one, other = two
    one(f"{call}(EX)")
    other.send(f"{call}(EX)")
    assert not other.answered(SHORT_S)
    began_s = time.monotonic()
    one(f"{call}(UN)")
    other.answer(5)
    assert time.monotonic() - began_s < 1.0
    assert refused(one, f"{call}(EX | NB)")


def test_waiters_are_served_in_their_order(two: tuple[Any, Any], programs: Callable[..., Any]) -> None:
    one, other = two
    path = one("path"), other("path")
    one("lock(EX)")
    waiting = []
    for number in range(6):
        waiting.append(_open(programs(path=path[number % 2])))
        waiting[-1].send("lock(EX)")
        assert not waiting[-1].answered(0.1)
    one("lock(UN)")
    for place, program in enumerate(waiting):
        program.answer(5)
        assert not any(later.answered() for later in waiting[place + 1 :])
        program("lock(UN)")


def test_more_waiters_than_service_threads(two: tuple[Any, Any], programs: Callable[..., Any]) -> None:
    """The mount answers others while they wait."""
    one, other = two
    one("try_flock(EX)")
    waiting = [_open(programs(path=other("path"))) for _ in range(30)]
    for program in waiting:
        program.send("try_flock(SH)")
    assert not any(program.answered(0.02) for program in waiting)
    assert len(other("os.pread(fd, 1000, 0)", within_s=5)) == 1000
    one("try_flock(UN)")
    for program in waiting:
        program.answer(10)


def test_closing_any_descriptor_drops_the_processs_range_locks(two: tuple[Any, Any]) -> None:
    one, other = two
    one("lock(EX)")
    one("other = os.open(path, os.O_RDONLY)")
    assert refused(other, "lock(SH | NB)")
    one("os.close(other)")
    other("lock(EX | NB)")


def test_flock_belongs_to_the_open_file(two: tuple[Any, Any]) -> None:
    one, other = two
    one("try_flock(EX)")
    one("twin = os.dup(fd)")
    one("second = os.open(path, os.O_RDWR)")
    assert refused(one, "try_flock(SH | NB, second)")
    one("os.close(second); os.close(fd)")
    assert refused(other, "try_flock(SH | NB)")
    one("os.close(twin)")
    other.send("try_flock(EX)")  # the kernel tells of a close a moment later
    other.answer(5)


def test_open_file_description_locks(two: tuple[Any, Any]) -> None:
    """F_OFD_SETLK: of the open file, whoever closes what else of it."""
    one, other = two
    for program in two:
        program(
            "def ofd(kind, start, length, fd, cmd=37):\n"
            "    fcntl.fcntl(fd, cmd, struct.pack('hhqqi4x', kind, 0, start, length, 0))\n"
        )
    one("ofd(1, 0, 10, fd)")
    one("second = os.open(path, os.O_RDWR)")
    assert refused(one, "ofd(0, 5, 1, second)")
    one("os.close(second)")
    assert refused(other, "ofd(0, 5, 1, fd)")
    one("os.close(fd)")
    other.send("ofd(1, 5, 1, fd, 38)")
    other.answer(5)


def test_a_wait_is_interrupted(two: tuple[Any, Any]) -> None:
    one, other = two
    one("lock(EX)")
    other("def stop(*_): raise InterruptedError(errno.EINTR, 'stop')\n_ = signal.signal(signal.SIGUSR1, stop)")
    for call in ("lock(EX)", "try_flock(EX)"):
        one("try_flock(EX)")
        other.send(call)
        assert not other.answered(SHORT_S)
        os.kill(other.pid, signal.SIGUSR1)
        with pytest.raises(OSError) as caught:  # noqa: PT011
            other.answer(5)
        assert caught.value.errno == errno.EINTR
    one("lock(UN); try_flock(UN)")
    one("lock(EX | NB); try_flock(EX | NB)")  # nobody was left in the queue


HAMMER = """
class Stop(Exception):
    pass
def stop(*_):
    raise Stop
_ = signal.signal(signal.SIGALRM, stop)
import random
def hammer(seconds, seed):
    rng, had, gave_up, end = random.Random(seed), 0, 0, time.monotonic() + seconds
    while time.monotonic() < end:
        call = rng.choice([lock, try_flock]) if seed % 2 else lock
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0003, 0.02))
                call(EX)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Stop:
            gave_up += 1
            call(UN)  # it may have been granted in the very moment
            continue
        inside = None
        if call is lock:
            inside = os.open(witness, os.O_CREAT | os.O_EXCL)
            os.close(inside)
            os.unlink(witness)
        had += 1
        call(UN)
    return had, gave_up
"""


def test_interrupted_waits_by_the_hundred(two: tuple[Any, Any], programs: Callable[..., Any], tmp_path: Path) -> None:
    """Nobody hangs, nothing stays queued or locked, and never two have it."""
    paths = [program("path") for program in two]
    hammers = [_open(programs(path=paths[number % 2], witness=str(tmp_path / "witness"))) for number in range(6)]
    for number, program in enumerate(hammers):
        program(HAMMER)
        program.send(f"hammer(4.0, {number})")
    results = [program.answer(30) for program in hammers]
    assert all(had for had, _ in results), results
    assert sum(gave_up for _, gave_up in results) > 20, results
    two[0].send("lock(EX); try_flock(EX)")
    two[0].answer(5)


def test_a_killed_process_leaves_nothing(two: tuple[Any, Any], programs: Callable[..., Any]) -> None:
    one, other = two
    waiting = _open(programs(path=other("path")))
    one("lock(EX); try_flock(EX)")
    waiting.send("lock(EX)")
    assert not waiting.answered(SHORT_S)
    waiting.process.kill()
    assert waiting.process.wait(5) == -signal.SIGKILL
    one.process.kill()
    one.process.wait(5)
    other.send("lock(EX); try_flock(EX)")
    other.answer(5)


def test_a_deadlock_is_told(two: tuple[Any, Any]) -> None:
    one, other = two
    one("lock(EX, 10, 0)")
    other("lock(EX, 10, 100)")
    one.send("lock(EX, 10, 100)")
    assert not one.answered(SHORT_S)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        other("lock(EX, 10, 0)")
    assert caught.value.errno == errno.EDEADLK
    other("lock(UN)")
    one.answer(5)


def test_what_was_written_under_a_lock_is_read_under_the_next(two: tuple[Any, Any]) -> None:
    """A counter in a file that both have open and cached, incremented in turns."""
    for program in two:
        program(
            "def count(times):\n"
            "    for _ in range(times):\n"
            "        lock(EX)\n"
            "        n = int(os.pread(fd, 20, 0).rstrip(bytes(1)) or b'0') + 1\n"
            "        os.pwrite(fd, b'%d' % n, 0)\n"
            "        lock(UN)\n"
        )
        program("os.pread(fd, 1000, 0)")
    for program in two:
        program.send("count(150)")
    for program in two:
        program.answer(60)
    assert two[1]("lock(SH); os.pread(fd, 20, 0)").rstrip(b"\0") == b"300"


def test_locks_and_waits_outlive_the_metadata_server(cluster_factory: Any, mount_of: Any, programs: Any) -> None:
    cluster = cluster_factory(storage_nodes=1, replicas=1)
    points = [mount_of(cluster).point for _ in range(2)]
    (points[0] / "f").write_bytes(b"x")
    one, other = (_open(programs(path=str(point / "f"))) for point in points)
    one("lock(EX)")
    other.send("lock(EX)")
    assert not other.answered(SHORT_S)
    cluster.kill("meta")
    cluster.restart("meta")
    assert not other.answered(SHORT_S)
    assert one("getlk(fcntl.F_RDLCK, 0, 0)")[0] == 2  # its own is not in its way
    one("lock(UN)", within_s=30)
    other.answer(30)
    assert refused(one, "lock(SH | NB)")


def test_a_mount_that_dies_loses_its_locks(cluster_factory: Any, mount_of: Any, programs: Any) -> None:
    cluster = cluster_factory(storage_nodes=1, replicas=1, session_lease_s=2.0)
    dying, living = mount_of(cluster), mount_of(cluster)
    (living.point / "f").write_bytes(b"x")
    one, other = (_open(programs(path=str(mounted.point / "f"))) for mounted in (dying, living))
    one("lock(EX)")
    other.send("lock(EX)")
    assert not other.answered(SHORT_S)
    dying.kill()
    one.end()
    other.answer(110)  # its lease, the time that a young lock is kept whatever the lease says, and the reaper's turn


def test_a_mount_that_was_cut_off_says_that_its_locks_are_lost(
    cluster_factory: Any, mount_of: Any, programs: Any
) -> None:
    cluster = cluster_factory(storage_nodes=1, replicas=1, session_lease_s=2.0)
    stopped, living = mount_of(cluster), mount_of(cluster)
    (living.point / "f").write_bytes(b"before")
    one, bystander = (_open(programs(path=str(stopped.point / "f"))) for _ in range(2))
    other = _open(programs(path=str(living.point / "f")))
    one("lock(EX); os.pread(fd, 6, 0)")
    stopped.process.send_signal(signal.SIGSTOP)
    try:
        other.send("lock(EX); os.pwrite(fd, b'other!', 0); lock(UN)")
        other.answer(110)  # as above
    finally:
        stopped.process.send_signal(signal.SIGCONT)
    for lines in ("os.pwrite(fd, b'late', 0)", "os.pread(fd, 6, 0)", "lock(SH)"):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            one(lines)
        assert caught.value.errno == errno.EIO
    assert bystander("os.pread(os.open(path, os.O_RDONLY), 6, 0)") == b"other!"
    one("lock(UN); lock(EX); os.pwrite(fd, b'again!', 0); lock(UN)")
    assert other("lock(SH); os.pread(fd, 6, 0)") == b"again!"


def test_local_locks(cluster: Any, mount_of: Any, programs: Any) -> None:
    points = [mount_of(cluster, "--local-locks").point for _ in range(2)]
    path = f"local{time.time_ns()}"
    (points[0] / path).write_bytes(b"x")
    one, two, far = (_open(programs(path=str(point / path))) for point in (points[0], points[0], points[1]))
    for call in ("lock", "try_flock"):
        one(f"{call}(EX)")
        assert refused(two, f"{call}(SH | NB)")
        far(f"{call}(EX | NB)")
    one("os.close(fd)")
    two("lock(EX | NB)")
