"""GETLK, SETLK, SETLKW, INTERRUPT: flock(2) and fcntl(2) locks, which hold between mounts.

A lock orders what programs on several mounts do to a file. So what was written under it is stored and recorded before
it is dropped, and what is kept of the file is looked at anew when it is had.
"""

from __future__ import annotations

import errno

from fireflyfs.common.errors import Code, error
from fireflyfs.fuse import protocol
from fireflyfs.fuse.inodes import LiveInode
from fireflyfs.fuse.request import Reply, Request
from fireflyfs.fuse.volume import Volume
from fireflyfs.proto import meta_pb2 as m

F_RDLCK, F_WRLCK, F_UNLCK = 0, 1, 2


def _decode(request: Request) -> tuple[int, m.Lock]:
    """(fh, lock)"""
    fh, owner, start, end, kind, pid, flags, _ = protocol.LK_IN.unpack_from(request.body)
    if kind not in (F_RDLCK, F_WRLCK, F_UNLCK):
        raise error(Code.INVALID, f"no type of lock {kind}")
    lock = m.Lock(
        kind=m.LOCK_FLOCK if flags & protocol.LK_FLOCK else m.LOCK_RANGE,
        type=m.LockType.Name(kind),
        start=start,
        end=end,
        owner=owner,
        pid=pid,
    )
    return fh, lock


def getlk(volume: Volume, request: Request) -> Reply:
    _, lock = _decode(request)
    found = volume.locks.get(request.nodeid, lock)
    if found is None:
        return protocol.LK_OUT.pack(lock.start, lock.end, F_UNLCK, 0)
    return protocol.LK_OUT.pack(found.start, found.end, int(found.type), found.pid)


def setlk(volume: Volume, request: Request) -> Reply:
    fh, lock = _decode(request)
    if lock.type == m.LOCK_UNLOCK:
        return _unlock(volume, request, lock)
    live = volume.handles.file(fh).live
    inode = volume.locks.take(request.nodeid, fh, lock)
    if inode is None:
        raise OSError(errno.EAGAIN, "locked")
    _refresh(volume, live, inode)
    return b""


def setlkw(volume: Volume, request: Request) -> Reply:
    fh, lock = _decode(request)
    if lock.type == m.LOCK_UNLOCK:
        return _unlock(volume, request, lock)
    live = volume.handles.file(fh).live

    def granted() -> None:
        _refresh(volume, live, volume.stat(live.id, volume.callers.root))

    inode = volume.locks.wait(request.nodeid, fh, lock, request.unique, request.later, granted)
    if inode is None:
        return None
    _refresh(volume, live, inode)
    return b""


def interrupt(volume: Volume, request: Request) -> Reply:
    (unique,) = protocol.INTERRUPT_IN.unpack_from(request.body)
    volume.locks.interrupt(unique)
    volume.interrupted(unique)
    return None


def _unlock(volume: Volume, request: Request, lock: m.Lock) -> Reply:
    live = volume.table.hold(request.nodeid)
    try:
        if live is not None:
            volume.flush(live)
            volume.record(live, keep=True)  # who locks and unlocks writes again
    finally:
        if live is not None:
            volume.release(live, writes=False)
        volume.locks.drop(request.nodeid, lock)
    return b""


def _refresh(volume: Volume, live: LiveInode, inode: m.Inode) -> None:
    """What others did to the file before the lock was had is seen from now on."""
    with live.lock:
        live.learn(inode, volume.clock.monotonic_s())
    if not volume.table.opened(inode):
        volume.notify(protocol.encode_inval_inode(live.id, 0, 0))
