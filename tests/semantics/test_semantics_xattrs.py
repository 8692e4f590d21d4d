"""Extended attributes (xattr(7)): namespaces, rights, flags, bounds."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

from semantics.actors import Actor, fails

pytestmark = pytest.mark.e2e
ME = Actor(1001, 2001)
OTHER = Actor(1003, 2003)


@pytest.fixture
def thing(root: Path) -> Path:
    (root / "f").write_bytes(b"x")
    os.chown(root / "f", ME.uid, ME.gid)
    return root / "f"


def test_values(root: Path, thing: Path) -> None:
    (root / "without any").touch()
    for value in (b"", b"\0", bytes(range(256)), b"x" * 3000):
        os.setxattr(thing, "user.a", value)
        assert os.getxattr(thing, "user.a") == value
    os.setxattr(thing, "user.ümläut", b"1")
    os.setxattr(thing, b"user." + b"n" * 250, b"longest")
    assert len(os.listxattr(thing)) == 3
    assert fails(os.setxattr, thing, b"user." + b"n" * 251, b"") == "ERANGE"
    assert fails(os.setxattr, thing, "user.a", bytes(65537)) == "E2BIG"
    assert fails(os.setxattr, thing, "user.", b"") == "EINVAL"
    assert fails(os.setxattr, thing, "", b"") == "ERANGE"
    assert fails(os.setxattr, thing, "nothing.a", b"") == "ENOTSUP"
    for call in (os.getxattr, os.removexattr):
        for name, says in (("nothing.a", "ENOTSUP"), ("user", "ENOTSUP"), ("system.x", "ENOTSUP"), ("user.", "EINVAL")):
            assert fails(call, thing, name) == says
            assert fails(call, root / "without any", name) == says
    assert fails(os.getxattr, thing, "user.none") == "ENODATA"
    assert fails(os.removexattr, thing, "user.none") == "ENODATA"


def test_flags(thing: Path) -> None:
    assert fails(os.setxattr, thing, "user.a", b"1", os.XATTR_REPLACE) == "ENODATA"
    assert fails(os.setxattr, thing, "user.a", b"1", os.XATTR_CREATE) == "OK"
    assert fails(os.setxattr, thing, "user.a", b"2", os.XATTR_CREATE) == "EEXIST"
    assert fails(os.setxattr, thing, "user.a", b"3", os.XATTR_REPLACE) == "OK"
    assert os.getxattr(thing, "user.a") == b"3"
    assert fails(os.setxattr, thing, "user.a", b"3", 8) == "EINVAL"


def test_short_buffers(thing: Path) -> None:
    os.setxattr(thing, "user.a", b"0123456789")
    libc = ctypes.CDLL(None, use_errno=True)
    room = ctypes.create_string_buffer(100)
    path = os.fsencode(thing)
    assert libc.getxattr(path, b"user.a", room, 0) == 10
    assert libc.getxattr(path, b"user.a", room, 9) == -1
    assert ctypes.get_errno() == 34  # ERANGE
    assert libc.getxattr(path, b"user.a", room, 10) == 10
    assert libc.listxattr(path, room, 0) == 7
    assert libc.listxattr(path, room, 6) == -1
    assert ctypes.get_errno() == 34
    assert libc.listxattr(path, room, 7) == 7


def test_through_descriptors_and_links(root: Path, thing: Path) -> None:
    with open(thing, "r+b") as file:
        os.setxattr(file.fileno(), "user.a", b"1")
        assert os.getxattr(file.fileno(), "user.a") == b"1"
        assert os.listxattr(file.fileno()) == ["user.a"]
        thing.unlink()
        os.setxattr(file.fileno(), "user.b", b"2")
        assert sorted(os.listxattr(file.fileno())) == ["user.a", "user.b"]
        os.removexattr(file.fileno(), "user.a")
        assert os.listxattr(file.fileno()) == ["user.b"]
    (root / "g").touch()
    os.symlink("g", root / "soft")
    os.setxattr(root / "soft", "user.a", b"1")
    assert os.listxattr(root / "g") == ["user.a"]
    assert fails(os.setxattr, root / "soft", "user.a", b"1", follow_symlinks=False) == "EPERM"
    os.setxattr(root / "soft", "trusted.a", b"1", follow_symlinks=False)
    assert os.listxattr(root / "soft", follow_symlinks=False) == ["trusted.a"]
    os.link(root / "g", root / "h")
    assert os.getxattr(root / "h", "user.a") == b"1"


def test_kinds_that_have_no_user_attributes(root: Path) -> None:
    os.mkfifo(root / "pipe")
    assert fails(os.setxattr, root / "pipe", "user.a", b"1") == "EPERM"
    assert fails(os.getxattr, root / "pipe", "user.a") == "ENODATA"
    os.setxattr(root / "pipe", "trusted.a", b"1")
    (root / "d").mkdir()
    os.setxattr(root / "d", "user.a", b"1")
    assert os.getxattr(root / "d", "user.a") == b"1"


def test_rights(root: Path, thing: Path) -> None:
    thing.chmod(0o644)
    ME(os.setxattr, thing, "user.a", b"1")
    assert OTHER(os.getxattr, thing, "user.a") == b"1"
    assert OTHER.fails(os.setxattr, thing, "user.a", b"2") == "EACCES"
    assert OTHER.fails(os.removexattr, thing, "user.a") == "EACCES"
    thing.chmod(0o200)
    assert ME.fails(os.getxattr, thing, "user.a") == "EACCES"
    assert ME.fails(os.setxattr, thing, "user.a", b"2") == "OK"
    thing.chmod(0)
    assert ME(os.listxattr, thing) == ["user.a"]
    thing.chmod(0o666)
    os.setxattr(thing, "trusted.t", b"t")
    os.setxattr(thing, "security.s", b"s")
    assert ME.fails(os.getxattr, thing, "trusted.t") == "ENODATA"
    assert ME.fails(os.setxattr, thing, "trusted.t", b"") == "EPERM"
    assert ME.fails(os.removexattr, thing, "trusted.t") == "EPERM"
    assert ME(os.getxattr, thing, "security.s") == b"s"
    assert ME.fails(os.setxattr, thing, "security.s", b"") == "EPERM"
    assert ME.fails(os.removexattr, thing, "security.s") == "EPERM"
    assert sorted(ME(os.listxattr, thing)) == ["security.s", "user.a"]
    assert sorted(os.listxattr(thing)) == ["security.s", "trusted.t", "user.a"]
    folder = root / "sticky"
    folder.mkdir()
    folder.chmod(0o1777)
    assert ME.fails(os.setxattr, folder, "user.a", b"1") == "EPERM"
    folder.chmod(0o777)
    assert ME.fails(os.setxattr, folder, "user.a", b"1") == "OK"


CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service+ep, revision 2


@pytest.mark.parametrize("who", ["root", "owner"])
@pytest.mark.parametrize("what", ["write", "truncate", "chown", "O_TRUNC"])
def test_changes_take_the_capability(thing: Path, who: str, what: str) -> None:
    thing.chmod(0o755)
    os.setxattr(thing, "security.capability", CAPABILITY)
    assert ME(os.getxattr, thing, "security.capability") == CAPABILITY

    def change() -> None:
        if what == "write":
            fd = os.open(thing, os.O_WRONLY)
            os.write(fd, b"y")
            os.close(fd)
        elif what == "truncate":
            os.truncate(thing, 5)
        elif what == "chown":
            os.chown(thing, -1, 2001)
        else:
            os.close(os.open(thing, os.O_WRONLY | os.O_TRUNC))

    (Actor(0, 0) if who == "root" else ME)(change)
    assert fails(os.getxattr, thing, "security.capability") == "ENODATA"


def test_a_capability_set_after_a_write_stays(thing: Path) -> None:
    """As tar sets it: the file is still open, its bytes may still wait to be stored."""
    with open(thing, "r+b", buffering=0) as file:
        file.write(b"program")
        os.setxattr(thing, "security.capability", CAPABILITY)
        os.fchmod(file.fileno(), 0o4755)
    assert os.getxattr(thing, "security.capability") == CAPABILITY
    assert thing.stat().st_mode & 0o7777 == 0o4755
    with open(thing, "r+b", buffering=0) as file:
        file.write(b"again")
    assert fails(os.getxattr, thing, "security.capability") == "ENODATA"


def test_many(thing: Path) -> None:
    for number in range(40):
        os.setxattr(thing, f"user.number-{number}", b"v" * 20)
    assert len(os.listxattr(thing)) == 40
    for number in range(0, 40, 2):
        os.removexattr(thing, f"user.number-{number}")
    assert len(os.listxattr(thing)) == 20


def test_copying_keeps_them(root: Path, thing: Path) -> None:
    os.setxattr(thing, "user.a", b"1")
    subprocess.run(["cp", "-a", thing, root / "copy"], check=True)
    assert os.getxattr(root / "copy", "user.a") == b"1"
