"""`ffs fsck`: a check of the whole cluster while it is in use, and its repair."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from fireflyfs.client.cli import connect, exits, output
from fireflyfs.client.cli.settings import Amount, Settings, pass_settings

if TYPE_CHECKING:
    from fireflyfs.client.fsck.check import Report
    from fireflyfs.client.fsck.core.facts import Finding

COLUMNS = [("kind", "what"), ("chain", "chain"), ("chunk", "inode.chunk"), ("seen", "seen"), ("repaired", "repaired")]


@click.command()
@click.option("--repair", is_flag=True, help="Mend what can be mended without doubt. Without it nothing changes.")
@click.option(
    "--pause",
    "pause_s",
    type=Amount(0.1, 600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Before what seems wrong is looked at again.",
)
@click.option(
    "--show", "shown_max", type=click.IntRange(1), default=50, show_default=True, help="Findings of each kind."
)
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@pass_settings
def fsck(settings: Settings, repair: bool, pause_s: float, shown_max: int, quiet: bool) -> None:
    """Check that every chunk belongs to a file and that replicas are alike, while the cluster is in use. Needs root.

    What seems wrong is looked at again, at all replicas and at the metadata, before it counts. The exit code is 0
    when nothing is wrong or all of it was mended, and 6 when findings remain.
    """
    from fireflyfs.client.fsck.check import Check
    from fireflyfs.client.fsck.cluster import Cluster

    with connect.filesystem(settings) as fs, _progress(quiet or settings.json) as on_progress:
        cluster = Cluster(fs.context)
        try:
            check = Check(cluster, repair=repair, pause_s=pause_s, shown_max=shown_max, on_progress=on_progress)
            report = check.run()
        finally:
            cluster.close()
    _show(settings, report, shown_max)
    if report.left:
        sys.exit(exits.FINDINGS)


def _show(settings: Settings, report: Report, shown_max: int) -> None:
    from fireflyfs.client.fsck.core.facts import MEANINGS

    tally = report.tally
    counts: list[dict[str, Any]] = [
        {"kind": kind.value, "meaning": MEANINGS[kind], "found": found, "repaired": report.repaired[kind]}
        for kind, found in report.found.items()
    ]
    rows = [_row(finding) for finding in report.findings]
    if settings.json:
        facts = {
            "clean": not report.left,
            "files": tally.files,
            "files_with_holes": tally.files_with_holes,
            "chunks": tally.chunks,
            "copies": tally.copies,
            "unsettled": report.unsettled,
            "counts": counts,
            "findings": rows,
            "notes": report.notes,
        }
        output.show_json(facts)
        return
    if rows:
        output.show_rows(settings, rows, COLUMNS)
    if any(count["found"] > shown_max for count in counts):
        click.echo(f"only the first {shown_max} of each kind are shown: --show N shows more\n")
    for count in counts:
        mended = f", {count['repaired']} repaired" if count["repaired"] else ""
        click.echo(f"{count['kind']}: {count['found']}{mended} ({count['meaning']})")
    for note in report.notes:
        click.echo(f"note: {note}")
    if report.unsettled:
        click.echo(f"{report.unsettled} chunks changed at each look and were not judged")
    verdict = f"{report.left} findings remain" if report.left else "all was repaired" if counts else "clean"
    files = f"{tally.files} files ({tally.files_with_holes} with holes)"
    click.echo(f"{files}, {tally.chunks} chunks, {tally.copies} copies: {verdict}")


def _row(finding: Finding) -> dict[str, Any]:
    key = finding.key
    return {
        "kind": finding.kind.value,
        "chain": finding.chain_id,
        "chunk": f"{key.inode}.{key.chunk_index}" if key is not None else None,
        "inode": key.inode if key is not None else None,
        "index": key.chunk_index if key is not None else None,
        "targets": list(finding.targets),
        "seen": finding.text,
        "repaired": finding.repaired or None,
    }


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, Report], None]]:
    """Show on stderr what is looked at, when that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    words = TextColumn("{task.description}: {task.fields[chunks]} chunks, {task.fields[files]} files")
    with Progress(SpinnerColumn(), words, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None, chunks=0, files=0)
        yield lambda doing, report: bar.update(
            task, description=doing, chunks=report.tally.chunks, files=report.tally.files
        )
