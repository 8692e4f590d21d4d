"""`ffs chains`: replication chains."""

from __future__ import annotations

import click

from fireflyfs.client.cli import connect, output, views
from fireflyfs.client.cli.settings import Settings, pass_settings
from fireflyfs.client.cli.table_file import ChainRow, check_chains
from fireflyfs.proto import mgmtd_pb2


@click.group()
def chains() -> None:
    """Replication chains: list, create, update."""


@chains.command("list")
@click.option("--unhealthy", is_flag=True, help="Only chains in which a replica does not serve.")
@pass_settings
def list_chains(settings: Settings, unhealthy: bool) -> None:
    """List chains with their version and the state of each replica."""
    with connect.mgmtd(settings) as client:
        rows = views.chain_rows(connect.routing_of(client))
    rows = [row for row in rows if not unhealthy or row["state"] != "serving"]
    output.show_rows(settings, rows, views.CHAIN_COLUMNS, empty="no such chains" if unhealthy else "no chains")


@chains.command("create")
@click.argument("chain_id", type=click.IntRange(1, (1 << 32) - 1))
@click.argument("target_ids", type=click.IntRange(1), nargs=-1, required=True, metavar="TARGET...")
@click.option("--allow-same-node", is_flag=True, help="Let two replicas share a node (for tests only).")
@pass_settings
def create(settings: Settings, chain_id: int, target_ids: tuple[int, ...], allow_same_node: bool) -> None:
    """Make a chain of targets, head first."""
    with connect.mgmtd(settings) as client:
        check_chains([ChainRow(chain_id, target_ids)], connect.routing_of(client), allow_same_node=allow_same_node)
        spec = mgmtd_pb2.ChainSpec(chain_id=chain_id, targets=target_ids)
        client.set_chains(mgmtd_pb2.SetChainsRequest(cluster_id=client.cluster_id, chains=[spec]))
    output.done(settings, f"chain {chain_id} is made of {len(target_ids)} targets", chain=chain_id)


@chains.group("update")
def update() -> None:
    """Change the members of a chain, one at a time."""


@update.command("add")
@click.argument("chain_id", type=click.IntRange(1))
@click.argument("target_id", type=click.IntRange(1))
@pass_settings
def add(settings: Settings, chain_id: int, target_id: int) -> None:
    """Add a target at the end of a chain; it is brought up to date there."""
    _update(settings, chain_id, target_id, mgmtd_pb2.UPDATE_CHAIN_ADD)


@update.command("remove")
@click.argument("chain_id", type=click.IntRange(1))
@click.argument("target_id", type=click.IntRange(1))
@pass_settings
def remove(settings: Settings, chain_id: int, target_id: int) -> None:
    """Take a target out of a chain. Refused where acknowledged writes would be lost."""
    _update(settings, chain_id, target_id, mgmtd_pb2.UPDATE_CHAIN_REMOVE)


@update.command("rotate")
@click.argument("chain_id", type=click.IntRange(1))
@pass_settings
def rotate(settings: Settings, chain_id: int) -> None:
    """Take a step back to the preferred order, whose first target leads; all replicas must serve."""
    _update(settings, chain_id, 0, mgmtd_pb2.UPDATE_CHAIN_ROTATE)


@update.command("resync")
@click.argument("chain_id", type=click.IntRange(1))
@click.argument("target_id", type=click.IntRange(1))
@pass_settings
def resync(settings: Settings, chain_id: int, target_id: int) -> None:
    """Take a serving target out and bring it up to date again from the others. Refused for the last one that serves."""
    _update(settings, chain_id, target_id, mgmtd_pb2.UPDATE_CHAIN_RESYNC)


def _update(settings: Settings, chain_id: int, target_id: int, kind: mgmtd_pb2.UpdateChainKind) -> None:
    with connect.mgmtd(settings) as client:
        before = connect.routing_of(client).chain(chain_id)  # says at once that there is none: a client would ask again
        after = client.update_chain(
            mgmtd_pb2.UpdateChainRequest(
                cluster_id=client.cluster_id,
                chain_id=chain_id,
                target_id=target_id,
                kind=kind,
                expected_version=before.version,
            )
        )
    members = [{"target": one.target_id, "state": views.public_state(one.state)} for one in after.targets]
    text = ", ".join(f"{one['target']} {one['state']}" for one in members)
    output.done(
        settings,
        f"chain {chain_id} is at version {after.chain_version}: {text}",
        chain=chain_id,
        version=after.chain_version,
        targets=members,
    )
