"""`ffs up`, `ffs down`, `ffs status`: the local cluster, and the state of any cluster."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fireflyfs.client.cli import connect, exits, mount_table, output, views
from fireflyfs.client.cli.settings import MOUNTPOINT, Amount, Settings, pass_settings
from fireflyfs.client.routing import Routing
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.proto import mgmtd_pb2

if TYPE_CHECKING:
    from fireflyfs.deploy.local import LocalCluster

NODES = REPLICAS = 3  # of a cluster that is made
HEALTHY_WAIT_S = 60.0
HEALTHY_POLL_S = 0.2


def _local(settings: Settings) -> LocalCluster:
    from fireflyfs.deploy.local import LocalCluster

    return LocalCluster(settings.root)


@click.command()
@click.option("--nodes", type=click.IntRange(1, 32), help="Storage nodes (first start).  [default: 3]")
@click.option("--replicas", type=click.IntRange(1, 16), help="Of each chunk (first start).  [default: 3]")
@click.option("--trash-hours", type=Amount(0), help="Removed files can be restored so long (first start).")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until every replica serves.")
@click.option("--mount", "mountpoint", type=MOUNTPOINT, help="Also mount there, in the background.")
@pass_settings
def up(
    settings: Settings,
    nodes: int | None,
    replicas: int | None,
    trash_hours: float | None,
    wait: bool,
    mountpoint: Path | None,
) -> None:
    """Start the local cluster, and make it the first time. A cluster that runs already is left as it is.

    Data, configuration and logs live in one folder, --root.
    """
    local = _local(settings)
    if local.exists() or not _make(settings, local, nodes or NODES, replicas or REPLICAS, trash_hours or 0.0):
        _refuse_other_choices(local, nodes, replicas, trash_hours)
    local.up()
    if wait:
        wait_healthy(settings)
    if mountpoint is not None:
        from fireflyfs.client.cli.mounting import mount_in_background

        mount_in_background(settings, mountpoint, [])
    _show_status(settings)


def _make(settings: Settings, local: LocalCluster, nodes: int, replicas: int, trash_hours: float) -> bool:
    """Whether it was made here, and not by another `ffs up` meanwhile."""
    if replicas > nodes:
        raise click.UsageError(f"{replicas} replicas need as many storage nodes, --nodes is {nodes}")
    from fireflyfs.deploy.local import ClusterSpec

    try:
        local.create(ClusterSpec(storage_nodes=nodes, replicas=replicas, trash_keep_s=3600 * trash_hours))
    except FfsError as exc:
        if exc.code is not Code.EXISTS or not local.exists():
            raise
        return False
    _note(settings, f"made a cluster in {settings.root}: {nodes} storage nodes, {replicas} replicas")
    return True


def _refuse_other_choices(
    local: LocalCluster, nodes: int | None, replicas: int | None, trash_hours: float | None
) -> None:
    """What was chosen when the cluster was made stays: whoever asks for something else must not take it for given."""
    spec = local.plan().spec
    for option, asked, made in (
        ("--nodes", nodes, spec.storage_nodes),
        ("--replicas", replicas, spec.replicas),
        ("--trash-hours", trash_hours, spec.trash_keep_s / 3600),
    ):
        if asked is not None and asked != made:
            raise error(
                Code.EXISTS,
                f"the cluster in {local.root} was made with {option} {made:g}, which stays: `ffs up` starts it",
            )


@click.command()
@pass_settings
def down(settings: Settings) -> None:
    """Stop the local cluster in good order, its mounts first. The data stays."""
    local = _local(settings)
    if not local.exists():
        raise error(Code.NO_ENTRY, f"no cluster in {settings.root}")
    from fireflyfs.client.cli.mount_table import unmount_all

    unmounted = unmount_all(settings)
    local.down()
    output.done(settings, f"stopped; the data stays in {settings.root}", unmounted=[str(path) for path in unmounted])


@click.command()
@click.option("--wait", type=Amount(0), metavar="SECONDS", help="Wait this long for every replica to serve.")
@pass_settings
def status(settings: Settings, wait: float | None) -> None:
    """Show processes, nodes and replicas. The exit code is 0 only when everything serves (1: degraded, 4: no mgmtd).

    FULL: everything serves, and targets have no room for what is written anew; reads and removals go on.
    """
    if wait is not None:
        try:
            wait_healthy(settings, timeout_s=wait)
        except FfsError:
            pass  # what is missing is about to be shown
    if not _show_status(settings):
        sys.exit(exits.FAILED)


def wait_healthy(settings: Settings, timeout_s: float = HEALTHY_WAIT_S) -> None:
    """Return when every server lives and every replica serves. Raises TIMEOUT naming what is missing."""
    deadline = time.monotonic() + timeout_s
    last = "mgmtd does not answer"
    with connect.mgmtd(settings, meet=False) as client:
        while True:
            try:
                routing = connect.routing_of(client)
                facts = _facts(routing, _processes(settings))
                if facts["healthy"] and routing.meta_servers():
                    return
                last = (
                    f"{facts['replicas_serving']} of {facts['replicas']} replicas serve, down: {_down(facts) or 'none'}"
                )
            except FfsError as exc:
                last = exc.message
            if time.monotonic() >= deadline:
                raise error(Code.TIMEOUT, f"not healthy after {timeout_s:.0f} s: {last}")
            time.sleep(HEALTHY_POLL_S)


def _show_status(settings: Settings) -> bool:
    """Print everything; True when the cluster is healthy. Raises UNAVAILABLE when mgmtd does not answer."""
    processes = _processes(settings)
    try:
        with connect.mgmtd(settings) as client:
            routing = connect.routing_of(client)
            cluster_id = client.cluster_id
            clients = client.list_sessions(mgmtd_pb2.ListSessionsRequest(cluster_id=cluster_id)).sessions
    except FfsError:
        if processes and not settings.json:
            output.show_rows(settings, processes, _PROCESS_COLUMNS, title="processes")
        raise
    facts = _facts(routing, processes)
    rows = views.node_rows(routing, time.time_ns())
    targets = views.target_rows(routing)
    damaged = [row for row in targets if row["damaged"]]
    refused = [row for row in targets if row["note"]]
    full = [row for row in targets if row["target"] in facts["targets_full"]]
    if settings.json:
        output.show_json(
            {
                "cluster": cluster_id,
                "mgmtd": connect.mgmtd_addresses(settings),
                **facts,
                "processes": processes,
                "node_list": rows,
                "chain_list": views.chain_rows(routing),
                "resyncs": views.resync_rows(routing),
                "damaged": damaged,
                "refused": refused,
                "space": views.space_rows(routing),
                "clients": views.client_facts(clients),
                "mounts": [str(path) for path in _mounts(settings)],
                "mounts_dead": [str(path) for path in _mounts(settings) if mount_table.is_dead(path)],
            }
        )
        return bool(facts["healthy"])
    if processes:
        output.show_rows(settings, processes, _PROCESS_COLUMNS, title="processes")
    output.show_rows(settings, rows, views.NODE_COLUMNS, title="nodes", empty="no nodes yet")
    unhealthy = [row for row in views.chain_rows(routing) if row["state"] != "serving"]
    if unhealthy:
        output.show_rows(settings, unhealthy, views.CHAIN_COLUMNS, title="chains that miss a replica")
    if resyncs := views.resync_rows(routing):
        output.show_rows(settings, resyncs, views.RESYNC_COLUMNS, title="replicas being brought up to date")
    if damaged:
        output.show_rows(settings, damaged, views.DAMAGE_COLUMNS, title="targets with damaged chunks")
    if refused:
        output.show_rows(settings, refused, views.REFUSED_COLUMNS, title="targets whose disks are refused")
    if full:
        output.show_rows(settings, full, views.FULL_COLUMNS, title="targets that are full")
    click.echo(_summary(settings, cluster_id, facts, routing))
    if clients:
        click.echo(views.clients_text(clients))
    for path in _mounts(settings):
        dead = mount_table.is_dead(path)
        click.echo(f"the mount at {path} has died: `ffs mount {path}` makes it anew" if dead else f"mounted at {path}")
    return bool(facts["healthy"])


_PROCESS_COLUMNS = [("name", "process"), ("state", "state"), ("pid", "pid"), ("log", "log")]


def _processes(settings: Settings) -> list[dict[str, Any]]:
    """The local cluster's processes; none when another cluster was named."""
    if settings.mgmtd:
        return []
    local = _local(settings)
    if not local.exists():
        return []
    return [
        {
            "name": process.name,
            "state": "up" if process.running else "down",
            "pid": process.pid or None,
            "log": str(process.log),
        }
        for process in local.status()
    ]


def _mounts(settings: Settings) -> list[Path]:
    return mount_table.mounts_of(settings)


def _facts(routing: Routing, processes: list[dict[str, Any]]) -> dict[str, Any]:
    """The cluster's health as mgmtd knows it, which misses a server some seconds late, and this machine's processes."""
    facts = views.health(routing)
    down = [row["name"] for row in processes if row["state"] == "down"]
    return {**facts, "healthy": facts["healthy"] and not down, "processes_down": down}


def _down(facts: dict[str, Any]) -> str:
    return ", ".join([*facts["processes_down"], *(f"node {node_id}" for node_id in facts["nodes_down"])])


def _summary(settings: Settings, cluster_id: str, facts: dict[str, Any], routing: Routing) -> str:
    free = sum(row["free_bytes"] for row in views.space_rows(routing))
    word = "DEGRADED" if not facts["healthy"] else "FULL" if facts["targets_full"] else "healthy"
    at = ",".join(connect.mgmtd_addresses(settings))
    down = f", down: {names}" if (names := _down(facts)) else ""
    return (
        f"cluster {cluster_id} at {at}: {word}{down}, {facts['replicas_serving']}/{facts['replicas']} replicas serve "
        f"in {facts['chains']} chains, {output.bytes_text(free)} free, routing version {facts['routing_version']}"
    )


def _note(settings: Settings, text: str) -> None:
    click.echo(text, err=settings.json)
