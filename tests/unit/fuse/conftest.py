"""A file system in memory behind the mount's backend contract, and real kernel mounts of it.

Fault model: `fail_writes` and `fail_meta` make the next calls raise that code; `stall` makes every call wait.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from fireflyfs.client.storage_ranges import DataRange
from fireflyfs.client.striping import FileLayout
from fireflyfs.common.clock import Clock, LeaseClock
from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import MiB
from fireflyfs.common.net.api import Piece, Slice
from fireflyfs.common.net.memory import PrivatePool
from fireflyfs.fuse import device
from fireflyfs.fuse.mount import Mount
from fireflyfs.fuse.options import MountOptions
from fireflyfs.proto import meta_pb2 as m
from fireflyfs.proto.common_pb2 import Layout


class MemoryMeta:
    """The namespace, one lock around all of it."""

    def __init__(self, backend: MemoryBackend) -> None:
        self.backend = backend
        self.lock = threading.RLock()
        self.inodes: dict[int, m.Inode] = {}
        self.children: dict[int, dict[bytes, int]] = {1: {}}
        self.sessions: dict[int, set[bytes]] = {}
        self.xattrs: dict[int, dict[bytes, bytes]] = {}
        self.next_id = 2
        self.appended: dict[int, int] = {}
        self.calls: list[tuple[str, object]] = []
        now = time.time_ns()
        self.inodes[1] = m.Inode(
            id=1, mode=stat.S_IFDIR | 0o755, nlink=2, atime_ns=now, mtime_ns=now, ctime_ns=now, parent=1
        )

    def __getattribute__(self, name: str) -> object:
        value = object.__getattribute__(self, name)
        if name.startswith("_") or not callable(value):
            return value

        def call(request: object) -> object:
            self.backend.gate()
            with self.lock:
                self.calls.append((name, request))
                if self.backend.fail_meta:
                    raise error(self.backend.fail_meta.pop(0), "told to")
                return value(request)

        return call

    def _inode(self, number: int) -> m.Inode:
        if number not in self.inodes:
            raise error(Code.NO_ENTRY)
        return self.inodes[number]

    def _child(self, at: m.PathAt) -> tuple[dict[bytes, int], bytes, int]:
        """(directory, name, inode or 0)"""
        if stat.S_IFMT(self._inode(at.dir).mode) != stat.S_IFDIR:
            raise error(Code.NOT_DIRECTORY)
        names = self.children[at.dir]
        return names, at.path, names.get(at.path, 0)

    def _at(self, at: m.PathAt) -> m.Inode:
        if not at.path:
            return self._inode(at.dir)
        _, _, number = self._child(at)
        return self._inode(number)

    def _add(self, at: m.PathAt, mode: int, caller: object, **fields: object) -> m.Inode:
        names, name, number = self._child(at)
        if number:
            raise error(Code.EXISTS)
        now = time.time_ns()
        inode = m.Inode(
            id=self.next_id, mode=mode, nlink=1, uid=caller.uid, gid=caller.gid, atime_ns=now, mtime_ns=now,
            ctime_ns=now, btime_ns=now, **fields,
        )  # fmt: skip
        self.next_id += 1
        names[name] = inode.id
        self.inodes[inode.id] = inode
        self._touch(at.dir)
        return inode

    def _touch(self, number: int) -> None:
        self.inodes[number].mtime_ns = self.inodes[number].ctime_ns = time.time_ns()

    def _reply(self, inode: m.Inode) -> m.InodeReply:
        return m.InodeReply(inode=inode)

    def _drop(self, inode: m.Inode) -> None:
        inode.nlink -= 1
        inode.ctime_ns = time.time_ns()
        self._collect(inode)

    def _collect(self, inode: m.Inode) -> None:
        if inode.nlink <= 0 and not self.sessions.get(inode.id):
            self.inodes.pop(inode.id, None)
            self.backend.data.files.pop(inode.id, None)

    def stat(self, request):
        if not request.at.path and request.at.dir not in self.inodes:
            raise error(Code.STALE_HANDLE)
        return self._reply(self._at(request.at))

    def lookup(self, request):
        _, _, number = self._child(m.PathAt(dir=request.parent, path=request.name))
        return self._reply(self._inode(number))

    def open(self, request):
        created = False
        try:
            inode = self._at(request.at)
            if request.flags & os.O_EXCL:
                raise error(Code.EXISTS)
        except Exception as exc:
            if getattr(exc, "code", None) is not Code.NO_ENTRY or not request.flags & os.O_CREAT:
                raise
            layout = Layout(chunk_size=1 << 20, stripe_size=1, chains=[1])
            inode = self._add(request.at, request.mode & ~request.umask, request.caller, layout=layout)
            created = True
        if stat.S_ISDIR(inode.mode):
            raise error(Code.IS_DIRECTORY)
        if request.flags & os.O_TRUNC and not created:
            self._truncate(inode, 0)
        if request.session:
            self.sessions.setdefault(inode.id, set()).add(request.session)
        directory = self.inodes[request.at.dir] if created else None
        return m.OpenReply(inode=inode, created=created, directory=directory)

    def _truncate(self, inode, length):
        inode.truncate_version += length < inode.length
        inode.length = length
        inode.mtime_ns = inode.ctime_ns = time.time_ns()
        data = self.backend.data.files.get(inode.id)
        if data is not None:
            del data[length:]

    def _apply(self, inode, request):
        if request.HasField("hint"):
            if request.hint.truncate_version == inode.truncate_version:
                inode.length = max(inode.length, request.hint.length)
            else:
                inode.length = max(inode.length, len(self.backend.data.files.get(inode.id, b"")))
        if request.HasField("mtime"):
            inode.mtime_ns = inode.ctime_ns = request.mtime.ns
        if request.HasField("atime"):
            inode.atime_ns = request.atime.ns

    def close(self, request):
        inode = self._inode(request.inode)
        self._apply(inode, request)
        self.sessions.get(inode.id, set()).discard(request.session)
        reply = m.InodeReply()
        reply.inode.CopyFrom(inode)
        self._collect(inode)
        return reply

    def append(self, request):
        inode = self._inode(request.inode)
        offset = max(inode.length, request.hint.length, self.appended.get(inode.id, 0))
        self.appended[inode.id] = offset + request.size
        self.sessions.setdefault(inode.id, set()).add(request.session)
        return m.AppendReply(offset=offset, inode=inode)

    def end_sessions(self, request):
        for ended in request.sessions:
            self.sessions.get(ended.inode, set()).discard(ended.session)
            inode = self.inodes.get(ended.inode)
            if inode is not None:
                self._collect(inode)
        return m.EndSessionsReply()

    def sync(self, request):
        inode = self._inode(request.inode)
        self._apply(inode, request)
        return self._reply(inode)

    def make_node(self, request):
        isdir = stat.S_ISDIR(request.mode)
        parent = {"parent": request.at.dir} if isdir else {}
        mode = request.mode & ~request.umask
        inode = self._add(request.at, mode, request.caller, rdev=request.rdev, **parent)
        if isdir:
            self.children[inode.id] = {}
            inode.nlink = 2
            self.inodes[request.at.dir].nlink += 1
        return m.InodeReply(inode=inode, directory=self.inodes[request.at.dir])

    def symlink(self, request):
        target = request.target
        inode = self._add(request.at, stat.S_IFLNK | 0o777, request.caller, symlink_target=target, length=len(target))
        return m.InodeReply(inode=inode, directory=self.inodes[request.at.dir])

    def link(self, request):
        inode = self._at(request.old)
        names, name, number = self._child(request.new)
        if number:
            raise error(Code.EXISTS)
        names[name] = inode.id
        inode.nlink += 1
        inode.ctime_ns = time.time_ns()
        return self._reply(inode)

    def readlink(self, request):
        return m.ReadlinkReply(target=self._at(request.at).symlink_target)

    def remove(self, request):
        names, name, number = self._child(request.at)
        inode = self._inode(number)
        if request.kind == m.REMOVE_RMDIR:
            if not stat.S_ISDIR(inode.mode):
                raise error(Code.NOT_DIRECTORY)
            if self.children[number]:
                raise error(Code.NOT_EMPTY)
            del self.children[number], self.inodes[number]
            inode.nlink = 0
            self.inodes[request.at.dir].nlink -= 1
        elif stat.S_ISDIR(inode.mode):
            raise error(Code.IS_DIRECTORY)
        else:
            self._drop(inode)
        del names[name]
        self._touch(request.at.dir)
        return m.RemoveReply(directory=self.inodes[request.at.dir], inode=inode)

    def rename(self, request):
        old_names, old_name, old = self._child(request.old)
        new_names, new_name, new = self._child(request.new)
        inode = self._inode(old)
        if request.flags & 2:
            self._inode(new)
            old_names[old_name], new_names[new_name] = new, old
            return m.RenameReply()
        if new and request.flags & 1:
            raise error(Code.EXISTS)
        if new == old:
            return m.RenameReply()
        if new:
            target = self._inode(new)
            if stat.S_ISDIR(target.mode):
                if self.children[new]:
                    raise error(Code.NOT_EMPTY)
                del self.children[new], self.inodes[new]
                self.inodes[request.new.dir].nlink -= 1
            else:
                self._drop(target)
        del old_names[old_name]
        new_names[new_name] = old
        if stat.S_ISDIR(inode.mode):
            inode.parent = request.new.dir
            self.inodes[request.old.dir].nlink -= 1
            self.inodes[request.new.dir].nlink += 1
        inode.ctime_ns = time.time_ns()
        self._touch(request.old.dir)
        self._touch(request.new.dir)
        other = target if new else None
        return m.RenameReply(
            old_directory=self.inodes[request.old.dir],
            new_directory=self.inodes[request.new.dir],
            inode=inode,
            other=other,
        )

    def list(self, request):
        directory = self._at(request.at)
        names = sorted(name for name in self.children[directory.id] if name > request.after)
        reply = m.ListReply(more=len(names) > request.limit, parent=directory.parent)
        for name in names[: request.limit]:
            inode = self.inodes[self.children[directory.id][name]]
            entry = reply.entries.add(name=name, inode=inode.id, mode=inode.mode)
            if request.attributes:
                entry.attributes.CopyFrom(inode)
        return reply

    def set_attr(self, request):
        inode = self._at(request.at)
        if request.HasField("mode"):
            inode.mode = stat.S_IFMT(inode.mode) | request.mode
        if request.HasField("uid"):
            inode.uid = request.uid
        if request.HasField("gid"):
            inode.gid = request.gid
        if request.HasField("length"):
            self._truncate(inode, request.length)
        now = time.time_ns()
        if request.HasField("atime_ns") or request.atime_now:
            inode.atime_ns = now if request.atime_now else request.atime_ns
        if request.HasField("mtime_ns") or request.mtime_now:
            inode.mtime_ns = now if request.mtime_now else request.mtime_ns
        inode.ctime_ns = now
        return self._reply(inode)

    def stat_fs(self, request):
        return m.StatFsReply(capacity_bytes=1 << 40, free_bytes=1 << 39, files=len(self.inodes), block_bytes=4096)

    def access(self, request):
        return self._reply(self._at(request.at))

    def get_xattr(self, request):
        try:
            return m.GetXattrReply(value=self.xattrs[self._at(request.at).id][request.name])
        except KeyError:
            raise error(Code.NO_DATA) from None

    def list_xattr(self, request):
        return m.ListXattrReply(names=self.xattrs.get(self._at(request.at).id, {}))

    def set_xattr(self, request):
        inode = self._at(request.at)
        self.xattrs.setdefault(inode.id, {})[request.name] = request.value
        return self._attributes_changed(inode)

    def remove_xattr(self, request):
        inode = self._at(request.at)
        if self.xattrs.get(inode.id, {}).pop(request.name, None) is None:
            raise error(Code.NO_DATA)
        return self._attributes_changed(inode)

    def _attributes_changed(self, inode):
        names = self.xattrs[inode.id]
        inode.xattrs = bool(names)
        inode.capability = b"security.capability" in names
        inode.ctime_ns = time.time_ns()
        return self._reply(inode)

    def set_lock(self, request: m.SetLockRequest) -> m.SetLockReply:
        """Nobody else has any."""
        return m.SetLockReply(granted=True, inode=self._inode(request.inode))

    def delegate(self, request: m.DelegateRequest) -> m.DelegateReply:
        return m.DelegateReply()

    def await_recalls(self, request: m.AwaitRecallsRequest) -> m.AwaitRecallsReply:
        return m.AwaitRecallsReply(recalled=[held.directory for held in request.held])

    def await_locks(self, request: m.AwaitLocksRequest) -> m.AwaitLocksReply:
        return m.AwaitLocksReply(dropped=range(len(request.held)) if self.backend.locks_dropped else [])


class MemoryData:
    """Bytes of all files; `writes` keeps what was asked for: (inode, [(offset, length)])."""

    def __init__(self, backend: MemoryBackend) -> None:
        self.backend = backend
        self.lock = threading.Lock()
        self.files: dict[int, bytearray] = {}
        self.writes: list[tuple[int, list[tuple[int, int]]]] = []
        self.syncs: list[int] = []
        self.early: list[int] = []  # files whose first bytes were asked for with their open
        self.together: list[int] = []  # how many spans each `read_once` had
        self.read_s = 0.0  # how long each takes, and each `read`
        self.fail_once: list[Exception] = []  # raised by the next ones
        self.away: set[int] = set()  # files whose servers are

    def read(self, file: FileLayout, offset: int, into: Piece) -> None:
        self.backend.gate()
        while file.inode in self.away:
            time.sleep(0.01)
        time.sleep(self.read_s)
        self._fill(file, offset, into)

    def _fill(self, file: FileLayout, offset: int, into: Piece) -> None:
        view = into.view if isinstance(into, Slice) else into
        with self.lock:
            found = self.files.get(file.inode, b"")[offset : offset + len(view)]
            view[: len(found)] = found
            view[len(found) :] = bytes(len(view) - len(found))

    def begin_first(self, file: FileLayout, into: Piece) -> Callable[[], bool]:
        def finish() -> bool:
            self.read(file, 0, into)
            return True

        self.early.append(file.inode)
        return finish

    def read_once(self, spans):
        self.together.append(len(spans))
        self.backend.gate()
        time.sleep(self.read_s)
        if self.fail_once:
            raise self.fail_once.pop()
        left = [place for place, span in enumerate(spans) if span.file.inode in self.away]
        for place, (file, offset, into) in enumerate(spans):
            if place not in left:
                self._fill(file, offset, into)
        return left

    def write(self, file: FileLayout, extents: Sequence[tuple[int, Piece]], still=None) -> None:
        self.backend.gate()
        with self.lock:
            if self.backend.fail_writes:
                raise error(self.backend.fail_writes.pop(0), "told to")
            data = self.files.setdefault(file.inode, bytearray())
            for offset, piece in extents:
                view = piece.view if isinstance(piece, Slice) else piece
                if len(data) < offset:
                    data.extend(bytes(offset - len(data)))
                data[offset : offset + len(view)] = view
            self.writes.append((file.inode, [(o, p.length if isinstance(p, Slice) else len(p)) for o, p in extents]))

    def ranges(self, file, start, end, *, few=False):
        """Chunks of a MiB that are not all zeros."""
        data = self.files.get(file.inode, b"")
        for at in range(start - start % MiB, min(end, len(data)), MiB):
            if any(data[at : at + MiB]):
                yield DataRange(max(start, at), min(end, at + MiB, len(data)))

    def punch(self, file, offset, length):
        with self.lock:
            data = self.files.get(file.inode, bytearray())
            end = min(offset + length, len(data))
            data[offset:end] = bytes(max(0, end - offset))

    def copy(self, source, source_offset, into, into_offset, length):
        with self.lock:
            data = bytes(self.files.get(source.inode, b""))[source_offset : source_offset + length]
        self.write(into, [(into_offset, memoryview(data.ljust(length, b"\0")))])

    def sync(self, file: FileLayout) -> None:
        self.syncs.append(file.inode)


class MemoryBackend:
    """One cluster; several mounts may share its `meta` and `data`."""

    def __init__(self) -> None:
        self.stall = threading.Event()
        self.fail_writes: list[Code] = []
        self.fail_meta: list[Code] = []
        self.meta = MemoryMeta(self)
        self.data = MemoryData(self)
        self.pool = PrivatePool()
        self.client_id = b"m" * 16
        self.waits = 0
        self.lease_now = (0, float("inf"))
        self.lease_clock: Clock = LeaseClock()
        self.locks_dropped = False

    def traffic(self) -> list[dict[str, str | int]]:
        return []

    def lease(self) -> tuple[int, float]:
        return self.lease_now

    def give_up(self) -> None:
        self.stall.clear()

    def gate(self) -> None:
        while self.stall.is_set():
            time.sleep(0.01)


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Callable[..., Mount]]:
    """mounts(backend, **options) mounts; everything is unmounted at the end whatever happened."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs root and /dev/fuse")
    made: list[tuple[Mount, MemoryBackend]] = []

    def make(backend: MemoryBackend, *, folder: Path = tmp_path, **options: object) -> Mount:
        point = folder / f"mnt{len(made)}"
        point.mkdir()
        mount = Mount(backend, point, MountOptions(**options))
        mount.start()
        made.append((mount, backend))
        return mount

    yield make
    for mount, backend in made:
        backend.stall.clear()
        mount.stop()
        if device.is_mounted(mount.mountpoint):
            with contextlib.suppress(OSError):
                device.unmount(mount.mountpoint, force=True)


@pytest.fixture(scope="session")
def plain_pool_type() -> type[PrivatePool]:
    return PrivatePool
