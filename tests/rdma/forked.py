"""Servers and mounts that fork off one process in which everything is imported already.

In a guest that translates instructions the imports of one server take six to ten seconds of a processor, a fork none.
What runs after the fork is what `python -m fireflyfs.client.cli.main ARGUMENT...` runs; a storage node is its one
worker, without the supervisor above it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from fireflyfs.deploy.local import LocalCluster
from fireflyfs.deploy.process import POLL_S, ServerProcess, start_time

PROGRAM = "fireflyfs.client.cli.main"
IMPORTED = (
    *(f"fireflyfs.{role}.server" for role in ("mgmtd", "meta", "storage")),
    *(f"fireflyfs.client.cli.{command}" for command in ("run", "logs", "mounting", "serving_mount")),
    "fireflyfs.common.net.rdma.adapters",
)


class Forked:
    """A process that another one forked off: what of Popen is needed here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._started = start_time(pid)

    def poll(self) -> int | None:
        """None while it runs; what it ended with is not known."""
        return None if self._started and start_time(self.pid) == self._started else 0

    def wait(self, timeout: float | None = None) -> int:
        """Return 0 when it has ended. Raises TimeoutExpired."""
        started_s = time.monotonic()
        while self.poll() is None:
            if timeout is not None and time.monotonic() >= started_s + timeout:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(POLL_S)
        return 0

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Forks:
    """The process that is forked off: `python forked.py`. One caller at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], errors: Path) -> Forked:
        """`ffs ARGUMENT...` in a session of its own, both outputs to the file `errors`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"arguments": [*arguments], "environment": {**environment}, "errors": str(errors)}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Forked(int(self._process.stdout.readline()))

    def close(self) -> None:
        """What was forked off stays."""
        self._process.communicate()


class ForkedServer(ServerProcess):
    def __init__(self, forks: Forks, root: Path, name: str, arguments: Sequence[str]) -> None:
        super().__init__(root, name, arguments)
        self._forks = forks

    def _launch(self, command: Sequence[str], environment: Mapping[str, str], errors: BinaryIO) -> None:
        self._child = self._forks.start(command[command.index(PROGRAM) + 1 :], environment, self.errors)
        self._write_down(self._child.pid)


class ForkedCluster(LocalCluster):
    """A local cluster with one worker on each storage node."""

    def __init__(self, forks: Forks, root: Path) -> None:
        super().__init__(root)
        self._forks = forks

    def _server(self, name: str, arguments: list[str]) -> ServerProcess:
        worker = ["--worker", "0"] if name.startswith("storage") else []
        return ForkedServer(self._forks, self.root, name, [*arguments, *worker])


def main() -> None:
    for name in (PROGRAM, *IMPORTED):
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what is forked off
    while line := sys.stdin.readline():
        if os.fork() == 0:
            become(json.loads(line))


def become(order: dict[str, Any]) -> None:
    """Be the program that was ordered; does not return."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    print(os.getpid(), flush=True)
    errors = os.open(order["errors"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for ours, number in ((null, 0), (errors, 1), (errors, 2)):
        os.dup2(ours, number)
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = ["ffs", *order["arguments"]]
    importlib.import_module(PROGRAM).main()


if __name__ == "__main__":
    main()
