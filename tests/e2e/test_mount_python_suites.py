"""Python's own tests of files, locks and mappings, with their temporary folder on a mount.

They need the package `test` (on Debian: libpython3-testsuite).
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from typing import Any

import pytest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"),
    pytest.mark.skipif(importlib.util.find_spec("test.test_fcntl") is None, reason="needs Python's own tests"),
]

SMALL = ["test_fcntl", "test_mmap", "test_largefile", "test_fileio", "test_sqlite3", "test_posix", "test_filecmp"]
OTHERS = [
    ["test_os", "test_shutil", "test_tempfile"],
    ["test_zipfile", "test_tarfile", "test_mailbox", "test_fileinput", "test_dbm_dumb"],
]
COMMAND_S = 280


@pytest.mark.parametrize(
    ("suites", "options"),
    [(SMALL, ()), *((suites, ()) for suites in OTHERS), (SMALL, ("--strict",))],
    ids=[
        "small",
        "names",
        "archives",
        "strict",
    ],  # strict mounts ask for every name: the larger ones take minutes there
)
def test_suites(cluster: Any, mount_of: Any, suites: list[str], options: tuple[str, ...]) -> None:
    folder = mount_of(cluster, *options).point / f"suites{time.time_ns()}"
    folder.mkdir()
    command = [sys.executable, "-m", "test", "--tempdir", str(folder), "-u", "largefile", *suites]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"TMPDIR": str(folder)}, capture_output=True, text=True, check=False,
        timeout=COMMAND_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert f"All {len(suites)} tests OK" in done.stdout
