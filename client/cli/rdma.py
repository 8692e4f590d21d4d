"""`ffs rdma`: whether this machine can move payload by rdma."""

from __future__ import annotations

import sys

import click

from fireflyfs.client.cli import exits, output
from fireflyfs.client.cli.settings import Settings, pass_settings

_COLUMNS = [
    ("device", "device"),
    ("port", "port"),
    ("state", "state"),
    ("used", "used"),
    ("mtu_bytes", "MTU"),
    ("gid_index", "GID index"),
    ("gid", "GID"),
    ("loop", "READ and WRITE to itself"),
]


@click.group()
def rdma() -> None:
    """RDMA on this machine."""


@rdma.command("check")
@pass_settings
def check(settings: Settings) -> None:
    """Show devices, ports and GIDs, move bytes through each port, say what is missing. Exit code 1: it does not work.

    Needs no cluster. FFS_LINK, FFS_RDMA_DEVICES and FFS_RDMA_GID_INDEX are taken as servers and mounts take them.
    """
    from fireflyfs.common.net.link_choice import choose_link
    from fireflyfs.common.net.rdma import checking
    from fireflyfs.common.net.rdma.settings import settings_from_environment

    chosen = settings_from_environment()
    link = choose_link().value
    report = checking.check(chosen)
    rows = checking.rows(report.ports)
    if settings.json:
        output.show_json(
            {
                "works": report.works,
                "link": link,
                "pyverbs": report.pyverbs,
                "locked_bytes": report.locked_bytes,
                "ports": rows,
                "problems": report.problems,
            }
        )
    else:
        output.show_rows(settings, rows, _COLUMNS, title="ports", empty="no rdma device")
        limit = "no limit" if report.locked_bytes is None else output.bytes_text(report.locked_bytes)
        output.show_record(settings, {"link": link, "pyverbs": report.pyverbs, "locked memory": limit})
        for problem in report.problems:
            click.echo(f"- {problem}")
        click.echo("rdma works" if report.works else "rdma does not work: payload travels over tcp or shared memory")
    if not report.works:
        sys.exit(exits.FAILED)
