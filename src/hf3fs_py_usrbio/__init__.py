"""3FS's Python module for I/O through rings, on FireflyFS: the same names, docs/usrbio.md."""

from fireflyfs.client.usrbio.files import deregister_fd, force_fsync, hardlink, punch_hole, register_fd
from fireflyfs.client.usrbio.iovec import iovec
from fireflyfs.client.usrbio.mountpoint import extract_mount_point
from fireflyfs.client.usrbio.ring import ioring

__all__ = [
    "deregister_fd",
    "extract_mount_point",
    "force_fsync",
    "hardlink",
    "ioring",
    "iovec",
    "punch_hole",
    "register_fd",
]
