"""A mounted cluster under real programs: trees, git, SQLite, fio, two mounts, servers that die.

FFS_E2E_TREE=all copies the whole of site-packages; otherwise a slice of it.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fireflyfs.deploy.local import LocalCluster
from fireflyfs.fuse import device

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"),
]

SITE = Path(sysconfig.get_paths()["purelib"])
SLICE = ("click", "pip", "pygments", "google", "rich")
NOBODY = 65534  # fusermount3 wants a user that has a name
COMMAND_S = 240  # every program that touches a mount runs under a time limit: a dead mount must not hang the tests


def run(*command: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=COMMAND_S, check=False, **kwargs
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    local = LocalCluster(tmp_path_factory.mktemp("cluster"))
    local.create()
    local.up()
    yield local
    local.down()


@pytest.fixture
def mounts(cluster: LocalCluster, mount_of: Callable[..., Any]) -> Callable[..., Any]:
    """mounts(*options): a mount of this module's cluster."""
    return lambda *options: mount_of(cluster, *options)


@pytest.fixture
def root(mounts: Callable[..., Any], request: pytest.FixtureRequest) -> Path:
    folder = mounts().point / request.node.name
    folder.mkdir()
    return folder


def tree_source(tmp_path: Path) -> Path:
    """A real tree with links and odd modes."""
    source = tmp_path / "source"
    if os.environ.get("FFS_E2E_TREE") == "all":
        run("cp", "-a", SITE, source)
    else:
        source.mkdir()
        for name in SLICE:
            if (SITE / name).exists():
                run("cp", "-a", SITE / name, source)
    (source / "odd").mkdir()
    (source / "odd" / "soft").symlink_to("../click")
    (source / "odd" / "dangling").symlink_to("/nowhere/at/all")
    (source / "odd" / "mode").write_bytes(b"x")
    (source / "odd" / "mode").chmod(0o4751)
    os.link(source / "odd" / "mode", source / "odd" / "hard")
    (source / "odd" / "empty").mkdir(mode=0o1777)
    return source


def listing(tree: Path) -> dict[str, tuple[int, int, int, int, int, str]]:
    found = {}
    for folder, dirs, files in os.walk(tree):
        for name in dirs + files:
            path = Path(folder, name)
            info = path.lstat()
            link = os.readlink(path) if path.is_symlink() else ""
            isdir = path.is_dir() and not path.is_symlink()
            size = 0 if isdir else info.st_size
            links = 0 if isdir else info.st_nlink
            found[str(path.relative_to(tree))] = (info.st_mode, size, links, info.st_uid, info.st_mtime_ns, link)
    return found


def assert_same(left: Path, right: Path) -> None:
    assert listing(left) == listing(right)
    for folder, _, files in os.walk(left):
        twin = right / Path(folder).relative_to(left)
        plain = [name for name in files if not Path(folder, name).is_symlink()]
        _, mismatch, errors = filecmp.cmpfiles(folder, twin, plain, shallow=False)
        assert not mismatch
        assert not errors


def used_bytes(path: Path) -> int:
    info = os.statvfs(path)
    return (info.f_blocks - info.f_bfree) * info.f_frsize


def test_tree_copied_compared_archived_removed(mounts, tmp_path):
    mounted = mounts()
    root = mounted.point / "tree"
    root.mkdir()
    before = used_bytes(root)
    source = tree_source(tmp_path)
    run("cp", "-a", source, root / "copy")
    assert_same(source, root / "copy")
    run("tar", "--format=posix", "-cf", tmp_path / "out.tar", "-C", root, "copy")
    (tmp_path / "out").mkdir()
    run("tar", "-xf", tmp_path / "out.tar", "-C", tmp_path / "out")
    assert_same(source, tmp_path / "out" / "copy")
    assert mounted.resident_bytes() < 500 << 20
    run("rm", "-rf", root / "copy")
    assert os.listdir(root) == []
    end = time.monotonic() + 120
    while used_bytes(root) > before + (1 << 20):
        assert time.monotonic() < end, f"{used_bytes(root) - before} bytes more than before the copy"
        time.sleep(0.5)


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_git(root, tmp_path):
    origin = tmp_path / "origin"
    shutil.copytree(SITE / "click", origin)
    env = {**os.environ, "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    for key in ("AUTHOR", "COMMITTER"):
        env[f"GIT_{key}_NAME"] = env[f"GIT_{key}_EMAIL"] = "someone@example.org"
    run("git", "init", "-q", origin, env=env)
    run("git", "add", "-A", cwd=origin, env=env)
    run("git", "commit", "-qm", "first", cwd=origin, env=env)
    work = root / "work"
    run("git", "clone", "-q", origin, work, env=env)
    for number in range(5):
        (work / f"new-{number}").write_text("text\n" * number)
        run("git", "add", "-A", cwd=work, env=env)
        run("git", "commit", "-qm", f"change {number}", cwd=work, env=env)
    run("git", "gc", "-q", cwd=work, env=env)
    run("git", "fsck", "--full", "--strict", cwd=work, env=env)
    assert run("git", "status", "--porcelain", cwd=work, env=env).stdout == ""


WRITER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=60)
for i in range(40):
    with db:
        db.execute("insert into t(who, n, blob) values (?, ?, randomblob(700))", (sys.argv[2], i))
"""


CHECK = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
print(*db.execute("pragma integrity_check").fetchone(), *db.execute("select count(*) from t").fetchone())
"""


def test_sqlite_with_concurrent_writers(root):
    path = root / "db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("create table t(who text, n integer, blob blob)")
        db.commit()
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, str(n)]) for n in range(3)]
    assert [writer.wait(COMMAND_S) for writer in writers] == [0, 0, 0]
    assert run(sys.executable, "-c", CHECK, path).stdout.split() == ["ok", "120"]


@pytest.mark.skipif(not shutil.which("fio"), reason="needs fio")
@pytest.mark.parametrize("direct", [0, 1])
def test_fio_verifies_random_writes(root, tmp_path, direct):
    run(
        "fio", "--name=x", f"--directory={root}", "--rw=randwrite", "--bsrange=4k-1M", "--size=64M", "--verify=crc32c",
        "--ioengine=psync", f"--direct={direct}", "--verify_fatal=1", "--do_verify=1", "--randrepeat=0",
        f"--randseed={int.from_bytes(os.urandom(4), 'little')}",
        cwd=tmp_path,
    )  # fmt: skip


def test_far_and_sparse(root):
    with open(root / "far", "wb") as file:
        file.seek(1 << 40)
        file.write(b"end")
    assert (root / "far").stat().st_size == (1 << 40) + 3
    with open(root / "far", "rb") as file:
        assert file.read(4096) == bytes(4096)
        file.seek((1 << 40) - 5)
        assert file.read() == bytes(5) + b"end"
    with open(root / "sparse", "wb") as file:
        for number in range(0, 50, 7):
            file.seek(number << 20)
            file.write(bytes([number + 1]) * 100)
    data = (root / "sparse").read_bytes()
    assert len(data) == (49 << 20) + 100
    for number in range(50):
        want = bytes([number + 1]) * 100 if number % 7 == 0 else bytes(100)
        assert data[number << 20 : (number << 20) + 100] == want


def test_two_mounts_see_closed_files_at_once(mounts):
    a, b = mounts().point, mounts().point
    (a / "two").mkdir()
    for number in range(30):
        data = os.urandom(1 + number * 10_007)
        writer, reader = (a, b) if number % 2 else (b, a)
        (writer / "two" / "f").write_bytes(data)
        assert (reader / "two" / "f").read_bytes() == data
        with open(reader / "two" / "f", "ab") as file:
            file.write(b"tail")
        assert (writer / "two" / "f").read_bytes() == data + b"tail"
    os.rename(a / "two" / "f", a / "two" / "g")
    (a / "two" / "f").write_bytes(b"another")
    assert (b / "two" / "g").exists()


def test_mount_as_a_user(cluster, mounts, tmp_path, reachable):
    if not shutil.which("fusermount3"):
        pytest.skip("needs fusermount3")
    mounted = mounts()
    (mounted.point / "home").mkdir()
    os.chown(mounted.point / "home", NOBODY, NOBODY)
    point = reachable / "point"
    point.mkdir()
    os.chown(point, NOBODY, NOBODY)
    script = (
        "import sys, os, threading\n"
        "from pathlib import Path\n"
        "from fireflyfs.client.session import ClientContext\n"
        "from fireflyfs.fuse.context import backend_of\n"
        "from fireflyfs.fuse.mount import Mount\n"
        "from fireflyfs.fuse.options import MountOptions\n"
        "context = ClientContext.connect([sys.argv[1]])\n"
        "mount = Mount(backend_of(context), Path(sys.argv[2]), MountOptions(allow_other=False))\n"
        "mount.start()\n"
        "path = Path(sys.argv[2]) / 'home' / 'f'\n"
        "path.write_bytes(b'mine' * 100000)\n"
        "assert path.read_bytes() == b'mine' * 100000\n"
        "mount.stop()\n"
        "context.close()\n"
        "assert not path.exists()\n"
    )
    try:
        readable = all(os.stat(p).st_mode & 0o005 == 0o005 for p in [*Path(sys.executable).parents][:-1])
        if not readable:
            pytest.skip("the interpreter is not readable by other users")
        # A device node that users may open, seen in a mount namespace of its own: the host's stays as it is.
        node = tmp_path / "fuse"
        os.mknod(node, 0o020666, os.makedev(10, 229))
        node.chmod(0o666)
        run(
            "unshare", "--mount", "--propagation", "private",
            "sh", "-c", f'mount --bind {node} /dev/fuse && exec "$@"', "sh",
            "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
            sys.executable, "-c", script, cluster.mgmtd_addresses()[0], point,
        )  # fmt: skip
        assert (mounted.point / "home" / "f").read_bytes() == b"mine" * 100000
        assert (mounted.point / "home" / "f").stat().st_uid == NOBODY
        assert not device.is_mounted(point)
    finally:
        if device.is_mounted(point):
            device.unmount(point, force=True)


class Copying(threading.Thread):
    """Copies a folder of files again and again, in a process, while something dies."""

    def __init__(self, root: Path, tmp_path: Path) -> None:
        super().__init__(daemon=True)
        self.source = tmp_path / "source"
        self.source.mkdir()
        for number in range(60):
            (self.source / f"{number}").write_bytes(os.urandom(200_000 + number * 1000))
        (self.source / "big").write_bytes(os.urandom(40 << 20))
        self.target = root / "copy"
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            run("cp", "-a", self.source, self.target)
            run("cp", "-a", self.source, self.target.with_name("again"))
        except BaseException as exc:
            self.error = exc

    def check(self) -> None:
        self.join(COMMAND_S)
        assert not self.is_alive(), "the copy never ended"
        if self.error is not None:
            raise self.error
        run("diff", "-r", self.source, self.target)
        run("diff", "-r", self.source, self.target.with_name("again"))


@pytest.mark.parametrize("victim", ["storage-1", "mgmtd", "meta"])
def test_a_server_dies_during_a_copy(cluster, root, tmp_path, victim):
    copying = Copying(root, tmp_path)
    copying.start()
    time.sleep(0.4)
    cluster.kill(victim)
    time.sleep(2.0)
    if victim != "storage-1":
        cluster.restart(victim)
    copying.check()
    if victim == "storage-1":
        cluster.restart(victim)
    cluster.wait_serving()


def test_everything_dies_and_comes_back(cluster, root, tmp_path):
    closed = os.urandom(3 << 20)
    (root / "closed").write_bytes(closed)
    copying = Copying(root, tmp_path)
    copying.start()
    time.sleep(0.4)
    for name in cluster.names():
        cluster.kill(name)
    time.sleep(1.0)
    cluster.up()
    assert (root / "closed").read_bytes() == closed
    copying.check()
