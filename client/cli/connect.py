"""From the global options to a client: the named cluster manager, or the local cluster's."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fireflyfs.client.cli.settings import Settings
from fireflyfs.client.routing import Routing, apply_delta
from fireflyfs.common.errors import Code, error
from fireflyfs.proto import mgmtd_pb2


def mgmtd_addresses(settings: Settings) -> list[str]:
    """Where mgmtd listens. Raises UNAVAILABLE when none is named and there is no local cluster."""
    if settings.mgmtd:
        return settings.addresses
    local = importlib.import_module("fireflyfs.deploy.local").LocalCluster(settings.root)
    if not local.exists():
        raise error(Code.UNAVAILABLE, f"no cluster in {settings.root}, and no --mgmtd")
    addresses: list[str] = local.mgmtd_addresses()
    return addresses


PATIENCE_S = 3.0  # for a manager that is away: a person waits


@contextmanager
def mgmtd(settings: Settings) -> Iterator[Any]:
    """A blocking MgmtdClient, closed on leaving."""
    client = importlib.import_module("fireflyfs.client.mgmtd_client").MgmtdClient(
        mgmtd_addresses(settings), patience_s=PATIENCE_S
    )
    try:
        yield client
    finally:
        client.close()


def routing_of(client: Any) -> Routing:
    """All of routing, as of now."""
    return apply_delta(Routing(), client.get_routing(mgmtd_pb2.GetRoutingRequest(cluster_id=client.cluster_id)))


@contextmanager
def filesystem(settings: Settings) -> Iterator[Any]:
    """A FileSystem of the client library, closed on leaving."""
    module = importlib.import_module("fireflyfs.client.filesystem")
    fs = module.FileSystem.connect(mgmtd=",".join(mgmtd_addresses(settings)))
    try:
        yield fs
    finally:
        fs.close()
