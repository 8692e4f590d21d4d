"""What each opcode does: `HANDLERS[opcode](volume, request)` returns the reply's message.

An FfsError or OSError becomes the reply's errno. Opcodes that are not here answer ENOSYS, and the kernel then does
what it does without them.
"""

from __future__ import annotations

from collections.abc import Callable

from fireflyfs.fuse.operations import attributes, directories, files, ioctls, locks, nameless, names, ranges, xattrs
from fireflyfs.fuse.protocol import Opcode
from fireflyfs.fuse.request import Reply, Request
from fireflyfs.fuse.volume import Volume

__all__ = ["HANDLERS", "Handler"]

Handler = Callable[[Volume, Request], Reply]


HANDLERS: dict[int, Handler] = {
    Opcode.LOOKUP: names.lookup,
    Opcode.FORGET: names.forget,
    Opcode.BATCH_FORGET: names.batch_forget,
    Opcode.GETATTR: attributes.getattr_,
    Opcode.STATX: attributes.statx,
    Opcode.SETATTR: attributes.setattr_,
    Opcode.READLINK: names.readlink,
    Opcode.SYMLINK: names.symlink,
    Opcode.MKNOD: names.mknod,
    Opcode.MKDIR: names.mkdir,
    Opcode.UNLINK: names.unlink,
    Opcode.RMDIR: names.rmdir,
    Opcode.RENAME: names.rename,
    Opcode.RENAME2: names.rename2,
    Opcode.LINK: names.link,
    Opcode.OPEN: files.open_,
    Opcode.CREATE: files.create,
    Opcode.READ: files.read,
    Opcode.WRITE: files.write,
    Opcode.FLUSH: files.flush,
    Opcode.RELEASE: files.release,
    Opcode.FSYNC: files.fsync,
    Opcode.LSEEK: ranges.lseek,
    Opcode.FALLOCATE: ranges.fallocate,
    Opcode.COPY_FILE_RANGE: ranges.copy_file_range,
    Opcode.GETLK: locks.getlk,
    Opcode.SETLK: locks.setlk,
    Opcode.SETLKW: locks.setlkw,
    Opcode.INTERRUPT: locks.interrupt,
    Opcode.OPENDIR: directories.opendir,
    Opcode.READDIR: directories.readdir,
    Opcode.READDIRPLUS: directories.readdirplus,
    Opcode.RELEASEDIR: directories.releasedir,
    Opcode.FSYNCDIR: directories.fsyncdir,
    Opcode.STATFS: attributes.statfs,
    Opcode.ACCESS: attributes.access,
    Opcode.IOCTL: ioctls.ioctl,
    Opcode.GETXATTR: xattrs.getxattr,
    Opcode.LISTXATTR: xattrs.listxattr,
    Opcode.SETXATTR: xattrs.setxattr,
    Opcode.REMOVEXATTR: xattrs.removexattr,
    Opcode.TMPFILE: nameless.tmpfile,
}
