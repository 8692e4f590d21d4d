"""On whose behalf a request runs: the kernel says user, group and process; other groups are the process's own."""

from __future__ import annotations

import signal
import threading
from typing import Final

from fireflyfs.common.clock import Clock
from fireflyfs.common.limits import GROUPS_MAX
from fireflyfs.proto.common_pb2 import Caller

AGE_S: Final = 1.0
CALLERS_MAX: Final = 4096


def groups_of(pid: int) -> list[int]:
    """Supplementary groups of a process; none when it is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"Groups:"):
                    return [int(field) for field in line[7:].split()][:GROUPS_MAX]
    except OSError:
        pass
    return []


def is_killed(pid: int) -> bool:
    """Whether a thread has SIGKILL pending, as all of a process have that ends; False where that cannot be seen."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            pending = [int(line[7:], 16) for line in status if line.startswith((b"SigPnd:", b"ShdPnd:"))]
    except OSError:
        return False
    return any(mask >> signal.SIGKILL - 1 & 1 for mask in pending)


class Callers:
    """Builds `Caller` messages; the groups of a process are remembered for a second, up to CALLERS_MAX processes."""

    def __init__(self, client_id: bytes, clock: Clock) -> None:
        self._client_id = client_id
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[tuple[int, int, int], tuple[float, Caller]] = {}
        self.root = Caller(uid=0, gid=0, client_id=client_id)
        self._root_groups: dict[int, Caller] = {0: self.root}

    def caller(self, uid: int, gid: int, pid: int) -> Caller:
        if uid == 0:  # may do everything: its groups do not matter, only the one that new files get
            known = self._root_groups.get(gid)
            if known is None:
                known = Caller(uid=0, gid=gid, client_id=self._client_id)
                if len(self._root_groups) < CALLERS_MAX:
                    self._root_groups[gid] = known
            return known
        now = self._clock.monotonic_s()
        key = (uid, gid, pid)
        entry = self._known.get(key)
        if entry is not None and now - entry[0] < AGE_S:
            return entry[1]
        caller = Caller(uid=uid, gid=gid, gids=groups_of(pid), client_id=self._client_id)
        with self._lock:
            if len(self._known) >= CALLERS_MAX:
                self._known.clear()
            self._known[key] = (now, caller)
        return caller
