"""One client process's connection to a cluster: identity, links, routing, lease, and the two clients on top.

`ClientContext.connect` makes all of it; the file system, the mount and the KV cache start from one. The lease tells
mgmtd that this client lives; when it runs out, meta closes the client's file sessions. A context belongs to the process
that made it (see `forkguard`).
"""

from __future__ import annotations

import copy
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from fireflyfs.client import left_to_collector
from fireflyfs.client.inode_state import InodeTable
from fireflyfs.client.late_closes import LateCloses
from fireflyfs.client.meta_client import MetaClient
from fireflyfs.client.mgmtd_client import MgmtdClient
from fireflyfs.client.retry import RetryPolicy
from fireflyfs.client.routing_source import RoutingSource
from fireflyfs.client.routing_view import RoutingView
from fireflyfs.client.scratch import Scratch
from fireflyfs.client.storage_client import StorageClient
from fireflyfs.common.clock import Clock, LeaseClock, SystemClock
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.ids import ClientId
from fireflyfs.common.net.api import BlockingLink, MemoryPool
from fireflyfs.common.net.blocking import BlockingPool
from fireflyfs.common.net.counting import connections
from fireflyfs.common.net.host import host_id
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.link_choice import choose_link
from fireflyfs.common.net.memory import SharedPool
from fireflyfs.common.net.rdma.adapters import check_link
from fireflyfs.proto import mgmtd_pb2
from fireflyfs.proto.common_pb2 import NODE_TYPE_CLIENT, Caller, NodeType

log = logging.getLogger(__name__)

LEASE_RENEWALS = 3  # in each lease time
FIRST_RENEWAL_S = 2.0
LEASE_S_DEFAULT = 30.0  # until mgmtd says otherwise
CLOSE_DEADLINE_S = 2.0


def _links_of(pool: BlockingPool) -> dict[str, int]:
    return connections(pool.traffic())


def process_caller() -> Caller:
    """The user and groups of this process."""
    return Caller(uid=os.geteuid(), gid=os.getegid(), gids=os.getgroups())


@dataclass(frozen=True, slots=True)
class Parts:
    """What a context is made of; `lease` is None where nobody must be told that the client lives."""

    link: BlockingLink
    routing: RoutingView
    client_id: ClientId
    lease: LeaseKeeper | None = None
    mgmtd: MgmtdClient | None = None


class LeaseTerm:
    """How long mgmtd surely takes this client for alive, by the clock of the client's `LeaseKeeper`.

    `now` is (how often it was begun anew, until when it runs): one value, so that readers need no lock.
    """

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = (0, float("-inf"))

    def renewed(self, sent_s: float, answered_s: float, lease_s: float) -> None:
        """mgmtd has heard of us between these: before the lease ran out, or perhaps after."""
        begun, until_s = self.now
        self.now = (begun + (answered_s >= until_s), max(until_s, sent_s + lease_s))


class LeaseKeeper:
    """A daemon thread that extends this client's lease until it is closed.

    `on_extended` is called by it after each time, and must return soon.
    """

    def __init__(
        self,
        mgmtd: MgmtdClient,
        cluster_id: str,
        session: mgmtd_pb2.ClientSession,
        clock: Clock | None = None,
        *,
        links: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """`links`: how many connections there are now, by link."""
        self.term = LeaseTerm()
        self.clock = clock or LeaseClock()
        self.on_extended: Callable[[], None] = lambda: None
        self._mgmtd = mgmtd
        self._links = links
        self._request = mgmtd_pb2.ExtendSessionRequest(cluster_id=cluster_id, session=session)
        self._stop = threading.Event()
        self._lease_s = LEASE_S_DEFAULT
        self._extend()
        self._thread = threading.Thread(target=self._run, name="ffs-lease", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        pause_s = FIRST_RENEWAL_S  # soon: then it is known which links were taken
        while not self._stop.wait(min(pause_s, self._lease_s / LEASE_RENEWALS)):
            pause_s = self._lease_s
            try:
                self._extend()
                self.on_extended()
            except FfsError as exc:
                # Nothing to do but to try again: files stay open here, and meta may close their sessions meanwhile.
                log.warning("cannot extend the client's lease: %s", exc)
            except Exception:
                log.exception("cannot extend the client's lease; the next time is tried")

    def _extend(self) -> None:
        links = self._request.session.links
        links.clear()
        links.update(self._links())
        sent_s = self.clock.monotonic_s()
        reply = self._mgmtd.extend_session(self._request)
        if reply.lease_ms:
            self._lease_s = reply.lease_ms / 1000
        self.term.renewed(sent_s, self.clock.monotonic_s(), self._lease_s)

    def close(self) -> None:
        """Give the lease back, if mgmtd can be reached soon."""
        self._stop.set()
        self._thread.join(CLOSE_DEADLINE_S)
        self._request.closing = True
        closer = threading.Thread(target=self._give_back, name="ffs-lease-close", daemon=True)
        closer.start()
        closer.join(CLOSE_DEADLINE_S)

    def _give_back(self) -> None:
        try:
            self._mgmtd.extend_session(self._request)
        except FfsError as exc:
            log.debug("the lease was not given back: %s", exc)


class ClientContext:
    """Everything that a client process shares between its files."""

    def __init__(
        self,
        parts: Parts,
        *,
        caller: Caller | None = None,
        policy: RetryPolicy | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._parts = parts
        self.clock: Clock = clock or SystemClock()
        self.link = parts.link
        self.pool: MemoryPool = parts.link.pool
        self.routing = parts.routing
        self.client_id = parts.client_id
        rng = rng or random.Random()
        self.meta = MetaClient(
            parts.link,
            parts.routing,
            parts.client_id,
            caller=caller,
            policy=policy,
            clock=self.clock,
            rng=rng,
            sleep=sleep,
        )
        self.storage = StorageClient(
            parts.link, parts.routing, parts.client_id, policy=policy, clock=self.clock, rng=rng, sleep=sleep
        )
        self.inodes = InodeTable()
        self.late_closes = LateCloses()
        if parts.lease is not None:
            parts.lease.on_extended = self.late_closes.tell_beside
        self.scratch = Scratch(self.pool)
        self._closing = threading.Lock()
        self._closed = False

    @property
    def mgmtd(self) -> MgmtdClient:
        """For administration. Raises UNAVAILABLE in a context that was made without one."""
        if self._parts.mgmtd is None:
            raise error(Code.UNAVAILABLE, "this client has no connection to a cluster manager")
        return self._parts.mgmtd

    def lease(self) -> tuple[int, float]:
        """(how often it was begun anew, until when it surely runs, by `lease_clock`); without one nobody takes this
        client for dead."""
        lease = self._parts.lease
        return lease.term.now if lease is not None else (0, float("inf"))

    @property
    def lease_clock(self) -> Clock:
        lease = self._parts.lease
        return lease.clock if lease is not None else self.clock

    def acting_for(self, caller: Caller) -> ClientContext:
        """The same connections and open files as another user has them. Only the original is closed."""
        other = copy.copy(self)
        other.meta = self.meta.acting_for(caller)
        return other

    @staticmethod
    def connect(
        mgmtd: Sequence[str],
        node_type: NodeType = NODE_TYPE_CLIENT,
        *,
        cluster_id: str = "",
        caller: Caller | None = None,
        policy: RetryPolicy | None = None,
        description: str = "",
        shared_memory: bool = True,
        link: str = "",
        connect_timeout_s: float = 30.0,
    ) -> ClientContext:
        """Join the cluster that the managers at `mgmtd` lead.

        `cluster_id`, when given, must be theirs (WRONG_CLUSTER). Raises UNAVAILABLE when none answers in time, or no
        metadata server is known in time. `shared_memory=False` does not share memory even on one host. `link`: auto,
        rdma, tcp or shm; empty: what FFS_LINK says. Raises CONFIG for what is no link, or none of this machine's.
        """
        chosen = choose_link(link)
        check_link(chosen)
        manager = MgmtdClient(mgmtd, patience_s=connect_timeout_s)
        source: RoutingSource | None = None
        pool: BlockingPool | None = None
        try:
            manager.meet(connect_timeout_s)
            if cluster_id and cluster_id != manager.cluster_id:
                raise error(Code.WRONG_CLUSTER, f"{mgmtd} lead cluster {manager.cluster_id!r}, not {cluster_id!r}")
            identity = Identity(manager.cluster_id, host_id=host_id() if shared_memory else "", link=chosen)
            source = RoutingSource(manager)
            source.wait_until(
                lambda routing: bool(routing.meta_servers()), connect_timeout_s, lacks="no metadata server is up"
            )
            session = mgmtd_pb2.ClientSession(
                client_id=identity.client_id,
                type=node_type,
                hostname=socket.gethostname(),
                description=description or f"pid {os.getpid()}",
                start_unix_ns=SystemClock().unix_ns(),
            )
            pool = BlockingPool(identity, pool=SharedPool())
            lease = LeaseKeeper(manager, manager.cluster_id, session, links=partial(_links_of, pool))
        except BaseException:
            if pool is not None:
                pool.close()
            if source is not None:
                source.close()
            manager.close()
            raise
        parts = Parts(pool, source, identity.client_id, lease, manager)
        return ClientContext(parts, caller=caller or process_caller(), policy=policy)

    def close(self) -> None:
        """Give the lease back and close all connections. Twice is no error."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        left_to_collector.drain()
        if self._parts.lease is not None:
            self._parts.lease.close()
        self.scratch.close()
        self.link.close()
        routing = self.routing if isinstance(self.routing, RoutingSource) else None
        if routing is not None:
            routing.stop()
        if self._parts.mgmtd is not None:
            self._parts.mgmtd.close()  # the poll under way ends with it
        if routing is not None:
            routing.close()

    def __enter__(self) -> ClientContext:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
