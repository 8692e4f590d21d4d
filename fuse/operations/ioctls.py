"""IOCTL: 3FS's calls on files, and registration of files for rings (client/usrbio/ioctls.py)."""

from __future__ import annotations

import errno
import os

from fireflyfs.client.usrbio import ioctls
from fireflyfs.common.errors import Code, error
from fireflyfs.fuse import protocol
from fireflyfs.fuse.inodes import FileHandle
from fireflyfs.fuse.operations.privileges import SET_ID_BITS, drop_privileges
from fireflyfs.fuse.request import Reply, Request
from fireflyfs.fuse.volume import Volume

_NAME_BYTES = 32


def ioctl(volume: Volume, request: Request) -> Reply:
    """The kernel has copied what the command's number says goes in, and copies what goes out."""
    fh, flags, command, _, in_size, out_size = protocol.IOCTL_IN.unpack_from(request.body)
    argument = request.body[protocol.IOCTL_IN.size : protocol.IOCTL_IN.size + in_size]
    answer = b""
    if volume.rings is None:
        raise OSError(errno.ENOTTY, "no rings are served here")
    if command == ioctls.GET_MAGIC:
        answer = ioctls.WORD.pack(ioctls.MAGIC)
    elif command == ioctls.GET_VERSION:
        answer = ioctls.WORD.pack(ioctls.VERSION)
    elif command == ioctls.GET_MOUNT_NAME:
        name = os.fsencode(os.path.basename(volume.mountpoint))[: _NAME_BYTES - 1]
        answer = name.ljust(_NAME_BYTES, b"\0")
    elif command == ioctls.GET_PATH_OFFSET:
        answer = ioctls.WORD.pack(len(os.fsencode(volume.mountpoint)))
    elif flags & protocol.IOCTL_DIR:
        raise OSError(errno.ENOTTY, f"ioctl {command:#x} of a directory")
    elif command == ioctls.FSYNC:
        live = volume.handles.file(fh).live
        volume.flush(live)
        if not volume.rings.files.record(live):
            volume.record(live, keep=True)
    elif command == ioctls.REGISTER:
        answer = ioctls.TOKEN.pack(_register(volume, request, volume.handles.file(fh)))
    elif command == ioctls.DEREGISTER and in_size == ioctls.TOKEN.size:
        volume.rings.files.deregister(ioctls.TOKEN.unpack(argument)[0], volume.handles.file(fh))
    else:
        raise OSError(errno.ENOTTY, f"ioctl {command:#x}")
    return protocol.IOCTL_OUT.pack(0, 0, 0, 0) + answer[:out_size]


def _register(volume: Volume, request: Request, handle: FileHandle) -> int:
    assert volume.rings is not None
    live = handle.live
    if not live.inode.nlink and not live.sessions:
        raise error(Code.BAD_HANDLE)
    if handle.writes and (live.inode.capability or live.inode.mode & SET_ID_BITS):
        with live.lock:  # once for all that is going to be written
            drop_privileges(volume, request, live, protocol.WRITE_KILL_SUIDGID)
    return volume.rings.files.register(handle)
