"""Chain-table files and the spreading of replicas."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fireflyfs.client.cli.placement import spread
from fireflyfs.client.cli.table_file import (
    ChainRow,
    TableFile,
    check_chains,
    parse_csv,
    parse_json,
    read_table,
    to_csv,
    to_json,
)
from fireflyfs.client.routing import Routing
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.proto import mgmtd_pb2

TABLE = TableFile((ChainRow(1, (1001, 2001)), ChainRow(2, (2002, 1002))), "two")


def routing_with(targets: dict[int, int]) -> Routing:
    return Routing(
        1, targets={target: mgmtd_pb2.TargetInfo(target_id=target, node_id=node) for target, node in targets.items()}
    )


def test_files_read_back(tmp_path: Path) -> None:
    import json

    (tmp_path / "t.json").write_text(json.dumps(to_json(TABLE)))
    (tmp_path / "t.csv").write_text(to_csv(TABLE))
    assert read_table(tmp_path / "t.json") == TABLE
    assert read_table(tmp_path / "t.csv").chains == TABLE.chains


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ("0", "no `chains`"),
        ('{"chains": 3}', "must be a list"),
        ('{"chain": []}', "unknown key chain"),
        ('{"chains": [{"chain_id": 1}]}', "chains[0]"),
        ('{"chains": [{"chain_id": -1, "targets": [1]}]}', "above 0"),
        ('{"chains": [{"chain_id": 1, "targets": ["1"]}]}', "above 0"),
        ('{"chains": [{"chain_id": true, "targets": [1]}]}', "above 0"),
    ],
)
def test_bad_json_says_where(text: str, says: str) -> None:
    with pytest.raises(FfsError, match="t") as caught:
        parse_json(text, "t.json")
    assert says in caught.value.message
    assert caught.value.code == Code.CONFIG


def test_bad_csv_says_the_line() -> None:
    with pytest.raises(FfsError, match="line 3"):
        parse_csv("chain_id,target\n1,1001\n2,abc\n", "t.csv")


def test_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(random.Random(1).randbytes(4096))
    with pytest.raises(FfsError) as caught:
        read_table(tmp_path / "t")
    assert caught.value.code == Code.CONFIG


@given(st.text())
def test_no_text_breaks_the_readers(text: str) -> None:
    for read in (parse_json, parse_csv):
        with suppress(FfsError):
            read(text, "t")


def test_check_names_every_problem() -> None:
    rows = [ChainRow(1, (1001, 1002)), ChainRow(1, (9,)), ChainRow(3, (1001, 2001))]
    with pytest.raises(FfsError) as caught:
        check_chains(rows, routing_with({1001: 1, 1002: 1, 2001: 2}))
    for part in ("both on node 1", "chain 1 stands twice", "no target 9", "has 1 replicas", "in chains 1 and 3"):
        assert part in caught.value.message


def test_check_accepts_a_good_table() -> None:
    check_chains(TABLE.chains, routing_with({1001: 1, 1002: 1, 2001: 2, 2002: 2}))


@given(st.integers(3, 12), st.integers(1, 3), st.integers(1, 12))
def test_spread_uses_every_target_evenly(nodes: int, replicas: int, per_node: int) -> None:
    targets = {node: [node * 1000 + n for n in range(per_node)] for node in range(1, nodes + 1)}
    chains = spread(targets, replicas)
    used = [target for chain in chains for target in chain.targets]
    assert len(used) == len(set(used))
    assert len(used) > nodes * per_node - replicas  # what is left cannot make one more chain
    assert len({chain.chain_id for chain in chains}) == len(chains)
    for chain in chains:
        assert len({target // 1000 for target in chain.targets}) == replicas
    led = Counter(chain.targets[0] // 1000 for chain in chains)
    assert max(led.values()) - min(led[node] for node in targets) <= 2
    assert spread(targets, replicas) == chains


def test_recovery_is_spread_over_all_other_nodes() -> None:
    targets = {node: [node * 1000 + n for n in range(10)] for node in range(1, 7)}
    pairs: Counter[tuple[int, int]] = Counter()
    for chain in spread(targets, 3):
        pairs.update(combinations(sorted(target // 1000 for target in chain.targets), 2))
    assert len(pairs) == 15
    assert max(pairs.values()) - min(pairs.values()) <= 2


def test_too_few_nodes_is_said() -> None:
    with pytest.raises(FfsError, match="3 nodes, there are 2"):
        spread({1: [1001], 2: [2001], 3: []}, 3)
