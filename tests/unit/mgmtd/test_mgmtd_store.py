"""Durable records: what is written when, what is refused, and that large changes fit."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.kv.interface import run
from fireflyfs.common.kv.memory import MemoryKv
from fireflyfs.mgmtd.core import operator
from fireflyfs.mgmtd.core.chain import Local
from fireflyfs.mgmtd.store import records
from fireflyfs.mgmtd.store.store import CONFIG_VERSIONS_KEPT, VERSIONS_RESERVED, Store
from fireflyfs.proto import mgmtd_pb2


def test_a_store_belongs_to_one_cluster() -> None:
    engine = MemoryKv()
    with pytest.raises(FfsError) as failure:
        Store(engine).load("")
    assert failure.value.code is Code.CONFIG
    assert Store(engine).load("one").cluster_id == "one"
    assert Store(engine).load("").cluster_id == "one"
    with pytest.raises(FfsError) as failure:
        Store(engine).load("two")
    assert failure.value.code is Code.WRONG_CLUSTER


def test_a_heartbeat_without_news_writes_nothing(harness: Any) -> None:
    harness.register(1, [101])
    harness.beat(1, {101: Local.OFFLINE})
    harness.beat(1, {101: Local.ONLINE})
    changes = harness.beat(1, {101: Local.ONLINE})
    assert not changes
    assert harness.store.writes_of(changes, harness.cluster) == []


def test_more_changes_than_a_transaction_takes(harness: Any) -> None:
    count = 300
    for node in (1, 2):
        harness.register(node, [])
    harness.beat(1, {1000 + n: Local.ONLINE for n in range(count)})
    harness.beat(2, {2000 + n: Local.ONLINE for n in range(count)})
    specs = [mgmtd_pb2.ChainSpec(chain_id=n + 1, targets=[1000 + n, 2000 + n]) for n in range(count)]
    harness.do(operator.set_chains(harness.cluster, specs))
    harness.beat(1, {}, stopping=True)
    harness.load()
    assert len(harness.cluster.chains) == count
    assert all(chain.version == 2 for chain in harness.cluster.chains.values())


def test_versions_never_go_back_over_a_restart(harness: Any) -> None:
    highest = harness.cluster.version
    for turn in range(3):
        for number in range(VERSIONS_RESERVED // 2 + 10):
            harness.do(harness.cluster.register_node(1 + turn * 10_000 + number, 3, ""))
        highest = max(highest, harness.cluster.version)
        harness.load()
        assert harness.cluster.version > highest


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda value: value[:-1], Code.CHECKSUM),
        (lambda value: value[:7], Code.CHECKSUM),
        (lambda value: b"XXXX" + value[4:], Code.CHECKSUM),
        (lambda value: value[:-1] + bytes([value[-1] ^ 1]), Code.CHECKSUM),
        (lambda value: value[:4] + struct.pack("<H", 9) + value[6:], Code.VERSION_MISMATCH),
    ],
)
def test_damaged_and_newer_records_are_refused(harness: Any, damage: Any, code: Code) -> None:
    harness.register(1, [])

    def spoil(txn: Any) -> None:
        value = txn.get(records.node_key(1))
        txn.put(records.node_key(1), damage(value))

    run(harness.engine, spoil)
    with pytest.raises(FfsError) as failure:
        harness.load()
    assert failure.value.code is code


def test_records_look_as_documented() -> None:
    packed = records.pack(b"abc")
    assert packed.hex() == "46464d47" + "0100" + "0000" + "03000000" + "b73f4b36" + "616263"
    assert records.unpack(b"k", packed) == b"abc"
    assert records.chain_key(0x01020304) == b"mgmtd/chain/\x01\x02\x03\x04"
    assert records.config_key(3, 5) == b"mgmtd/config/\x03" + bytes(7) + b"\x05"


def test_old_configurations_are_forgotten() -> None:
    engine = MemoryKv()
    store = Store(engine)
    store.load("test")
    for version in range(1, CONFIG_VERSIONS_KEPT + 6):
        store.add_config(mgmtd_pb2.ConfigInfo(type=3, version=version, content="a = 1"))
    versions = [config.version for config in Store(engine).load("test").configs]
    assert versions == list(range(6, CONFIG_VERSIONS_KEPT + 6))
