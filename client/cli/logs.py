"""Where a server process logs: stderr, or a bounded set of rotating files."""

from __future__ import annotations

import logging
import logging.handlers
import sys
import time
from pathlib import Path

LOG_FILE_BYTES_MAX = 16 << 20
LOG_FILES_KEPT = 4  # beside the current one


def set_up(log_file: Path | None, level: str) -> None:
    """Send everything that the process logs to `log_file`, or to stderr without one. Uncaught errors are logged too."""
    handler: logging.Handler
    if log_file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.handlers.RotatingFileHandler(
            log_file, maxBytes=LOG_FILE_BYTES_MAX, backupCount=LOG_FILES_KEPT, encoding="utf-8"
        )
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    previous = sys.excepthook

    def hook(kind: type[BaseException], value: BaseException, trace: object) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            logging.getLogger("fireflyfs").critical("stopped by an error", exc_info=value)
        previous(kind, value, value.__traceback__)

    sys.excepthook = hook
