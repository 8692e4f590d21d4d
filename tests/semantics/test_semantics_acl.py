"""POSIX ACLs as setfacl and getfacl set and show them, and as they decide."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from semantics.actors import Actor, fails

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not shutil.which("setfacl"), reason="needs setfacl and getfacl (Debian: acl)"),
]
OWNER = Actor(1001, 2001)
NAMED = Actor(1002, 2002)
IN_GROUP = Actor(1003, 2003, (3000,))
OWN_GROUP = Actor(1004, 2001)
STRANGER = Actor(1005, 2005)
ALL = (OWNER, NAMED, IN_GROUP, OWN_GROUP, STRANGER)


def setfacl(*arguments: object) -> None:
    subprocess.run(["setfacl", *map(str, arguments)], check=True)


def getfacl(path: Path) -> list[str]:
    command = ["getfacl", "--numeric", "--omit-header", "--absolute-names", str(path)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [line.split("#")[0].strip() for line in shown.splitlines() if line.strip()]


@pytest.fixture
def thing(root: Path) -> Path:
    (root / "f").write_bytes(b"x")
    os.chown(root / "f", 1001, 2001)
    (root / "f").chmod(0o640)
    return root / "f"


def rights(path: Path, flags: tuple[int, ...] = (os.O_RDONLY, os.O_WRONLY)) -> str:
    """For each actor r, w or both."""

    def of(actor: Actor) -> str:
        got = (actor.fails(lambda each=each: os.close(os.open(path, each))) == "OK" for each in flags)
        return "".join(letter for letter, may in zip("rw", got, strict=True) if may) or "-"

    return " ".join(of(actor) for actor in ALL)


def test_entries_decide(thing: Path) -> None:
    assert rights(thing) == "rw - - r -"
    setfacl("-m", "u:1002:rw,g:3000:r", thing)
    assert rights(thing) == "rw rw r r -"
    assert getfacl(thing) == ["user::rw-", "user:1002:rw-", "group::r--", "group:3000:r--", "mask::rw-", "other::---"]
    assert stat.S_IMODE(thing.stat().st_mode) == 0o660
    setfacl("-m", "m::r", thing)
    assert rights(thing) == "rw r r r -"
    setfacl("-m", "u:1002:---,o::r,m::rw", thing)
    assert rights(thing) == "rw - r r r"
    setfacl("-b", thing)
    assert rights(thing) == "rw r r r r"
    assert getfacl(thing) == ["user::rw-", "group::r--", "other::r--"]


def test_chmod_sets_the_mask(thing: Path) -> None:
    setfacl("-m", "u:1002:rwx,g::rw", thing)
    assert stat.S_IMODE(thing.stat().st_mode) == 0o670
    thing.chmod(0o640)
    assert getfacl(thing) == ["user::rw-", "user:1002:rwx", "group::rw-", "mask::r--", "other::---"]
    assert rights(thing) == "rw r - r -"
    thing.chmod(0o607)
    assert "mask::---" in getfacl(thing)
    assert rights(thing) == "rw rw rw - rw"  # Linux: a mask of nothing, and only the mode's bits count


def test_directories(root: Path) -> None:
    folder = root / "d"
    folder.mkdir()
    os.chown(folder, 1001, 2001)
    folder.chmod(0o700)
    (folder / "f").touch()
    (folder / "f").chmod(0o666)
    assert NAMED.fails(os.stat, folder / "f") == "EACCES"
    setfacl("-m", "u:1002:x", folder)
    assert NAMED.fails(os.stat, folder / "f") == "OK"
    assert NAMED.fails(os.listdir, folder) == "EACCES"
    assert NAMED.fails(os.mkdir, folder / "x") == "EACCES"
    setfacl("-m", "u:1002:rwx", folder)
    assert NAMED.fails(os.listdir, folder) == "OK"
    assert NAMED.fails(os.mkdir, folder / "x") == "OK"
    assert NAMED.fails(os.unlink, folder / "f") == "OK"
    assert STRANGER.fails(os.listdir, folder) == "EACCES"
    setfacl("-x", "u:1002", folder)
    assert NAMED.fails(os.listdir, folder) == "EACCES"


def test_default_acls_are_inherited(root: Path) -> None:
    folder = root / "d"
    folder.mkdir(mode=0o755)
    os.chown(folder, 1001, 2001)
    setfacl("-d", "-m", "u:1002:rwx,g::r-x,o::-", folder)
    assert getfacl(folder)[3:] == [
        "default:user::rwx", "default:user:1002:rwx", "default:group::r-x", "default:mask::rwx", "default:other::---",
    ]  # fmt: skip
    careful = Actor(1001, 2001, (), 0o077)
    careful(lambda: os.close(os.open(folder / "f", os.O_CREAT | os.O_WRONLY, 0o666)))
    assert getfacl(folder / "f") == ["user::rw-", "user:1002:rwx", "group::r-x", "mask::rw-", "other::---"]
    assert stat.S_IMODE((folder / "f").stat().st_mode) == 0o660
    careful(os.mkdir, folder / "sub", 0o777)
    assert getfacl(folder / "sub")[:5] == ["user::rwx", "user:1002:rwx", "group::r-x", "mask::rwx", "other::---"]
    assert len(getfacl(folder / "sub")) == 10
    careful(os.mkfifo, folder / "pipe", 0o600)
    assert getfacl(folder / "pipe") == ["user::rw-", "user:1002:rwx", "group::r-x", "mask::---", "other::---"]
    os.symlink("f", folder / "soft")
    assert os.listxattr(folder / "soft", follow_symlinks=False) == []
    careful(lambda: os.close(os.open(folder / "sub" / "deep", os.O_CREAT | os.O_WRONLY, 0o640)))
    assert getfacl(folder / "sub" / "deep")[:4] == ["user::rw-", "user:1002:rwx", "group::r-x", "mask::r--"]
    setfacl("-k", folder)
    careful(lambda: os.close(os.open(folder / "plain", os.O_CREAT | os.O_WRONLY, 0o666)))
    assert getfacl(folder / "plain") == ["user::rw-", "group::---", "other::---"]


def test_a_default_acl_of_three_entries_takes_the_umasks_place(root: Path) -> None:
    folder = root / "d"
    folder.mkdir()
    folder.chmod(0o777)
    setfacl("-d", "-m", "u::rwx,g::rwx,o::r-x", folder)
    Actor(1001, 2001, (), 0o077)(lambda: os.close(os.open(folder / "f", os.O_CREAT | os.O_WRONLY, 0o666)))
    assert getfacl(folder / "f") == ["user::rw-", "group::rw-", "other::r--"]


def test_who_may_set_them(thing: Path) -> None:
    acl = b"\x02\x00\x00\x00" + b"".join(
        tag.to_bytes(2, "little") + (6).to_bytes(2, "little") + number.to_bytes(4, "little")
        for tag, number in ((1, 0xFFFFFFFF), (2, 1002), (4, 0xFFFFFFFF), (16, 0xFFFFFFFF), (32, 0xFFFFFFFF))
    )
    thing.chmod(0o666)
    assert STRANGER.fails(os.setxattr, thing, "system.posix_acl_access", acl) == "EPERM"
    assert STRANGER.fails(os.removexattr, thing, "system.posix_acl_access") == "EPERM"
    assert OWNER.fails(os.setxattr, thing, "system.posix_acl_access", acl) == "OK"
    assert STRANGER(os.getxattr, thing, "system.posix_acl_access") == acl
    assert "system.posix_acl_access" in STRANGER(os.listxattr, thing)
    assert OWNER.fails(os.setxattr, thing, "system.posix_acl_default", acl) == "EACCES"
    assert OWNER.fails(os.setxattr, thing, "system.posix_acl_access", acl[:-1]) == "EINVAL"
    assert OWNER.fails(os.setxattr, thing, "system.posix_acl_access", b"\x01" + acl[1:]) == "ENOTSUP"
    assert OWNER.fails(os.removexattr, thing, "system.posix_acl_access") == "OK"
    assert OWNER.fails(os.removexattr, thing, "system.posix_acl_access") == "OK"
    assert fails(os.getxattr, thing, "system.posix_acl_access") == "ENODATA"


def test_an_owner_outside_the_group_loses_set_gid_with_an_acl(root: Path) -> None:
    folder = root / "d"
    folder.mkdir()
    os.chown(folder, 1001, 4000)
    folder.chmod(0o2775)
    OWNER(setfacl, "-m", "u:1002:rwx", folder)
    assert oct(stat.S_IMODE(folder.stat().st_mode)) == oct(0o775)


def test_copying_keeps_them(root: Path, thing: Path) -> None:
    setfacl("-m", "u:1002:rw", thing)
    subprocess.run(["cp", "-a", thing, root / "copy"], check=True)
    assert getfacl(root / "copy") == getfacl(thing)
    os.rename(root / "copy", root / "moved")
    os.link(root / "moved", root / "hard")
    assert getfacl(root / "hard") == getfacl(thing)


def test_what_the_kernel_knows_follows_a_change(root: Path, thing: Path) -> None:
    """A right that was used a moment ago is gone when the ACL says so, and the other way round."""
    for _ in range(3):
        setfacl("-m", "u:1002:rw", thing)
        assert NAMED.fails(lambda: os.close(os.open(thing, os.O_RDWR))) == "OK"
        setfacl("-m", "u:1002:-", thing)
        assert NAMED.fails(lambda: os.close(os.open(thing, os.O_RDONLY))) == "EACCES"
