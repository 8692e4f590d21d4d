"""`ffs space`: capacity and use."""

from __future__ import annotations

import click

from fireflyfs.client.cli import connect, output, views
from fireflyfs.client.cli.settings import Settings, pass_settings


@click.command()
@click.option("--targets", is_flag=True, help="One row for each target, as the disks have it.")
@pass_settings
def space(settings: Settings, targets: bool) -> None:
    """Show capacity and use of each chain table, every chunk counted once whatever its replicas."""
    with connect.mgmtd(settings) as client:
        routing = connect.routing_of(client)
    if targets:
        columns = [("target", "target"), ("node", "node"), ("used", "used"), ("free", "free"), ("path", "path")]
        output.show_rows(settings, views.target_rows(routing), columns, empty="no targets")
        return
    names = ("table", "replicas", "chains", "capacity", "used", "free", "use")
    output.show_rows(settings, views.space_rows(routing), [(name, name) for name in names], empty="no chain tables")
