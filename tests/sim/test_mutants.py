"""The proofs can see: each of these bugs, planted alone, is found by the simulator within the number of seeds that its
patch states, or, where another check stands behind the one that was taken out, by the test that it names."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


def plant(mutant: Any, tree: Path) -> None:
    subprocess.run(["git", "apply", "--unsafe-paths", f"--directory={tree}", str(mutant.patch)], check=True, cwd=tree)


@pytest.mark.slow
def test_a_planted_bug_is_found_by_the_simulator(seen_by_simulator: Any, tree: Path, simulate: Run) -> None:
    plant(seen_by_simulator, tree)
    outcome = simulate(tree, *seen_by_simulator.arguments, "--until-failure")
    assert outcome.returncode == 1, outcome.stdout + outcome.stderr
    assert "FAILED: " in outcome.stdout
    assert "Traceback" not in outcome.stdout, f"not found by a checker: {outcome.stdout}"


@pytest.mark.slow
def test_a_planted_bug_is_found_by_its_test(seen_by_test: Any, tree: Path, run_test: Run) -> None:
    plant(seen_by_test, tree)
    outcome = run_test(tree, seen_by_test.test)
    assert outcome.returncode == 1, outcome.stdout + outcome.stderr
    assert outcome.stdout.splitlines()[-1].startswith("1 failed"), outcome.stdout


@pytest.mark.slow
def test_a_tree_without_a_bug_is_sound(tree: Path, simulate: Run, run_test: Run) -> None:
    outcome = simulate(tree, "--runs", "20")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    outcome = run_test(tree, "tests/unit/mgmtd/test_chain_machine.py")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
