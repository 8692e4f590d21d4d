"""What `3fs-virt/get-conf` shows and `set-conf` changes while the mount serves."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from typing import Any, Final

from fireflyfs.fuse import protocol
from fireflyfs.fuse.volume import Volume

# 3FS's names; theirs of no meaning here are unknown. `sys.`: for everyone, by root.
KEYS: Final = ("sys.attr_timeout", "sys.entry_timeout", "sys.negative_timeout")
SECONDS_MAX: Final = 3600.0


def read(volume: Volume, key: str) -> bytes:
    return f"{getattr(volume.options, _field(key)):g}".encode()


def change(volume: Volume, key: str, value: str, uid: int) -> None:
    """OSError: ENOENT for an unknown key, EINVAL for a value that is none, EPERM for anybody but root."""
    if key not in KEYS:
        raise OSError(errno.ENOENT, f"{key!r} is no setting: {', '.join(KEYS)} are")
    if uid:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= SECONDS_MAX:
        raise OSError(errno.EINVAL, f"{key} takes seconds from 0 to {SECONDS_MAX:g}, not {value!r}")
    changed: dict[str, Any] = {_field(key): seconds}
    volume.options = replace(volume.options, **changed)
    volume.entry_valid = protocol.Valid.of(volume.options.entry_timeout_s)
    volume.attr_valid = protocol.Valid.of(volume.options.attr_timeout_s)
    volume.negative_valid = protocol.Valid.of(volume.options.negative_timeout_s)


def _field(key: str) -> str:
    return f"{key.removeprefix('sys.')}_s"
