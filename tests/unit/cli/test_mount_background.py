"""`ffs mount` in the background: what is there already, and mounts that neither begin nor end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fireflyfs.client.cli import mounting
from fireflyfs.common.errors import Code, FfsError


def test_a_mount_of_another_cluster_is_told_by_whole_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounting, "our_mounts", lambda: [(tmp_path, "fireflyfs#110.0.0.1:77001")])
    assert mounting._is_there(tmp_path, ["10.0.0.9:7700", "110.0.0.1:77001"])
    with pytest.raises(FfsError) as caught:
        mounting._is_there(tmp_path, ["10.0.0.1:7700"])
    assert caught.value.code is Code.BUSY


def test_a_mount_that_warns_and_hangs_is_given_up_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def hang(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        program = "import os, time; os.write(2, b'something is odd\\n'); time.sleep(60)"
        made.append(start([sys.executable, "-c", program], **options))
        return made[-1]

    monkeypatch.setattr(mounting.connect, "mgmtd_addresses", lambda _: ["127.0.0.1:1"])
    monkeypatch.setattr(mounting.connect, "meet", lambda _: None)
    monkeypatch.setattr(mounting, "_check_mountpoint", lambda _: None)
    monkeypatch.setattr(mounting, "READY_WAIT_S", 1.0)
    monkeypatch.setattr(mounting, "END_WAIT_S", 0.1, raising=False)
    monkeypatch.setattr(subprocess, "Popen", hang)
    settings: Any = type("Settings", (), {"root": tmp_path})
    try:
        with pytest.raises(FfsError, match="something is odd") as caught:
            mounting.mount_in_background(settings, tmp_path / "mnt", [])
        assert caught.value.code is Code.TIMEOUT
        assert made[0].wait(5) < 0
    finally:
        if made[0].poll() is None:
            os.kill(made[0].pid, 9)
