"""What the documents tell people to type exists, and each invariant names its test."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from fireflyfs.client.cli.main import app

TOP = Path(__file__).resolve().parents[2]
DOCUMENTS = [TOP / "README.md", *sorted((TOP / "docs").rglob("*.md")), TOP / "bench" / "README.md"]
_FENCE = re.compile(r"^```(?:sh|bash|console|text)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")


def commands_of(path: Path) -> list[str]:
    """Lines of code blocks and inline code that call `ffs` or `make`."""
    text = path.read_text(encoding="utf-8")
    lines = [line for block in _FENCE.findall(text) for line in block.splitlines()]
    lines += _INLINE.findall(_FENCE.sub("", text))
    found = []
    for line in lines:
        line = re.sub(r"^(\$ |sudo |\.venv/bin/)+", "", line.strip()).split(" #")[0]
        for part in re.split(r"\s(?:&&|\|\|?|;)\s", line):
            if re.match(r"(ffs|make)\s+[\w-]", part):
                found.append(part)
    return found


CASES = [(path, command) for path in DOCUMENTS if path.exists() for command in commands_of(path)]


@pytest.mark.parametrize(("path", "command"), CASES, ids=lambda value: value if isinstance(value, str) else value.name)
def test_command_exists(path: Path, command: str) -> None:
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z][\w-]*):", (TOP / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        for word in words[1:]:
            assert "=" in word or word in targets, f"{path.name}: there is no `make {word}`"
        return
    check_ffs(app, words[1:], f"{path.name}: {command}")


def check_ffs(command: click.Command, words: list[str], where: str) -> None:
    """Follow `words` down the command tree; every option on the way must exist."""
    context = click.Context(command)
    words = list(words)
    while words:
        word = words.pop(0)
        if word.startswith("-") and len(word) > 1:
            name = word.split("=")[0]
            option = next((p for p in command.get_params(context) if name in (*p.opts, *p.secondary_opts)), None)
            assert option is not None or name in ("--help", "-h"), f"{where}: no option {name}"
            if isinstance(option, click.Option) and not option.is_flag and "=" not in word and words:
                words.pop(0)
        elif isinstance(command, click.Group):
            # `up|down|status` and `nodes list|enable` name several commands at once; CAPITALS stand for any.
            if word.isupper() or word in ("…", "..."):
                return
            choices = [command.get_command(context, choice) for choice in word.split("|")]
            assert all(choices), f"{where}: no command {word}"
            assert choices[0] is not None
            command, context = choices[0], click.Context(choices[0])


def test_every_command_is_documented() -> None:
    text = (TOP / "docs" / "cli.md").read_text(encoding="utf-8")
    context = click.Context(app)
    for name in app.list_commands(context):
        command = app.get_command(context, name)
        assert f"ffs {name}" in text, f"docs/cli.md lacks `ffs {name}`"
        if isinstance(command, click.Group):
            for below in command.list_commands(click.Context(command)):
                assert re.search(rf"ffs {name} [\w|-]*\b{below}\b", text), f"docs/cli.md lacks `ffs {name} {below}`"


def test_every_invariant_names_tests_that_exist() -> None:
    text = (TOP / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text[text.index("## Invariants") :]
    rows = re.findall(r"^\|\s*(\d+)\s*\|(.+)\|(.+)\|\s*$", table, re.MULTILINE)
    assert rows
    numbers = [int(number) for number, _, _ in rows]
    assert len(set(numbers)) == len(numbers), "two invariants have one number"
    for number, statement, guards in rows:
        paths = re.findall(r"tests/[\w/.-]+", statement + guards)
        assert paths, f"invariant {number} names no test"
        for path in paths:
            assert (TOP / path.split("::")[0]).exists(), f"invariant {number}: there is no {path}"


def test_links_between_documents() -> None:
    for path in DOCUMENTS:
        if not path.exists():
            continue
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name} links to {target}"
