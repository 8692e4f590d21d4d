"""`ffs targets`: the folders that hold chunks."""

from __future__ import annotations

from pathlib import Path

import click

from fireflyfs.client.cli import connect, output, views
from fireflyfs.client.cli.settings import Settings, pass_settings
from fireflyfs.common.errors import Code, error
from fireflyfs.proto import mgmtd_pb2


@click.group()
def targets() -> None:
    """Storage targets: list, create, scrub, accept a new disk."""


@targets.command("list")
@click.option("--node", type=click.IntRange(1), help="Only targets of this node.")
@pass_settings
def list_targets(settings: Settings, node: int | None) -> None:
    """List targets with their chain, state and space."""
    with connect.mgmtd(settings) as client:
        rows = views.target_rows(connect.routing_of(client))
    rows = [row for row in rows if node is None or row["node"] == node]
    output.show_rows(settings, rows, views.TARGET_COLUMNS, empty="no targets")


@targets.command("scrub")
@click.argument("target_ids", metavar="[TARGET_ID]...", nargs=-1, type=click.IntRange(1))
@click.option("--all", "every", is_flag=True, help="All targets that serve.")
@click.option("--wait", is_flag=True, help="Stay until every chunk was read, and show how far it is.")
@pass_settings
def scrub(settings: Settings, target_ids: tuple[int, ...], every: bool, wait: bool) -> None:
    """Read all chunks of targets from their disks now, and mend what does not match from other replicas.

    Where a pass runs already it goes on. Damaged chunks, which no replica has any more, are listed.
    """
    if bool(target_ids) == every:
        raise click.UsageError("name targets, or --all")
    from fireflyfs.client.cli import scrubbing

    scrubbing.scrub(settings, sorted(set(target_ids)), every, wait)


@targets.command("create")
@click.argument("target_id", type=click.IntRange(1, (1 << 63) - 1))
@click.option("--node", "node_id", type=click.IntRange(1), required=True, help="The node that will serve it.")
@click.option("--worker", type=click.IntRange(0), default=0, show_default=True, help="The worker of that node.")
@click.option("--path", type=click.Path(path_type=Path), required=True, help="Its folder on that node.")
@click.option("--format", "format_here", is_flag=True, help="Also make the folder, on this machine.")
@click.option("--move", is_flag=True, help="The target exists, and its disk is at another place now.")
@pass_settings
def create(
    settings: Settings, target_id: int, node_id: int, worker: int, path: Path, format_here: bool, move: bool
) -> None:
    """Register a target with mgmtd. The node serves it once its configuration names it.

    One that is registered at another place is refused, unless --move says that it went there with its disk.
    """
    with connect.mgmtd(settings) as client:
        known = connect.routing_of(client).targets.get(target_id)
        if known is not None and not move:
            _refuse_elsewhere(known, node_id, worker, path)
        if format_here:
            from fireflyfs.client.cli.formatting import format_target

            format_target(path, client.cluster_id, target_id)
        client.register_target(
            mgmtd_pb2.RegisterTargetRequest(
                cluster_id=client.cluster_id, target_id=target_id, node_id=node_id, worker=worker, path=str(path)
            )
        )
    output.done(settings, f"target {target_id} is registered on node {node_id}", target=target_id, node=node_id)


def _refuse_elsewhere(known: mgmtd_pb2.TargetInfo, node_id: int, worker: int, path: Path) -> None:
    """The same once more is no error; an id that is taken is."""
    if (known.node_id, known.worker) != (node_id, worker) or known.path not in ("", str(path)):
        place = f"{known.path or 'a folder that it has not told'} of node {known.node_id}, worker {known.worker}"
        raise error(
            Code.EXISTS,
            f"target {known.target_id} exists, in {place}: choose another id (`ffs targets list` shows those in use), "
            "or say --move where its disk is at another place now",
        )


@targets.command("accept-disk")
@click.argument("target_id", type=click.IntRange(1))
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_settings
def accept_disk(settings: Settings, target_id: int, yes: bool) -> None:
    """Take the disk that a target has now for its own, where mgmtd refuses it.

    The last replica that served a chain comes back with an empty or another disk: its old one may be the only place of
    what was written last, so the chain waits for it. This gives that up, and the chain goes on with what the new disk
    holds: files read as zeros where their bytes are gone.
    """
    with connect.mgmtd(settings) as client:
        target = connect.routing_of(client).targets.get(target_id)
        if target is None:
            raise error(Code.NO_ENTRY, f"there is no target {target_id}: `ffs targets list` names them")
        if not target.note:
            raise error(Code.INVALID, f"target {target_id} is not refused: there is nothing to accept")
        if not yes:
            question = f"Give up what only the old disk of target {target_id} holds? Files read as zeros there"
            click.confirm(question, abort=True, err=True)
        client.register_target(
            mgmtd_pb2.RegisterTargetRequest(
                cluster_id=client.cluster_id,
                target_id=target_id,
                node_id=target.node_id,
                worker=target.worker,
                path=target.path,
                accept_new_disk=True,
            )
        )
    output.done(settings, f"the disk of target {target_id} is its own now", target=target_id)
