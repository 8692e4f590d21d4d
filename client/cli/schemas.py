"""The schema of each node type's configuration, and the checks that mgmtd makes with them.

They stand here, not in mgmtd: no service imports another, and the command line starts all of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from fireflyfs.client.cli.views import NODE_TYPES
from fireflyfs.common import config as configuration

# Module and dataclass of each type. Imported at the first use: a manager rarely needs the code of the other servers.
SCHEMAS = {
    "mgmtd": ("fireflyfs.mgmtd.server", "MgmtdConfig"),
    "meta": ("fireflyfs.meta.server", "MetaConfig"),
    "storage": ("fireflyfs.storage.server", "StorageConfig"),
    "client": ("fireflyfs.client.retry", "RetryPolicy"),
    "fuse": ("fireflyfs.fuse.options", "MountOptions"),
}


def schema(name: str) -> type:
    """The dataclass of a node type's configuration."""
    module, dataclass = SCHEMAS[name]
    found: type = getattr(importlib.import_module(module), dataclass)
    return found


def check(name: str, content: str) -> None:
    """Raises CONFIG when `content` is no configuration of that node type. Keys may be missing."""
    configuration.check(schema(name), content, source=f"{name} configuration")


def config_parsers() -> dict[int, Callable[[str], object]]:
    """For mgmtd: the check of each node type, by its number."""

    def parser(name: str) -> Callable[[str], object]:
        return lambda content: check(name, content)

    return {int(number): parser(name) for name, number in NODE_TYPES.items()}
