"""What the global options said, and the few checks that every command shares. Imports nothing heavy."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click


@dataclass(frozen=True, slots=True)
class Settings:
    """The global options. `mgmtd` is empty when none was named: then the local cluster at `root` says."""

    root: Path
    mgmtd: str = ""
    json: bool = False
    verbose: bool = False

    @property
    def addresses(self) -> list[str]:
        """The named cluster managers. Raises UsageError for what is no HOST:PORT."""
        return [check_address(part) for part in self.mgmtd.split(",") if part.strip()]


class Amount(click.FloatRange):
    """A finite number within bounds: `nan` and `inf` are numbers to Python, and no seconds or hours to anybody."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"{value!r} is no number", param, ctx)
        return super().convert(value, param, ctx)


# The type of mountpoints. click.Path looks at what it is given: whoever looks at a mount whose servers are away waits
# for them, and they may be what the command is about to start.
MOUNTPOINT: Final = Path

pass_settings = click.make_pass_decorator(Settings)


def default_root() -> Path:
    """`./.ffs` when a cluster lives there, else the user's data folder."""
    here = Path(".ffs")
    if here.is_dir():
        return here.resolve()
    base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(base) / "fireflyfs"


def check_address(text: str) -> str:
    """`text` as HOST:PORT. Raises UsageError."""
    host, _, port = text.strip().rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise click.UsageError(f"{text.strip()!r} is no HOST:PORT, such as 127.0.0.1:7400")
    return f"{host}:{port}"
