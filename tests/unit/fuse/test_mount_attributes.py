"""Extended attributes on a real kernel mount: what they cost, and what the mount remembers of them."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time

import pytest

from fireflyfs.fuse.told import ACL_NAME, CAPABILITY_NAME, KNOWN_MAX, REMOVED_MAX, Known, RemovedInodes, XattrKnowledge
from fireflyfs.proto import meta_pb2 as m


def asked(backend, name):
    return sum(1 for called, _ in backend.meta.calls if called == name)


@pytest.mark.e2e
def test_attributes_come_back_as_they_were_set(backend, mounts):
    root = mounts(backend).mountpoint
    (root / "f").write_bytes(b"x")
    os.setxattr(root / "f", "user.a", bytes(range(256)))
    os.setxattr(root / "f", "user.empty", b"")
    os.setxattr(root / "f", "user.large", bytes(65536))
    assert os.getxattr(root / "f", "user.a") == bytes(range(256))
    assert os.getxattr(root / "f", "user.large") == bytes(65536)
    assert sorted(os.listxattr(root / "f")) == ["user.a", "user.empty", "user.large"]
    os.removexattr(root / "f", "user.a")
    with pytest.raises(OSError, match=r".*") as info:
        os.getxattr(root / "f", "user.a")
    assert info.value.errno == errno.ENODATA


@pytest.mark.e2e
def test_writing_asks_for_no_capability(backend, mounts):
    """The kernel wants to know of security.capability before it writes: with none, no round trip."""
    root = mounts(backend).mountpoint
    with open(root / "f", "wb", buffering=0) as file:
        for _ in range(20):
            file.write(b"x" * 1000)
            time.sleep(0.01)
    before = len(backend.meta.calls)
    with open(root / "f", "r+b", buffering=0) as file:
        for _ in range(5):
            file.write(b"x" * 1000)
    assert asked(backend, "get_xattr") == 0
    assert [name for name, _ in backend.meta.calls[before:]].count("stat") == 0


@pytest.mark.e2e
def test_listing_a_directory_asks_for_no_attributes(backend, mounts):
    root = mounts(backend).mountpoint
    for number in range(20):
        (root / f"f{number}").touch()
    before = len(backend.meta.calls)
    for entry in os.scandir(root):
        entry.stat()
        assert os.listxattr(entry.path) == []
        with pytest.raises(OSError, match=r".*"):
            os.getxattr(entry.path, "system.posix_acl_access")
    names = [name for name, _ in backend.meta.calls[before:]]
    assert "get_xattr" not in names
    assert "list_xattr" not in names


@pytest.mark.e2e
def test_a_removed_directory_still_has_attributes_for_who_holds_it(backend, mounts):
    mount = mounts(backend)
    (mount.mountpoint / "d").mkdir()
    held = os.open(mount.mountpoint / "d", os.O_RDONLY)
    (mount.mountpoint / "d").rmdir()
    found = os.fstat(held)
    assert found.st_nlink == 0
    os.close(held)


@pytest.mark.e2e
def test_access_times_are_kept_when_asked_for(backend, mounts):
    plain = mounts(backend).mountpoint
    root = mounts(backend, relatime=True).mountpoint
    (plain / "f").write_bytes(b"x" * 100)
    before = (plain / "f").stat()
    time.sleep(0.02)
    (plain / "f").read_bytes()
    assert (plain / "f").stat().st_atime_ns == before.st_atime_ns
    with open(root / "f", "rb") as file:
        file.read()
        read = os.fstat(file.fileno()).st_atime_ns
        assert read > before.st_mtime_ns
    end = time.monotonic() + 5
    while backend.meta._inode(before.st_ino).atime_ns != read:  # the kernel does not wait for RELEASE
        assert time.monotonic() < end
        time.sleep(0.01)
    after = (root / "f").stat()
    assert (after.st_atime_ns, after.st_mtime_ns, after.st_ctime_ns) == (read, before.st_mtime_ns, before.st_ctime_ns)
    (root / "f").read_bytes()
    assert (root / "f").stat().st_atime_ns == read  # newer than the others, and no day old
    os.utime(root / "f", ns=(1, after.st_mtime_ns))
    (root / "f").read_bytes()
    assert (root / "f").stat().st_atime_ns > read
    os.utime(root / "f", ns=(1, after.st_mtime_ns))
    os.close(os.open(root / "f", os.O_RDONLY | os.O_NOATIME))
    assert (root / "f").stat().st_atime_ns == 1


def test_knowledge_ends():
    known = XattrKnowledge(1.0)
    known.learn(m.Inode(id=5, xattrs=True, acl=True), 10.0)
    known.learn(m.Inode(id=6), 10.0)
    assert known.look(5, CAPABILITY_NAME, 10.5) is Known.ABSENT
    assert known.look(5, ACL_NAME, 10.5) is Known.PRESENT
    assert known.look(5, b"user.a", 10.5) is Known.UNKNOWN
    assert known.look(5, b"", 10.5) is Known.UNKNOWN
    assert known.look(6, b"", 10.5) is known.look(6, b"user.a", 10.5) is Known.ABSENT
    assert known.look(6, b"", 11.0) is Known.UNKNOWN
    known.forget(6)
    assert known.look(6, b"", 10.5) is Known.UNKNOWN


def test_memory_is_bounded():
    known, removed = XattrKnowledge(1.0), RemovedInodes()
    for number in range(KNOWN_MAX + 10):
        known.learn(m.Inode(id=number + 1), 0.0)
    assert len(known._known) <= KNOWN_MAX
    for number in range(REMOVED_MAX + 10):
        removed.add(m.Inode(id=number + 1))
    assert len(removed) == REMOVED_MAX
    assert removed.get(1) is None
    assert removed.get(REMOVED_MAX + 10) is not None
    removed.forget(REMOVED_MAX + 10)
    assert removed.get(REMOVED_MAX + 10) is None


@pytest.mark.e2e
@pytest.mark.skipif(not shutil.which("stat"), reason="needs stat(1)")
def test_the_time_when_a_file_was_made(backend, mounts):
    root = mounts(backend).mountpoint
    (root / "f").write_bytes(b"x" * 5000)
    for inode in backend.meta.inodes.values():
        inode.btime_ns = 987_654_321 * 10**9
    with open(root / "f", "ab") as file:
        file.write(b"more")
        for path in (root / "f", root):
            info = path.stat()
            said = subprocess.run(
                ["stat", "-c", "%W %s %Y %Z %f %h %u %g", path], check=True, capture_output=True, text=True
            ).stdout.split()
            times = [int(info.st_mtime), int(info.st_ctime)]
            wanted = [987_654_321, info.st_size, *times, f"{info.st_mode:x}", info.st_nlink, info.st_uid, info.st_gid]
            assert said == [str(field) for field in wanted]
    made = subprocess.run(["stat", "-c", "%W", root / ".ffs"], check=True, capture_output=True, text=True).stdout
    assert made.strip() in ("0", "-"), "nobody knows, and nothing breaks"
    assert (
        subprocess.run(["stat", "-c", "%W", root / "f"], check=True, capture_output=True, text=True).stdout
        == "987654321\n"
    )
