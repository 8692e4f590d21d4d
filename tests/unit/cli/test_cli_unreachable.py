"""A cluster manager that is not there: every command says so within seconds, with the addresses and what to do."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from fireflyfs.client.cli import connect, exits, main
from fireflyfs.client.mgmtd_client import MgmtdClient
from fireflyfs.common.errors import Code, FfsError

REFUSES = "127.0.0.1:1"
SOON_S = 10.0  # far below any patience for a cluster that starts, far above what a busy machine adds


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "PATIENCE_S", 0.2)
    monkeypatch.setattr(connect, "FIRST_CALL_S", 0.5)


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of somebody who takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("nodes", "list"),
        ("config", "list"),
        ("space",),
        ("sessions", "list"),
        ("ls", "/"),
        ("cat", "/x"),
        ("rm", "/x"),
        ("mount", "MOUNT"),
        ("mount", "--foreground", "MOUNT"),
    ],
    ids=lambda command: " ".join(command),
)
def test_every_command_names_the_addresses_and_ends_soon(command: tuple[str, ...], tmp_path: Path) -> None:
    began_s = time.monotonic()
    words = [str(tmp_path / "mnt") if word == "MOUNT" else word for word in command]
    (tmp_path / "mnt").mkdir()
    result = CliRunner().invoke(main.app, ["--mgmtd", f"{REFUSES},127.0.0.1:2", *words])
    assert time.monotonic() - began_s < SOON_S
    said = result.stderr
    assert result.exit_code == exits.UNREACHABLE, said
    assert said.count("\n") == 1
    assert f"{REFUSES} (" in said
    assert "127.0.0.1:2 (" in said
    assert "--mgmtd" in said
    assert "UNKNOWN" not in said


def test_an_address_that_hangs_does_not_hide_the_next(silent: str) -> None:
    client = MgmtdClient([silent, REFUSES])
    with pytest.raises(FfsError) as caught:
        client.meet(0.0, call_deadline_s=0.3)
    client.close()
    assert caught.value.code is Code.UNAVAILABLE
    assert f"{silent} (no answer in time)" in caught.value.message
    assert f"{REFUSES} (" in caught.value.message
