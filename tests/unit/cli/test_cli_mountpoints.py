"""Mountpoints on the command line: a mount whose servers are away answers nobody, and commands must not wait for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from fireflyfs.client.cli import mount_table, mounting
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


@pytest.fixture
def stalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A mount whose servers are away: who looks at it waits, as the test's own thread must not."""
    point = tmp_path / "real" / "mnt"
    point.mkdir(parents=True)
    over = threading.Event()
    tester = threading.current_thread()
    monkeypatch.setattr(mount_table, "_mount_table", lambda: [(point, "fireflyfs#127.0.0.1:1", "fuse.fireflyfs")])

    def stalling(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            if str(path) == str(point):
                assert threading.current_thread() is not tester, "this would wait for servers"
                over.wait(60)
            return real(path, *args, **options)

        return call

    for name in ("stat", "lstat", "statvfs"):
        monkeypatch.setattr(os, name, stalling(getattr(os, name)))
    yield point
    over.set()


def test_what_is_mounted_there_already_is_not_waited_for(stalled: Path) -> None:
    link = stalled.parent.parent / "link"
    link.symlink_to(stalled.parent)
    assert mount_table.place_of(link / "mnt") == mount_table.place_of(stalled) == stalled
    assert mounting._is_there(link / "mnt", ["127.0.0.1:1"])
    assert not mounting._is_there(stalled.parent, ["127.0.0.1:1"])
