"""Every rpc of `Mgmtd` in proto/mgmtd.proto: check, decide, answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from fireflyfs import __version__
from fireflyfs.common.errors import Code, error
from fireflyfs.mgmtd.core import operator
from fireflyfs.mgmtd.core.specs import ID_MAX, ConfigParser, check_config
from fireflyfs.mgmtd.manager import Manager
from fireflyfs.proto import common_pb2, mgmtd_pb2

WAITERS_MAX = 4096  # long polls at a time; one more is answered at once


class _Request(Protocol):
    @property
    def cluster_id(self) -> str: ...


class MgmtdService:
    """The handler object of mgmtd's control lane."""

    def __init__(
        self,
        manager: Manager,
        *,
        routing_wait_max_s: float,
        same_node_allowed: bool = False,
        config_parsers: Mapping[int, ConfigParser] | None = None,
    ) -> None:
        self._manager = manager
        self._wait_max_s = routing_wait_max_s
        self._same_node_allowed = same_node_allowed
        self._parsers = dict(config_parsers or {})

    def _check(self, request: _Request) -> None:
        own = self._manager.cluster.cluster_id
        if request.cluster_id != own:
            raise error(Code.WRONG_CLUSTER, f"this is cluster {own!r}, not {request.cluster_id!r}")

    def get_cluster_info(self, request: common_pb2.Empty) -> mgmtd_pb2.ClusterInfo:
        del request
        return mgmtd_pb2.ClusterInfo(
            cluster_id=self._manager.cluster.cluster_id,
            release=__version__,
            routing_version=self._manager.cluster.version,
            primary=True,
            start_unix_ns=self._manager.start_unix_ns,
        )

    async def heartbeat(self, request: mgmtd_pb2.HeartbeatRequest) -> mgmtd_pb2.HeartbeatReply:
        self._check(request)
        manager = self._manager
        # Taken before the lock is: time that others' changes need does not count against the sender.
        now_s, unix_ns = manager.clock.monotonic_s(), manager.clock.unix_ns()
        await manager.change(lambda: manager.cluster.heartbeat(request, now_s, unix_ns))
        return mgmtd_pb2.HeartbeatReply(
            routing=manager.delta(request.routing_version),
            config=manager.newer_config(request.type, request.config_version),
            server_unix_ns=unix_ns,
        )

    async def get_routing(self, request: mgmtd_pb2.GetRoutingRequest) -> mgmtd_pb2.RoutingDelta:
        self._check(request)
        manager = self._manager
        if request.wait_ms and request.since_version == manager.cluster.version and manager.waiting < WAITERS_MAX:
            manager.waiting += 1
            try:
                await manager.wait_newer(request.since_version, min(request.wait_ms / 1000, self._wait_max_s))
            finally:
                manager.waiting -= 1
        return manager.delta(request.since_version)

    async def register_node(self, request: mgmtd_pb2.RegisterNodeRequest) -> mgmtd_pb2.NodeInfo:
        self._check(request)
        if not 1 <= request.node_id <= ID_MAX:
            raise error(Code.INVALID, f"a node id is 1 to {ID_MAX}, not {request.node_id}")
        if request.type not in (common_pb2.NODE_TYPE_MGMTD, common_pb2.NODE_TYPE_META, common_pb2.NODE_TYPE_STORAGE):
            raise error(Code.INVALID, f"nodes of type {request.type} are not registered")
        cluster = self._manager.cluster
        await self._manager.change(lambda: cluster.register_node(request.node_id, request.type, request.hostname))
        return cluster.node_info(request.node_id)

    async def unregister_node(self, request: mgmtd_pb2.UnregisterNodeRequest) -> common_pb2.Empty:
        self._check(request)
        await self._manager.change(lambda: self._manager.cluster.unregister_node(request.node_id))
        return common_pb2.Empty()

    async def set_node_disabled(self, request: mgmtd_pb2.SetNodeDisabledRequest) -> mgmtd_pb2.NodeInfo:
        self._check(request)
        cluster = self._manager.cluster
        await self._manager.change(lambda: cluster.set_disabled(request.node_id, request.disabled))
        return cluster.node_info(request.node_id)

    async def register_target(self, request: mgmtd_pb2.RegisterTargetRequest) -> mgmtd_pb2.TargetInfo:
        self._check(request)
        cluster = self._manager.cluster
        await self._manager.change(
            lambda: cluster.register_target(
                request.target_id,
                request.node_id,
                request.worker,
                request.path,
                accept_new_disk=request.accept_new_disk,
            )
        )
        return cluster.target_info(request.target_id)

    async def set_chains(self, request: mgmtd_pb2.SetChainsRequest) -> common_pb2.Empty:
        self._check(request)
        await self._manager.change(
            lambda: operator.set_chains(
                self._manager.cluster,
                request.chains,
                set_preferred_order=request.set_preferred_order,
                same_node_allowed=self._same_node_allowed,
            )
        )
        return common_pb2.Empty()

    async def set_chain_table(self, request: mgmtd_pb2.SetChainTableRequest) -> mgmtd_pb2.SetChainTableReply:
        self._check(request)
        version = await self._manager.change_with(
            lambda: operator.set_chain_table(
                self._manager.cluster, request.table_id, list(request.chains), request.description
            )
        )
        return mgmtd_pb2.SetChainTableReply(version=version)

    async def update_chain(self, request: mgmtd_pb2.UpdateChainRequest) -> mgmtd_pb2.ChainInfo:
        self._check(request)
        cluster = self._manager.cluster
        await self._manager.change(
            lambda: operator.update_chain(
                cluster,
                request.chain_id,
                request.target_id,
                request.kind,
                expected_version=request.expected_version,
                same_node_allowed=self._same_node_allowed,
            )
        )
        return cluster.chains[request.chain_id].durable()

    async def set_config(self, request: mgmtd_pb2.SetConfigRequest) -> mgmtd_pb2.ConfigInfo:
        self._check(request)
        if request.type not in common_pb2.NodeType.values() or not request.type:
            raise error(Code.INVALID, f"unknown node type {request.type}")
        check_config(request.content, request.description, self._parsers.get(request.type))
        config = mgmtd_pb2.ConfigInfo(
            type=request.type,
            content=request.content,
            description=request.description,
            created_unix_ns=self._manager.clock.unix_ns(),
        )
        return await self._manager.add_config(config, request.expected_version)

    def get_config(self, request: mgmtd_pb2.GetConfigRequest) -> mgmtd_pb2.ConfigInfo:
        self._check(request)
        versions = self._manager.configs.get(request.type, [])
        if not versions and not request.version:
            return mgmtd_pb2.ConfigInfo(type=request.type)  # version 0: nothing was ever set
        for config in reversed(versions):
            if request.version in (0, config.version):
                return config
        raise error(Code.NO_ENTRY, f"there is no version {request.version} of this configuration")

    def list_configs(self, request: mgmtd_pb2.ListConfigsRequest) -> mgmtd_pb2.ListConfigsReply:
        self._check(request)
        types = [request.type] if request.type else sorted(self._manager.configs)
        found = [config for node_type in types for config in reversed(self._manager.configs.get(node_type, []))]
        return mgmtd_pb2.ListConfigsReply(configs=found)

    def extend_session(self, request: mgmtd_pb2.ExtendSessionRequest) -> mgmtd_pb2.ExtendSessionReply:
        self._check(request)
        manager = self._manager
        if request.closing:
            manager.leases.close(request.session.client_id)
        else:
            manager.leases.extend(request.session, manager.clock.monotonic_s(), manager.clock.unix_ns())
        return mgmtd_pb2.ExtendSessionReply(
            lease_ms=int(manager.session_lease_s * 1000),
            config=manager.newer_config(request.session.type, request.config_version),
        )

    def list_sessions(self, request: mgmtd_pb2.ListSessionsRequest) -> mgmtd_pb2.ListSessionsReply:
        self._check(request)
        now_s = self._manager.clock.monotonic_s()
        return mgmtd_pb2.ListSessionsReply(
            sessions=self._manager.leases.sessions(now_s), complete=self._manager.leases.complete(now_s)
        )
