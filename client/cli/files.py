"""`ffs ls`, `stat`, `cat`, `rm`, `mkdir`, `mv`: files through the library, without a mount."""

from __future__ import annotations

import datetime
import os
import stat as modes
import sys
from collections.abc import Iterable
from typing import Any

import click

from fireflyfs.client.cli import connect, output
from fireflyfs.client.cli.exits import Failures
from fireflyfs.client.cli.settings import Settings, pass_settings
from fireflyfs.common.limits import MiB

PIECE_BYTES = 8 * MiB

_KINDS = {
    modes.S_IFREG: "file",
    modes.S_IFDIR: "directory",
    modes.S_IFLNK: "symlink",
    modes.S_IFIFO: "fifo",
    modes.S_IFSOCK: "socket",
    modes.S_IFCHR: "character device",
    modes.S_IFBLK: "block device",
}


def _row(path: str, info: os.stat_result, target: str | None) -> dict[str, Any]:
    return {
        "path": path,
        "name": os.path.basename(path) or path,
        "type": _KINDS.get(modes.S_IFMT(info.st_mode), "unknown"),
        "mode": modes.filemode(info.st_mode),
        "inode": info.st_ino,
        "links": info.st_nlink,
        "uid": info.st_uid,
        "gid": info.st_gid,
        "size": info.st_size,
        "mtime_ns": info.st_mtime_ns,
        "modified": datetime.datetime.fromtimestamp(info.st_mtime).strftime("%Y-%m-%d %H:%M:%S"),
        "target": target,
    }


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("-l", "--long", "long_form", is_flag=True, help="Modes, owners, sizes and times.")
@click.option("-R", "--recursive", is_flag=True, help="With all that is below.")
@click.option("-d", "--directory", "itself", is_flag=True, help="Directories themselves, not what is in them.")
@click.option("-a", "--all", "_all", is_flag=True, help="Names that begin with a dot too, as always.")
@click.option("-1", "_one", is_flag=True, help="One name a line, as always.")
@pass_settings
def ls(
    settings: Settings, paths: tuple[str, ...], long_form: bool, recursive: bool, itself: bool, _all: bool, _one: bool
) -> None:
    """List directories (the root when none is named)."""
    collected: list[dict[str, Any]] = []
    failures = Failures(verbose=settings.verbose)
    with connect.filesystem(settings) as fs:
        begun = False  # something is printed: what comes next is set apart
        for path in paths or ("/",):
            with failures.told():
                for place, rows in _listed(fs, path, recursive, itself, failures):
                    if settings.json:
                        collected += rows
                        continue
                    if place and (recursive or len(paths) > 1):
                        click.echo(f"{chr(10) if begun else ''}{place}:")
                    _print(rows, long_form)
                    begun = True
    if settings.json:
        output.show_json(collected)
    failures.end()


def _listed(
    fs: Any, path: str, recursive: bool, itself: bool, failures: Failures
) -> Iterable[tuple[str, list[dict[str, Any]]]]:
    """(directory, rows); the directory is empty where `path` itself is the row, and may be behind a symbolic link."""
    info = fs.lstat(path)
    link = modes.S_ISLNK(info.st_mode)
    if not itself and (modes.S_ISDIR(info.st_mode) or (link and fs.isdir(path))):
        return _directories(fs, path, recursive, failures)
    return [("", [_row(path, info, fs.readlink(path) if link else None)])]


def _directories(fs: Any, top: str, recursive: bool, failures: Failures) -> Iterable[tuple[str, list[dict[str, Any]]]]:
    stack = [top]
    while stack:
        place = stack.pop()
        rows = []
        below = []
        with failures.told():
            for entry in fs.scandir(place):
                link = fs.readlink(entry.path) if entry.is_symlink() else None
                rows.append(_row(entry.path, entry.stat(follow_symlinks=False), link))
                if recursive and entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
            yield place, rows
        stack += reversed(below)


def _print(rows: list[dict[str, Any]], long_form: bool) -> None:
    if not long_form:
        for row in rows:
            click.echo(row["name"])
        return
    width = {key: max((len(str(row[key])) for row in rows), default=0) for key in ("links", "uid", "gid", "size")}
    for row in rows:
        numbers = " ".join(f"{row[key]:>{width[key]}}" for key in ("links", "uid", "gid", "size"))
        arrow = f" -> {row['target']}" if row["target"] is not None else ""
        click.echo(f"{row['mode']} {numbers} {row['modified']} {row['name']}{arrow}")


@click.command("stat")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("-L", "--follow", is_flag=True, help="Of what a symbolic link points to.")
@pass_settings
def stat(settings: Settings, paths: tuple[str, ...], follow: bool) -> None:
    """Show all that is known of files: attributes, and where their chunks live."""
    rows = []
    failures = Failures(verbose=settings.verbose)
    with connect.filesystem(settings) as fs:
        for path in paths:
            with failures.told():
                inode = fs.inode(path, follow_symlinks=follow)
                info = fs.stat(path, follow_symlinks=follow)
                layout = inode.layout
                rows.append(
                    _row(path, info, os.fsdecode(inode.symlink_target) or None)
                    | {
                        "chunk_size": layout.chunk_size or None,
                        "stripe_size": layout.stripe_size or None,
                        "chain_table": layout.chain_table or None,
                        "chains": list(layout.chains),
                    }
                )
    if settings.json:
        output.show_json(rows)
    else:
        for number, row in enumerate(rows):
            if number:
                click.echo()
            output.show_record(settings, {key: value for key, value in row.items() if key not in ("name", "mtime_ns")})
    failures.end()


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@pass_settings
def cat(settings: Settings, paths: tuple[str, ...]) -> None:
    """Write files to the standard output, one after the other."""
    out = sys.stdout.buffer
    buffer = memoryview(bytearray(PIECE_BYTES))
    failures = Failures(verbose=settings.verbose)
    with connect.filesystem(settings) as fs:
        for path in paths:
            with failures.told():
                file = fs.open_file(path)
                try:
                    offset = 0
                    while count := file.readinto_at(buffer, offset):
                        out.write(buffer[:count])
                        offset += count
                finally:
                    file.close()
        out.flush()
    failures.end()


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("-r", "--recursive", is_flag=True, help="Directories with all that is in them.")
@click.option("-f", "--force", is_flag=True, help="What is not there is no error.")
@pass_settings
def rm(settings: Settings, paths: tuple[str, ...], recursive: bool, force: bool) -> None:
    """Remove files; with -r also directories, each in one request. The space comes back in the background."""
    if not all(path.strip("/") for path in paths):
        raise click.UsageError("the root of the file system is not removed")
    removed = []
    failures = Failures(verbose=settings.verbose)
    with connect.filesystem(settings) as fs:
        for path in paths:
            with failures.told():
                try:
                    directory = modes.S_ISDIR(fs.lstat(path).st_mode)
                    if directory and not recursive:
                        raise click.UsageError(f"{path} is a directory: remove it with -r")
                    if directory:
                        fs.rmtree(path)
                    else:
                        fs.unlink(path)
                except FileNotFoundError:
                    if not force:
                        raise
                else:
                    removed.append(path)
    if settings.json:
        output.show_json({"removed": removed})
    failures.end()


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("-p", "--parents", is_flag=True, help="Missing parents too; what is there is no error.")
@click.option("--mode", default="777", show_default=True, help="Octal permission bits, less the umask.")
@pass_settings
def mkdir(settings: Settings, paths: tuple[str, ...], parents: bool, mode: str) -> None:
    """Make directories."""
    try:
        bits = int(mode, 8)
    except ValueError:
        bits = -1
    if not 0 <= bits <= 0o7777:
        raise click.UsageError(f"--mode {mode} is no octal number up to 7777")
    made = []
    failures = Failures(verbose=settings.verbose)
    with connect.filesystem(settings) as fs:
        for path in paths:
            with failures.told():
                if parents:
                    fs.makedirs(path, bits, exist_ok=True)
                else:
                    fs.mkdir(path, bits)
                made.append(path)
    if settings.json:
        output.show_json({"made": made})
    failures.end()


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.argument("target")
@click.option("-n", "--no-clobber", is_flag=True, help="Refuse to replace what is there.")
@pass_settings
def mv(settings: Settings, sources: tuple[str, ...], target: str, no_clobber: bool) -> None:
    """Rename a file, or move files into a directory. A file that is there is replaced at once, never half."""
    moved = {}
    failures = Failures(verbose=settings.verbose)
    with connect.filesystem(settings) as fs:
        into = fs.isdir(target)
        if len(sources) > 1 and not into:
            raise click.UsageError(f"{target} is no directory: several files need one")
        for source in sources:
            place = os.path.join(target, os.path.basename(source.rstrip("/"))) if into else target
            with failures.told():
                fs.rename(source, place, flags=1 if no_clobber else 0)
                moved[source] = place
    if settings.json:
        output.show_json({"moved": moved})
    failures.end()
