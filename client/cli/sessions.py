"""`ffs sessions`: the clients that hold a lease."""

from __future__ import annotations

import time

import click

from fireflyfs.client.cli import connect, output, views
from fireflyfs.client.cli.settings import Settings, pass_settings
from fireflyfs.proto import mgmtd_pb2


@click.group()
def sessions() -> None:
    """Client leases: list."""


@sessions.command("list")
@pass_settings
def list_sessions(settings: Settings) -> None:
    """List clients and mounts that hold a lease."""
    with connect.mgmtd(settings) as client:
        reply = client.list_sessions(mgmtd_pb2.ListSessionsRequest(cluster_id=client.cluster_id))
    now = time.time_ns()
    rows = [
        {
            "client": session.client_id.hex(),
            "type": views.type_name(session.type),
            "host": session.hostname,
            "since": output.age_text((now - session.start_unix_ns) / 1e9),
            "seen": output.age_text((now - session.last_seen_unix_ns) / 1e9) + " ago",
            "start_unix_ns": session.start_unix_ns,
            "last_seen_unix_ns": session.last_seen_unix_ns,
            "links": views.links_text(session.links),
            "connections": dict(session.links),
            "description": session.description,
        }
        for session in reply.sessions
    ]
    columns = [("client", "client"), ("type", "type"), ("host", "host"), ("since", "for"), ("seen", "last seen")]
    columns.append(("links", "connections"))
    output.show_rows(settings, rows, [*columns, ("description", "description")], empty="no clients")
    if not reply.complete and not settings.json:
        click.echo("mgmtd started a short while ago: clients it has not heard of yet are missing here", err=True)
