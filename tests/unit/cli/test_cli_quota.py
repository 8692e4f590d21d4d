"""`ffs quota`: amounts, and what is no command."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fireflyfs.client.cli.main import app
from fireflyfs.client.cli.quota import _count, _size


def test_amounts_with_units() -> None:
    assert [_size(text) for text in ("0", "512", "4k", "1.5G", "2TiB", "10 GB".replace(" ", ""))] == [
        0, 512, 4096, 3 << 29, 2 << 40, 10 << 30,
    ]  # fmt: skip
    assert [_count(text) for text in ("7", "50K", "1.25M")] == [7, 50_000, 1_250_000]
    for wrong in ("", "many", "-1", "1X", "1.G", "9" * 30, "8E"):
        with pytest.raises(click.BadParameter):
            _size(wrong)


@pytest.mark.parametrize(
    "arguments",
    [
        ["set", "/a"],
        ["set", "/a", "--bytes", "many"],
        ["set", "--bytes", "1"],
        ["set", "/a", "--user", "1", "--bytes", "1"],
        ["set", "--user", "no-such-user-here", "--bytes", "1"],
        ["show"],
        ["rm", "--user", "1", "--group", "1"],
    ],
)
def test_wrong_usage(arguments: list[str], tmp_path: Path) -> None:
    outcome = CliRunner().invoke(app, ["--root", str(tmp_path), "quota", *arguments], standalone_mode=False)
    assert isinstance(outcome.exception, click.UsageError)
