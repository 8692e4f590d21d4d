"""The kernel's table of mounts, and unmounting with an answer that says what to do."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import threading
import time
from pathlib import Path

from fireflyfs.client.cli import connect
from fireflyfs.client.cli.settings import Settings
from fireflyfs.common.errors import Code, FfsError, error

UNMOUNT_WAIT_S = 30.0
ANSWER_WAIT_S = 0.5  # for a mount that may wait for its servers
FS_TYPES = ("fuse.fireflyfs", "fuse.hf3fs")
FS_SOURCE = "fireflyfs"  # then `#` and the address of a cluster manager


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmount, by umount as root, else by fusermount3. Raises BUSY with what to do when files are open."""
    path = place_of(mountpoint)
    if not is_mounted(path):
        raise error(Code.INVALID, f"{mountpoint} is not mounted")
    if path not in (mounted for mounted, _ in our_mounts()):
        raise error(Code.INVALID, f"{mountpoint} is no mount of FireflyFS: umount(8) ends others")
    commands = [["fusermount3", "-u", *(["-z"] if lazy else []), str(path)]]
    if os.geteuid() == 0:
        commands.insert(0, ["umount", "--no-canonicalize", *(["-l"] if lazy else []), str(path)])
    said = ""
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=UNMOUNT_WAIT_S)
        except FileNotFoundError:
            said = said or f"there is no {command[0]}: install Debian's fuse3"
            continue
        except subprocess.TimeoutExpired:
            said = f"{command[0]} takes longer than {UNMOUNT_WAIT_S:.0f} s: are the servers up?"
            continue
        if done.returncode == 0:
            _wait_gone(path)
            return
        said = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else said
    if "busy" in said.lower():
        raise error(Code.BUSY, f"{mountpoint} is in use; `fuser -vm {path}` shows by whom, --lazy detaches it anyway")
    raise error(Code.IO_ERROR, f"{mountpoint} cannot be unmounted: {said}")


def unmount_all(settings: Settings) -> list[Path]:
    """Unmount every mount of the local cluster; those in use are detached."""
    unmounted = []
    for path in mounts_of(settings):
        try:
            unmount(path)
        except FfsError:
            unmount(path, lazy=True)
        unmounted.append(path)
    return unmounted


def mounts_of(settings: Settings) -> list[Path]:
    """Where the cluster that `settings` name is mounted on this machine."""
    try:
        ours = set(connect.mgmtd_addresses(settings))
    except FfsError:
        return []
    return [path for path, source in our_mounts() if ours & managers_of(source)]


def managers_of(source: str) -> set[str]:
    """Addresses of cluster managers that a mount's source names."""
    return set(source.removeprefix(FS_SOURCE + "#").split(","))


def place_of(mountpoint: Path) -> Path:
    """Its path without symbolic links. What is mounted there is not looked at: that would wait for its servers."""
    path = Path(os.path.abspath(mountpoint))
    if is_mounted(path):
        return path
    path = Path(os.path.realpath(path.parent)) / path.name
    return path if is_mounted(path) else Path(os.path.realpath(path))


def is_mounted(path: Path) -> bool:
    """Whether something is mounted at just `path`, also when the server behind it died."""
    return any(mounted == path for mounted, _, _ in _mount_table())


def is_dead(path: Path) -> bool:
    """Whether the process behind a mount is gone. One that waits for its servers lives, and does not answer in time."""
    dead = threading.Event()

    def look() -> None:
        try:
            os.statvfs(path)
        except OSError as exc:
            if exc.errno in (errno.ENOTCONN, errno.ECONNABORTED):
                dead.set()

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(ANSWER_WAIT_S)
    return dead.is_set()


def our_mounts() -> list[tuple[Path, str]]:
    """(mount point, source) of every FireflyFS mount of this machine."""
    return [
        (path, source) for path, source, kind in _mount_table() if kind in FS_TYPES and source.startswith(FS_SOURCE)
    ]


def _mount_table() -> list[tuple[Path, str, str]]:
    """(mount point, source, type) of all mounts. Spaces and the like are octal escapes there; they are undone."""
    table = []
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        source, path, kind = (_ESCAPE.sub(lambda m: chr(int(m[1], 8)), part) for part in line.split(" ")[:3])
        table.append((Path(path), source, kind))
    return table


_ESCAPE = re.compile(r"\\([0-7]{3})")


def _wait_gone(path: Path) -> None:
    deadline = time.monotonic() + UNMOUNT_WAIT_S
    while is_mounted(path) and time.monotonic() < deadline:
        time.sleep(0.02)
