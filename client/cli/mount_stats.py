"""`ffs stats`: what a mount did, from its control directory."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from fireflyfs.client.cli import output
from fireflyfs.client.cli.settings import MOUNTPOINT, Amount, Settings, pass_settings
from fireflyfs.common.errors import Code, error

STATS = ".ffs/stats"
_COLUMNS = [
    ("operation", "operation"),
    ("count", "count"),
    ("rate", "a second"),
    ("errors", "errors"),
    ("mean_us", "mean µs"),
    ("p50_us", "50 % below"),
    ("p90_us", "90 % below"),
    ("p99_us", "99 % below"),
    ("moved", "bytes"),
]
_LINK_COLUMNS = [
    ("peer", "server"),
    ("link", "link"),
    ("connections", "connections"),
    ("in_flight", "in flight"),
    ("requests", "requests"),
    ("failures", "errors"),
    ("out", "bytes out"),
    ("in", "bytes in"),
]


@click.command()
@click.argument("mountpoint", type=MOUNTPOINT)
@click.option("--watch", "every_s", type=Amount(0.1, 3600), metavar="SECONDS", help="Again and again.")
@pass_settings
def stats(settings: Settings, mountpoint: Path, every_s: float | None) -> None:
    """Show operations of the mount on MOUNTPOINT: counts, errors and times; its connections; what it holds now.

    Only who mounted it, and root, may see that. Times are classes of powers of two.
    """
    before = _read(mountpoint)
    _show(settings, before, before["up_s"], {})
    while every_s:
        time.sleep(every_s)
        now = _read(mountpoint)
        if not settings.json:
            click.clear()
        _show(settings, now, now["up_s"] - before["up_s"], before["operations"])
        before = now


def _read(mountpoint: Path) -> dict[str, Any]:
    """Raises NOT_DIRECTORY where nothing of ours is mounted."""
    try:
        found: dict[str, Any] = json.loads((mountpoint / STATS).read_text())
    except FileNotFoundError as exc:
        raise error(Code.NO_ENTRY, f"{mountpoint} is not the top of a mount of this release") from exc
    except ValueError as exc:
        raise error(Code.NO_ENTRY, f"{mountpoint / STATS} is not what a mount says of itself") from exc
    return found


def _show(settings: Settings, facts: dict[str, Any], over_s: float, before: dict[str, Any]) -> None:
    if settings.json:
        output.show_json(facts)
        return
    rows = []
    for name, counted in sorted(facts["operations"].items(), key=lambda item: -item[1]["count"]):
        new = counted["count"] - before.get(name, {"count": 0})["count"]
        rate = round(new / over_s, 1) if over_s > 0 else None
        moved = output.bytes_text(counted["bytes"]) if counted["bytes"] else None
        rows.append({"operation": name, **counted, "rate": rate, "moved": moved})
    output.show_rows(settings, rows, _COLUMNS, empty="nothing was done yet")
    links = [
        {**row, "out": output.bytes_text(row["bytes_out"]), "in": output.bytes_text(row["bytes_in"])}
        for row in facts.get("links", [])
    ]
    if links:
        output.show_rows(settings, links, _LINK_COLUMNS, title="connections to servers")
    others = {name: value for name, value in facts.items() if name not in ("operations", "links")}
    output.show_record(settings, others)
