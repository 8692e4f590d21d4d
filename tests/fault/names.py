"""One client alone in a folder of its own: what it was answered must be what a dictionary of arrays would answer.

A line `["p", n, op, args, t]` begins an operation, `ok`, `got` or `no` (see history.py) end it. Whole files are arrays
of cells (shift 0). An operation that failed may have happened, so there may be several states; each answer leaves those
that give it.

    create name count value     write name first count value     truncate name count     read name -> runs
    rename old new              remove name                      list -> names           sync name
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

STATES_MAX = 256

Cell = tuple[int, ...]  # the values that it may have
State = dict[str, list[Cell]]


def check_names(path: Path) -> list[str]:
    """What the recorded answers contradict; empty when there is nothing."""
    begun: dict[int, list[Any]] = {}
    ended: dict[int, list[Any]] = {}
    for raw in path.read_bytes().split(b"\n"):
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if line[0] == "p":
            begun[line[1]] = line
        elif line[0] in ("ok", "got", "no"):
            ended[line[1]] = line
    states: list[State] = [{}]
    for number, (_, _, op, args, began_s) in sorted(begun.items()):
        end = ended.get(number)
        failed = end is None or end[0] == "no"
        after: list[State] = []
        for state in states:
            done = _done(state, op, args, failed)
            answer = end[3] if end is not None and end[0] == "got" else None
            if failed:
                after.append(state)
            if done is not None and (failed or _gives(done, op, args, answer)):
                after.append(done)
        if not after:
            told = [_shown(state, op, args) for state in states[:3]]
            return [f"{path.name} #{number} at {began_s:.3f}: {op} {args} was answered {end}, expected one of {told}"]
        states = _distinct(after)
        if len(states) > STATES_MAX:
            return [f"{path.name}: more than {STATES_MAX} states are possible: too much failed to judge the rest"]
    return []


def _done(state: State, op: str, args: list[Any], failed: bool) -> State | None:
    """The state after an operation; None where it cannot succeed."""
    new = dict(state)
    if op == "create":
        name, count, value = args
        new[name] = _put([], 0, count, value, failed)
        return new
    if op == "list":
        return new
    name = args[0]
    if name not in state:
        return None
    if op == "write":
        _, first, count, value = args
        new[name] = _put(state[name], first, count, value, failed)
    elif op == "truncate":
        new[name] = [*state[name][: args[1]], *[(0,)] * (args[1] - len(state[name]))]
    elif op == "rename":
        del new[name]
        new[args[1]] = state[name]
    elif op == "remove":
        del new[name]
    return new


def _put(old: list[Cell], first: int, count: int, value: int, failed: bool) -> list[Cell]:
    new = [*old, *[(0,)] * (first + count - len(old))]
    for cell in range(first, first + count):
        new[cell] = tuple({*new[cell], value}) if failed else (value,)
    return new


def _gives(state: State, op: str, args: list[Any], answer: Any) -> bool:
    if op == "list":
        return bool(sorted(state) == answer)
    if op == "read":
        values = [value for value, count in answer for _ in range(count)]
        held = state[args[0]]
        return len(values) == len(held) and all(value in cell for value, cell in zip(values, held, strict=True))
    return True


def _shown(state: State, op: str, args: list[Any]) -> Any:
    if op == "list":
        return sorted(state)
    runs: list[tuple[Cell, int]] = []
    for cell in state.get(args[0], []):
        if runs and runs[-1][0] == cell:
            runs[-1] = (cell, runs[-1][1] + 1)
        else:
            runs.append((cell, 1))
    return runs


def _distinct(states: Iterable[State]) -> list[State]:
    found: list[State] = []
    for state in states:
        if state not in found:
            found.append(state)
    return found
