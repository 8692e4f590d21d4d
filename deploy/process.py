"""One server process of the local cluster: started detached, known by its pid file, never mistaken for another.

A pid file holds the process id with the start time that /proc gives and the host's boot id: an id that was used again
for something else, or before a reboot, is not ours, and is never signalled.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from fireflyfs.common.errors import Code, error
from fireflyfs.common.net.host import host_id

START_LOGS_KEPT = 2  # of what a process wrote to stderr, older starts beside the present one
LOG_TAIL_BYTES = 4096
LOG_TAIL_LINES = 3  # they end in a message of one line
POLL_S = 0.02
# A shell that becomes the server once its starter has written down which process it is. A starter that is killed before
# leaves nothing behind that nobody knows of: its end of the pipe goes with it.
WHEN_KNOWN = 'read -r go && exec "$@" </dev/null'


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """What is known of one process."""

    name: str
    running: bool
    pid: int  # 0: none
    log: Path


class Child(Protocol):
    """What subprocess.Popen is to a server that was started here."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...


class ServerProcess:
    """The process `name` of the cluster at `root`. Whoever holds the cluster's lock may start and stop it."""

    def __init__(
        self,
        root: Path,
        name: str,
        arguments: Sequence[str],
        *,
        launcher: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`arguments` follow `python -m fireflyfs.client.cli.main`.

        `launcher`: a command that becomes the process, as `ip netns exec NAME` does. `environment`: on top of ours.
        """
        self.name = name
        self.log = root / "log" / f"{name}.log"
        self.errors = root / "log" / f"{name}.err"  # what it and its own children write to stderr
        self._root = root
        self._pid_file = root / "run" / f"{name}.pid"
        self._arguments = [*arguments, "--log-file", str(self.log)]
        self._launcher = list(launcher)
        self._environment = dict(environment or {})
        self._child: Child | None = None  # if this process started it: it must be waited for

    def pid(self) -> int:
        """The id of the running process, or 0."""
        if self._child is not None and self._child.poll() is not None:
            self._child = None
        try:
            stored = json.loads(self._pid_file.read_text(encoding="utf-8"))
            pid, started, boot = int(stored["pid"]), int(stored["started"]), str(stored["boot"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return pid if started and boot == host_id() and start_time(pid) == started else 0

    def status(self) -> ProcessStatus:
        pid = self.pid()
        return ProcessStatus(self.name, pid != 0, pid, self.log)

    def start(self) -> None:
        """Start it, if it does not run. Returns at once: it may not be ready, or fail soon."""
        if self.pid():
            return
        for folder in (self.log.parent, self._pid_file.parent):
            folder.mkdir(parents=True, exist_ok=True)
        _rotate(self.errors)
        environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", **self._environment}
        command = [*self._launcher, sys.executable, "-P", "-m", "fireflyfs.client.cli.main", *self._arguments]
        with self.errors.open("wb") as errors:
            self._launch(command, environment, errors)

    def _launch(self, command: Sequence[str], environment: Mapping[str, str], errors: BinaryIO) -> None:
        """Start it, as `_child`; it waits until it is written down."""
        child = self._child = subprocess.Popen(
            ["/bin/sh", "-c", WHEN_KNOWN, "sh", *command],
            cwd=self._root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
            start_new_session=True,  # Ctrl-C in the terminal that started the cluster is not for it
        )
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError), child.stdin as go:  # it may have been killed already
            self._write_down(child.pid)
            go.write(b"\n")

    def _write_down(self, pid: int) -> None:
        stored = {"pid": pid, "started": start_time(pid), "boot": host_id()}
        new = self._pid_file.with_suffix(".new")
        new.write_text(json.dumps(stored), encoding="utf-8")
        new.rename(self._pid_file)

    def send(self, number: int) -> bool:
        """Send a signal; False when the process does not run.

        SIGTERM and SIGINT go to the process, which stops its own children in order; others to all of its group.
        """
        pid = self.pid()
        if not pid:
            return False
        try:
            if number in (signal.SIGTERM, signal.SIGINT):
                os.kill(pid, number)
            else:
                os.killpg(pid, number)
        except ProcessLookupError:
            return False
        return True

    def wait_gone(self, timeout_s: float) -> bool:
        """Whether it is gone within `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        while self.pid():
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(POLL_S)
        with contextlib.suppress(FileNotFoundError):
            self._pid_file.unlink()
        return True

    def failure(self, what: str) -> Exception:
        """An error that says what was waited for, and shows the end of the logs."""
        state = "runs" if self.pid() else "has ended"
        workers = sorted(self.log.parent.glob(f"{self.name}-worker*.log"))
        tails = [f"--- {path}\n{text}" for path in (self.errors, self.log, *workers) if (text := tail(path))]
        shown = "\n".join(tails) or f"nothing was logged in {self.log}"
        return error(Code.UNAVAILABLE, f"{self.name} ({state}): {what}\n{shown}")


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 when there is none, or only what is left of one."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    fields = text.rpartition(b")")[2].split()  # the name before it may hold anything
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def tail(path: Path) -> str:
    """The last different lines of a log, a repeated one in its last place; empty when there are none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            data = file.read()
    except OSError:
        return ""
    newest_first = dict.fromkeys(reversed(data.decode(errors="replace").splitlines()))
    return "\n".join(reversed(list(newest_first)[:LOG_TAIL_LINES]))


def _rotate(path: Path) -> None:
    for number in range(START_LOGS_KEPT, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        newer = path.with_name(f"{path.name}.{number - 1}") if number > 1 else path
        with contextlib.suppress(FileNotFoundError):
            newer.rename(older)
