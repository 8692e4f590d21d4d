"""`ffs trash`: what was removed and can be restored."""

from __future__ import annotations

import stat
import time
from typing import Any

import click

from fireflyfs.client.cli import connect, output
from fireflyfs.client.cli.settings import Amount, Settings, pass_settings
from fireflyfs.client.trash import Trash, Trashed
from fireflyfs.common.errors import Code, error

_COLUMNS = [
    ("id", "id"),
    ("removed", "removed"),
    ("uid", "by"),
    ("kind", "kind"),
    ("size", "size"),
    ("path", "was"),
]


@click.group()
def trash() -> None:
    """What was removed: list, restore, empty."""


@trash.command("list")
@click.argument("below", metavar="[DIRECTORY]", default="/")
@pass_settings
def list_trash(settings: Settings, below: str) -> None:
    """List what can be restored, oldest first; only what was in DIRECTORY or below it, when one is named."""
    top = below.rstrip("/") + "/"
    now_ns = time.time_ns()
    with connect.filesystem(settings) as fs:
        rows = [_row(entry, now_ns) for entry in Trash(fs).list() if top == "/" or entry.path.startswith(top)]
    output.show_rows(
        settings,
        rows,
        _COLUMNS,
        empty="the trash is empty (metadata servers keep nothing in it unless their trash_keep_s says so)",
    )


def _row(entry: Trashed, now_ns: int) -> dict[str, Any]:
    directory = stat.S_ISDIR(entry.mode)
    return {
        "id": entry.inode,
        "path": entry.path,
        "name": entry.name,
        "directory": entry.directory or None,
        "uid": entry.uid,
        "kind": "directory" if directory else "symlink" if stat.S_ISLNK(entry.mode) else "file",
        "size": None if directory else output.bytes_text(entry.length),
        "length": entry.length,
        "removed": output.age_text((now_ns - entry.removed_ns) / 1e9) + " ago",
        "removed_unix_ns": entry.removed_ns,
    }


def _chosen(box: Trash, ids: tuple[int, ...]) -> list[Trashed]:
    """The entries with these ids. Raises NO_ENTRY naming one that is not there."""
    found = {entry.inode: entry for entry in box.list() if entry.inode in ids}
    missing = [number for number in ids if number not in found]
    if missing:
        raise error(Code.NO_ENTRY, f"nothing with id {missing[0]} is in the trash: `ffs trash list` shows what is")
    return [found[number] for number in ids]


@trash.command()
@click.argument("number", metavar="ID", type=click.IntRange(1))
@click.argument("to", required=False)
@pass_settings
def restore(settings: Settings, number: int, to: str | None) -> None:
    """Give something back the name that it had, or the name TO."""
    with connect.filesystem(settings) as fs:
        box = Trash(fs)
        (entry,) = _chosen(box, (number,))
        place = to or entry.path
        try:
            box.restore(entry, to)
        except FileExistsError as exc:
            raise error(Code.EXISTS, f"{place} is taken: name another place to restore it to") from exc
        except FileNotFoundError as exc:
            raise error(
                Code.NO_ENTRY, f"the directory of {place} is gone: name another place to restore it to"
            ) from exc
    output.done(settings, f"restored {place}", id=number, path=place)


@trash.command()
@click.argument("ids", metavar="[ID]...", nargs=-1, type=click.IntRange(1))
@click.option("--all", "every", is_flag=True, help="Everything.")
@click.option("--older-than", type=Amount(0), metavar="HOURS", help="What was removed before so long.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_settings
def empty(settings: Settings, ids: tuple[int, ...], every: bool, older_than: float | None, yes: bool) -> None:
    """Give up what is in the trash for good, before its time."""
    if sum([bool(ids), every, older_than is not None]) != 1:
        raise click.UsageError("name ids, or --all, or --older-than HOURS")
    before_ns = time.time_ns() - int((older_than or 0) * 3600e9)
    with connect.filesystem(settings) as fs:
        box = Trash(fs)
        entries = _chosen(box, ids) if ids else [entry for entry in box.list() if every or entry.removed_ns < before_ns]
        if entries and not yes:
            click.confirm(f"Give up {len(entries)} entries of the trash for good?", abort=True, err=True)
        count = box.empty(entries)
    output.done(settings, f"{count} entries are given up", entries=count)
