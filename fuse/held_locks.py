"""Which locks programs of this mount have, and which of those the mount has lost.

As Linux's NFS client has it (`recover_lost_locks=0`): a lock that was dropped because this mount was cut off from the
cluster is not asked for again, since others may have had it and changed what it guarded. What its owner still does with
the file through the descriptors that it locked through fails with EIO, until it unlocks what it lost, or closes.

The mount is sure of its locks while its lease has run without a break since they were looked at. After a break, or
while the lease is not renewed, it asks the metadata service, which keeps what it is asked about for a while
(LOCK_GRACE_NS of meta/background/sessions.py).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.lock_spans import Span, with_span, without
from fireflyfs.fuse.backend import MetaCalls
from fireflyfs.proto import meta_pb2 as m
from fireflyfs.proto.common_pb2 import Caller

log = logging.getLogger(__name__)

SURE_S: Final = 5.0  # after an answer; the service keeps locks for ten
LOOK_EVERY_S: Final = 1.0
ASKED_AT_ONCE: Final = 1000
ROUNDS_MAX: Final = 3  # of asking, while programs lock and unlock meanwhile

Key = tuple[int, int]  # (kind of lock, the kernel's number of the owner)
Lease = Callable[[], tuple[int, float]]  # (how often it was begun anew, until when it surely runs)


class Holder:
    """What one owner has locked of one file: `ranges` is empty while it may have none.

    For reading or for writing is all one here: each span says for writing.
    """

    __slots__ = ("handles", "lost", "ranges")

    def __init__(self) -> None:
        self.handles: set[int] = set()  # it has asked through these
        self.ranges: tuple[Span, ...] = ()
        self.lost = False


class _Asked(NamedTuple):
    inode: int
    key: Key
    holder: Holder
    ranges: tuple[Span, ...]


class HeldLocks:
    """Safe to use from several threads; `watch` is a thread's body. Raises FfsError: IO_ERROR for what is lost."""

    def __init__(
        self, meta: MetaCalls, caller: Caller, clock: Clock, lease: Lease, on_lost: Callable[[int], None]
    ) -> None:
        """`lease` is by `clock`. `on_lost` is told of each file with lost locks, in the thread that watches: its pages
        should go."""
        self._meta = meta
        self._caller = caller
        self._clock = clock
        self._lease = lease
        self._on_lost = on_lost
        self._mutex = threading.Lock()
        self._asking = threading.Lock()
        self._owners: dict[int, dict[Key, Holder]] = {}
        self._sure_life = lease()[0]
        self._sure_until_s = float("-inf")
        self._lost: list[int] = []  # inodes that `on_lost` was not told of yet
        self._stop = threading.Event()

    def __contains__(self, inode: int) -> bool:
        """Whether somebody here may have locks of it."""
        return inode in self._owners

    def asking(self, inode: int, key: Key, handle: int, *, converts: bool) -> None:
        """Before a lock is asked for. `converts`: what the owner has goes first, as flock(2) says."""
        owners = self._owners.get(inode)
        if owners is not None and key in owners:
            self._be_sure()
        with self._mutex:
            holder = self._owners.setdefault(inode, {}).setdefault(key, Holder())
            if holder.lost:
                raise _lost()
            holder.handles.add(handle)
            if converts:
                holder.ranges = ()

    def granted(self, inode: int, key: Key, start: int, end: int) -> None:
        with self._mutex:
            holder = self._owners.get(inode, {}).get(key)
            if holder is not None:  # None: closed meanwhile
                holder.ranges = with_span(holder.ranges, Span(start, end, True))

    def unlocking(self, inode: int, key: Key, start: int, end: int) -> None:
        """Before a range is unlocked. Who has unlocked all that it lost has lost nothing any more."""
        with self._mutex:
            holder = self._owners.get(inode, {}).get(key)
            if holder is not None:
                holder.ranges = without(holder.ranges, start, end)
                holder.lost = holder.lost and bool(holder.ranges)

    def forget(self, inode: int, which: Callable[[Key, Holder], bool]) -> list[Key]:
        """Those whose locks go with a descriptor."""
        if inode not in self._owners:
            return []
        with self._mutex:
            owners = self._owners.get(inode, {})
            going = [key for key, holder in owners.items() if which(key, holder)]
            for key in going:
                del owners[key]
            if not owners:
                self._owners.pop(inode, None)
            return going

    def knows(self, inode: int) -> bool:
        """Whether anybody here has a lock on the file, so that `check` may find it lost."""
        return inode in self._owners

    def check(self, inode: int, handle: int | None = None) -> None:
        """Before bytes of a file are read or written: through a handle, or at all."""
        if inode not in self._owners:
            return
        self._be_sure()
        with self._mutex:
            for holder in self._owners.get(inode, {}).values():
                if holder.lost and (handle is None or handle in holder.handles):
                    raise _lost()

    def watch(self) -> None:
        """Find out about losses though nobody reads or writes, until `stop`."""
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                self._be_sure()
            except FfsError as exc:
                log.warning("cannot ask whether locks are still there: %s", exc)
            self._tell()

    def stop(self) -> None:
        self._stop.set()

    def _tell(self) -> None:
        """Never from a thread that answers a request: the kernel may wait for that one before it drops a page."""
        with self._mutex:
            told, self._lost = self._lost, []
        for inode in dict.fromkeys(told):
            self._on_lost(inode)

    def _is_sure(self) -> bool:
        life, until_s = self._lease()
        now_s = self._clock.monotonic_s()
        return (life == self._sure_life and now_s < until_s) or now_s < self._sure_until_s

    def _be_sure(self) -> None:
        if self._is_sure():
            return
        with self._asking:
            rounds = 0
            while not self._is_sure() and rounds < ROUNDS_MAX:
                self._ask()
                rounds += 1

    def _ask(self) -> None:
        life, until_s = self._lease()
        asked_s = self._clock.monotonic_s()
        with self._mutex:
            asked = list(self._all_held())
        lost, overtaken = 0, False
        for place in self._dropped(asked):
            with self._mutex:
                inode, key, holder, ranges = asked[place]
                if self._owners.get(inode, {}).get(key) is not holder or holder.ranges is not ranges:
                    overtaken = True
                    continue
                lost += not holder.lost
                holder.lost = True
                self._lost.append(inode)
        if lost:
            log.error(
                "locks of %d owners were lost while this mount was cut off from the cluster: what they read and "
                "write fails until they unlock or close the file",
                lost,
            )
        if not overtaken:
            self._sure_until_s = asked_s + SURE_S
            if asked_s < until_s:
                self._sure_life = life

    def _all_held(self) -> Iterator[_Asked]:
        for inode, owners in self._owners.items():
            for key, holder in owners.items():
                if holder.ranges and not holder.lost:
                    yield _Asked(inode, key, holder, holder.ranges)

    def _dropped(self, asked: list[_Asked]) -> set[int]:
        """Places in `asked` of those that do not have all of their ranges any more."""
        ranges = [(place, one, each) for place, one in enumerate(asked) for each in one.ranges]
        found: set[int] = set()
        for begin in range(0, len(ranges), ASKED_AT_ONCE):
            part = ranges[begin : begin + ASKED_AT_ONCE]
            request = m.AwaitLocksRequest(caller=self._caller)
            for _, (inode, (kind, owner), _, _), (start, end, _) in part:
                request.held.add(inode=inode, kind=m.LockKind.Name(kind), owner=owner, start=start, end=end)
            found |= {part[number][0] for number in self._meta.await_locks(request).dropped}
        return found


def _lost() -> FfsError:
    return error(Code.IO_ERROR, "locks of the file were lost while this mount was cut off from the cluster")
