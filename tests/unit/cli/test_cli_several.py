"""Commands over several paths: what one of them meets is told, and the others are done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fireflyfs.client.cli import connect, exits, quota
from fireflyfs.client.cli.main import app
from fireflyfs.client.cli.trees import LocalTree
from fireflyfs.client.quotas import Usage
from fireflyfs.common.errors import Code, error


@pytest.fixture(autouse=True)
def _local(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system is this machine's."""

    @contextmanager
    def filesystem(_settings: object) -> Iterator[LocalTree]:
        yield LocalTree()

    monkeypatch.setattr(connect, "filesystem", filesystem)


def ffs(*words: object) -> Result:
    return CliRunner().invoke(app, ["--json", *map(str, words)])


@pytest.mark.parametrize("command", ["put", "get"])
def test_a_source_that_cannot_be_copied_keeps_no_other_from_it(command: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    for folder in (target, tmp_path / "folder"):
        folder.mkdir()
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    sources = [tmp_path / name for name in ("missing", "a", "folder", "b")]
    done = ffs(command, *sources, target)
    assert done.exit_code == exits.NOT_FOUND
    assert sorted(path.name for path in target.iterdir()) == ["a", "b"]
    assert done.stderr.splitlines() == [
        f"ffs: {sources[0]}: No such file or directory",
        f"ffs: {sources[2]} is a directory: copy it with -r",
    ]
    facts = json.loads(done.stdout)
    assert (facts["files"], facts["failed"]) == (2, 2)
    assert ffs(command, sources[2], target).exit_code == exits.USAGE


def test_du_of_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Quotas:
        def usage(self, path: str) -> tuple[Usage, list[Usage]]:
            if path != "/there":
                cause = error(Code.NO_ENTRY)
                raise cause.to_oserror(path) from cause
            return Usage("directory", 7, path, 4096, 1), []

    def quotas(_fs: Any) -> Quotas:
        return Quotas()

    monkeypatch.setattr(quota, "_quotas", quotas)
    done = ffs("du", "/missing", "/there", "/nowhere")
    assert [row["name"] for row in json.loads(done.stdout)] == ["/there"]
    assert done.exit_code == exits.NOT_FOUND
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == ["/missing", "/nowhere"]
    plain = CliRunner().invoke(app, ["du", "/missing"])
    assert (plain.exit_code, plain.stdout) == (exits.NOT_FOUND, "")
