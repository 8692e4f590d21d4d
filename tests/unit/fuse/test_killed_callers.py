"""Programs that are killed while they wait for a mount whose servers are away: they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fireflyfs.fuse.mount import Mount

pytestmark = pytest.mark.e2e

LOOKS = {
    "lookup": "os.stat(sys.argv[1] + '/not looked up yet')",
    "getattr": "os.stat(sys.argv[1] + '/known')",
    "statfs": "os.statvfs(sys.argv[1])",
    "open": "os.open(sys.argv[1] + '/known', os.O_RDONLY)",
    "readdir": "os.listdir(sys.argv[1])",
    "listxattr": "os.listxattr(sys.argv[1] + '/known')",
}


@pytest.fixture
def stalled(backend: Any, mounts: Callable[..., Mount]) -> Iterator[Mount]:
    mount = mounts(backend, attr_timeout_s=0.0, entry_timeout_s=60.0, threads=2)
    (mount.mountpoint / "known").write_bytes(b"bytes")
    os.stat(mount.mountpoint / "known")
    backend.stall.set()
    yield mount
    backend.stall.clear()


@contextmanager
def waiting(mount: Mount, look: str, before: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A program that waits for the mount, which answers at the end of the test."""
    body = f"import os, signal, sys; {before}print(flush=True); {look}"
    program = subprocess.Popen([sys.executable, "-c", body, str(mount.mountpoint)], stdout=subprocess.PIPE)
    assert program.stdout is not None
    program.stdout.readline()
    time.sleep(0.3)  # it is in the kernel by then
    assert program.poll() is None
    yield program
    program.stdout.close()


@pytest.mark.parametrize("look", list(LOOKS))
def test_who_is_killed_ends(stalled: Mount, look: str) -> None:
    with waiting(stalled, LOOKS[look]) as program:
        program.kill()
        assert program.wait(20) == -signal.SIGKILL


def test_who_was_only_interrupted_waits_on_until_it_is_killed(stalled: Mount, backend: Any) -> None:
    """A handler of a signal is no reason for stat(2) to fail: a local disk's never does."""
    handler = "signal.signal(signal.SIGUSR1, lambda *_: None); "
    with waiting(stalled, LOOKS["statfs"], handler) as program:
        program.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        assert program.poll() is None
        program.kill()
        assert program.wait(20) == -signal.SIGKILL
    with waiting(stalled, LOOKS["statfs"], handler) as program:
        program.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        backend.stall.clear()
        assert program.wait(20) == 0


def test_the_mount_goes_on(stalled: Mount, backend: Any) -> None:
    for look in LOOKS.values():
        with waiting(stalled, look) as program:
            program.kill()
            program.wait(20)
    backend.stall.clear()
    assert (stalled.mountpoint / "known").read_bytes() == b"bytes"
    assert not (stalled.mountpoint / "not looked up yet").exists()
    end_s = time.monotonic() + 20
    while time.monotonic() < end_s and len(stalled.volume.handles):
        time.sleep(0.05)
    assert not len(stalled.volume.handles), "what was opened for nobody is closed"
