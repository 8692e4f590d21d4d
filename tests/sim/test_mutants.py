"""The simulator can see: each classic bug, planted alone, is found within the number of seeds that its patch states."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
def test_a_planted_bug_is_found(
    mutant: Any, tree: Path, simulate: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    subprocess.run(["git", "apply", "--unsafe-paths", f"--directory={tree}", str(mutant.patch)], check=True, cwd=tree)
    seeds = ("--runs", str(mutant.runs), "--first", str(mutant.first), "--world", mutant.world)
    outcome = simulate(tree, *seeds, "--jobs", "1", "--until-failure")
    assert outcome.returncode == 1, outcome.stdout + outcome.stderr
    assert "FAILED: at " in outcome.stdout, f"not found by a checker: {outcome.stdout}{outcome.stderr}"


@pytest.mark.slow
def test_the_tree_without_a_bug_is_sound(tree: Path, simulate: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    outcome = simulate(tree, "--runs", "20", "--jobs", "1")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
