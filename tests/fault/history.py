"""The history of a run: what clients asked, when, and what they were answered.

Each client process appends to a file of its own, one JSON array a line, the question before it is asked: a process that
is killed leaves questions without answers. Times are CLOCK_MONOTONIC seconds, which all processes of a host share.

    ["w", n, file, first, count, value, t]   a write of cells begins       ["ok", n, t]         it was acknowledged
    ["r", n, file, first, count, t]          a read of cells begins        ["got", n, t, runs]  runs of [value, count]
    ["s", n, file, t]                        an fsync begins               ["no", n, t, why]    it failed: outcome open
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Write:
    """One write of cells. `ended_s` is NEVER when it was not acknowledged: it may have happened, or happen later."""

    file: int
    first: int
    count: int
    value: int
    began_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Read:
    """One answered read of cells, in runs of (value, count)."""

    file: int
    first: int
    runs: tuple[tuple[int, int], ...]
    began_s: float
    ended_s: float
    by: str = ""


@dataclass(frozen=True, slots=True)
class Sync:
    """One acknowledged fsync of a file."""

    file: int
    began_s: float
    ended_s: float


@dataclass(slots=True)
class History:
    """All of a run. `errors` are what clients were told when something failed."""

    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    syncs: list[Sync] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, other: History) -> None:
        self.writes += other.writes
        self.reads += other.reads
        self.syncs += other.syncs
        self.errors += other.errors


class Recorder:
    """Appends to one history file. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._lock = threading.Lock()
        self._next = 0

    def write(self, file: int, first: int, count: int, value: int) -> int:
        return self._begin("w", file, first, count, value)

    def read(self, file: int, first: int, count: int) -> int:
        return self._begin("r", file, first, count)

    def sync(self, file: int) -> int:
        return self._begin("s", file)

    def own(self, op: str, args: list[Any]) -> int:
        """An operation of names.py begins."""
        return self._begin("p", op, args)

    def ok(self, number: int) -> None:
        self._line(["ok", number, time.monotonic()])

    def got(self, number: int, runs: Iterable[tuple[int, int]]) -> None:
        self._line(["got", number, time.monotonic(), list(runs)])

    def no(self, number: int, why: BaseException) -> None:
        self._line(["no", number, time.monotonic(), f"{type(why).__name__}: {why}"])

    def close(self) -> None:
        os.close(self._fd)

    def _begin(self, *what: Any) -> int:
        with self._lock:
            number = self._next
            self._next += 1
        self._line([what[0], number, *what[1:], time.monotonic()])
        return number

    def _line(self, line: list[Any]) -> None:
        os.write(self._fd, json.dumps(line, separators=(",", ":")).encode() + b"\n")


def load(path: Path) -> History:
    """What one process recorded. A last line that was cut off is left out."""
    begun: dict[int, list[Any]] = {}
    ended: dict[int, list[Any]] = {}
    for raw in path.read_bytes().split(b"\n"):
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        (ended if line[0] in ("ok", "got", "no") else begun)[line[1]] = line
    history = History()
    for number, line in begun.items():
        end = ended.get(number)
        kind = line[0]
        if kind == "p":  # names.py judges these
            if end is not None and end[0] == "no":
                history.errors.append(f"{path.name}: {line[2]} {line[3]} from {line[4]:.3f} to {end[2]:.3f}: {end[3]}")
            continue
        if end is not None and end[0] == "no":
            history.errors.append(
                f"{path.name}: {kind} of file {line[2]} from {line[-1]:.3f} to {end[2]:.3f}: {end[3]}"
            )
        answered = end is not None and end[0] != "no"
        until_s = end[2] if answered and end is not None else NEVER
        if kind == "w":
            history.writes.append(Write(line[2], line[3], line[4], line[5], line[6], until_s))
        elif answered and end is not None and kind == "r":
            runs = tuple((value, count) for value, count in end[3])
            history.reads.append(Read(line[2], line[3], runs, line[5], until_s, f"{path.stem}#{number}"))
        elif answered and kind == "s":
            history.syncs.append(Sync(line[2], line[3], until_s))
    return history
