"""`ffs put` and `ffs get`: copies in and out through the library, with progress on a terminal."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import click

from fireflyfs.client.cli import connect, output
from fireflyfs.client.cli.exits import Failures, describe
from fireflyfs.client.cli.settings import Settings, pass_settings
from fireflyfs.client.cli.trees import Copier, LocalTree, Progress, Tree

PROBLEMS_SHOWN = 20

_options = [
    click.option("-r", "--recursive", is_flag=True, help="Copy directories with all that is in them."),
    click.option("--threads", type=click.IntRange(1, 64), default=4, show_default=True, help="Files at a time."),
    click.option("--sync", "durable", is_flag=True, help="Each file survives a power cut before the next one counts."),
    click.option("--xattrs", is_flag=True, help="Extended attributes and ACLs too."),
    click.option("--quiet", "-q", is_flag=True, help="No progress."),
]


class Wishes(NamedTuple):
    """What the options say."""

    recursive: bool
    threads: int
    durable: bool
    xattrs: bool
    quiet: bool


def _with_options(command: Any) -> Any:
    for option in reversed(_options):
        command = option(command)
    return command


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="LOCAL...")
@click.argument("target")
@_with_options
@pass_settings
def put(settings: Settings, /, sources: tuple[str, ...], target: str, **wishes: Any) -> None:
    """Copy local files and trees to TARGET in the file system. Modes, times and links are kept."""
    with connect.filesystem(settings) as fs:
        _copy_all(settings, LocalTree(), fs, sources, target, Wishes(**wishes))


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="PATH...")
@click.argument("target", metavar="LOCAL")
@_with_options
@pass_settings
def get(settings: Settings, /, sources: tuple[str, ...], target: str, **wishes: Any) -> None:
    """Copy files and trees of the file system to a local place. Modes, times and links are kept."""
    with connect.filesystem(settings) as fs:
        _copy_all(settings, fs, LocalTree(), sources, target, Wishes(**wishes))


def _copy_all(
    settings: Settings,
    source_tree: Tree,
    target_tree: Tree,
    sources: tuple[str, ...],
    target: str,
    wishes: Wishes,
) -> None:
    into = _is_directory(target_tree, target)
    if len(sources) > 1 and not into:
        raise click.UsageError(f"{target} is no directory: several files need one")
    failures = Failures(verbose=settings.verbose)
    started = time.monotonic()
    progress = Progress()
    progress.on_problem = lambda path, exc: _report(progress, path, exc)
    with _shown(progress, wishes.quiet or settings.json):
        for source in sources:
            name = os.path.basename(os.path.normpath(source))
            place = os.path.join(target, name) if into and name not in ("", ".", "..", "/") else target
            with failures.told():
                if stat.S_ISDIR(source_tree.lstat(source).st_mode) and not wishes.recursive:
                    raise click.UsageError(f"{source} is a directory: copy it with -r")
                copier = Copier(
                    source_tree,
                    target_tree,
                    progress,
                    threads=wishes.threads,
                    durable=wishes.durable,
                    xattrs=wishes.xattrs,
                )
                copier.copy(source, place)
    seconds = time.monotonic() - started
    speed = output.bytes_text(int(progress.bytes / seconds)) if seconds else "-"
    text = f"{progress.files} files, {output.bytes_text(progress.bytes)} in {seconds:.1f} s ({speed}/s)"
    failed = len(progress.problems) + failures.count
    facts = {"files": progress.files, "bytes": progress.bytes, "seconds": seconds, "failed": failed}
    output.done(settings, f"{text}; {failed} failed" if failed else text, **facts)
    failures.end(exc for _, exc in progress.problems)


def _report(progress: Progress, path: str, exc: Exception) -> None:
    count = len(progress.problems)
    if count <= PROBLEMS_SHOWN:
        click.echo(f"ffs: {path}: {describe(exc)}", err=True)
    elif count == PROBLEMS_SHOWN + 1:
        click.echo("ffs: more files failed; they are counted at the end", err=True)


@contextmanager
def _shown(progress: Progress, quiet: bool) -> Iterator[None]:
    """Show the copy on stderr while it runs, when that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (SpinnerColumn(), TextColumn("{task.fields[files]} files"), DownloadColumn(binary_units=True))
    with Bar(*columns, TransferSpeedColumn(), TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("copy", total=None, files=0)
        progress.on_bytes = lambda count: bar.update(task, advance=count, files=progress.files)
        yield


def _is_directory(tree: Tree, path: str) -> bool:
    try:
        return stat.S_ISDIR(tree.stat(path).st_mode)
    except FileNotFoundError:
        return False
