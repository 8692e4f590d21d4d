"""Which host this is, and since when it runs: the kernel's boot id.

The data link's handshake and `Address.host_id` mean it as "which host"; a target keeps it to tell a power cut from a
restart of the process.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

# Stands in for the kernel's boot id. For tests: processes with different ones are on different hosts for the data link
# (no shared memory), and a target that is opened under another one than before has been through a power cut.
BOOT_ID_ENV = "FFS_BOOT_ID"


@functools.cache
def host_id() -> str:
    """The kernel's boot id: equal for processes that may share memory. Empty where it cannot be read."""
    if stand_in := os.environ.get(BOOT_ID_ENV):
        return stand_in
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
