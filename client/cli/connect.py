"""From the global options to a client: the named cluster manager, or the local cluster's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fireflyfs.client.cli.settings import Settings
from fireflyfs.client.mgmtd_client import MgmtdClient
from fireflyfs.client.routing import Routing, apply_delta
from fireflyfs.common.errors import Code, error


def mgmtd_addresses(settings: Settings) -> list[str]:
    """Where mgmtd listens. Raises UNAVAILABLE when none is named and there is no local cluster."""
    if settings.mgmtd:
        return settings.addresses
    from fireflyfs.deploy.local import LocalCluster

    local = LocalCluster(settings.root)
    if not local.exists():
        raise error(
            Code.UNAVAILABLE, f"no cluster in {settings.root}: `ffs up` makes one, --root and --mgmtd name others"
        )
    return local.mgmtd_addresses()


if TYPE_CHECKING:
    from fireflyfs.client.filesystem import FileSystem

PATIENCE_S = 3.0  # for a manager that is away: a person waits
FIRST_CALL_S = 3.0  # for each address: one that does not even refuse must not hide the next
CONNECT_TIMEOUT_S = 10.0  # until a metadata server is known


@contextmanager
def mgmtd(settings: Settings, *, meet: bool = True) -> Iterator[MgmtdClient]:
    """A blocking MgmtdClient, closed on leaving. `meet=False`: the manager may still be away.

    Raises UNAVAILABLE that names all addresses when no manager answers within a few seconds.
    """
    client = MgmtdClient(mgmtd_addresses(settings), patience_s=PATIENCE_S)
    try:
        if meet:
            client.meet(PATIENCE_S, call_deadline_s=FIRST_CALL_S)
        yield client
    finally:
        client.close()


def meet(addresses: list[str]) -> None:
    """Make sure that a cluster manager answers. Raises UNAVAILABLE that names all addresses, within a few seconds."""
    client = MgmtdClient(addresses)
    try:
        client.meet(PATIENCE_S, call_deadline_s=FIRST_CALL_S)
    finally:
        client.close()


def routing_of(client: MgmtdClient) -> Routing:
    """All of routing, as of now."""
    return apply_delta(Routing(), client.routing())


@contextmanager
def filesystem(settings: Settings) -> Iterator[FileSystem]:
    """A FileSystem of the client library, closed on leaving. It says so on stderr when it waits for servers."""
    from fireflyfs.client.cli.waiting import Notice
    from fireflyfs.client.filesystem import FileSystem
    from fireflyfs.client.retry import RetryPolicy

    addresses = mgmtd_addresses(settings)
    meet(addresses)
    with Notice() as notice:
        policy = RetryPolicy(on_wait=notice.on_wait, on_give_up=notice.on_give_up)
        fs = FileSystem.connect(addresses, connect_timeout_s=CONNECT_TIMEOUT_S, policy=policy)
        notice.connected(fs.context.routing.current)
        try:
            yield fs
        finally:
            fs.close()
