"""The house rules that no linter knows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
PACKAGES = ("common", "proto", "client", "mgmtd", "meta", "storage", "fuse", "deploy")
LINES_MAX = 600  # about 200 is the aim, over 400 is rare
FORBIDDEN = re.compile(
    r"NotImplementedError|\bTODO\b|\bFIXME\b|\bXXX\b|\bHACK\b|/work/(?:main|shared)|pdb\.set_trace"
    r"|asyncio\.wait_for\("  # it loses cancellations: common/waiting.py
)


def tracked(*patterns: str) -> list[Path]:
    """Files that git tracks or would; every file under TOP where there is no git."""
    command = ["git", "-C", str(TOP), "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    names = done.stdout.splitlines() if done.returncode == 0 else []
    found = [TOP / name for name in names] or [path for pattern in patterns for path in TOP.rglob(pattern)]
    return [path for path in found if path.is_file() and not path.is_symlink()]


def sources() -> list[Path]:
    return [path for path in tracked("*.py") if path.relative_to(TOP).parts[0] in PACKAGES and "_pb2" not in path.name]


def test_there_are_sources() -> None:
    assert len(sources()) > 50


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(TOP)))
def test_module(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= LINES_MAX, f"{len(lines)} lines: split it"
    found = FORBIDDEN.search(text)
    assert not found, f"{found[0]!r} in {path.name}"
    assert path.stem not in ("utils", "util", "helpers", "misc"), "a module's name says what it does"
    if path.name != "__init__.py" and lines:
        assert lines[0].startswith(('"""', 'r"""')), "the first line says what the module does"


def test_no_machine_paths_in_documents() -> None:
    for path in tracked("*.md", "*.toml", "*.sh", "Makefile"):
        if path.name in ("pyproject.toml",):
            continue
        found = re.search(r"/work/(?:main|shared)|/root/\.pyenv", path.read_text(encoding="utf-8", errors="replace"))
        assert not found, f"{path.relative_to(TOP)}: {found[0] if found else ''}"


def test_every_package_is_linked_into_src() -> None:
    for name in PACKAGES:
        link = TOP / "src" / "fireflyfs" / name
        assert link.is_symlink(), f"src/fireflyfs/{name} is no link"
        assert (link / "__init__.py").is_file()


def test_every_test_module_has_a_name_of_its_own() -> None:
    names: dict[str, Path] = {}
    for path in tracked("tests/**/test_*.py", "tests/test_*.py"):
        assert path.name not in names, f"{path} and {names[path.name]}"
        names[path.name] = path
