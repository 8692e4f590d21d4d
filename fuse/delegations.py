"""Directories of which this mount knows all names, so that a name that is missing need not be asked for.

Before the kernel makes a file it looks its name up, and whoever searches several places mostly looks in vain. A
directory in which that happens is delegated to this mount (meta/core/delegations.py): it is given all names, adds those
that are made here before they are asked for, and never takes one out, so that what it does not know is not there. Until
the directory is recalled, or the mount could not ask for a while whether it was.
"""

from __future__ import annotations

import logging
import threading
from typing import Final

from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import FfsError
from fireflyfs.fuse.backend import MetaCalls
from fireflyfs.proto import meta_pb2 as m
from fireflyfs.proto.common_pb2 import Caller

log = logging.getLogger(__name__)

HELD_MAX: Final = 64  # directories
NAMES_MAX: Final = 65_536  # of one directory, with those made since
ALL_NAMES_MAX: Final = 131_072
NAMES_PER_MISS: Final = 64  # so many names may be listed for each look-up that was in vain
MISSES_MIN: Final = 2
MISSES_KEPT_MAX: Final = 1024  # directories whose misses are counted
IDLE_S: Final = 10.0  # a directory in which nothing is looked for so long is given back
WAIT_MS: Final = 300  # of one call: several fit into a term


class _Names:
    """Of one directory. `until_s` is 0 until it is delegated, by the grant `number`."""

    __slots__ = ("names", "number", "until_s", "used_s")

    def __init__(self, now_s: float) -> None:
        self.names = {b".", b".."}
        self.number = 0
        self.until_s = 0.0
        self.used_s = now_s


class _Making:
    """A request under way that may give a directory a name."""

    __slots__ = ("_all", "name", "nodeid")

    def __init__(self, all_making: dict[int, _Making], nodeid: int, name: bytes) -> None:
        self._all = all_making
        self.nodeid = nodeid
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        del self._all[id(self)]


class Delegations:
    """Safe to use from several threads; `run` is a thread's body."""

    def __init__(self, meta: MetaCalls, caller: Caller, clock: Clock) -> None:
        """`clock` goes on while this machine is suspended."""
        self._meta = meta
        self._caller = caller  # the kernel has checked that the directory may be searched
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[int, _Names] = {}
        self._returned: dict[int, int] = {}  # by directory, the number
        self._making: dict[int, _Making] = {}
        self._misses: dict[int, int] = {}
        self._some = threading.Event()
        self._stopped = False

    def __len__(self) -> int:
        return len(self._held)

    def absent(self, nodeid: int, name: bytes) -> bool:
        """Whether the directory surely has no such name."""
        known = self._held.get(nodeid)
        if known is None or name in known.names:
            return False
        now_s = self._clock.monotonic_s()
        if now_s >= known.until_s:
            return False
        known.used_s = now_s
        return True

    def making(self, nodeid: int, name: bytes) -> _Making:
        """Around every request that may give a directory a name: it may be there from when that is sent."""
        making = _Making(self._making, nodeid, name)
        self._making[id(making)] = making  # before the look at what is held: see `_ask`
        known = self._held.get(nodeid)
        if known is not None:
            known.names.add(name)
            if len(known.names) > NAMES_MAX:
                self._give_back([nodeid])
        return making

    def missed(self, nodeid: int) -> None:
        """Meta was asked for a name that is not there. Perhaps the directory is worth knowing."""
        if nodeid in self._held or self._stopped:
            return
        if len(self._misses) >= MISSES_KEPT_MAX:
            self._misses.clear()
        misses = self._misses[nodeid] = self._misses.get(nodeid, 0) + 1
        if misses >= MISSES_MIN and not misses & (misses - 1):  # the second, the fourth, the eighth, ...
            self._ask(nodeid, misses)

    def _ask(self, nodeid: int, misses: int) -> None:
        now_s = self._clock.monotonic_s()
        known = _Names(now_s)
        with self._lock:
            if self._stopped or nodeid in self._held or nodeid in self._returned:
                return
            if len(self._held) >= HELD_MAX:
                self._return(min(self._held, key=lambda each: self._held[each].used_s))
            self._held[nodeid] = known
            self._some.set()
        # A name made from here on finds `known`. One that was begun before is either still being made now, or will be
        # in the answer.
        known.names.update(each.name for each in list(self._making.values()) if each.nodeid == nodeid)
        request = m.DelegateRequest(caller=self._caller, directory=nodeid, names_max=misses * NAMES_PER_MISS)
        try:
            reply = self._meta.delegate(request)
        except FfsError as exc:
            log.debug("the names of inode %d are not delegated: %s", nodeid, exc)
            reply = m.DelegateReply()
        known.names.update(reply.names)
        with self._lock:
            known.number = reply.granted.number
            if self._held.get(nodeid) is not known:  # recalled, or given up, before it was there
                if known.number:
                    self._returned[nodeid] = known.number
            elif not known.number:
                del self._held[nodeid]
            else:
                known.until_s = now_s + reply.term_ms / 1000
                self._misses.pop(nodeid, None)
            self._some.set()

    def _return(self, nodeid: int) -> None:
        """Called under the lock. Of one that is not granted yet, `_ask` gives back what comes."""
        known = self._held.pop(nodeid, None)
        if known is not None and known.number:
            self._returned[nodeid] = known.number

    def _give_back(self, nodeids: list[int]) -> None:
        with self._lock:
            for nodeid in nodeids:
                self._return(nodeid)
        self._some.set()

    def run(self) -> None:
        """Ask what was recalled while there is something that could be, until `stop`; then all is given back."""
        while self._turn():
            pass

    def _turn(self) -> bool:
        """One question, once there is one to ask; whether there may be more."""
        self._some.wait()
        self._spare()
        with self._lock:
            stopped = self._stopped
            if stopped:
                for nodeid in list(self._held):
                    self._return(nodeid)
            held = {nodeid: known for nodeid, known in self._held.items() if known.until_s}
            returned = dict(sorted(self._returned.items())[:HELD_MAX])
            if not self._held and not returned:
                self._some.clear()
                return not stopped
        self._exchange(held, returned)
        return True

    def _exchange(self, held: dict[int, _Names], returned: dict[int, int]) -> None:
        request = m.AwaitRecallsRequest(
            caller=self._caller,
            held=[m.Delegation(directory=nodeid, number=known.number) for nodeid, known in held.items()],
            returned=[m.Delegation(directory=nodeid, number=number) for nodeid, number in returned.items()],
            wait_ms=0 if returned else WAIT_MS,
        )
        sent_s = self._clock.monotonic_s()
        try:
            reply = self._meta.await_recalls(request)
        except FfsError as exc:
            log.error("cannot ask which directories are recalled: %s", exc)
            with self._lock:
                self._held.clear()
                self._returned.clear()
            return
        with self._lock:
            for nodeid, number in returned.items():
                if self._returned.get(nodeid) == number:
                    del self._returned[nodeid]
            for nodeid in reply.recalled:
                self._return(nodeid)
            for known in held.values():  # nobody looks any more at what was recalled
                known.until_s = max(known.until_s, sent_s + reply.term_ms / 1000)

    def _spare(self) -> None:
        """Give back what nobody asks for, and the largest ones while there are too many names."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            going = [nodeid for nodeid, known in self._held.items() if known.until_s and now_s - known.used_s > IDLE_S]
            sizes = {nodeid: len(known.names) for nodeid, known in self._held.items()}
        total = sum(sizes.values())
        while total > ALL_NAMES_MAX:
            largest = max(sizes, key=lambda each: sizes[each])
            total -= sizes.pop(largest)
            going.append(largest)
        if going:
            self._give_back(going)

    def stop(self) -> None:
        """The mount ends: nothing is known any more, and others need not wait for us."""
        with self._lock:
            self._stopped = True
        self._some.set()
