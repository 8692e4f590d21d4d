"""Simulated clusters with every fault: each seed must be explained, and must be the same run each time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulator.many import one
from simulator.nemesis import BLACKOUTS, FAULTS

ROOT = Path(__file__).parents[2]
RUNS = 20  # of each test
TRACES = """
import hashlib, sys
from simulator.many import run_one
for seed in range(int(sys.argv[1]), int(sys.argv[2])):
    outcome = run_one(("storage", "files")[seed % 2], seed, 20.0, verbose=True)
    print(seed, outcome.steps, hashlib.sha256("\\n".join(outcome.trace).encode()).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "first"), [("storage", RUNS * part) for part in range(8)] + [("files", RUNS * part) for part in range(4)]
)
def test_every_seed_is_explained(kind: str, first: int) -> None:
    for seed in range(first, first + RUNS):
        outcome = one((kind, seed, 60.0, ()))
        assert outcome.problems == [], f"seed {seed}"


@pytest.mark.parametrize("fault", [*FAULTS, BLACKOUTS])
def test_each_fault_alone_is_survived(fault: str) -> None:
    for seed in range(3):
        outcome = one(("storage", seed, 20.0, (fault,)))
        assert outcome.problems == [], f"seed {seed}"


def test_a_seed_is_the_same_run_in_every_process() -> None:
    printed = set()
    for hash_seed in ("1", "2"):
        outcome = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", TRACES, "100", "104"],
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests/sim"), "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        printed.add(outcome.stdout)
    assert len(printed) == 1
    lines = printed.pop().splitlines()
    assert len(lines) == 4
    assert len({line.split()[2] for line in lines}) == 4, "other seeds are other runs"
    assert hashlib.sha256(b"").hexdigest() not in {line.split()[2] for line in lines}
