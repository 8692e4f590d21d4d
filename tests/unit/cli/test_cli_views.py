"""Routing as rows."""

from __future__ import annotations

import json

import pytest

from fireflyfs.client.cli import output, views
from fireflyfs.client.cli.settings import Settings
from fireflyfs.client.routing import Routing, apply_delta
from fireflyfs.common.limits import CHUNK_BYTES_DEFAULT
from fireflyfs.proto import common_pb2, mgmtd_pb2


def routing(states: list[int]) -> Routing:
    targets = [1001, 2001, 3001]
    return apply_delta(
        Routing(),
        mgmtd_pb2.RoutingDelta(
            version=7,
            full=True,
            nodes=[
                mgmtd_pb2.NodeInfo(
                    node_id=target // 1000,
                    type=common_pb2.NODE_TYPE_STORAGE,
                    alive=True,
                    last_heartbeat_unix_ns=10**9,
                    workers=[mgmtd_pb2.WorkerInfo(worker=0, alive=True)],
                )
                for target in targets
            ],
            targets=[
                mgmtd_pb2.TargetInfo(
                    target_id=target, node_id=target // 1000, chain_id=1, capacity_bytes=100, free_bytes=target // 100
                )
                for target in targets
            ],
            chains=[
                mgmtd_pb2.ChainInfo(
                    chain_id=1,
                    chain_version=4,
                    targets=[
                        mgmtd_pb2.ChainTarget(target_id=target, state=mgmtd_pb2.PublicState.Name(state))
                        for target, state in zip(targets, states, strict=True)
                    ],
                )
            ],
            chain_tables=[mgmtd_pb2.ChainTableInfo(table_id=1, version=1, chains=[1], replicas=3)],
        ),
    )


SERVING, SYNCING, OFFLINE = mgmtd_pb2.PUBLIC_SERVING, mgmtd_pb2.PUBLIC_SYNCING, mgmtd_pb2.PUBLIC_OFFLINE


def test_health_needs_every_replica() -> None:
    assert views.health(routing([SERVING] * 3))["healthy"]
    assert not views.health(routing([SERVING, SERVING, SYNCING]))["healthy"]
    assert not views.health(Routing())["healthy"]


def test_chain_states() -> None:
    for states, text in (
        ([SERVING] * 3, "serving"),
        ([SERVING, OFFLINE, SYNCING], "degraded"),
        ([OFFLINE] * 3, "offline"),
    ):
        assert views.chain_rows(routing(states))[0]["state"] == text


def test_space_is_that_of_the_smallest_replica() -> None:
    row = views.space_rows(routing([SERVING] * 3))[0]
    assert (row["capacity_bytes"], row["free_bytes"]) == (100, 10)


def test_target_state_is_the_chains() -> None:
    rows = views.target_rows(routing([SERVING, SYNCING, OFFLINE]))
    assert [row["state"] for row in rows] == ["serving", "syncing", "offline"]


def test_the_progress_of_a_resync_is_its_sources() -> None:
    assert views.resync_rows(routing([SERVING] * 3)) == []
    syncing = routing([SERVING, SYNCING, OFFLINE])
    (row,) = views.resync_rows(syncing)
    assert (row["source"], row["target"], row["progress"]) == (1001, 2001, "begins")
    syncing.targets[1001].resync_done_chunks = 399
    syncing.targets[1001].resync_total_chunks = 400
    (row,) = views.resync_rows(syncing)
    assert (row["done_chunks"], row["total_chunks"], row["progress"]) == (399, 400, "399 of 400, 99 %")


def test_a_target_is_full_when_it_has_no_room_for_a_chunk() -> None:
    seen = routing([SERVING] * 3)
    for target, free in zip(seen.targets.values(), (CHUNK_BYTES_DEFAULT, CHUNK_BYTES_DEFAULT - 1, 0), strict=True):
        target.free_bytes = free
    assert views.health(seen)["targets_full"] == [2001, 3001]
    assert views.health(seen)["healthy"], "what is there is served"
    seen.targets[2001].chain_id = 0  # nobody writes to it
    seen.targets[3001].capacity_bytes = 0  # nobody has said yet
    assert views.health(seen)["targets_full"] == []


def test_scrubbing_and_damage_are_shown() -> None:
    now = 10**18
    seen = routing([SERVING] * 3)
    for target_id, report in (
        (1001, common_pb2.ScrubReport(running=True, done_chunks=1, total_chunks=3, ended_unix_ns=now - 10**9)),
        (2001, common_pb2.ScrubReport(ended_unix_ns=now - 7200 * 10**9, damaged_chunks=2, repaired_chunks=5)),
    ):
        seen.targets[target_id].scrub.CopyFrom(report)
    rows = views.target_rows(seen, now)
    assert [row["scrub"] for row in rows] == ["33 % done", "2 h ago", "never"]
    assert [(row["damaged"], row["repaired"]) for row in rows] == [(0, 0), (2, 5), (0, 0)]
    assert views.health(seen)["damaged_chunks"] == 2


def test_a_state_of_a_later_release_is_unknown() -> None:
    assert views.public_state(99) == "unknown"


@pytest.mark.parametrize("as_json", [True, False])
def test_rows_print_whole(as_json: bool, capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    from pathlib import Path

    rows = views.node_rows(routing([SERVING] * 3), 3 * 10**9)
    output.show_rows(Settings(Path("/x"), json=as_json), rows, views.NODE_COLUMNS)
    text = capsys.readouterr().out
    if as_json:
        assert [row["node"] for row in json.loads(text)] == [1, 2, 3]
    else:
        assert "heartbeat" in text
        assert "2 s ago" in text


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        (common_pb2.Endpoint(tcp="h:1"), "tcp"),
        (common_pb2.Endpoint(tcp="h:1", unix="/s", rdma="mlx5_0,mlx5_1"), "tcp unix rdma:mlx5_0,mlx5_1"),
        (common_pb2.Endpoint(grpc="h:2"), ""),
    ],
)
def test_doors_text(endpoint: common_pb2.Endpoint, text: str) -> None:
    assert views.doors_text(endpoint) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 40, "1.0 TiB")])
def test_bytes_text(count: int, text: str) -> None:
    assert output.bytes_text(count) == text
