"""Random system calls on two mounts of one cluster and on a tmpfs: the same results, errno for errno.

tmpfs is the model: POSIX in memory. Hypothesis chooses the calls and shrinks what differs. FFS_MODEL_EXAMPLES says how
many sequences are tried, of FFS_MODEL_STEPS calls each.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from fireflyfs.deploy.local import LocalCluster

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]

EXAMPLES = int(os.environ.get("FFS_MODEL_EXAMPLES", "20"))
STEPS = int(os.environ.get("FFS_MODEL_STEPS", "60"))
HANDLES_MAX = 6
NAMES = ("a", "b", "c", "dir", "x" * 255, "y" * 256)
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()

USERS = ((0, 0, ()), (1000, 1000, ()), (1001, 1001, (1000,)))
names = st.sampled_from(NAMES[:4] * 6 + NAMES[4:])
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
odd_paths = st.one_of(paths, paths, paths, paths.map(lambda path: path + "/"), paths.map(lambda path: path + "/.."))
users = st.sampled_from((USERS[0],) * 3 + USERS[1:])
modes = st.sampled_from((0o755, 0o777, 0o700, 0o644, 0o600, 0o1777, 0o2775, 0o4755, 0o6777, 0, 0o111))
flags = st.sampled_from((
    os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_WRONLY | os.O_APPEND | os.O_CREAT,
    os.O_RDONLY | os.O_DIRECTORY, os.O_RDONLY | os.O_NOFOLLOW, os.O_RDWR | os.O_CREAT | os.O_DIRECTORY,
))  # fmt: skip
offsets = st.sampled_from((0, 1, 100, 4095, 4096, 70_000, 1 << 20, (1 << 20) + 5, 3 << 20))
sizes = st.sampled_from((0, 1, 10, 4096, 5000, 200_000))
times = st.sampled_from((0, 1, 10**9 + 7, 1_700_000_000 * 10**9 + 123_456_789))
attributes = st.sampled_from(("user.a", "user.b", "trusted.t", "user.", "nonsense", "user." + "n" * 251))
values = st.sampled_from((b"", b"v", b"w" * 1000))


@contextmanager
def acting(user: tuple[int, int, tuple[int, ...]]) -> Iterator[None]:
    """As this user, in all threads of this process."""
    uid, gid, groups = user
    if uid == 0:
        yield
        return
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([])


def outcome(call: Callable[..., Any], *arguments: Any) -> tuple[str, Any]:
    try:
        return "ok", call(*arguments)
    except OSError as exc:
        return errno.errorcode[exc.errno or 0], None


def facts(info: os.stat_result) -> tuple[Any, ...]:
    """What must be alike; sizes of directories are each system's own."""
    size = None if stat.S_ISDIR(info.st_mode) else info.st_size
    return stat.filemode(info.st_mode), info.st_nlink, info.st_uid, info.st_gid, size, info.st_rdev


def renameat2(old: str, new: str, how: int) -> None:
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), ctypes.c_uint(how)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Files(RuleBasedStateMachine):
    """Each call goes to one of the mounts, chosen by Hypothesis, and to the model."""

    mounts: tuple[Path, ...]
    model: Path

    def __init__(self) -> None:
        super().__init__()
        name = f"run-{next(_numbers)}"
        (self.mounts[0] / name).mkdir()
        (self.model / name).mkdir()
        self.tops = [mount / name for mount in self.mounts]
        self.plain = self.model / name
        for top in (self.tops[0], self.plain):
            top.chmod(0o777)
        self.handles: list[tuple[int, int]] = []  # of a mount, of the model
        self.which = 0

    def both(self, user: Any, call: Callable[[str], Any], what: str) -> tuple[Any, Any]:
        """`call` gets the top it works below. Returns the values of both, which may be descriptors."""
        self.which = (self.which + 1) % len(self.tops)
        with acting(user):
            ours = outcome(call, str(self.tops[self.which]))
            theirs = outcome(call, str(self.plain))
        assert ours[0] == theirs[0], f"{what} by {user}: {ours[0]} on mount {self.which}, tmpfs says {theirs[0]}"
        return ours[1], theirs[1]

    def same(self, user: Any, call: Callable[[str], Any], what: str) -> None:
        ours, theirs = self.both(user, call, what)
        assert ours == theirs, f"{what} by {user}: {ours!r} on mount {self.which}, tmpfs says {theirs!r}"

    # Names

    @rule(user=users, path=odd_paths, mode=modes)
    def mkdir(self, user: Any, path: str, mode: int) -> None:
        self.same(user, lambda top: os.mkdir(f"{top}/{path}", mode), f"mkdir({path}, {mode:o})")

    @rule(user=users, path=odd_paths)
    def rmdir(self, user: Any, path: str) -> None:
        self.same(user, lambda top: os.rmdir(f"{top}/{path}"), f"rmdir({path})")

    @rule(user=users, path=odd_paths)
    def unlink(self, user: Any, path: str) -> None:
        self.same(user, lambda top: os.unlink(f"{top}/{path}"), f"unlink({path})")

    @rule(user=users, old=odd_paths, new=odd_paths, how=st.sampled_from((0, 0, 0, 1, 2, 3)))
    def rename(self, user: Any, old: str, new: str, how: int) -> None:
        self.same(user, lambda top: renameat2(f"{top}/{old}", f"{top}/{new}", how), f"rename({old}, {new}, {how})")

    @rule(user=users, old=odd_paths, new=odd_paths)
    def link(self, user: Any, old: str, new: str) -> None:
        self.same(user, lambda top: os.link(f"{top}/{old}", f"{top}/{new}"), f"link({old}, {new})")

    @rule(user=users, text=st.one_of(paths, st.just("../a"), st.just("dir/../b"), st.just("")), path=odd_paths)
    def symlink(self, user: Any, text: str, path: str) -> None:
        self.same(user, lambda top: os.symlink(text, f"{top}/{path}"), f"symlink({text}, {path})")

    @rule(user=users, path=paths)
    def readlink(self, user: Any, path: str) -> None:
        self.same(user, lambda top: os.readlink(f"{top}/{path}"), f"readlink({path})")

    @rule(user=users, path=paths, kind=st.sampled_from((stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR)))
    def mknod(self, user: Any, path: str, kind: int) -> None:
        device = os.makedev(1, 3) if kind == stat.S_IFCHR else 0
        self.same(user, lambda top: os.mknod(f"{top}/{path}", kind | 0o640, device), f"mknod({path}, {kind:o})")

    @rule(user=users, path=st.one_of(paths, st.just(".")))
    def listdir(self, user: Any, path: str) -> None:
        self.same(user, lambda top: sorted(os.listdir(f"{top}/{path}")), f"listdir({path})")

    # Attributes

    @rule(user=users, path=odd_paths, follow=st.booleans())
    def stat(self, user: Any, path: str, follow: bool) -> None:
        self.same(user, lambda top: facts(os.stat(f"{top}/{path}", follow_symlinks=follow)), f"stat({path}, {follow})")

    @rule(user=users, path=paths, mode=modes)
    def chmod(self, user: Any, path: str, mode: int) -> None:
        self.same(user, lambda top: os.chmod(f"{top}/{path}", mode), f"chmod({path}, {mode:o})")

    @rule(user=users, path=paths, uid=st.sampled_from((-1, 0, 1000)), gid=st.sampled_from((-1, 0, 1000, 1001)))
    def chown(self, user: Any, path: str, uid: int, gid: int) -> None:
        self.same(user, lambda top: os.lchown(f"{top}/{path}", uid, gid), f"lchown({path}, {uid}, {gid})")

    @rule(user=users, path=paths, atime=times, mtime=times)
    def utime(self, user: Any, path: str, atime: int, mtime: int) -> None:
        def call(top: str) -> tuple[int, int]:
            os.utime(f"{top}/{path}", ns=(atime, mtime), follow_symlinks=False)
            info = os.lstat(f"{top}/{path}")
            return info.st_atime_ns, info.st_mtime_ns

        self.same(user, call, f"utime({path}, {atime}, {mtime})")

    @rule(user=users, path=paths, mask=st.sampled_from((os.F_OK, os.R_OK, os.W_OK, os.X_OK, os.R_OK | os.W_OK)))
    def access(self, user: Any, path: str, mask: int) -> None:
        def call(top: str) -> bool:
            return os.access(f"{top}/{path}", mask, effective_ids=True)

        self.same(user, call, f"access({path}, {mask})")

    @rule(user=users, path=paths, length=offsets)
    def truncate(self, user: Any, path: str, length: int) -> None:
        self.same(user, lambda top: os.truncate(f"{top}/{path}", length), f"truncate({path}, {length})")

    @rule(user=users, path=paths, name=attributes, value=values, how=st.sampled_from((0, 0, 1, 2)))
    def setxattr(self, user: Any, path: str, name: str, value: bytes, how: int) -> None:
        self.same(user, lambda top: os.setxattr(f"{top}/{path}", name, value, how), f"setxattr({path}, {name}, {how})")

    @rule(user=users, path=paths, name=attributes)
    def getxattr(self, user: Any, path: str, name: str) -> None:
        self.same(user, lambda top: os.getxattr(f"{top}/{path}", name), f"getxattr({path}, {name})")

    @rule(user=users, path=paths, name=attributes)
    def removexattr(self, user: Any, path: str, name: str) -> None:
        self.same(user, lambda top: os.removexattr(f"{top}/{path}", name), f"removexattr({path}, {name})")

    @rule(user=users, path=paths)
    def listxattr(self, user: Any, path: str) -> None:
        self.same(user, lambda top: sorted(os.listxattr(f"{top}/{path}")), f"listxattr({path})")

    # Open files

    @rule(user=users, path=odd_paths, how=flags, mode=modes)
    def open(self, user: Any, path: str, how: int, mode: int) -> None:
        how |= os.O_NONBLOCK | os.O_CLOEXEC
        ours, theirs = self.both(
            user, lambda top: os.open(f"{top}/{path}", how, mode), f"open({path}, {how:o}, {mode:o})"
        )
        if ours is None:
            return
        self.handles.append((ours, theirs))
        if len(self.handles) > HANDLES_MAX:
            self.close(0)

    def on_handle(self, number: int, call: Callable[[int], Any], what: str) -> None:
        if not self.handles:
            return
        ours, theirs = self.handles[number % len(self.handles)]
        one, other = outcome(call, ours), outcome(call, theirs)
        assert one == other, f"{what}: {one!r:.300} on the mount, tmpfs says {other!r:.300}"

    @rule(number=st.integers(0, HANDLES_MAX))
    def close(self, number: int) -> None:
        if self.handles:
            for fd in self.handles.pop(number % len(self.handles)):
                os.close(fd)

    @rule(number=st.integers(0, HANDLES_MAX), offset=offsets, size=sizes, fill=st.integers(1, 255))
    def pwrite(self, number: int, offset: int, size: int, fill: int) -> None:
        self.on_handle(number, lambda fd: os.pwrite(fd, bytes([fill]) * size, offset), f"pwrite({size}, {offset})")

    @rule(number=st.integers(0, HANDLES_MAX), offset=offsets, size=sizes)
    def pread(self, number: int, offset: int, size: int) -> None:
        self.on_handle(number, lambda fd: os.pread(fd, size, offset), f"pread({size}, {offset})")

    @rule(number=st.integers(0, HANDLES_MAX), length=offsets)
    def ftruncate(self, number: int, length: int) -> None:
        self.on_handle(number, lambda fd: os.ftruncate(fd, length), f"ftruncate({length})")

    @rule(number=st.integers(0, HANDLES_MAX))
    def fstat(self, number: int) -> None:
        self.on_handle(number, lambda fd: facts(os.fstat(fd)), "fstat")

    @rule(number=st.integers(0, HANDLES_MAX))
    def fsync(self, number: int) -> None:
        self.on_handle(number, lambda fd: os.fsync(fd), "fsync")

    @rule(number=st.integers(0, HANDLES_MAX), mode=modes)
    def fchmod(self, number: int, mode: int) -> None:
        self.on_handle(number, lambda fd: os.fchmod(fd, mode), f"fchmod({mode:o})")

    # The end

    def teardown(self) -> None:
        try:
            for pair in self.handles:
                for fd in pair:
                    os.close(fd)
            expected = tree(self.plain)
            for top in self.tops:
                assert tree(top) == expected
        finally:
            subprocess.run(["rm", "-rf", str(self.tops[0]), str(self.plain)], check=True)


def tree(top: Path) -> dict[str, Any]:
    """Everything below: attributes, contents, targets."""
    found: dict[str, Any] = {}
    for folder, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = os.path.join(folder, name)
            info = os.lstat(path)
            content: Any = None
            if stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            elif stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            found[os.path.relpath(path, top)] = (facts(info), content)
    return found


@pytest.fixture
def tmpfs(reachable: Path) -> Iterator[Path]:
    point = reachable / "model"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=777,nosuid,nodev", "model", str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)


def test_two_mounts_do_what_tmpfs_does(
    cluster_factory: Callable[..., LocalCluster], reachable: Path, mount_of: Callable[..., Any], tmpfs: Path
) -> None:
    cluster = cluster_factory(storage_nodes=1, replicas=1)
    points = tuple(mount_of(cluster, "--strict", folder=reachable).point for _ in range(2))
    before = os.umask(0o022)
    try:
        machine: Any = type("Machine", (Files,), {"mounts": points, "model": tmpfs})
        machine.TestCase.settings = settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            print_blob=True,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        machine.TestCase("runTest").runTest()
    finally:
        os.umask(before)
