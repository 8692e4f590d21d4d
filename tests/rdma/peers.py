"""Processes at the other end of a link, and what tests ask of them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fireflyfs.common.limits import MiB
from fireflyfs.common.net.api import Address, Call
from fireflyfs.common.net.blocking import BlockingPool

HERE = Path(__file__).parent
DIGEST, FILL, HELD = 0x7201, 0x7202, 0x7203
OFFERED_BYTES = MiB


class Process:
    """`link_process.py` with lines in and out."""

    def __init__(self, *arguments: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, str(HERE / "link_process.py"), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self.address = ""  # of a server

    def line(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def counts(self) -> dict[str, Any]:
        assert self.popen.stdin is not None
        self.popen.stdin.write("\n")
        answer: dict[str, Any] = json.loads(self.line())
        return answer

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def stop(self) -> None:
        """Return when it is stopped."""
        self.popen.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self.popen.pid}/stat")
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                pipe.close()


def until(true: Callable[[], bool], within_s: float = 20.0) -> None:
    end_s = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end_s, "did not happen in time"
        time.sleep(0.02)


def fill(link: BlockingPool, address: Address, byte: bytes = b"f", deadline_s: float = 30.0) -> None:
    memory = link.pool.allocate(OFFERED_BYTES)
    try:
        call = Call(FILL, byte, into=[memory.slice(0, OFFERED_BYTES)], deadline_s=deadline_s)
        assert list(link.call(address, call).pushed) == [OFFERED_BYTES]
        assert bytes(memory.view) == byte * OFFERED_BYTES
    finally:
        memory.close()
