"""What a path may look like."""

from __future__ import annotations

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import NAME_BYTES_MAX, PATH_BYTES_MAX


def components(path: bytes) -> tuple[list[bytes], bool]:
    """The names of `path`, without empty ones, and whether its end says "a directory" (a trailing slash).

    Raises NAME_TOO_LONG and INVALID (a NUL byte). `.` and `..` stay: they need the tree.
    """
    if len(path) > PATH_BYTES_MAX:
        raise error(Code.NAME_TOO_LONG)
    if b"\0" in path:
        raise error(Code.INVALID, "a path holds no NUL byte")
    if b"/" not in path:
        if len(path) > NAME_BYTES_MAX:
            raise error(Code.NAME_TOO_LONG)
        return [path], False
    names = [name for name in path.split(b"/") if name]
    for name in names:
        if len(name) > NAME_BYTES_MAX:
            raise error(Code.NAME_TOO_LONG)
    return names, path.endswith(b"/")


def check_new_name(name: bytes) -> None:
    """Raises unless `name` may be given to something."""
    if len(name) > NAME_BYTES_MAX:
        raise error(Code.NAME_TOO_LONG)
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise error(Code.INVALID, "not a name")
