"""Clients of the cluster manager: one method for each rpc, and patience while mgmtd is away.

A call goes to the address that answered last, and to the next one when that is away or not the primary; between rounds
it pauses with growing, jittered pauses, for `patience_s` in all. What may have happened (TIMEOUT, UNAVAILABLE) is asked
again only where doing it twice is the same as once, or a request says which version it changes. A request without a
cluster id is given the client's.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from google.protobuf.message import Message

from fireflyfs.client.retry import Retry, RetryPolicy
from fireflyfs.common.clock import Clock, SystemClock
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.net.control import AsyncControlClient, ControlClient
from fireflyfs.proto import common_pb2, mgmtd_pb2

CALL_DEADLINE_S = 5.0
# Shorter than the time after which a silent worker fences itself: one that gets no answer can try again before that.
HEARTBEAT_DEADLINE_S = 1.5
PATIENCE_S = 10.0
PAUSE_FIRST_S = 0.05
PAUSE_MAX_S = 1.0
_FINAL = (Code.NO_CHAIN,)  # others refresh routing and ask again; mgmtd is where routing comes from
_PERHAPS = (Code.TIMEOUT, Code.UNAVAILABLE)  # the request may have been carried out
SERVICE = mgmtd_pb2.DESCRIPTOR.services_by_name["Mgmtd"]

M = TypeVar("M", bound=Message)


def _checked(addresses: Sequence[str]) -> list[str]:
    cleaned = [address.strip() for address in addresses if address.strip()]
    if not cleaned:
        raise error(Code.CONFIG, "no address of a cluster manager is given")
    return cleaned


def _retry(patience_s: float, clock: Clock, rng: random.Random) -> Retry:
    return Retry(RetryPolicy(patience_s, CALL_DEADLINE_S, PAUSE_FIRST_S, PAUSE_MAX_S), clock, rng)


class MgmtdClient:
    """Blocking; safe to use from several threads. All methods raise FfsError: mgmtd's own, or UNAVAILABLE, TIMEOUT."""

    def __init__(
        self,
        addresses: Sequence[str],
        cluster_id: str = "",
        *,
        patience_s: float = PATIENCE_S,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """`cluster_id` empty: whichever cluster answers; it is asked for when it is first needed."""
        self._addresses = _checked(addresses)
        self._cluster_id = cluster_id
        self._patience_s = patience_s
        self._clock: Clock = clock or SystemClock()
        self._random = rng or random.Random()
        self._lock = threading.Lock()
        self._clients: dict[str, ControlClient] = {}
        self._place = 0
        self._closed = False

    @property
    def cluster_id(self) -> str:
        """The cluster's id; asks mgmtd the first time when none was given."""
        if not self._cluster_id:
            self._cluster_id = self.get_cluster_info().cluster_id
        return self._cluster_id

    def close(self) -> None:
        """Calls under way end with an error. Twice is no error."""
        with self._lock:
            self._closed = True
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.close()

    def meet(self, patience_s: float, *, call_deadline_s: float = CALL_DEADLINE_S) -> mgmtd_pb2.ClusterInfo:
        """First contact: who answers, by `patience_s` from now; each address is tried, whatever the time.

        Raises UNAVAILABLE that names every address when nobody answers, or the one where somebody does who is no
        cluster manager.
        """
        retry = _retry(patience_s, self._clock, self._random)
        reasons: dict[str, str] = {}
        while True:
            place, client = self._client()
            address = self._addresses[place]
            try:
                info = client.call("GetClusterInfo", common_pb2.Empty(), deadline_s=call_deadline_s)
            except FfsError as failure:
                exc = _as_away(failure, self._closed)
                if exc.code in (Code.UNKNOWN_METHOD, Code.PROTOCOL):
                    text = f"what answers at {address} is no cluster manager ({_reason(exc)})"
                    raise error(Code.UNAVAILABLE, text) from exc
                reasons[address] = _reason(exc)
                self._place = (place + 1) % len(self._addresses)
                if len(reasons) < len(self._addresses) and _elsewhere(exc):
                    continue
                try:
                    step = retry.after(exc)
                except FfsError as last:
                    if not _elsewhere(exc):
                        raise
                    tried = ", ".join(f"{each} ({why})" for each, why in reasons.items())
                    raise error(Code.UNAVAILABLE, f"no cluster manager answers at {tried}") from last
            else:
                self._cluster_id = self._cluster_id or info.cluster_id
                return cast(mgmtd_pb2.ClusterInfo, info)
            time.sleep(step.pause_s)

    def routing(self) -> mgmtd_pb2.RoutingDelta:
        """All of routing, as of now."""
        return self.get_routing(mgmtd_pb2.GetRoutingRequest())

    def get_cluster_info(self) -> mgmtd_pb2.ClusterInfo:
        """Who answers, and at which routing version; needs no cluster id."""
        return self._call("GetClusterInfo", common_pb2.Empty(), mgmtd_pb2.ClusterInfo)

    def heartbeat(self, request: mgmtd_pb2.HeartbeatRequest) -> mgmtd_pb2.HeartbeatReply:
        return self._call("Heartbeat", request, mgmtd_pb2.HeartbeatReply, patient=False)

    def get_routing(self, request: mgmtd_pb2.GetRoutingRequest) -> mgmtd_pb2.RoutingDelta:
        return self._call(
            "GetRouting", request, mgmtd_pb2.RoutingDelta, deadline_s=CALL_DEADLINE_S + request.wait_ms / 1000
        )

    def register_node(self, request: mgmtd_pb2.RegisterNodeRequest) -> mgmtd_pb2.NodeInfo:
        return self._call("RegisterNode", request, mgmtd_pb2.NodeInfo)

    def unregister_node(self, request: mgmtd_pb2.UnregisterNodeRequest) -> common_pb2.Empty:
        return self._call("UnregisterNode", request, common_pb2.Empty)

    def set_node_disabled(self, request: mgmtd_pb2.SetNodeDisabledRequest) -> mgmtd_pb2.NodeInfo:
        return self._call("SetNodeDisabled", request, mgmtd_pb2.NodeInfo)

    def register_target(self, request: mgmtd_pb2.RegisterTargetRequest) -> mgmtd_pb2.TargetInfo:
        return self._call("RegisterTarget", request, mgmtd_pb2.TargetInfo)

    def set_chains(self, request: mgmtd_pb2.SetChainsRequest) -> common_pb2.Empty:
        return self._call("SetChains", request, common_pb2.Empty)

    def set_chain_table(self, request: mgmtd_pb2.SetChainTableRequest) -> mgmtd_pb2.SetChainTableReply:
        return self._call("SetChainTable", request, mgmtd_pb2.SetChainTableReply)

    def update_chain(self, request: mgmtd_pb2.UpdateChainRequest) -> mgmtd_pb2.ChainInfo:
        return self._call("UpdateChain", request, mgmtd_pb2.ChainInfo, repeatable=bool(request.expected_version))

    def set_config(self, request: mgmtd_pb2.SetConfigRequest) -> mgmtd_pb2.ConfigInfo:
        return self._call("SetConfig", request, mgmtd_pb2.ConfigInfo, repeatable=bool(request.expected_version))

    def get_config(self, request: mgmtd_pb2.GetConfigRequest) -> mgmtd_pb2.ConfigInfo:
        return self._call("GetConfig", request, mgmtd_pb2.ConfigInfo)

    def list_configs(self, request: mgmtd_pb2.ListConfigsRequest) -> mgmtd_pb2.ListConfigsReply:
        return self._call("ListConfigs", request, mgmtd_pb2.ListConfigsReply)

    def extend_session(self, request: mgmtd_pb2.ExtendSessionRequest) -> mgmtd_pb2.ExtendSessionReply:
        return self._call("ExtendSession", request, mgmtd_pb2.ExtendSessionReply)

    def list_sessions(self, request: mgmtd_pb2.ListSessionsRequest) -> mgmtd_pb2.ListSessionsReply:
        return self._call("ListSessions", request, mgmtd_pb2.ListSessionsReply)

    def _call(
        self,
        rpc: str,
        request: Any,
        reply: type[M],
        *,
        deadline_s: float = CALL_DEADLINE_S,
        patient: bool = True,
        repeatable: bool = True,
    ) -> M:
        if rpc != "GetClusterInfo" and not request.cluster_id:
            request.cluster_id = self.cluster_id
        retry = _retry(self._patience_s, self._clock, self._random)
        while True:
            place, client = self._client()
            try:
                return cast(M, client.call(rpc, request, deadline_s=deadline_s))
            except FfsError as failure:
                exc = _as_away(failure, self._closed)
                # Whoever does not wait here must find the next address on its next call.
                self._place = (place + 1) % len(self._addresses) if _elsewhere(exc) else place
                if self._closed or not patient or exc.code in _FINAL:
                    raise exc from failure
                if not repeatable and exc.code in _PERHAPS:
                    raise _perhaps(exc, rpc) from failure
                step = retry.after(exc)
            time.sleep(step.pause_s)

    def _client(self) -> tuple[int, ControlClient]:
        with self._lock:
            if self._closed:
                raise error(Code.CANCELLED, "the client of the cluster manager is closed")
            place = self._place
            address = self._addresses[place]
            client = self._clients.get(address)
            if client is None:
                client = self._clients[address] = ControlClient(SERVICE, address)
            return place, client


class AsyncMgmtdClient:
    """The same for one event loop."""

    def __init__(
        self,
        addresses: Sequence[str],
        cluster_id: str = "",
        *,
        patience_s: float = PATIENCE_S,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._addresses = _checked(addresses)
        self.cluster_id = cluster_id
        self._patience_s = patience_s
        self._clock: Clock = clock or SystemClock()
        self._random = rng or random.Random()
        self._clients: dict[str, AsyncControlClient] = {}
        self._place = 0
        self._closed = False

    async def close(self) -> None:
        """Calls under way end with an error. Twice is no error."""
        self._closed = True
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.close()

    async def routing(self) -> mgmtd_pb2.RoutingDelta:
        """All of routing, as of now."""
        return await self.get_routing(mgmtd_pb2.GetRoutingRequest())

    async def get_cluster_info(self) -> mgmtd_pb2.ClusterInfo:
        """Who answers, and at which routing version; needs no cluster id."""
        return await self._call("GetClusterInfo", common_pb2.Empty(), mgmtd_pb2.ClusterInfo)

    async def heartbeat(self, request: mgmtd_pb2.HeartbeatRequest) -> mgmtd_pb2.HeartbeatReply:
        return await self._call(
            "Heartbeat", request, mgmtd_pb2.HeartbeatReply, deadline_s=HEARTBEAT_DEADLINE_S, patient=False
        )

    async def get_routing(self, request: mgmtd_pb2.GetRoutingRequest) -> mgmtd_pb2.RoutingDelta:
        return await self._call(
            "GetRouting", request, mgmtd_pb2.RoutingDelta, deadline_s=CALL_DEADLINE_S + request.wait_ms / 1000
        )

    async def register_node(self, request: mgmtd_pb2.RegisterNodeRequest) -> mgmtd_pb2.NodeInfo:
        return await self._call("RegisterNode", request, mgmtd_pb2.NodeInfo)

    async def unregister_node(self, request: mgmtd_pb2.UnregisterNodeRequest) -> common_pb2.Empty:
        return await self._call("UnregisterNode", request, common_pb2.Empty)

    async def set_node_disabled(self, request: mgmtd_pb2.SetNodeDisabledRequest) -> mgmtd_pb2.NodeInfo:
        return await self._call("SetNodeDisabled", request, mgmtd_pb2.NodeInfo)

    async def register_target(self, request: mgmtd_pb2.RegisterTargetRequest) -> mgmtd_pb2.TargetInfo:
        return await self._call("RegisterTarget", request, mgmtd_pb2.TargetInfo)

    async def set_chains(self, request: mgmtd_pb2.SetChainsRequest) -> common_pb2.Empty:
        return await self._call("SetChains", request, common_pb2.Empty)

    async def set_chain_table(self, request: mgmtd_pb2.SetChainTableRequest) -> mgmtd_pb2.SetChainTableReply:
        return await self._call("SetChainTable", request, mgmtd_pb2.SetChainTableReply)

    async def update_chain(self, request: mgmtd_pb2.UpdateChainRequest) -> mgmtd_pb2.ChainInfo:
        return await self._call("UpdateChain", request, mgmtd_pb2.ChainInfo, repeatable=bool(request.expected_version))

    async def set_config(self, request: mgmtd_pb2.SetConfigRequest) -> mgmtd_pb2.ConfigInfo:
        return await self._call("SetConfig", request, mgmtd_pb2.ConfigInfo, repeatable=bool(request.expected_version))

    async def get_config(self, request: mgmtd_pb2.GetConfigRequest) -> mgmtd_pb2.ConfigInfo:
        return await self._call("GetConfig", request, mgmtd_pb2.ConfigInfo)

    async def list_configs(self, request: mgmtd_pb2.ListConfigsRequest) -> mgmtd_pb2.ListConfigsReply:
        return await self._call("ListConfigs", request, mgmtd_pb2.ListConfigsReply)

    async def extend_session(self, request: mgmtd_pb2.ExtendSessionRequest) -> mgmtd_pb2.ExtendSessionReply:
        return await self._call("ExtendSession", request, mgmtd_pb2.ExtendSessionReply)

    async def list_sessions(self, request: mgmtd_pb2.ListSessionsRequest) -> mgmtd_pb2.ListSessionsReply:
        return await self._call("ListSessions", request, mgmtd_pb2.ListSessionsReply)

    async def _call(
        self,
        rpc: str,
        request: Any,
        reply: type[M],
        *,
        deadline_s: float = CALL_DEADLINE_S,
        patient: bool = True,
        repeatable: bool = True,
    ) -> M:
        if rpc != "GetClusterInfo" and not request.cluster_id:
            if not self.cluster_id:
                self.cluster_id = (await self.get_cluster_info()).cluster_id
            request.cluster_id = self.cluster_id
        retry = _retry(self._patience_s, self._clock, self._random)
        while True:
            place, client = self._client()
            try:
                return cast(M, await client.call(rpc, request, deadline_s=deadline_s))
            except FfsError as failure:
                exc = _as_away(failure, self._closed)
                # Whoever does not wait here must find the next address on its next call.
                self._place = (place + 1) % len(self._addresses) if _elsewhere(exc) else place
                if self._closed or not patient or exc.code in _FINAL:
                    raise exc from failure
                if not repeatable and exc.code in _PERHAPS:
                    raise _perhaps(exc, rpc) from failure
                step = retry.after(exc)
            await asyncio.sleep(step.pause_s)

    def _client(self) -> tuple[int, AsyncControlClient]:
        if self._closed:
            raise error(Code.CANCELLED, "the client of the cluster manager is closed")
        place = self._place
        address = self._addresses[place]
        client = self._clients.get(address)
        if client is None:
            client = self._clients[address] = AsyncControlClient(SERVICE, address)
        return place, client


def _elsewhere(exc: FfsError) -> bool:
    """Whether another address may answer better."""
    return exc.code in (Code.UNAVAILABLE, Code.TIMEOUT, Code.NOT_PRIMARY)


def _perhaps(exc: FfsError, rpc: str) -> FfsError:
    return error(exc.code, f"{exc.message}: whether {rpc} was carried out is not known, look before it is tried again")


def _reason(exc: FfsError) -> str:
    """Why an address could not be reached, in a few words: gRPC wraps the reason in several layers of its own."""
    if exc.code is Code.TIMEOUT:
        return "no answer in time"
    return exc.message.rpartition(": ")[2].rstrip("]").lower() or exc.message


def _as_away(exc: FfsError, closed: bool) -> FfsError:
    """A server that stops cancels what it has under way: for the caller, it is away."""
    return error(Code.UNAVAILABLE, exc.message) if exc.code is Code.CANCELLED and not closed else exc
