"""Where a path is mounted, by the rule of 3FS's clusters: mounts are two levels deep (/hf3fs-cluster/mount)."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

PARTS = 3  # of an absolute path, with its root


def get_mount_point(p: str | os.PathLike[str]) -> str:
    """The first three parts of the real path. `hf3fs_py_usrbio.extract_mount_point` looks at the mounts instead."""
    return str(PurePosixPath(*PurePosixPath(os.path.realpath(p)).parts[:PARTS]))
