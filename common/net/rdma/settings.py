"""Which link a process takes, and which devices: from its environment, as `FFS_BUSY_POLL_US` is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from typing import Final

from fireflyfs.common.errors import Code, error

LINK_ENV: Final = "FFS_LINK"
DEVICES_ENV: Final = "FFS_RDMA_DEVICES"
GID_INDEX_ENV: Final = "FFS_RDMA_GID_INDEX"
GID_INDEX_MAX: Final = 1023


class LinkChoice(Enum):
    """`auto` takes the best that both ends offer; the others insist on one."""

    AUTO = "auto"
    RDMA = "rdma"
    TCP = "tcp"
    SHM = "shm"


@dataclass(frozen=True, slots=True)
class RdmaSettings:
    """`devices` are names, or names with a port ("mlx5_0:1"); none: all. `gid_index` None: chosen."""

    link: LinkChoice = LinkChoice.AUTO
    devices: tuple[str, ...] = ()
    gid_index: int | None = None

    def allows(self, device: str, port: int) -> bool:
        return not self.devices or device in self.devices or f"{device}:{port}" in self.devices


def settings_from_environment() -> RdmaSettings:
    """Raises CONFIG for a setting that is none."""
    text = os.environ.get(LINK_ENV, "").strip().lower() or LinkChoice.AUTO.value
    try:
        link = LinkChoice(text)
    except ValueError as exc:
        raise error(Code.CONFIG, f"{LINK_ENV} is {text!r}; it takes auto, rdma, tcp or shm") from exc
    devices = tuple(name.strip() for name in os.environ.get(DEVICES_ENV, "").split(",") if name.strip())
    index = os.environ.get(GID_INDEX_ENV, "").strip()
    if index and (not index.isdigit() or int(index) > GID_INDEX_MAX):
        raise error(Code.CONFIG, f"{GID_INDEX_ENV} is {index!r}; it takes an index from 0 to {GID_INDEX_MAX}")
    return RdmaSettings(link, devices, int(index) if index else None)
