"""Reading a store's files into the page cache when its owner starts: RocksDB's point reads cost 8 µs from memory and
the disk's latency each otherwise, and after a start of the machine every name that is asked for would pay that.

Memory that is wanted for something else takes the pages back; nothing here holds them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from pathlib import Path

from fireflyfs.common.limits import KiB, MiB

log = logging.getLogger(__name__)
STEP_BYTES = MiB
MEMORY_PART = 2  # never more than one part in so many of the memory that is available


async def read_ahead(folder: Path, bytes_max: int) -> None:
    """Read up to so many bytes of the tables in `folder`, in a thread that ends when this is cancelled."""
    stop = threading.Event()
    try:
        nbytes = await asyncio.to_thread(read_tables, folder, min(bytes_max, available_bytes() // MEMORY_PART), stop)
        log.debug("read %d MiB of the store %s ahead", nbytes // MiB, folder)
    except OSError as exc:
        log.warning("the store %s could not be read ahead: %s", folder, exc)
    finally:
        stop.set()


def read_tables(folder: Path, bytes_max: int, stop: threading.Event) -> int:
    """The newest tables first: they are the upper levels, which every look-up passes. How many bytes were read."""
    buffer = memoryview(bytearray(STEP_BYTES))
    done = 0
    for path in sorted(folder.glob("*.sst"), reverse=True):
        if done >= bytes_max or stop.is_set():
            break
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # compacted away meanwhile
        try:
            while done < bytes_max and not stop.is_set():
                read = os.readv(descriptor, [buffer[: bytes_max - done]])
                done += read
                if not read:
                    break
        finally:
            os.close(descriptor)
    return done


def available_bytes() -> int:
    """Memory that could be had without swapping, as the kernel estimates it; 0 where it does not say."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * KiB
    return 0
