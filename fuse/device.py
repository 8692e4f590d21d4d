"""The mount itself and its descriptors: mount, clone, unmount, abort. Nothing here knows what a request means."""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import shutil
import socket
import subprocess
from pathlib import Path

from fireflyfs.common.errors import Code, error
from fireflyfs.fuse import protocol

DEVICE = "/dev/fuse"
MS_NOSUID = 2
MS_NODEV = 4
MS_NOATIME = 1024
MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
FUSERMOUNT_TIMEOUT_S = 20.0

_libc = ctypes.CDLL(None, use_errno=True)


def mount(
    mountpoint: Path,
    *,
    source: str,
    allow_other: bool,
    default_permissions: bool,
    max_read: int,
    use_helper: bool,
    subtype: str = "fireflyfs",
) -> int:
    """Mount and return the session's descriptor, owned by the caller.

    As root by mount(2); with `use_helper`, or as another user, through fusermount3. Raises OSError, or CONFIG when
    the helper is missing or refuses.
    """
    if os.geteuid() == 0 and not use_helper:
        return _mount_syscall(mountpoint, source, subtype, allow_other, default_permissions, max_read)
    return _mount_helper(mountpoint, source, subtype, allow_other, default_permissions, max_read)


def _mount_syscall(
    mountpoint: Path, source: str, subtype: str, allow_other: bool, default_permissions: bool, max_read: int
) -> int:
    root_mode = mountpoint.stat().st_mode & 0o170000
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode={root_mode:o},user_id={os.getuid()},group_id={os.getgid()},max_read={max_read}"
    if allow_other:
        options += ",allow_other"
    if default_permissions:
        options += ",default_permissions"
    flags = MS_NOSUID | MS_NODEV | MS_NOATIME
    done = _libc.mount(
        source.encode(), os.fsencode(mountpoint), f"fuse.{subtype}".encode(), ctypes.c_ulong(flags), options.encode()
    )
    if done != 0:
        number = ctypes.get_errno()
        os.close(fd)
        raise OSError(number, f"mount: {os.strerror(number)}", str(mountpoint))
    return fd


def _mount_helper(
    mountpoint: Path, source: str, subtype: str, allow_other: bool, default_permissions: bool, max_read: int
) -> int:
    helper = shutil.which("fusermount3")
    if helper is None:
        raise error(Code.CONFIG, "mounting as a user needs fusermount3: install the package fuse3")
    # No max_read here: fusermount3 hands it on only when the kernel took it before, and INIT settles it anyway.
    del max_read
    options = f"fsname={source},subtype={subtype},nosuid,nodev,noatime"
    if allow_other:
        options += ",allow_other"
    if default_permissions:
        options += ",default_permissions"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        os.set_inheritable(theirs.fileno(), True)
        done = subprocess.run(
            [helper, "-o", options, "--", str(mountpoint)],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
            timeout=FUSERMOUNT_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise error(Code.CONFIG, f"fusermount3 cannot mount {mountpoint}: {done.stderr.strip()}")
        return _receive_descriptor(ours)


def _receive_descriptor(sock: socket.socket) -> int:
    fds = array.array("i")
    _, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_LEN(fds.itemsize))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: fds.itemsize])
            os.set_inheritable(fds[0], False)
            return fds[0]
    raise error(Code.CONFIG, "fusermount3 handed over no descriptor")


def clone(session_fd: int) -> int:
    """Another descriptor of the same session, with its own queue of requests under way; after INIT only.

    A user who may not open the device (fusermount3 opened it for the mount) gets a duplicate: the same, a bit slower.
    """
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        return os.dup(session_fd)
    return _cloned(fd, session_fd)


def _cloned(fd: int, session_fd: int) -> int:
    """A device that was just opened becomes one of the session; it is closed when that fails."""
    try:
        fcntl.ioctl(fd, protocol.DEV_IOC_CLONE, session_fd.to_bytes(4, "little"))
    except OSError:
        os.close(fd)
        raise
    return fd


def clone_nonblocking(session_fd: int) -> int | None:
    """As `clone`, but reads fail with EAGAIN where others would sleep; None for users who may not open the device.

    A duplicate would not do, because it shares with the others whether they sleep.
    """
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError:
        return None
    return _cloned(fd, session_fd)


def unmount(mountpoint: Path, *, lazy: bool = True, force: bool = False) -> None:
    """Unmount; a mount that is already gone is no error. Raises OSError, EBUSY when it is in use and not `lazy`.

    Lazy: open files keep working until they are closed. Force: their requests fail from now on.
    """
    if force:
        _libc.umount2(os.fsencode(mountpoint), MNT_FORCE | UMOUNT_NOFOLLOW)  # ends the connection even when busy
    done = _libc.umount2(os.fsencode(mountpoint), (MNT_DETACH if lazy else 0) | UMOUNT_NOFOLLOW)
    if done == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOENT):
        return  # not mounted any more
    helper = shutil.which("fusermount3")
    if number == errno.EPERM and helper is not None:
        command = [helper, "-u", "-q"] + (["-z"] if lazy else []) + ["--", str(mountpoint)]
        code = subprocess.run(command, timeout=FUSERMOUNT_TIMEOUT_S, check=False).returncode
        if code == 0 or not is_mounted(mountpoint):
            return
        number = errno.EBUSY
    raise OSError(number, f"unmount: {os.strerror(number)}", str(mountpoint))


def _mounts() -> list[tuple[str, str, str]]:
    """(mount point, file system, major:minor) of each mount of this namespace."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split(" ")
        kind = fields[fields.index("-") + 1]
        point = fields[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
        found.append((point, kind, fields[2]))
    return found


def device_number(mountpoint: Path) -> str | None:
    """The "major:minor" of the FUSE mount at `mountpoint`, None when there is none. Never touches the mount."""
    wanted = os.path.abspath(mountpoint)
    for point, kind, number in reversed(_mounts()):
        if point == wanted and kind.startswith("fuse"):
            return number
    return None


def is_mounted(mountpoint: Path) -> bool:
    return device_number(mountpoint) is not None


def set_kernel_readahead(number: str, kib: int) -> bool:
    """Let the kernel read ahead `kib` KiB on the mount with device `number`; needs root. False: it could not be set."""
    try:
        Path(f"/sys/class/bdi/{number}/read_ahead_kb").write_text(str(kib), encoding="ascii")
    except OSError:
        return False
    return True


def abort_connection(number: str) -> bool:
    """Fail every request of the FUSE connection with device `number` and end it; for a mount whose process is gone."""
    control = Path("/sys/fs/fuse/connections")
    borrowed = (
        not control.is_mount() and _libc.mount(b"fusectl", bytes(control), b"fusectl", ctypes.c_ulong(0), None) == 0
    )
    try:
        (control / number.split(":")[1] / "abort").write_text("1", encoding="ascii")
    except OSError:
        return False
    finally:
        if borrowed:  # leave the host as it was
            _libc.umount2(bytes(control), 0)
    return True
