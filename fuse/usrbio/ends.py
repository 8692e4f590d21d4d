"""How far an agent has written which file: words in memory that a mount shares with it.

Not messages: whoever asks the mount for a length right after a completion must see it, and no message may be on its
way then. An agent has one table; a file that it writes has one slot of it, given by the mount.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Final

import numpy as np

SLOTS_MAX: Final = 16_384
# u64 words of a slot; the agent writes the first three, the mount the others
_END, _COUNT, _TORN, _EPOCH, _TURN = 0, 1, 2, 3, 4
_WORDS: Final = 8
_BYTES: Final = SLOTS_MAX * _WORDS * 8


class Ends:
    """The table. `fd` is owned by the table of the mount, and by whoever received it."""

    def __init__(self, fd: int = -1) -> None:
        if fd < 0:
            fd = os.memfd_create("fireflyfs-ends", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, _BYTES)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self.fd = fd
        self._words = np.frombuffer(mmap.mmap(fd, _BYTES), np.uint64).reshape(SLOTS_MAX, _WORDS)

    def clear(self, slot: int) -> None:
        """The mount, before it gives the slot away."""
        self._words[slot] = 0

    def epoch(self, slot: int) -> int:
        return int(self._words[slot, _EPOCH])

    def turn(self, slot: int) -> int:
        """Another number than before: the length that the agent was told is not to be believed any more."""
        return int(self._words[slot, _TURN])

    def shortened(self, slot: int) -> None:
        """The mount: the file's length was set."""
        self._words[slot, _TURN] += np.uint64(1)

    def wrote(self, slot: int, end: int) -> None:
        """The agent: bytes up to `end` are stored, and further ones than since the mount last looked."""
        self._words[slot, _END] = end
        self._words[slot, _COUNT] += np.uint64(1)

    def torn(self, slot: int, end: int) -> None:
        """The agent: as `wrote`, and a write has failed of which any part may be stored."""
        self._words[slot, _TORN] += np.uint64(1)
        self.wrote(slot, end)

    def look(self, slot: int, seen: tuple[int, int]) -> tuple[tuple[int, int], int] | None:
        """The mount: ((count, of writes that failed), end) when something was written since the counts were `seen`.
        The agent begins anew with what it writes from now on."""
        count = int(self._words[slot, _COUNT])
        if count == seen[0]:
            return None
        torn, end = int(self._words[slot, _TORN]), int(self._words[slot, _END])
        self._words[slot, _EPOCH] += np.uint64(1)
        return (count, torn), end

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
