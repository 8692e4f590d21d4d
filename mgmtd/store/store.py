"""mgmtd's durable state in a KV store. Calls block; one writer at a time."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from fireflyfs.common.errors import Code, error
from fireflyfs.common.kv.interface import TRANSACTION_WRITES_MAX, KvEngine, Transaction, read, run
from fireflyfs.mgmtd.core.cluster import Cluster
from fireflyfs.mgmtd.core.records import ChainRecord, Changes, NodeRecord, Stored, TargetRecord
from fireflyfs.mgmtd.store import records
from fireflyfs.proto import mgmtd_pb2

VERSIONS_RESERVED = 1024  # routing versions that are reserved by one write; a restart skips what is left
CONFIG_VERSIONS_KEPT = 64  # of each node type

Write = tuple[bytes, bytes | None]  # key and value; None deletes
M = TypeVar("M", bound=Message)


class Store:
    """Reads everything at the start, then only writes. The store belongs to one cluster for ever."""

    config_versions_kept = CONFIG_VERSIONS_KEPT

    def __init__(self, engine: KvEngine) -> None:
        self._engine = engine
        self._reserved = 0

    def load(self, cluster_id: str) -> Stored:
        """Everything durable. A new store is made `cluster_id`'s; raises WRONG_CLUSTER when it belongs to another."""
        own = read(self._engine, lambda txn: _get(txn, records.CLUSTER, mgmtd_pb2.ClusterInfo))
        if own is None:
            if not cluster_id:
                raise error(Code.CONFIG, "cluster_id is needed to start a new cluster")
            own = mgmtd_pb2.ClusterInfo(cluster_id=cluster_id)
            payload = records.pack(own.SerializeToString())
            run(self._engine, lambda txn: txn.put(records.CLUSTER, payload))
        elif cluster_id and own.cluster_id != cluster_id:
            raise error(Code.WRONG_CLUSTER, f"the store is cluster {own.cluster_id!r}'s, not {cluster_id!r}'s")
        stored = read(self._engine, lambda txn: _load(txn, own.cluster_id))
        self._reserved = stored.version_reserved
        return stored

    def writes_of(self, changes: Changes, cluster: Cluster) -> list[Write]:
        """What must be written before `changes` to `cluster` may be published; often nothing."""
        writes: list[Write] = [(records.chain_key(n), _packed(chain.durable())) for n, chain in changes.chains.items()]
        for node_id, node in changes.nodes.items():
            old_node = cluster.nodes.get(node_id)
            if old_node is None or old_node.durable() != node.durable():
                writes.append((records.node_key(node_id), _packed(node.durable())))
        for target_id, target in changes.targets.items():
            old_target = cluster.targets.get(target_id)
            if old_target is None or old_target.durable() != target.durable():
                writes.append((records.target_key(target_id), _packed(target.durable())))
        writes += [(records.table_key(n), _packed(table)) for n, table in changes.tables.items()]
        writes += [(records.target_key(n), None) for n in changes.removed_targets]
        writes += [(records.node_key(n), None) for n in changes.removed_nodes]
        version = cluster.version + 1
        if version > self._reserved:
            reserved = version + VERSIONS_RESERVED
            writes.append((records.VERSION, _packed(mgmtd_pb2.ClusterInfo(routing_version=reserved))))
        return writes

    def commit(self, writes: list[Write], version: int) -> None:
        """Returns when `writes` are durable; `version` may be published then.

        More than one transaction takes goes in several: chains do not depend on each other, and a crash between
        two leaves each chain at its old or its new version, none of which was published.
        """
        for begin in range(0, len(writes), TRANSACTION_WRITES_MAX):
            part = writes[begin : begin + TRANSACTION_WRITES_MAX]
            run(self._engine, partial(_write, writes=part))
        if version > self._reserved:
            self._reserved = version + VERSIONS_RESERVED

    def add_config(self, config: mgmtd_pb2.ConfigInfo) -> None:
        """Store a configuration's new version, and forget the oldest beyond what is kept."""
        writes: list[Write] = [
            (records.config_key(config.type, config.version), _packed(config)),
        ]
        if config.version > CONFIG_VERSIONS_KEPT:
            writes.append((records.config_key(config.type, config.version - CONFIG_VERSIONS_KEPT), None))
        run(self._engine, partial(_write, writes=writes))


def _packed(message: Message) -> bytes:
    return records.pack(message.SerializeToString(deterministic=True))


def _write(txn: Transaction, writes: list[Write]) -> None:
    for key, value in writes:
        if value is None:
            txn.delete(key)
        else:
            txn.put(key, value)


def _parse(key: bytes, value: bytes, kind: type[M]) -> M:
    message = kind()
    try:
        message.ParseFromString(records.unpack(key, value))
    except DecodeError as exc:
        raise error(Code.CHECKSUM, f"record {key!r} is no {kind.__name__}: {exc}") from exc
    return message


def _get(txn: Transaction, key: bytes, kind: type[M]) -> M | None:
    value = txn.get(key)
    return None if value is None else _parse(key, value, kind)


def _all(txn: Transaction, prefix: bytes, kind: type[M]) -> list[M]:
    return [_parse(key, value, kind) for key, value in txn.scan(prefix, records.end_of(prefix))]


def _load(txn: Transaction, cluster_id: str) -> Stored:
    reserved = _get(txn, records.VERSION, mgmtd_pb2.ClusterInfo)
    return Stored(
        cluster_id=cluster_id,
        version_reserved=reserved.routing_version if reserved else 0,
        nodes=[NodeRecord.restored(info) for info in _all(txn, records.NODES, mgmtd_pb2.NodeInfo)],
        targets=[TargetRecord.restored(info) for info in _all(txn, records.TARGETS, mgmtd_pb2.TargetInfo)],
        chains=[ChainRecord.restored(info) for info in _all(txn, records.CHAINS, mgmtd_pb2.ChainInfo)],
        tables=_all(txn, records.TABLES, mgmtd_pb2.ChainTableInfo),
        configs=_all(txn, records.CONFIGS, mgmtd_pb2.ConfigInfo),
    )
