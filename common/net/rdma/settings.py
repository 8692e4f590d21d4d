"""Which devices a process takes: from its environment, as `FFS_BUSY_POLL_US` is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from fireflyfs.common.errors import Code, error

DEVICES_ENV: Final = "FFS_RDMA_DEVICES"
GID_INDEX_ENV: Final = "FFS_RDMA_GID_INDEX"
GID_INDEX_MAX: Final = 1023


@dataclass(frozen=True, slots=True)
class RdmaSettings:
    """`devices` are names, or names with a port ("mlx5_0:1"); none: all. `gid_index` None: chosen."""

    devices: tuple[str, ...] = ()
    gid_index: int | None = None

    def allows(self, device: str, port: int) -> bool:
        return not self.devices or device in self.devices or f"{device}:{port}" in self.devices


def settings_from_environment() -> RdmaSettings:
    """Raises CONFIG for a setting that is none."""
    devices = tuple(name.strip() for name in os.environ.get(DEVICES_ENV, "").split(",") if name.strip())
    index = os.environ.get(GID_INDEX_ENV, "").strip()
    if index and (not index.isdigit() or int(index) > GID_INDEX_MAX):
        raise error(Code.CONFIG, f"{GID_INDEX_ENV} is {index!r}; it takes an index from 0 to {GID_INDEX_MAX}")
    return RdmaSettings(devices, int(index) if index else None)
