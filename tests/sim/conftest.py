"""Trees of the package with one thing broken, and what is to notice it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("client", "common", "meta", "mgmtd", "proto", "storage")
_SEEDS = re.compile(r"^Caught within (\d+) seeds( of files)? from (\d+)(?: with faults ([a-z_,]+))?\.$", re.MULTILINE)
_TEST = re.compile(r"^Caught by (\S+)\.$", re.MULTILINE)


class Mutant(NamedTuple):
    """A patch, and what must see that it breaks something: the simulator within so many seeds, or a test."""

    name: str
    patch: Path
    arguments: tuple[str, ...]  # of the simulator
    test: str


def _mutant(patch: Path) -> Mutant:
    text = patch.read_text(encoding="utf-8")
    if seeds := _SEEDS.search(text):
        world = ("--world", "files" if seeds[2] else "storage")
        faults = ("--faults", seeds[4]) if seeds[4] else ()
        return Mutant(patch.stem, patch, ("--runs", seeds[1], "--first", seeds[3], *world, *faults), "")
    test = _TEST.search(text)
    assert test, f"{patch.name} does not say by what it is caught"
    return Mutant(patch.stem, patch, (), test[1])


def mutants() -> list[Mutant]:
    return [_mutant(patch) for patch in sorted((ROOT / "tests/sim/mutants").glob("*.patch"))]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, simulated in (("seen_by_simulator", True), ("seen_by_test", False)):
        if fixture in metafunc.fixturenames:
            chosen = [mutant for mutant in mutants() if bool(mutant.arguments) is simulated]
            metafunc.parametrize(fixture, chosen, ids=[mutant.name for mutant in chosen])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package, to be broken."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    package = tmp_path / "src/fireflyfs"
    package.mkdir(parents=True)
    shutil.copy(ROOT / "src/fireflyfs/__init__.py", package)
    for name in PACKAGES:
        (package / name).symlink_to(f"../../{name}")
    return tmp_path


Run = Callable[..., subprocess.CompletedProcess[str]]


def _run(tree: Path, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(tree / "src"), str(ROOT / "tests/sim")])
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *command],
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=280,
        cwd=tree,
    )


@pytest.fixture
def simulate() -> Run:
    """Run the simulator on a tree: `simulate(tree, "--runs", "20")`."""

    def run(tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return _run(tree, ["simulator", "--jobs", "1", *arguments], **environment)

    return run


@pytest.fixture
def run_test() -> Run:
    """Run one of our tests on a tree: `run_test(tree, "tests/unit/…::test_…")`."""

    def run(tree: Path, test: str) -> subprocess.CompletedProcess[str]:
        shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        return _run(tree, ["pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", test], FFS_NO_SKIPS="")

    return run
