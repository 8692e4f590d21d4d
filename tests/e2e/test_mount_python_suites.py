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

SUITES = [
    ["test_fcntl", "test_mmap", "test_largefile", "test_fileio", "test_sqlite3"],
    ["test_os", "test_posix", "test_shutil", "test_tempfile"],
    ["test_zipfile", "test_tarfile", "test_mailbox", "test_fileinput", "test_filecmp", "test_dbm_dumb"],
]
COMMAND_S = 280


@pytest.mark.parametrize("options", [(), ("--strict",)], ids=["cached", "strict"])
@pytest.mark.parametrize("suites", SUITES, ids=lambda suites: suites[0])
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
