"""Which host this is, as the data link's handshake and `Address.host_id` mean it."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def host_id() -> str:
    """The kernel's boot id: equal for processes that may share memory. Empty where it cannot be read."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
