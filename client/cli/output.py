"""What commands print: a table for people, JSON for scripts. Colours and progress only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from fireflyfs.client.cli.settings import Settings

# One column: (key of the row, heading). Numbers are set to the right.
Columns = Sequence[tuple[str, str]]

PIPE_WIDTH = 400  # columns when the output is no terminal: never fold a row that a script reads
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def show_rows(
    settings: Settings, rows: Sequence[Mapping[str, Any]], columns: Columns, *, title: str = "", empty: str = "nothing"
) -> None:
    """Print `rows`: all of their keys as JSON, or the named columns as a table (`empty` when there are none)."""
    if settings.json:
        show_json(rows)
        return
    if not rows:
        click.echo(empty)
        return
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for key, heading in columns:
        number = all(isinstance(row.get(key), int | float) for row in rows)
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_styled(escape(_cell(row.get(key)))) for key, _ in columns))
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(table)


def show_record(settings: Settings, record: Mapping[str, Any]) -> None:
    """Print one thing: JSON, or `name  value` lines."""
    if settings.json:
        show_json(record)
        return
    width = max((len(name) for name in record), default=0)
    for name, value in record.items():
        click.echo(f"{name.replace('_', ' '):<{width}}  {_cell(value)}")


def show_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, default=_jsonable))


def done(settings: Settings, text: str, **facts: Any) -> None:
    """Say that a change was made: one line, or its facts as JSON."""
    if settings.json:
        show_json({"done": text, **facts})
    else:
        click.echo(text)


def bytes_text(count: int) -> str:
    """1536 -> "1.5 KiB"."""
    value, unit = float(count), 0
    while abs(value) >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 100 else f"{value:.1f} {_UNITS[unit]}"


def age_text(seconds: float) -> str:
    """How long ago, in the largest fitting unit."""
    for length, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}"
    return f"{max(seconds, 0):.0f} s"


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_cell(item) for item in value) or "-"
    return str(value)


_STYLES = {
    "serving": "green",
    "up": "green",
    "offline": "red",
    "down": "red",
    "syncing": "yellow",
    "disabled": "yellow",
}


def _styled(text: str) -> str:
    style = _STYLES.get(text)
    return f"[{style}]{text}[/]" if style else text


def _jsonable(value: Any) -> Any:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
