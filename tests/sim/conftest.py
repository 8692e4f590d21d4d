"""Trees of the package with one thing broken, and the simulator on them."""

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


class Mutant(NamedTuple):
    """A patch, and the seeds of which world, within which the simulator must see what it breaks."""

    name: str
    patch: Path
    runs: int
    first: int
    world: str


def mutants() -> list[Mutant]:
    found = []
    for patch in sorted((ROOT / "tests/sim/mutants").glob("*.patch")):
        text = patch.read_text(encoding="utf-8")
        stated = re.search(r"^Caught within (\d+) seeds( of files)? from (\d+)\.$", text, re.MULTILINE)
        assert stated, f"{patch.name} does not say within how many seeds it is caught"
        world = "files" if stated[2] else "storage"
        found.append(Mutant(patch.stem, patch, int(stated[1]), int(stated[3]), world))
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "mutant" in metafunc.fixturenames:
        metafunc.parametrize("mutant", mutants(), ids=lambda mutant: mutant.name)


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


@pytest.fixture
def simulate() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the simulator on a tree: `simulate(tree, "--runs", "20")`."""

    def run(tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(tree / "src"), str(ROOT / "tests/sim")])
        return subprocess.run(
            [sys.executable, "-m", "simulator", *arguments],
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **environment},
            capture_output=True,
            text=True,
            timeout=280,
        )

    return run
