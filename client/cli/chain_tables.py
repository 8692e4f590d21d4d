"""`ffs chain-tables`: which chains new files are spread over."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from fireflyfs.client.cli import connect, output, views
from fireflyfs.client.cli.placement import spread
from fireflyfs.client.cli.settings import Settings, pass_settings
from fireflyfs.client.cli.table_file import TableFile, check_chains, read_table, to_csv, to_json
from fireflyfs.client.mgmtd_client import MgmtdClient
from fireflyfs.client.routing import Routing
from fireflyfs.common.errors import Code, error
from fireflyfs.proto import mgmtd_pb2

_TABLE_ID = click.IntRange(1, (1 << 32) - 1)
_yes = click.option("--yes", is_flag=True, help="Do not ask before chains are taken out of a table.")


@click.group("chain-tables")
def chain_tables() -> None:
    """Chain tables: list, create, upload, generate."""


@chain_tables.command("list")
@pass_settings
def list_tables(settings: Settings) -> None:
    """List chain tables."""
    with connect.mgmtd(settings) as client:
        rows = views.table_rows(connect.routing_of(client))
    output.show_rows(settings, rows, views.TABLE_COLUMNS, empty="no chain tables")


@chain_tables.command("create")
@click.argument("table_id", type=_TABLE_ID)
@click.argument("chain_ids", type=click.IntRange(1), nargs=-1, required=True, metavar="CHAIN...")
@click.option("--description", default="")
@_yes
@pass_settings
def create(settings: Settings, table_id: int, chain_ids: tuple[int, ...], description: str, yes: bool) -> None:
    """Make a table, or a new version of it, of chains that exist."""
    with connect.mgmtd(settings) as client:
        routing = connect.routing_of(client)
        missing = sorted(set(chain_ids) - set(routing.chains))
        if missing:
            raise error(Code.NO_CHAIN, f"there is no chain {', '.join(map(str, missing))}; `ffs chains list` shows all")
        _confirm_without(routing, table_id, chain_ids, yes)
        version = _set_table(client, table_id, list(chain_ids), description)
    output.done(settings, f"chain table {table_id} is at version {version}", table=table_id, version=version)


@chain_tables.command("upload")
@click.argument("table_id", type=_TABLE_ID)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--description", help="Instead of the file's.")
@click.option("--allow-same-node", is_flag=True, help="Let two replicas share a node (for tests only).")
@click.option("--dry-run", is_flag=True, help="Check the file against the cluster and stop.")
@_yes
@pass_settings
def upload(
    settings: Settings,
    table_id: int,
    file: Path,
    description: str | None,
    allow_same_node: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Make the chains of FILE (JSON or CSV) and a table of them. Nothing is changed when anything in it is wrong."""
    table = read_table(file)
    with connect.mgmtd(settings) as client:
        routing = connect.routing_of(client)
        check_chains(table.chains, routing, allow_same_node=allow_same_node)
        if dry_run:
            output.done(settings, f"{file}: {len(table.chains)} chains, all well", chains=len(table.chains))
            return
        version = _upload(client, table_id, table, description, routing, yes)
    output.done(
        settings,
        f"chain table {table_id} is at version {version}, with {len(table.chains)} chains",
        table=table_id,
        version=version,
        chains=len(table.chains),
    )


@chain_tables.command("generate")
@click.option("--replicas", type=click.IntRange(1, 16), default=3, show_default=True)
@click.option("--output", "target_file", type=click.Path(path_type=Path), help="Write there, .json or .csv.")
@click.option("--upload", "upload_as", type=_TABLE_ID, metavar="TABLE_ID", help="Upload it at once as this table.")
@_yes
@pass_settings
def generate(settings: Settings, replicas: int, target_file: Path | None, upload_as: int | None, yes: bool) -> None:
    """Spread replicas evenly over the nodes, using every target that is in no chain yet."""
    with connect.mgmtd(settings) as client:
        routing = connect.routing_of(client)
        free: dict[int, list[int]] = {}
        for target_id, target in routing.targets.items():
            if not target.chain_id:
                free.setdefault(target.node_id, []).append(target_id)
        chains = spread(free, replicas, first_chain_id=max(routing.chains, default=0) + 1)
        table = TableFile(tuple(chains), f"{replicas} replicas")
        if upload_as is not None:
            version = _upload(client, upload_as, table, None, routing, yes)
            output.done(
                settings,
                f"chain table {upload_as} is at version {version}, with {len(chains)} chains",
                table=upload_as,
                version=version,
                **to_json(table),
            )
    if target_file is not None:
        csv = target_file.suffix == ".csv"
        target_file.write_text(to_csv(table) if csv else json.dumps(to_json(table), indent=2) + "\n", encoding="utf-8")
        if upload_as is None:
            output.done(settings, f"{target_file}: {len(chains)} chains", file=str(target_file), **to_json(table))
    elif upload_as is None:
        output.show_json(to_json(table))


def _confirm_without(routing: Routing, table_id: int, chain_ids: Sequence[int], yes: bool) -> None:
    """Ask before a table that exists loses chains: new files are not spread over them any more."""
    old = routing.chain_tables.get(table_id)
    gone = [chain_id for chain_id in old.chains if chain_id not in chain_ids] if old is not None else []
    if yes or not gone:
        return
    stored = 0
    for chain_id in gone:
        members = routing.chains[chain_id].targets if chain_id in routing.chains else ()
        stored += max(
            (routing.targets[target].used_bytes for target, _ in members if target in routing.targets), default=0
        )
    names = f"chain{'s' if len(gone) > 1 else ''} {', '.join(map(str, gone))}"
    click.confirm(
        f"Take {names} out of table {table_id}? What is stored there ({output.bytes_text(stored)}) stays, and its "
        "files are served; new files go to the table's other chains only",
        abort=True,
        err=True,
    )


def _upload(
    client: MgmtdClient, table_id: int, table: TableFile, description: str | None, routing: Routing, yes: bool
) -> int:
    _confirm_without(routing, table_id, [row.chain_id for row in table.chains], yes)
    # Chains that stand as the file has them are left alone: an upload that was cut off is simply repeated.
    missing = [row for row in table.chains if not _stands(row.chain_id, row.targets, routing)]
    if missing:
        specs = [mgmtd_pb2.ChainSpec(chain_id=row.chain_id, targets=row.targets) for row in missing]
        client.set_chains(mgmtd_pb2.SetChainsRequest(cluster_id=client.cluster_id, chains=specs))
    text = table.description if description is None else description
    return _set_table(client, table_id, [row.chain_id for row in table.chains], text)


def _stands(chain_id: int, targets: tuple[int, ...], routing: Routing) -> bool:
    chain = routing.chains.get(chain_id)
    return chain is not None and {target for target, _ in chain.targets} == set(targets)


def _set_table(client: MgmtdClient, table_id: int, chain_ids: list[int], description: str) -> int:
    reply = client.set_chain_table(
        mgmtd_pb2.SetChainTableRequest(
            cluster_id=client.cluster_id, table_id=table_id, chains=chain_ids, description=description
        )
    )
    return int(reply.version)
