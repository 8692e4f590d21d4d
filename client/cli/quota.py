"""`ffs quota` and `ffs du`: what directories, users and groups use, and how much they may."""

from __future__ import annotations

import grp
import pwd
import re
import sys
from typing import TYPE_CHECKING, Any

import click

from fireflyfs.client.cli import connect, exits, output
from fireflyfs.client.cli.settings import Settings, pass_settings

if TYPE_CHECKING:
    from fireflyfs.client.quotas import Quotas, Usage

_FACTORS = {"": 1, **{unit: 1 << (10 * power) for power, unit in enumerate("KMGTPE", 1)}}
_COUNTS = {"": 1, **{unit: 1000**power for power, unit in enumerate("KMGT", 1)}}
_COLUMNS = [
    ("kind", "of"),
    ("name", "name"),
    ("used", "used"),
    ("limit", "limit"),
    ("use", "use"),
    ("inodes", "inodes"),
    ("inodes_max", "inode limit"),
]
DIFFERENCES_MAX = 1000  # shown; all of them are counted


def _amount(text: str, factors: dict[str, int]) -> int:
    """`text` as a number. Raises BadParameter."""
    found = re.fullmatch(r"(\d+)(?:\.(\d+))?([A-Z]?)(?:I?B)?", text.strip().upper())
    if found is None or found[3] not in factors:
        raise click.BadParameter(f"{text!r} is no amount: give a number such as 500, 10K or 1.5G")
    part = found[2] or ""
    amount = int(found[1] + part) * factors[found[3]] // int(10 ** len(part))
    if amount >= 1 << 63:
        raise click.BadParameter(f"{text!r} is more than there can be")
    return amount


def _size(text: str) -> int:
    return _amount(text, _FACTORS)


def _count(text: str) -> int:
    return _amount(text, _COUNTS)


def _subject(function: Any) -> Any:
    """The three ways to say whose quota is meant."""
    for option in (
        click.option("--group", metavar="NAME|GID", help="Of a group instead of a directory."),
        click.option("--user", metavar="NAME|UID", help="Of a user instead of a directory."),
        click.argument("path", metavar="[DIRECTORY]", required=False),
    ):
        function = option(function)
    return function


@click.group()
def quota() -> None:
    """Quotas of directories, users and groups: set, show, list, remove, check.

    A directory's quota is for all that is below it, whoever writes there, root too. What users and groups have in the
    trash, or open without a name, still counts for them.
    """


@quota.command("set")
@_subject
@click.option("--bytes", "bytes_max", type=_size, metavar="SIZE", help="Bytes: 500M, 10G, 1.5T.")
@click.option(
    "--inodes",
    "inodes_max",
    type=_count,
    metavar="COUNT",
    help="Files, links and directories: 1000, 50K, 1M.",
)
@pass_settings
def set_quota(
    settings: Settings,
    path: str | None,
    user: str | None,
    group: str | None,
    bytes_max: int | None,
    inodes_max: int | None,
) -> None:
    """Set the quota of DIRECTORY, a user or a group. A limit that is not named is lifted. Needs root."""
    if bytes_max is None and inodes_max is None:
        raise click.UsageError("name --bytes, --inodes or both; `ffs quota rm` removes a quota")
    _set(settings, path, user, group, bytes_max, inodes_max, "the quota of {} is set")


@quota.command()
@_subject
@pass_settings
def rm(settings: Settings, path: str | None, user: str | None, group: str | None) -> None:
    """Remove the quota of DIRECTORY, a user or a group. Needs root."""
    _set(settings, path, user, group, None, None, "{} has no quota")


@quota.command()
@_subject
@pass_settings
def show(settings: Settings, path: str | None, user: str | None, group: str | None) -> None:
    """Show what DIRECTORY, a user or a group uses, and the quotas of all directories above."""
    kind, name, number = _chosen(path, user, group)
    with connect.filesystem(settings) as fs:
        quotas = _quotas(fs)
        if kind == "directory":
            usage, above = quotas.usage(name)
        else:
            usage, above = quotas.owner(kind, number), []
    output.show_rows(settings, [_row(one) for one in (usage, *above)], _COLUMNS)


@quota.command("list")
@pass_settings
def list_quotas(settings: Settings) -> None:
    """List all quotas; for others than root, those of their user and groups."""
    with connect.filesystem(settings) as fs:
        rows = [_row(usage) for usage in _quotas(fs).list()]
    output.show_rows(settings, rows, _COLUMNS, empty="no quotas")


@quota.command()
@click.option("--repair", is_flag=True, help="Put wrong records right. Without it nothing changes.")
@pass_settings
def check(settings: Settings, repair: bool) -> None:
    """Compare the records of usage with all files and directories, while the cluster is in use. Needs root.

    Each directory is compared within one snapshot, so what is found is wrong, whatever is done meanwhile. The exit code
    is 6 when records were wrong and were not put right.
    """
    found: list[dict[str, Any]] = []
    total = looked_at = 0
    counting = False
    with connect.filesystem(settings) as fs:
        for step in _quotas(fs).check(repair=repair):
            looked_at += step.looked_at
            total += len(step.differences)
            counting = step.counting
            for one in step.differences[: DIFFERENCES_MAX - len(found)]:
                name = one.path or str(one.id)
                found.append({"kind": one.kind, "id": one.id, "name": name, "bytes": one.bytes, "inodes": one.inodes})
    if settings.json:
        facts = {"looked_at": looked_at, "wrong": total, "repaired": repair, "counting": counting}
        output.show_json({**facts, "differences": found})
    else:
        columns = [("kind", "of"), ("name", "name"), ("bytes", "bytes missing"), ("inodes", "inodes missing")]
        output.show_rows(settings, found, columns, empty="usage is right")
        if counting:
            click.echo("what an older release made is still being counted: usage is not complete yet")
        if total:
            click.echo(f"{total} records were {'wrong, and are right now' if repair else 'wrong'}")
    if total and not repair:
        sys.exit(exits.FINDINGS)


@click.command()
@click.argument("paths", metavar="[DIRECTORY]...", nargs=-1)
@click.option("-b", "--bytes", "plain", is_flag=True, help="Bytes as plain numbers.")
@pass_settings
def du(settings: Settings, paths: tuple[str, ...], plain: bool) -> None:
    """Show how much there is below each DIRECTORY, at once: the metadata service keeps count.

    Lengths count in whole blocks of 4 KiB, and holes count. A file of several names counts once, where its first name
    that is left is.
    """
    rows = []
    failures = exits.Failures(verbose=settings.verbose)
    with connect.filesystem(settings) as fs:
        quotas = _quotas(fs)
        for path in paths or ("/",):
            with failures.told():
                rows.append(_row(quotas.usage(path)[0]))
    columns = [("bytes" if plain else "used", "bytes"), ("inodes", "inodes"), ("name", "directory")]
    if rows or settings.json:
        output.show_rows(settings, rows, columns)
    failures.end()


def _quotas(fs: Any) -> Quotas:
    from fireflyfs.client.quotas import Quotas

    return Quotas(fs)


def _set(
    settings: Settings, path: str | None, user: str | None, group: str | None, bytes_max: int | None,
    inodes_max: int | None, text: str,
) -> None:  # fmt: skip
    kind, name, number = _chosen(path, user, group)
    with connect.filesystem(settings) as fs:
        quotas = _quotas(fs)
        if kind == "directory":
            usage = quotas.set_directory(name, bytes_max=bytes_max, inodes_max=inodes_max)
        else:
            usage = quotas.set_owner(kind, number, bytes_max=bytes_max, inodes_max=inodes_max)
    output.done(settings, text.format(name if kind == "directory" else f"{kind} {name}"), **_row(usage))


def _chosen(path: str | None, user: str | None, group: str | None) -> tuple[str, str, int]:
    """(kind, name, id of a user or group). Raises UsageError unless exactly one is given."""
    given = [(kind, name) for kind, name in (("directory", path), ("user", user), ("group", group)) if name is not None]
    if len(given) != 1:
        raise click.UsageError("name a DIRECTORY, or --user, or --group")
    kind, name = given[0]
    return kind, name, 0 if kind == "directory" else _number(kind, name)


def _number(kind: str, name: str) -> int:
    """The id behind a name of this host, or a number. Raises UsageError."""
    if name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid
    except KeyError as exc:
        raise click.UsageError(f"this host knows no {kind} {name!r}; a number works without that") from exc


def _name(usage: Usage) -> str:
    try:
        if usage.kind == "user":
            return pwd.getpwuid(usage.id).pw_name
        if usage.kind == "group":
            return grp.getgrgid(usage.id).gr_name
    except (KeyError, OverflowError):
        return str(usage.id)
    return usage.path or f"inode {usage.id}"


def _row(usage: Usage) -> dict[str, Any]:
    limit = usage.bytes_max
    return {
        "kind": usage.kind,
        "id": usage.id,
        "name": _name(usage),
        "used": output.bytes_text(usage.bytes),
        "limit": output.bytes_text(limit) if limit is not None else None,
        "use": f"{100 * usage.bytes / limit:.0f} %" if limit else None,
        "bytes": usage.bytes,
        "bytes_max": limit,
        "inodes": usage.inodes,
        "inodes_max": usage.inodes_max,
    }
