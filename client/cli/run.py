"""`ffs run`: one server process in the foreground, stopped in good order by SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click

from fireflyfs.client.cli import schemas
from fireflyfs.common import collector
from fireflyfs.common import config as configuration
from fireflyfs.common.net import busy_poll

ROLES = ("mgmtd", "meta", "storage")
SUPERVISOR_LOG_ENV = "FFS_SUPERVISOR_LOG"


@click.command()
@click.argument("role", type=click.Choice(ROLES))
@click.option("--config", "config_path", type=click.Path(path_type=Path), required=True, help="Its TOML file.")
@click.option("--worker", type=click.IntRange(0), help="Storage: run this worker alone, without the supervisor.")
@click.option("--check", is_flag=True, help="Read the configuration, say what is wrong with it, and stop.")
@click.option(
    "--log-file", type=click.Path(path_type=Path), help="Log there, in a few bounded files.  [default: stderr]"
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def run(role: str, config_path: Path, worker: int | None, check: bool, log_file: Path | None, log_level: str) -> None:
    """Run one server process in the foreground.

    SIGTERM or Ctrl-C stops it in good order; a second one stops it at once. Unknown configuration keys are errors.
    """
    if worker is not None and role != "storage":
        raise click.UsageError("--worker is for storage only")
    module = importlib.import_module(schemas.SCHEMAS[role][0])  # a role loads only its own code
    config: Any = configuration.load(schemas.schema(role), config_path)
    if worker is not None and worker >= len(config.workers):
        raise click.UsageError(f"{config_path} has {len(config.workers)} workers, there is no worker {worker}")
    if check:
        click.echo(f"{config_path}: a valid {role} configuration")
        return
    from fireflyfs.client.cli.logs import set_up

    set_up(_log_file(log_file, worker), log_level)
    start: Callable[[asyncio.Event], Coroutine[Any, Any, None]]
    if role == "mgmtd":
        start = lambda stop: module.serve(config, stop, config_parsers=schemas.config_parsers())  # noqa: E731
    elif role == "meta":
        start = lambda stop: module.serve(config, stop)  # noqa: E731
    elif worker is None:
        start = lambda stop: module.serve_node(config, stop)  # noqa: E731
    else:
        start = lambda stop: module.serve_worker(config, worker, stop)  # noqa: E731
    collector.settle()
    looking = busy_poll.LOOKING_METADATA if role == "meta" else busy_poll.LOOKING
    busy_poll.run(lambda: serve_until_signal(start), looking)


def _log_file(named: Path | None, worker: int | None) -> Path | None:
    """The supervisor's workers log beside it, each in its own files: no two processes rotate one file."""
    if worker is None:
        if named is not None:
            os.environ[SUPERVISOR_LOG_ENV] = str(named.absolute())
        return named
    beside = os.environ.get(SUPERVISOR_LOG_ENV)
    if named is None and beside:
        path = Path(beside)
        return path.with_name(f"{path.stem}-worker{worker}{path.suffix}")
    return named


async def serve_until_signal(start: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run `start(stop)`; SIGTERM and SIGINT set `stop`, and the second signal ends the process."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(128 + signal.SIGTERM)  # asked twice: whoever asks does not want to wait for the good order
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        await start(stop)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
