"""A command that waits says so once, on the standard error."""

from __future__ import annotations

import time

import pytest

from fireflyfs.client.cli import waiting
from fireflyfs.client.routing import Routing
from fireflyfs.common.errors import Code, error
from fireflyfs.proto import common_pb2, mgmtd_pb2

SOON_S = 0.1
META = mgmtd_pb2.NodeInfo(
    node_id=1001,
    type=common_pb2.NODE_TYPE_META,
    alive=True,
    workers=[mgmtd_pb2.WorkerInfo(alive=True, endpoint=common_pb2.Endpoint(tcp="127.0.0.1:1"))],
)
UP = Routing(1, nodes={1001: META})


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "NOTICE_S", SOON_S)
    monkeypatch.setattr(waiting, "LOOK_S", SOON_S / 10)


def test_one_line_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting.Notice() as notice:
        time.sleep(5 * SOON_S)
        notice.on_wait(9.0, error(Code.UNAVAILABLE, "refused"))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("ffs: waiting for a metadata server (none is up); `ffs status`")
    assert said.err.count("\n") == 1


def test_what_is_lost_later_is_told_too(capsys: pytest.CaptureFixture[str]) -> None:
    routing = UP
    with waiting.Notice() as notice:
        notice.connected(lambda: routing)
        time.sleep(5 * SOON_S)
        assert capsys.readouterr().err == ""
        routing = Routing(2)
        time.sleep(5 * SOON_S)
    assert "none is up" in capsys.readouterr().err


def test_a_server_that_does_not_answer_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting.Notice() as notice:
        notice.connected(lambda: UP)
        notice.on_wait(SOON_S / 2, error(Code.UNAVAILABLE, "not yet"))
        assert capsys.readouterr().err == ""
        notice.on_wait(SOON_S, error(Code.UNAVAILABLE, "127.0.0.1:1\nrefuses"))
    assert "waiting for the cluster (127.0.0.1:1 refuses);" in capsys.readouterr().err


def test_a_command_that_is_done_says_nothing_more(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting.Notice() as notice:
        pass
    notice.on_wait(9.0, error(Code.UNAVAILABLE, "late"))
    time.sleep(2 * SOON_S)
    assert capsys.readouterr().err == ""
