"""Random calls by several users, the same on ext4 and on a mount: the same errors, and the same tree after each.

FFS_SEMANTICS_SEED and FFS_SEMANTICS_STEPS make other and longer runs.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semantics.actors import Actor
from semantics.syscalls import linkat, renameat2, utimensat

pytestmark = pytest.mark.e2e
SEED = int(os.environ.get("FFS_SEMANTICS_SEED", "1"))
STEPS = int(os.environ.get("FFS_SEMANTICS_STEPS", "400"))
ACTORS = [
    Actor(0, 0),
    Actor(0, 0, (), 0),
    Actor(1001, 2001, (2001, 3000)),
    Actor(1001, 2001, (3000,), 0o077),
    Actor(1002, 2002, (2001,), 0),
    Actor(1003, 2003),
]
UIDS = (-1, 0, 1001, 1002)
GIDS = (-1, 0, 2001, 2002, 3000)
MODES = (0, 0o644, 0o600, 0o755, 0o777, 0o1777, 0o2775, 0o4755, 0o6755, 0o2644, 0o077, 0o111, 0o3777)
NAMES = ("a", "b", "c", "d")
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"

Call = Callable[[Path], Any]


def acl(drawn: random.Random) -> bytes:
    bits = [drawn.choice((0, 1, 4, 5, 6, 7)) for _ in range(6)]
    entries = [(1, bits[0], -1), (4, bits[1], -1), (32, bits[2], -1)]
    if drawn.random() < 0.8:
        entries = [entries[0], (2, bits[3], 1002), entries[1], (8, bits[4], 3000), (16, bits[5], -1), entries[2]]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


def some_path(drawn: random.Random, existing: list[str], directories: list[str]) -> str:
    """What is there, or a name in a directory, or anything."""
    kind = drawn.random()
    if kind < 0.5 and existing:
        return drawn.choice(existing)
    if kind < 0.9:
        return os.path.join(drawn.choice(directories), drawn.choice(NAMES))
    return "/".join(drawn.choices(NAMES, k=3))


def step(drawn: random.Random, existing: list[str], directories: list[str]) -> tuple[str, Call]:
    """What is done, and the call that does it below a top."""
    one, two = (some_path(drawn, existing, directories) for _ in range(2))
    mode, uid, gid = drawn.choice(MODES), drawn.choice(UIDS), drawn.choice(GIDS)
    value = acl(drawn)
    flags = drawn.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR))
    flags |= drawn.choice((0, os.O_TRUNC, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_DIRECTORY, os.O_NOFOLLOW))
    rename_flags = drawn.choice((0, 0, 0, 1, 2))
    link_flags = drawn.choice((0, 0x400))
    now = drawn.choice(((1, 5), (0, (1 << 30) - 1), (0, (1 << 30) - 2)))
    then = drawn.choice(((1, 5), (0, (1 << 30) - 1), (0, (1 << 30) - 2)))
    name = drawn.choice(("user.x", "trusted.x", "security.x"))
    acl_name = drawn.choice((ACCESS, DEFAULT))
    kind = drawn.choice((stat.S_IFIFO, stat.S_IFREG, stat.S_IFCHR, stat.S_IFSOCK))

    def opened(top: Path) -> int:
        fd = os.open(top / one, flags | os.O_NONBLOCK, mode)  # a pipe has nobody at its other end
        try:
            if flags & os.O_ACCMODE and not flags & os.O_DIRECTORY:
                return os.write(fd, b"some bytes")
            return len(os.listdir(fd)) if stat.S_ISDIR(os.fstat(fd).st_mode) else len(os.read(fd, 100))
        finally:
            os.close(fd)

    calls: list[tuple[str, Call]] = [
        (f"open {one} {flags:#o} {mode:#o}", opened),
        (f"open {one} {flags:#o} {mode:#o}", opened),
        (f"mkdir {one} {mode:#o}", lambda top: os.mkdir(top / one, mode)),
        (f"mkdir {one} {mode:#o}", lambda top: os.mkdir(top / one, mode)),
        (f"mknod {one} {kind | mode:#o}", lambda top: os.mknod(top / one, kind | mode, os.makedev(1, 3))),
        (f"symlink {two} {one}", lambda top: os.symlink(two, top / one)),
        (f"link {one} {two} {link_flags}", lambda top: linkat(top / one, top / two, link_flags)),
        (f"unlink {one}", lambda top: os.unlink(top / one)),
        (f"rmdir {one}", lambda top: os.rmdir(top / one)),
        (f"rename {one} {two} {rename_flags}", lambda top: renameat2(top / one, top / two, rename_flags)),
        (f"rename {one} {two} {rename_flags}", lambda top: renameat2(top / one, top / two, rename_flags)),
        (f"chmod {one} {mode:#o}", lambda top: os.chmod(top / one, mode)),
        (f"chmod {one} {mode:#o}", lambda top: os.chmod(top / one, mode)),
        (f"chown {one} {uid} {gid}", lambda top: os.chown(top / one, uid, gid)),
        (f"lchown {one} {uid} {gid}", lambda top: os.lchown(top / one, uid, gid)),
        (f"truncate {one}", lambda top: os.truncate(top / one, 7)),
        (f"utimensat {one} {now} {then}", lambda top: utimensat(top / one, now, then)),
        (f"setxattr {one} {name}", lambda top: os.setxattr(top / one, name, b"value")),
        (f"getxattr {one} {name}", lambda top: os.getxattr(top / one, name)),
        (f"removexattr {one} {name}", lambda top: os.removexattr(top / one, name)),
        (f"setxattr {one} {acl_name} {value.hex()}", lambda top: os.setxattr(top / one, acl_name, value)),
        (f"removexattr {one} {acl_name}", lambda top: os.removexattr(top / one, acl_name)),
        (f"listxattr {one}", lambda top: sorted(os.listxattr(top / one))),
        (f"listdir {one}", lambda top: sorted(os.listdir(top / one))),
        (f"readlink {one}", lambda top: os.readlink(top / one)),
        (f"access {one}", lambda top: [os.access(top / one, bits) for bits in (0, 1, 2, 4)]),
        (f"stat {one}", lambda top: os.stat(top / one).st_mode),
    ]
    return drawn.choice(calls)


def tree(top: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        for path in [folder, *folder.iterdir()] if folder == top else folder.iterdir():
            seen = path.lstat()
            size = -1 if stat.S_ISDIR(seen.st_mode) else seen.st_size
            device = seen.st_rdev if stat.S_ISCHR(seen.st_mode) else 0
            link = os.readlink(path) if path.is_symlink() else ""
            names = sorted(os.listxattr(path, follow_symlinks=False))
            values = tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)
            owner = (oct(seen.st_mode), seen.st_uid, seen.st_gid, seen.st_nlink)
            found[str(path.relative_to(top))] = (*owner, size, device, link, values)
            if path != top and stat.S_ISDIR(seen.st_mode):
                waiting.append(path)
    return found


@pytest.mark.parametrize("seed", [SEED, SEED + 1])
def test_the_same_calls_do_the_same(both: tuple[Path, Path], seed: int) -> None:
    drawn = random.Random(seed)
    tops = [top / f"random-{seed}" for top in both]
    for top in tops:
        top.mkdir()
        top.chmod(0o777)
    history = []
    try:
        for number in range(STEPS):
            who = drawn.choice(ACTORS)
            known = sorted(tree(tops[0]).items())
            existing = [name for name, _ in known if name != "."]
            directories = [name for name, seen in known if stat.S_ISDIR(int(str(seen[0]), 8))]
            if not number % 6:  # or everything ends up closed to everybody but root
                opened = drawn.choice(directories)
                for top in tops:
                    (top / opened).chmod(0o777)
            what, call = step(drawn, existing, directories)
            outcomes = []
            for top in tops:
                try:
                    outcomes.append((None, who(call, top)))
                except OSError as exc:
                    outcomes.append((exc.errno, None))
            history.append(f"{number} uid {who.uid} {who.groups} {what} -> {outcomes[0]}")
            tail = "\n".join(history[-25:])
            assert outcomes[0] == outcomes[1], f"{outcomes[1]} on the mount, after\n{tail}"
            assert tree(tops[0]) == tree(tops[1]), f"the trees differ after\n{tail}"
    finally:
        for top in tops:
            shutil.rmtree(top, ignore_errors=True)
