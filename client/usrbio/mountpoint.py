"""Which mount a path is on, as 3FS's programs ask."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import Final

TYPES: Final = ("fuse.hf3fs", "fuse.fireflyfs")
ANY_TYPE: Final = "HF3FS_USRBIO_DONT_CHECKFS_FOR_MP"  # `yes`: whatever its type, if it holds VIRTUAL
VIRTUAL: Final = "3fs-virt"
PATH_BYTES_MAX: Final = 4096
MOUNT_POINT_BYTES_MAX: Final = 255  # as in 3FS's structures, with a NUL behind it


def extract_mount_point(path: str) -> str | None:
    """The mount point that `path`, which need not exist, is under; None: it is on no mount of ours.

    Raises OSError ENAMETOOLONG.
    """
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        point = find(os.path.realpath(path), table, any_type=os.environ.get(ANY_TYPE) == "yes")
    return point if point is not None and os.path.isdir(os.path.join(point, VIRTUAL)) else None


def find(real_path: str, mountinfo: Iterable[str], *, any_type: bool) -> str | None:
    """The deepest mount that `real_path` is on, the last one where several lie over each other; None: not ours."""
    best, kind = "", ""
    for line in mountinfo:
        fields = line.split(" ")
        point = fields[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
        point = point.encode("latin-1").decode("utf-8", "surrogateescape")
        under = point == "/" or real_path == point or real_path.startswith(point + "/")
        if under and len(point) >= len(best):
            best, kind = point, fields[fields.index("-") + 1]
    return best if any_type or kind in TYPES else None
