"""Owners, groups, modes: who may change what, what new things get, and when set-id bits go."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from semantics.actors import Actor, fails
from semantics.syscalls import RENAME_EXCHANGE, chmod_nofollow, renameat2

pytestmark = pytest.mark.e2e
ROOT = Actor(0, 0)
ME = Actor(1001, 2001, (2001, 2002))
OTHER = Actor(1003, 2003, (2003,))
MEMBER = Actor(1003, 2003, (2003, 2001))  # of the owner's group, by a supplementary one
KINDS = ["file", "directory", "fifo", "socket", "device"]


def put(path: Path, kind: str, mode: int = 0o644, owner: Actor = ME) -> Path:
    """Something of that kind, of `owner`."""
    if kind == "directory":
        path.mkdir()
    else:
        types = {"file": stat.S_IFREG, "fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "device": stat.S_IFCHR}
        os.mknod(path, types[kind] | 0o600, os.makedev(1, 3))
    os.chown(path, owner.uid, owner.gid)
    path.chmod(mode)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("kind", KINDS)
def test_chmod(root: Path, kind: str) -> None:
    thing = put(root / "x", kind)
    for bits in (0, 0o111, 0o753, 0o1777, 0o4711, 0o2711, 0o7777):
        thing.chmod(bits)
        assert mode(thing) == bits
        ME(thing.chmod, bits)
        assert mode(thing) == bits
    assert OTHER.fails(thing.chmod, 0o600) == "EPERM"
    assert MEMBER.fails(thing.chmod, 0o600) == "EPERM"
    assert mode(thing) == 0o7777


@pytest.mark.parametrize("kind", KINDS)
def test_chmod_by_an_owner_outside_the_group_takes_set_gid(root: Path, kind: str) -> None:
    thing = put(root / "x", kind)
    os.chown(thing, ME.uid, 4000)
    ME(thing.chmod, 0o6755)
    assert mode(thing) == 0o4755
    os.chown(thing, ME.uid, 2002)
    ME(thing.chmod, 0o2755)
    assert mode(thing) == 0o2755


def test_chmod_through_links(root: Path) -> None:
    put(root / "x", "file", 0o600)
    os.symlink("x", root / "soft")
    os.chmod(root / "soft", 0o640)
    assert mode(root / "x") == 0o640
    assert fails(chmod_nofollow, root / "soft", 0o600) == "ENOTSUP"
    assert mode(root / "soft") == 0o777


@pytest.mark.parametrize("kind", KINDS)
def test_chown(root: Path, kind: str) -> None:
    thing = put(root / "x", kind)
    os.chown(thing, 5, 6)
    os.chown(thing, -1, 7)
    os.chown(thing, 8, -1)
    assert (thing.lstat().st_uid, thing.lstat().st_gid) == (8, 7)
    os.chown(thing, ME.uid, ME.gid)
    ME(os.chown, thing, -1, 2002)
    assert thing.lstat().st_gid == 2002
    ME(os.chown, thing, ME.uid, 2001)
    assert thing.lstat().st_gid == 2001
    assert ME.fails(os.chown, thing, OTHER.uid, -1) == "EPERM"
    assert ME.fails(os.chown, thing, -1, 2003) == "EPERM"
    assert OTHER.fails(os.chown, thing, -1, 2003) == "EPERM"
    assert OTHER.fails(os.chown, thing, OTHER.uid, OTHER.gid) == "EPERM"
    assert OTHER.fails(os.chown, thing, ME.uid, -1) == "EPERM"
    assert OTHER.fails(os.chown, thing, -1, ME.gid) == "EPERM"
    assert MEMBER.fails(os.chown, thing, -1, 2001) == "EPERM"
    assert OTHER.fails(os.chown, thing, -1, -1) == "OK"
    assert (thing.lstat().st_uid, thing.lstat().st_gid) == (ME.uid, 2001)
    ME(os.chown, thing, -1, 2002)
    os.chown(thing, ME.uid, 4000)
    ME(os.chown, thing, -1, 4000)  # no change: not asked whether a member


def test_chown_of_a_link(root: Path) -> None:
    put(root / "x", "file")
    os.symlink("x", root / "soft")
    os.lchown(root / "soft", 5, 6)
    assert ((root / "soft").lstat().st_uid, (root / "x").stat().st_uid) == (5, ME.uid)
    os.chown(root / "soft", 7, 8)
    assert ((root / "soft").lstat().st_uid, (root / "x").stat().st_uid) == (5, 7)


@pytest.mark.parametrize("who", ["root", "owner"])
@pytest.mark.parametrize(("uid", "gid"), [(-1, -1), (-1, 2002), (ME.uid, -1), (ME.uid, 2001)])
def test_chown_takes_set_id_bits(root: Path, who: str, uid: int, gid: int) -> None:
    actor = {"root": ROOT, "owner": ME}[who]
    for before, after in ((0o6555, 0o555), (0o6745, 0o2745), (0o4711, 0o711), (0o2755, 0o755), (0o1755, 0o1755)):
        thing = put(root / f"f{before:o}", "file", before)
        actor(os.chown, thing, uid, gid)
        assert oct(mode(thing)) == oct(after), oct(before)
    folder = put(root / "d", "directory", 0o6755)
    actor(os.chown, folder, uid, gid)
    assert oct(mode(folder)) == oct(0o6755)


def test_chown_without_a_change_by_a_stranger_keeps_set_id_bits(root: Path) -> None:
    thing = put(root / "x", "file", 0o6755)
    OTHER.fails(os.chown, thing, -1, -1)
    assert oct(mode(thing)) in (oct(0o6755), oct(0o755))


WRITES = {
    "write": lambda path: _write(path, os.O_WRONLY),
    "append": lambda path: _write(path, os.O_WRONLY | os.O_APPEND),
    "pwrite far away": lambda path: _pwrite(path),
    "truncate": lambda path: os.truncate(path, 1),
    "longer": lambda path: os.truncate(path, 100_000),
    "open with O_TRUNC": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
    "ftruncate": lambda path: _ftruncate(path),
}


def _write(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    os.write(fd, b"x")
    assert os.getuid() == 0 or not os.fstat(fd).st_mode & stat.S_ISUID  # gone at once, not at close
    os.close(fd)


def _pwrite(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"x", 1 << 20)
    os.close(fd)


def _ftruncate(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    os.ftruncate(fd, 5)
    os.close(fd)


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("who", ["root", "owner", "other", "member"])
def test_writing_takes_set_id_bits(root: Path, name: str, who: str) -> None:
    actor = {"root": ROOT, "owner": ME, "other": OTHER, "member": MEMBER}[who]
    for before, after in ((0o6777, 0o777), (0o4777, 0o777), (0o2777, 0o777), (0o1777, 0o1777)):
        thing = put(root / f"f{before:o}", "file", 0o666)
        thing.write_bytes(b"0123456789")
        os.chown(thing, ME.uid, ME.gid)
        thing.chmod(before)
        actor(WRITES[name], thing)
        assert oct(mode(thing)) == oct(before if who == "root" else after), oct(before)


def test_reading_and_renaming_keep_set_id_bits(root: Path) -> None:
    thing = put(root / "x", "file", 0o6755)
    ME(thing.read_bytes)
    ME(os.link, thing, root / "y")
    ME(os.rename, root / "y", root / "z")
    assert mode(root / "z") == 0o6755


@pytest.mark.parametrize("kind", ["file", "directory", "fifo"])
def test_what_new_things_get(root: Path, kind: str) -> None:
    makers = {
        "file": lambda path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o777)),
        "directory": lambda path: os.mkdir(path, 0o777),
        "fifo": lambda path: os.mkfifo(path, 0o777),
    }
    for umask in (0, 0o022, 0o077, 0o777):
        Actor(1001, 2001, (), umask)(makers[kind], root / f"x{umask:o}")
        found = (root / f"x{umask:o}").lstat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1001, 2001, 0o777 & ~umask)
    folder = put(root / "sgid", "directory", 0o2777, OTHER)
    ME(makers[kind], folder / "x")
    found = (folder / "x").lstat()
    assert (found.st_uid, found.st_gid) == (ME.uid, OTHER.gid)
    assert stat.S_IMODE(found.st_mode) == (0o2755 if kind == "directory" else 0o755)


def test_set_gid_on_a_new_file_of_a_foreign_group(root: Path) -> None:
    folder = put(root / "sgid", "directory", 0o2777, OTHER)

    def create(name: str, bits: int) -> None:
        os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY, bits))

    free = Actor(1001, 2001, (), 0)
    free(create, "a", 0o2775)
    assert oct(mode(folder / "a")) == oct(0o775)
    free(create, "b", 0o2765)
    assert oct(mode(folder / "b")) == oct(0o2765)
    Actor(1001, 2001, (2003,), 0)(create, "c", 0o2775)
    assert oct(mode(folder / "c")) == oct(0o2775)


@pytest.mark.parametrize("sticky", [True, False])
@pytest.mark.parametrize("action", ["unlink", "rename", "rename over", "rmdir", "exchange"])
def test_sticky_directories(root: Path, sticky: bool, action: str) -> None:
    """In one, names are taken by the owner of the thing, of the directory, or root; elsewhere by whoever may write."""
    third = Actor(1005, 2005)
    for who, allowed in ((third, not sticky), (OTHER, True), (ME, True), (ROOT, True)):
        folder = put(root / f"d{who.uid}", "directory", 0o1777 if sticky else 0o777, OTHER)
        thing = put(folder / "x", "directory" if action == "rmdir" else "file", 0o666)
        own = put(folder / "own", "file", 0o666, who)
        calls = {
            "unlink": lambda thing=thing: os.unlink(thing),
            "rmdir": lambda thing=thing: os.rmdir(thing),
            "rename": lambda thing=thing, folder=folder: os.rename(thing, folder / "y"),
            "rename over": lambda thing=thing, own=own: os.rename(own, thing),
            "exchange": lambda thing=thing, own=own: renameat2(own, thing, RENAME_EXCHANGE),
        }
        assert who.fails(calls[action]) == ("OK" if allowed else "EPERM"), who.uid


def test_moving_a_directory_needs_write_permission_on_it(root: Path) -> None:
    (root / "from").mkdir()
    (root / "to").mkdir()
    for name in ("from", "to"):
        (root / name).chmod(0o777)
    foreign = put(root / "from" / "d", "directory", 0o755, OTHER)
    assert ME.fails(os.rename, foreign, root / "from" / "e") == "OK"  # `..` stays the same
    assert ME.fails(os.rename, root / "from" / "e", root / "to" / "d") == "EACCES"
    (root / "from" / "e").chmod(0o777)
    assert ME.fails(os.rename, root / "from" / "e", root / "to" / "d") == "OK"
    (root / "to" / "d").chmod(0o555)
    assert OTHER.fails(os.rename, root / "to" / "d", root / "from" / "d") == "EACCES"


def test_rights_of_owner_group_and_others(root: Path) -> None:
    thing = put(root / "x", "file")
    reads, writes = os.O_RDONLY, os.O_WRONLY

    def may(actor: Actor, flags: int) -> str:
        return actor.fails(lambda: os.close(os.open(thing, flags)))

    for bits, owner, member, other in ((0o077, 0, 7, 7), (0o707, 7, 0, 7), (0o770, 7, 7, 0), (0o421, 4, 2, 1)):
        thing.chmod(bits)
        for actor, rights in ((ME, owner), (MEMBER, member), (OTHER, other)):
            assert may(actor, reads) == ("OK" if rights & 4 else "EACCES")
            assert may(actor, writes) == ("OK" if rights & 2 else "EACCES")
    thing.chmod(0)
    assert fails(lambda: os.close(os.open(thing, os.O_RDWR))) == "OK"


def test_rights_last_as_long_as_the_descriptor(root: Path) -> None:
    thing = put(root / "x", "file", 0o666)

    def body() -> None:
        fd = os.open(thing, os.O_RDWR)
        os.chmod(thing, 0)
        os.write(fd, b"x")
        os.ftruncate(fd, 100)
        assert len(os.pread(fd, 200, 0)) == 100
        os.close(fd)

    ME(body)
    assert ME.fails(lambda: os.open(thing, os.O_RDONLY)) == "EACCES"


def test_creating_without_the_right_to_use(root: Path) -> None:
    """open(2) gives what it asks for on what it makes, whatever the mode; mode 0 is for those who come later."""

    def body() -> None:
        fd = os.open(root / "x", os.O_CREAT | os.O_RDWR, 0)
        os.write(fd, b"abc")
        assert os.pread(fd, 3, 0) == b"abc"
        os.close(fd)

    ME(body)
    assert ME.fails(lambda: os.open(root / "x", os.O_RDONLY)) == "EACCES"


def test_a_directory_opened_before_is_read_by_whoever_has_it(root: Path) -> None:
    folder = put(root / "d", "directory", 0o700, ROOT)
    for number in range(2000):
        (folder / f"n{number}").touch()

    def body() -> int:
        fd = os.open(folder, os.O_RDONLY)
        os.setresgid(1001, 1001, 1001)
        os.setresuid(1001, 1001, 1001)
        return len(os.listdir(fd))

    assert ROOT(body) == 2000


def test_special_files(root: Path) -> None:
    for kind, device in ((stat.S_IFCHR, os.makedev(1, 3)), (stat.S_IFBLK, os.makedev(259, 0xFFFFF))):
        name = root / f"dev{kind:o}"
        os.mknod(name, kind | 0o640, device)
        found = name.lstat()
        assert (stat.S_IFMT(found.st_mode), found.st_rdev, found.st_nlink) == (kind, device, 1)
        assert ME.fails(os.mknod, root / "mine", kind | 0o640, device) == "EPERM"
    ME(os.mknod, root / "whiteout", stat.S_IFCHR | 0o600, 0)  # an overlay's mark of a removed name: Linux 5.8
    assert ((root / "whiteout").lstat().st_rdev, (root / "whiteout").lstat().st_uid) == (0, ME.uid)
    assert ME.fails(os.mknod, root / "mine", stat.S_IFBLK | 0o600, 0) == "EPERM"
    ME(os.mkfifo, root / "pipe")
    ME(os.mknod, root / "sock", stat.S_IFSOCK | 0o644)
    assert stat.S_ISSOCK((root / "sock").lstat().st_mode)
    for name in ("pipe", "sock"):
        os.rename(root / name, root / "moved")
        os.link(root / "moved", root / name)
        assert (root / name).lstat().st_nlink == 2
        (root / "moved").unlink()


def test_a_pipe_works(root: Path) -> None:
    os.mkfifo(root / "pipe")
    reader = os.open(root / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(root / "pipe", os.O_WRONLY)
    os.write(writer, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    os.close(writer)
