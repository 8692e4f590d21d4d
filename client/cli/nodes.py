"""`ffs nodes`: the servers that mgmtd knows."""

from __future__ import annotations

import time

import click

from fireflyfs.client.cli import connect, output, views
from fireflyfs.client.cli.settings import Settings, pass_settings
from fireflyfs.proto import mgmtd_pb2


@click.group()
def nodes() -> None:
    """Servers of the cluster: list, register, enable, disable, unregister."""


@nodes.command("list")
@click.option("--type", "kind", type=click.Choice(["mgmtd", "meta", "storage"]), help="Only nodes of this type.")
@pass_settings
def list_nodes(settings: Settings, kind: str | None) -> None:
    """List nodes with their state, last heartbeat and addresses."""
    with connect.mgmtd(settings) as client:
        rows = views.node_rows(connect.routing_of(client), time.time_ns())
    rows = [row for row in rows if kind is None or row["type"] == kind]
    output.show_rows(settings, rows, views.NODE_COLUMNS, empty="no nodes")


@nodes.command("register")
@click.argument("node_id", type=click.IntRange(1, (1 << 32) - 1))
@click.option("--type", "kind", type=click.Choice(["meta", "storage"]), required=True)
@click.option("--host", default="", help="The host that it will run on, for people.")
@pass_settings
def register(settings: Settings, node_id: int, kind: str, host: str) -> None:
    """Let a new node join: mgmtd refuses heartbeats of nodes that it does not know."""
    with connect.mgmtd(settings) as client:
        client.register_node(
            mgmtd_pb2.RegisterNodeRequest(
                cluster_id=client.cluster_id, node_id=node_id, type=views.NODE_TYPES[kind], hostname=host
            )
        )
    output.done(settings, f"node {node_id} may join", node=node_id, type=kind)


@nodes.command("enable")
@click.argument("node_id", type=click.IntRange(1))
@pass_settings
def enable(settings: Settings, node_id: int) -> None:
    """Let a disabled node serve again."""
    _set_disabled(settings, node_id, False)


@nodes.command("disable")
@click.argument("node_id", type=click.IntRange(1))
@pass_settings
def disable(settings: Settings, node_id: int) -> None:
    """Take a node out of service; its replicas go offline, its registration stays."""
    _set_disabled(settings, node_id, True)


def _set_disabled(settings: Settings, node_id: int, disabled: bool) -> None:
    with connect.mgmtd(settings) as client:
        client.set_node_disabled(
            mgmtd_pb2.SetNodeDisabledRequest(cluster_id=client.cluster_id, node_id=node_id, disabled=disabled)
        )
    word = "disabled" if disabled else "enabled"
    output.done(settings, f"node {node_id} is {word}", node=node_id, disabled=disabled)


@nodes.command("unregister")
@click.argument("node_id", type=click.IntRange(1))
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_settings
def unregister(settings: Settings, node_id: int, yes: bool) -> None:
    """Forget a node that will not come back. mgmtd refuses while it lives or chains still use its targets."""
    if not yes:
        click.confirm(f"Forget node {node_id} and its targets?", abort=True, err=True)
    with connect.mgmtd(settings) as client:
        client.unregister_node(mgmtd_pb2.UnregisterNodeRequest(cluster_id=client.cluster_id, node_id=node_id))
    output.done(settings, f"node {node_id} is forgotten", node=node_id)
