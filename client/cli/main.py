"""`ffs`: the command line. Commands are imported when they are called, so that `ffs --help` answers at once."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fireflyfs.client.cli.settings import Settings, default_root

# Name on the command line: (module under client/cli, attribute, one line of help). Grouped as `ffs --help` shows them.
COMMANDS: dict[str, dict[str, tuple[str, str, str]]] = {
    "The local cluster": {
        "up": ("cluster", "up", "Start the local cluster (create it the first time)."),
        "down": ("cluster", "down", "Stop the local cluster; its data stays."),
        "status": ("cluster", "status", "Show processes, nodes and replicas at a glance."),
    },
    "The mount": {
        "mount": ("mounting", "mount", "Mount the file system on a directory."),
        "umount": ("mounting", "umount", "Unmount a directory."),
        "stats": ("mount_stats", "stats", "Show what a mount did, and how fast."),
    },
    "Files": {
        "ls": ("files", "ls", "List directories."),
        "stat": ("files", "stat", "Show all that is known of files."),
        "cat": ("files", "cat", "Write files to the standard output."),
        "put": ("copying", "put", "Copy local files and trees into the file system."),
        "get": ("copying", "get", "Copy files and trees out of the file system."),
        "rm": ("files", "rm", "Remove files and trees."),
        "mkdir": ("files", "mkdir", "Make directories."),
        "mv": ("files", "mv", "Rename or move files."),
        "cache": ("caching", "cache", "The KV cache's namespaces: list, create, show, clear, remove."),
        "du": ("quota", "du", "Show how much there is below directories."),
        "trash": ("trash", "trash", "What was removed: list, restore, empty."),
    },
    "Administration": {
        "nodes": ("nodes", "nodes", "Servers: list, register, enable, disable, unregister."),
        "targets": ("targets", "targets", "Storage targets: list, create, scrub, accept a new disk."),
        "chains": ("chains", "chains", "Replication chains: list, create, update."),
        "chain-tables": ("chain_tables", "chain_tables", "Chain tables: list, create, upload, generate."),
        "config": ("configuration", "config", "Configuration per node type: get, set, list."),
        "sessions": ("sessions", "sessions", "Client leases: list."),
        "fsck": ("fsck", "fsck", "Check chunks against files and replicas against each other; mend."),
        "quota": ("quota", "quota", "Quotas of directories, users and groups: set, show, list, remove, check."),
        "space": ("space", "space", "Show capacity and use."),
        "rdma": ("rdma", "rdma", "RDMA on this machine: check."),
        "bench": ("benching", "bench", "Measure reads, writes and metadata calls."),
    },
    "Servers": {
        "run": ("run", "run", "Run one server process: mgmtd, meta or storage."),
    },
}


class App(click.Group):
    """A group whose commands live in modules of their own, and whose errors end in one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for section in COMMANDS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for section in COMMANDS.values():
            if cmd_name in section:
                module, attribute, _ = section[cmd_name]
                command: click.Command = getattr(importlib.import_module(f"fireflyfs.client.cli.{module}"), attribute)
                return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, _, text) in section.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (BrokenPipeError, KeyboardInterrupt) as exc:  # click has an end of its own for these
            from fireflyfs.client.cli.exits import report

            raise click.exceptions.Exit(report(exc)) from exc

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run and exit: the codes are listed in exits.py."""
        try:
            outcome = super().main(args, prog_name or "ffs", complete_var, False, **extra)
            sys.stdout.flush()
        except BaseException as exc:
            if not standalone_mode or isinstance(exc, SystemExit):
                raise
            from fireflyfs.client.cli.exits import report

            sys.exit(report(exc, verbose=_verbose(args)))
        sys.exit(outcome if isinstance(outcome, int) else 0)


def _verbose(args: Sequence[str] | None) -> bool:
    given = list(args) if args is not None else sys.argv[1:]
    return any(arg in ("--verbose", "-v") for arg in given) or bool(os.environ.get("FFS_TRACE"))


@click.group(cls=App, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=default_root,
    envvar="FFS_ROOT",
    help="Folder of the local cluster.  [default: ./.ffs when it is there, else ~/.local/share/fireflyfs]",
)
@click.option(
    "--mgmtd",
    metavar="HOST:PORT[,...]",
    default="",
    envvar="FFS_MGMTD",
    help="Cluster manager to talk to.  [default: the local cluster's]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts instead of tables.")
@click.option("--verbose", "-v", is_flag=True, help="Log what is done; show the trace of an error.")
@click.version_option(package_name="fireflyfs", prog_name="ffs")
@click.pass_context
def app(ctx: click.Context, root: Path, mgmtd: str, as_json: bool, verbose: bool) -> None:
    """FireflyFS: run a cluster, mount it, move files, look after it.

    \b
    Exit codes: 0 done · 1 failed · 2 wrong usage or configuration · 3 not found
                4 the cluster cannot be reached · 5 refused · 6 fsck found something
                130 interrupted
    """
    ctx.obj = Settings(root=root, mgmtd=mgmtd, json=as_json, verbose=verbose)
    if verbose:
        import logging

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)


def main() -> None:
    """Entry point of the `ffs` command."""
    app()


if __name__ == "__main__":
    main()
