"""Commands that change what is in use ask first, and say what they would do to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fireflyfs.client.cli import connect, exits, main
from fireflyfs.proto import common_pb2, mgmtd_pb2

MiB = 1 << 20


class Manager:
    """A cluster manager of two nodes: chain 1 to 3, of a target each, in table 1. Notes what it is asked to change."""

    cluster_id = "c"

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def routing(self) -> mgmtd_pb2.RoutingDelta:
        chains = range(1, 4)
        return mgmtd_pb2.RoutingDelta(
            version=1,
            full=True,
            nodes=[mgmtd_pb2.NodeInfo(node_id=node, type=common_pb2.NODE_TYPE_STORAGE) for node in (1, 2)],
            targets=[
                mgmtd_pb2.TargetInfo(
                    target_id=1000 + number, node_id=1, chain_id=number, path=f"/d/{number}", used_bytes=number * MiB
                )
                for number in chains
            ],
            chains=[
                mgmtd_pb2.ChainInfo(
                    chain_id=number,
                    chain_version=1,
                    targets=[mgmtd_pb2.ChainTarget(target_id=1000 + number, state=mgmtd_pb2.PUBLIC_SERVING)],
                )
                for number in chains
            ],
            chain_tables=[mgmtd_pb2.ChainTableInfo(table_id=1, version=4, chains=chains, replicas=1)],
        )

    def set_chain_table(self, request: mgmtd_pb2.SetChainTableRequest) -> mgmtd_pb2.SetChainTableReply:
        self.asked.append(request)
        return mgmtd_pb2.SetChainTableReply(version=5)

    def set_chains(self, request: mgmtd_pb2.SetChainsRequest) -> None:
        self.asked.append(request)

    def register_target(self, request: mgmtd_pb2.RegisterTargetRequest) -> None:
        self.asked.append(request)


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Manager:
    made = Manager()

    @contextmanager
    def to_it(*_: object, **__: object) -> Iterator[Manager]:
        yield made

    monkeypatch.setattr(connect, "mgmtd", to_it)
    return made


def ffs(*arguments: object, says: str = "") -> Result:
    return CliRunner().invoke(main.app, [str(argument) for argument in arguments], input=says)


def test_a_table_in_use_loses_chains_only_when_that_is_meant(manager: Manager, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("chain_id,target\n1,1001\n")
    for command in (("create", 1, 1), ("upload", 1, tmp_path / "t.csv")):
        refused = ffs("chain-tables", *command, says="n\n")
        assert refused.exit_code == exits.INTERRUPTED
        assert manager.asked == []
        assert "Take chains 2, 3 out of table 1?" in refused.stderr
        assert "5.0 MiB" in refused.stderr
        assert refused.stdout == ""
        assert ffs("chain-tables", *command, says="y\n").exit_code == exits.OK
        assert ffs("chain-tables", *command, "--yes").exit_code == exits.OK
        assert [list(request.chains) for request in manager.asked] == [[1], [1]]
        manager.asked.clear()


def test_what_loses_no_chain_is_not_asked_about(manager: Manager) -> None:
    assert ffs("chain-tables", "create", 1, 3, 2, 1).exit_code == exits.OK
    assert ffs("chain-tables", "create", 2, 1).exit_code == exits.OK
    assert len(manager.asked) == 2


@pytest.mark.parametrize("place", [(1, 0, "/other"), (2, 0, "/d/1"), (1, 1, "/d/1")])
def test_a_target_id_that_is_taken_is_refused(manager: Manager, place: tuple[int, int, str], tmp_path: Path) -> None:
    node, worker, path = place
    command = ("targets", "create", 1001, "--node", node, "--worker", worker, "--path", path)
    refused = ffs(*command)
    assert refused.exit_code == exits.REFUSED
    assert "target 1001 exists, in /d/1 of node 1, worker 0" in refused.stderr
    assert (
        ffs("targets", "create", 1001, "--node", 1, "--path", tmp_path / "new", "--format").exit_code == exits.REFUSED
    )
    assert not (tmp_path / "new").exists()
    assert manager.asked == []
    assert ffs(*command, "--move").exit_code == exits.OK
    assert manager.asked[0].path == path


def test_a_target_is_registered_again_as_it_is(manager: Manager) -> None:
    assert ffs("targets", "create", 1001, "--node", 1, "--path", "/d/1").exit_code == exits.OK
    assert ffs("targets", "create", 1004, "--node", 2, "--path", "/d/4").exit_code == exits.OK
