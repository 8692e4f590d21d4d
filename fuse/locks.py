"""This mount's side of advisory locks: who may have some, and who waits for one.

Locks stand in the metadata service. A request that must wait keeps no thread: it is queued there, and one thread for
the whole mount asks what was granted, in a call that lasts until there is something to tell.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.ids import new_request_id
from fireflyfs.common.limits import LOCKS_AWAITED_MAX
from fireflyfs.fuse.backend import MetaCalls
from fireflyfs.fuse.held_locks import HeldLocks, Holder, Key
from fireflyfs.fuse.request import Later
from fireflyfs.proto import meta_pb2 as m
from fireflyfs.proto.common_pb2 import Caller

log = logging.getLogger(__name__)

WAIT_MS: Final = 8000  # of one call for news
BETWEEN_S: Final = 0.002  # between calls while a grant came before its request knows that it waits
INTERRUPTS_MAX: Final = 1024  # remembered that came before what they interrupt
AGAIN_MAX: Final = 3  # times that a lock is asked for while locks of the same file are dropped here
DROP_S: Final = 1.0
RANGE_END: Final = (1 << 63) - 1

Granted = Callable[[], None]  # what to do before the caller hears that it has the lock


class _Waiting:
    """A request on its way to a lock. `queued` and `later` are set once it waits."""

    __slots__ = ("granted", "interrupted", "later", "queued")

    def __init__(self, granted: Granted) -> None:
        self.granted = granted
        self.interrupted = False
        self.queued: m.QueuedLock | None = None
        self.later: Later | None = None


class LockClient:
    """Safe to use from several threads; `run` is a thread's body. Raises FfsError."""

    def __init__(self, meta: MetaCalls, caller: Caller, held: HeldLocks) -> None:
        self._meta = meta
        self._caller = caller  # permission was checked when the file was opened
        self.held = held
        self._mutex = threading.Lock()
        self._waiting: dict[int, _Waiting] = {}  # by the kernel's number of the request
        self._by_request_id: dict[bytes, int] = {}
        self._early: OrderedDict[int, None] = OrderedDict()  # interrupts of what does not wait (yet)
        self._some = threading.Event()
        self._stopped = False
        self._dropped = threading.Condition(self._mutex)
        self._dropping: dict[int, int] = {}  # inodes whose locks go now, and how many such there are

    def get(self, inode: int, lock: m.Lock) -> m.Lock | None:
        """What is in the way of `lock`, or None."""
        reply = self._meta.get_lock(m.GetLockRequest(caller=self._caller, inode=inode, lock=lock))
        return reply.conflict if reply.HasField("conflict") else None

    def drop(self, inode: int, lock: m.Lock) -> None:
        """Unlock a range."""
        self.held.unlocking(inode, (lock.kind, lock.owner), lock.start, lock.end)
        self._meta.set_lock(m.SetLockRequest(caller=self._caller, inode=inode, lock=lock))

    def take(self, inode: int, fh: int, lock: m.Lock) -> m.Inode | None:
        """Lock without waiting; the file as it is now, or None when another lock is in the way."""
        self._asking(inode, fh, lock)
        for _ in range(AGAIN_MAX):
            going = inode in self._dropping
            reply = self._meta.set_lock(m.SetLockRequest(caller=self._caller, inode=inode, lock=lock))
            if reply.granted:
                self._granted(inode, lock)
                return reply.inode
            # The kernel does not wait for a RELEASE: a lock of ours may be in the way that is closed already.
            with self._mutex:
                if not going and inode not in self._dropping:
                    return None
                self._dropped.wait_for(lambda: inode not in self._dropping, DROP_S)
        return None

    def wait(
        self, inode: int, fh: int, lock: m.Lock, unique: int, later: Callable[[], Later], granted: Granted
    ) -> m.Inode | None:
        """Lock, waiting if need be: None says that the answer is given later. Raises OSError EINTR.

        `granted` runs before a later answer, in the thread that asks for news.
        """

        def had() -> None:
            self._granted(inode, lock)
            granted()

        waiting = _Waiting(had)
        request = m.SetLockRequest(caller=self._caller, inode=inode, lock=lock, wait=True)
        request.mutation.request_id = new_request_id()
        request_id = request.mutation.request_id
        with self._mutex:
            if unique in self._early:
                del self._early[unique]
                raise OSError(errno.EINTR, "interrupted")
            if len(self._waiting) >= LOCKS_AWAITED_MAX:
                raise error(Code.NO_LOCKS, f"{LOCKS_AWAITED_MAX} programs of this mount wait for locks")
            self._waiting[unique] = waiting
            self._by_request_id[request_id] = unique
        queued: m.QueuedLock | None = None
        try:
            self._asking(inode, fh, lock)
            reply = self._meta.set_lock(request)
            if reply.granted:
                self._granted(inode, lock)
                return reply.inode
            with self._mutex:
                queued = m.QueuedLock(inode=inode, kind=lock.kind, ticket=reply.ticket, request_id=request_id)
                if not waiting.interrupted:
                    waiting.later = later()
                    waiting.queued = queued
                    self._some.set()
                    return None
        finally:
            if waiting.queued is None:
                self._forget(unique, request_id)
        if self._cancel(queued):
            self._granted(inode, lock)
            return self._meta.stat(m.StatRequest(caller=self._caller, at=m.PathAt(dir=inode))).inode
        raise OSError(errno.EINTR, "interrupted")

    def interrupt(self, unique: int) -> None:
        """The caller of a request gave up. One that does not wait is remembered: it may be about to."""
        with self._mutex:
            waiting = self._waiting.get(unique)
            if waiting is None:
                self._early[unique] = None
                if len(self._early) > INTERRUPTS_MAX:
                    self._early.popitem(last=False)
                return
            waiting.interrupted = True
            queued = waiting.queued
            if queued is None:
                return  # its own thread sees it
            del self._waiting[unique]
            del self._by_request_id[queued.request_id]
        self._end(waiting, granted=self._cancel(queued), number=errno.EINTR)

    def closed(self, inode: int, owner: int) -> None:
        """close(2) of a descriptor of the file, by a process: all its range locks of the file go."""
        self._drop_all(inode, lambda key, _: key == (m.LOCK_RANGE, owner))

    def released(self, inode: int, fh: int) -> None:
        """The last descriptor of an open file is closed: what was locked through it goes."""
        self._drop_all(inode, lambda _, holder: fh in holder.handles)

    def run(self) -> None:
        """Ask for news while somebody waits, until `stop`."""
        heard: list[bytes] = []
        while True:
            if not heard:
                self._some.wait()
            if self._stopped:
                return
            with self._mutex:
                asked = [waiting.queued for waiting in self._waiting.values() if waiting.queued is not None]
                if not asked:
                    self._some.clear()
            if not asked and not heard:
                continue
            request = m.AwaitLocksRequest(caller=self._caller, heard=heard, waiting=asked, wait_ms=WAIT_MS)
            if not asked:
                request.wait_ms = 0
            try:
                reply = self._meta.await_locks(request)
            except FfsError as exc:
                log.error("cannot wait for locks: %s", exc)
                self._fail_all()
                heard = []
                continue
            heard = [request_id for request_id in reply.granted if self._told(request_id, granted=True)]
            for request_id in reply.lost:
                self._told(request_id, granted=False)
            if len(heard) < len(reply.granted):
                threading.Event().wait(BETWEEN_S)

    def stop(self) -> None:
        """The mount ends; nobody waits any more."""
        self._stopped = True
        self._some.set()
        self._fail_all()

    def _told(self, request_id: bytes, *, granted: bool) -> bool:
        """A grant or a loss; whether it need not be told again."""
        with self._mutex:
            unique = self._by_request_id.get(request_id)
            if unique is None:
                return True
            waiting = self._waiting[unique]
            if waiting.queued is None:
                return False
            del self._waiting[unique]
            del self._by_request_id[request_id]
        self._end(waiting, granted=granted, number=errno.ENOLCK)
        return True

    def _end(self, waiting: _Waiting, *, granted: bool, number: int) -> None:
        assert waiting.later is not None
        if granted:
            try:
                waiting.granted()
            except FfsError as exc:
                log.error("a lock was granted, and its file cannot be looked at: %s", exc)
        waiting.later.answer(0 if granted else number)

    def _cancel(self, queued: m.QueuedLock) -> bool:
        """Whether it came too late: the lock is there."""
        try:
            return self._meta.cancel_lock(m.CancelLockRequest(caller=self._caller, queued=queued)).granted
        except FfsError as exc:
            log.error("a queued lock was not taken back: %s", exc)
            return False

    def _fail_all(self) -> None:
        with self._mutex:
            left = [waiting for waiting in self._waiting.values() if waiting.queued is not None]
            for waiting in left:
                assert waiting.queued is not None
                del self._waiting[self._by_request_id.pop(waiting.queued.request_id)]
        for waiting in left:
            self._end(waiting, granted=False, number=errno.ENOLCK)

    def _forget(self, unique: int, request_id: bytes) -> None:
        with self._mutex:
            self._waiting.pop(unique, None)
            self._by_request_id.pop(request_id, None)

    def _asking(self, inode: int, fh: int, lock: m.Lock) -> None:
        self.held.asking(inode, (lock.kind, lock.owner), fh, converts=lock.kind == m.LOCK_FLOCK)

    def _granted(self, inode: int, lock: m.Lock) -> None:
        self.held.granted(inode, (lock.kind, lock.owner), lock.start, lock.end)

    def _drop_all(self, inode: int, which: Callable[[Key, Holder], bool]) -> None:
        if inode not in self.held:
            return
        with self._mutex:
            going = self.held.forget(inode, which)
            if not going:
                return
            self._dropping[inode] = self._dropping.get(inode, 0) + 1
        try:
            for kind, owner in going:
                lock = m.Lock(kind=m.LockKind.Name(kind), type=m.LOCK_UNLOCK, end=RANGE_END, owner=owner)
                self.drop(inode, lock)
        finally:
            with self._mutex:
                self._dropping[inode] -= 1
                if not self._dropping[inode]:
                    del self._dropping[inode]
                self._dropped.notify_all()
