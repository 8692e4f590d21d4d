"""`python -m fireflyfs.meta --config FILE` is `ffs run meta --config FILE`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from pathlib import Path

from fireflyfs.common import collector
from fireflyfs.common import config as configuration
from fireflyfs.common.net import busy_poll
from fireflyfs.meta.server import MetaConfig, serve


async def _main(config: MetaConfig) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(config, stop)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = configuration.load(MetaConfig, parser.parse_args().config)
    collector.settle()
    busy_poll.run(lambda: _main(config), busy_poll.LOOKING_METADATA)
