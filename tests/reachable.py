"""Folders that other users get to: pytest's own are its user's alone, and stay so."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def reachable_folder(purpose: str) -> Iterator[Path]:
    """A new folder directly under /tmp, whose short path suits sockets too. All that is mounted in it must be unmounted
    before it goes."""
    folder = Path(tempfile.mkdtemp(prefix=f"ffs-{purpose}-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        assert not [point for point in mounted if folder in Path(point).parents]
        shutil.rmtree(folder)
