"""Programs that are hard on a file system, on a mount, for minutes: `make soak`."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fireflyfs.deploy.local import LocalCluster

pytestmark = [pytest.mark.e2e, pytest.mark.soak, pytest.mark.timeout(3600)]

BINUTILS = "/usr/src/binutils/binutils-*.tar.xz"
# Of stress-ng's class `filesystem`, those that a FUSE mount can serve. Not here: binderfs, bind-mount, eventfd, procfs,
# ioprio, dup and handle, which use other file systems or none; fiemap, verity, inode-flags, which FUSE has not; xattr,
# whose one round sets thousands of attributes on one file (a minute).
STRESSORS = [
    "access", "chattr", "chdir", "chmod", "chown", "copy-file", "dentry", "dir", "dirdeep", "dirmany", "dnotify",
    "fallocate", "fanotify", "fcntl", "file-ioctl", "filename", "flock", "fpunch", "fsize", "fstat", "getdent", "hdd",
    "inotify", "io", "iomix", "lease", "link", "locka", "lockf", "lockofd", "mknod", "open", "rename", "symlink",
    "sync-file", "touch", "utime",
]  # fmt: skip
POSTGRES_PORT = "54377"


def run(*command: object, cwd: Path | str = "/", timeout_s: float = 900, **options: Any) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False, timeout=timeout_s, **options
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def folder(cluster: LocalCluster, mount_of: Callable[..., Any]) -> Iterator[Path]:
    """A folder of its own on a mount, gone afterwards: all tests share one cluster."""
    path: Path = mount_of(cluster).point / f"programs-{time.time_ns()}"
    path.mkdir()
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


def test_dbench(folder: Path) -> None:
    out = run("dbench", "-D", folder, "-t", "60", "-c", "/usr/share/dbench/client.txt", "8")
    assert "Throughput" in out


def test_bonnie(folder: Path) -> None:
    run("bonnie++", "-d", folder, "-u", "root", "-s", "256", "-r", "128", "-n", "4", "-q")


@pytest.mark.parametrize("stressor", STRESSORS)
def test_stress_ng(folder: Path, stressor: str) -> None:
    out = subprocess.run(
        ["stress-ng", f"--{stressor}", "2", "--timeout", "5", "--temp-path", str(folder), "--verify"],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert out.returncode == 0, out.stdout[-3000:] + out.stderr[-3000:]
    assert "successful run" in out.stdout + out.stderr


def test_a_large_c_project(folder: Path) -> None:
    """GNU binutils: 27,000 files, thousands of processes that stat, map and rename."""
    run("tar", "xf", glob.glob(BINUTILS)[0], "-C", folder)
    (source,) = folder.iterdir()
    run(
        "./configure", "--disable-nls", "--disable-gdb", "--disable-gprofng", "--disable-werror", "--disable-gold",
        "--disable-ld", "--disable-gprof", "MAKEINFO=true", cwd=source,
    )  # fmt: skip
    run("make", "-j4", "MAKEINFO=true", cwd=source, timeout_s=3000)
    assembly = folder / "seven.s"
    assembly.write_text(".globl main\nmain:\n mov $7, %eax\n ret\n")
    run(source / "gas" / "as-new", "-o", folder / "seven.o", assembly)
    run("gcc", "-o", folder / "seven", folder / "seven.o")
    assert subprocess.run([str(folder / "seven")], check=False).returncode == 7
    run("git", "init", "-q", ".", cwd=source)
    # A commit of so many files begins to collect in the background, beside which git collects nothing itself.
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "gc.auto=0")
    run("git", "add", "-A", cwd=source)
    run("git", *identity, "commit", "-q", "-m", "all of it", cwd=source)
    run("git", "gc", "-q", cwd=source)
    run("git", "fsck", "--full", cwd=source)
    run("git", "clone", "-q", source, folder / "clone")
    assert run("git", "status", "--porcelain", cwd=folder / "clone") == ""


class Postgres:
    """A server of its own, as user postgres, on a Unix socket."""

    def __init__(self, data: Path, sockets: Path) -> None:
        self.data = data
        self._bin = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
        self._sockets = sockets

    def command(self, program: str, *arguments: object) -> list[str]:
        drop = ("setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups")
        return [*drop, f"{self._bin}/{program}", *map(str, arguments)]

    def call(self, program: str, *arguments: object) -> str:
        return run(*self.command(program, *arguments))

    def client(self, program: str, *arguments: object) -> str:
        return self.call(program, "-h", self._sockets, "-p", POSTGRES_PORT, *arguments)

    def load(self, seconds: int) -> subprocess.Popen[bytes]:
        """Transactions of four clients, beside what the test does."""
        options = ("-h", self._sockets, "-p", POSTGRES_PORT, "-c", "4", "-T", seconds, "-n", "bench")
        quiet = subprocess.DEVNULL
        return subprocess.Popen(self.command("pgbench", *options), stdout=quiet, stderr=quiet, cwd="/")

    def start(self) -> None:
        # The server keeps the pipe that it inherits: its output goes to a file.
        options = f"-k {self._sockets} -p {POSTGRES_PORT} -c listen_addresses=''"
        self.call("pg_ctl", "-D", self.data, "-o", options, "-l", self.data.parent / "log", "-w", "-t", 120, "start")

    def stop(self) -> None:
        self.call("pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop")

    def kill(self) -> None:
        """As a machine that dies."""
        os.kill(int((self.data / "postmaster.pid").read_text().split()[0]), 9)
        time.sleep(2)  # its children see it and end

    def balances(self) -> set[str]:
        """Sums that each transaction changes alike."""
        tables = ("pgbench_accounts", "pgbench_tellers", "pgbench_branches")
        columns = ("abalance", "tbalance", "bbalance")
        return {
            self.client("psql", "-At", "bench", "-c", f"select sum({column}) from {table}")
            for table, column in zip(tables, columns, strict=True)
        }


@pytest.fixture
def postgres(cluster: LocalCluster, reachable: Path, mount_of: Callable[..., Any]) -> Iterator[Postgres]:
    sockets = reachable / "sockets"
    home = mount_of(cluster, folder=reachable).point / f"pg-{time.time_ns()}"
    for path in (sockets, home):
        path.mkdir()
        shutil.chown(path, "postgres")
    server = Postgres(home / "data", sockets)
    server.call("initdb", "-D", server.data, "-A", "trust")
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(home)


def test_pgbench_with_crashes(postgres: Postgres) -> None:
    postgres.client("createdb", "bench")
    postgres.client("pgbench", "-i", "-s", "2", "bench")
    postgres.client("pgbench", "-c", "4", "-T", "30", "bench")
    assert len(postgres.balances()) == 1
    for _ in range(3):
        load = postgres.load(20)
        time.sleep(8)
        postgres.kill()
        load.wait(60)
        postgres.start()
        assert len(postgres.balances()) == 1
