"""Mountpoints on the command line: a mount whose servers are away answers nobody, and commands must not wait for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import pytest

from fireflyfs.client.cli.cluster import up
from fireflyfs.client.cli.mount_stats import stats
from fireflyfs.client.cli.mounting import mount, umount


@pytest.mark.parametrize("command", [up, mount, umount, stats])
def test_a_mountpoint_is_not_looked_at_before_the_command_begins(
    command: click.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = os.stat

    def look(path: Any, *args: Any, **options: Any) -> os.stat_result:
        assert str(path) != str(tmp_path), "this would wait for servers"
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", look)
    arguments = ["--mount", str(tmp_path)] if command is up else [str(tmp_path)]
    context = command.make_context("ffs", arguments)
    assert context.params["mountpoint"] == tmp_path
