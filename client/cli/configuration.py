"""`ffs config`: the configuration that mgmtd keeps for each type of node."""

from __future__ import annotations

import datetime
import sys
import tomllib
from pathlib import Path
from typing import Any

import click

from fireflyfs.client.cli import connect, output, views
from fireflyfs.client.cli.settings import Settings, pass_settings
from fireflyfs.common.errors import Code, error
from fireflyfs.proto import mgmtd_pb2

_TYPE = click.Choice(list(views.NODE_TYPES))


@click.group()
def config() -> None:
    """Configuration per node type: get, set, list. mgmtd keeps versions of it; servers start from their own files."""


@config.command("get")
@click.argument("node_type", type=_TYPE)
@click.option("--version", type=click.IntRange(0), default=0, help="An older version.  [default: the newest]")
@pass_settings
def get(settings: Settings, node_type: str, version: int) -> None:
    """Print the configuration of a node type."""
    with connect.mgmtd(settings) as client:
        info = client.get_config(
            mgmtd_pb2.GetConfigRequest(cluster_id=client.cluster_id, type=views.NODE_TYPES[node_type], version=version)
        )
    if settings.json:
        output.show_json({**_row(info), "content": info.content})
    elif not info.version:
        click.echo(f"no {node_type} configuration is set: the servers run on their own files", err=True)
    else:
        click.echo(info.content, nl=not info.content.endswith("\n"))


@config.command("set")
@click.argument("node_type", type=_TYPE)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--description", default="", help="Why: kept with the version.")
@click.option("--if-version", type=click.IntRange(0), default=0, help="Only when this is still the newest version.")
@pass_settings
def set_config(settings: Settings, node_type: str, file: Path, description: str, if_version: int) -> None:
    """Make FILE (TOML, `-` for standard input) the new configuration of a node type."""
    try:
        content = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        tomllib.loads(content)
    except ValueError as exc:  # no UTF-8, or no TOML
        raise error(Code.CONFIG, f"{file} is not valid TOML: {exc}") from exc
    with connect.mgmtd(settings) as client:
        info = client.set_config(
            mgmtd_pb2.SetConfigRequest(
                cluster_id=client.cluster_id,
                type=views.NODE_TYPES[node_type],
                content=content,
                description=description,
                expected_version=if_version,
            )
        )
    output.done(settings, f"{node_type} configuration is at version {info.version}", **_row(info))


@config.command("list")
@click.argument("node_type", type=_TYPE, required=False)
@pass_settings
def list_configs(settings: Settings, node_type: str | None) -> None:
    """List the versions of a node type's configuration, or of all."""
    rows = []
    with connect.mgmtd(settings) as client:
        for name in [node_type] if node_type else list(views.NODE_TYPES):
            request = mgmtd_pb2.ListConfigsRequest(cluster_id=client.cluster_id, type=views.NODE_TYPES[name])
            rows += [_row(info) for info in client.list_configs(request).configs]
    columns = [("type", "type"), ("version", "version"), ("created", "created"), ("description", "description")]
    output.show_rows(settings, rows, columns, empty="no configuration set: the servers run on their own files")


def _row(info: Any) -> dict[str, Any]:
    created = datetime.datetime.fromtimestamp(info.created_unix_ns / 1e9, datetime.UTC)
    return {
        "type": views.type_name(info.type),
        "version": info.version,
        "created": created.isoformat(timespec="seconds") if info.created_unix_ns else None,
        "description": info.description,
    }
