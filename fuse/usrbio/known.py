"""Regions and files as an agent knows them: asked of the mount when a submission first names them."""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from fireflyfs.client.striping import FileLayout
from fireflyfs.common.ids import InodeId
from fireflyfs.fuse.usrbio.ends import Ends
from fireflyfs.fuse.usrbio.messages import Message

KNOWN_MAX: Final = 65_536  # of each kind


class Asks(Protocol):
    """The mount answers one question: (answer, descriptor or -1). OSError: it is gone, or says no."""

    def __call__(self, question: Message) -> tuple[Message, int]: ...


class Region:
    """An application's memory, mapped and never touched but by system calls: it may be cut off at any time."""

    __slots__ = ("size", "view")

    def __init__(self, fd: int, nbytes: int) -> None:
        """`fd` stays the caller's; `nbytes` as it was registered. Raises OSError or ValueError where it cannot be
        mapped, as when it is shorter now."""
        self.size = nbytes
        self.view = memoryview(mmap.mmap(fd, self.size))


class KnownFile:
    """A registered file."""

    def __init__(self, token: int, answer: Message, ends: Ends) -> None:
        self.token = token
        self.layout = FileLayout(InodeId(answer["inode"]), answer["chunk_size"], tuple(answer["chains"]))
        self.readable: bool = answer["readable"]
        self.writable: bool = answer["writable"]
        self.slot: int = answer["slot"]
        self._turn = ends.turn(self.slot)
        self._length: int = answer["length"]
        self._fresh_until_s = 0.0  # the answer may be older than `_turn`
        self._room_end = 0
        self._room_until_s = 0.0
        self._lock = threading.Lock()
        self._ends = ends
        self._epoch = -1
        self._end = 0

    def length(self, end: int, ask: Asks) -> int:
        """Bytes of the file, for a read up to `end`: the mount is asked when that is beyond what is known, or old."""
        turn = self._ends.turn(self.slot)
        if end <= self._length and turn == self._turn and time.monotonic() < self._fresh_until_s:
            return self._length
        answer, _ = ask({"ask": "length", "file": self.token})
        with self._lock:
            self._turn = turn
            self._length = answer["length"]
            self._fresh_until_s = time.monotonic() + answer["fresh_s"]
            return self._length

    def make_room(self, end: int, ask: Asks) -> None:
        """Before bytes up to `end` are written. Raises OSError EDQUOT where quotas do not let the file get so long."""
        if end <= self._room_end and time.monotonic() < self._room_until_s:
            return
        answer, _ = ask({"ask": "room", "file": self.token, "end": end})
        with self._lock:
            self._room_end = answer["room_end"]
            self._room_until_s = time.monotonic() + answer["room_s"]

    def wrote(self, end: int) -> None:
        """Bytes up to `end` are stored: the mount shall know."""
        with self._lock:
            self._ends.wrote(self.slot, self._since_looked(end))
            self._length = max(self._length, end)

    def torn(self) -> None:
        """A write failed, and parts of it may be stored, beyond the end too: the mount shall have storage asked."""
        with self._lock:
            self._ends.torn(self.slot, self._since_looked(0))

    def _since_looked(self, end: int) -> int:
        """How far was written since the mount last looked, now that it was up to `end`."""
        epoch = self._ends.epoch(self.slot)
        self._end = end if epoch != self._epoch else max(end, self._end)
        self._epoch = epoch
        return self._end


class Known:
    """Safe to use from all ring threads."""

    def __init__(self, ask: Asks, ends: Ends, forgotten: Callable[[int], None]) -> None:
        """`forgotten(token)` is called once nobody uses a file that `forget_file` named."""
        self.ask = ask
        self._ends = ends
        self._forgotten = forgotten
        self._lock = threading.Lock()
        self._regions: dict[bytes, Region] = {}
        self._turn = 0  # of `forget_region`
        self._files: dict[int, KnownFile] = {}
        self._users: dict[int, int] = {}  # by token: batches that name the file, or ask for it
        self._closed: set[int] = set()  # tokens that the mount has taken back, while they have users

    def region(self, id_: bytes) -> Region:
        """Raises OSError EINVAL for a region that nobody has registered."""
        found = self._regions.get(id_)
        if found is not None:
            return found
        turn = self._turn
        answer, fd = self.ask({"ask": "region", "region": id_.hex()})
        if fd < 0:
            raise OSError(errno.EINVAL, "no such region")
        try:
            region = Region(fd, answer["nbytes"])
        except ValueError as exc:
            raise OSError(errno.EFAULT, str(exc)) from exc
        finally:
            os.close(fd)
        with self._lock:
            if self._turn != turn:
                return region  # it may be among those forgotten while the answer was on its way: for this batch alone
            if len(self._regions) >= KNOWN_MAX:
                self._regions.clear()  # those in use live on with their batch
            return self._regions.setdefault(id_, region)

    def enter(self, token: int) -> KnownFile:
        """The file, kept until `leave`. Raises OSError EBADF for a token that the mount does not know."""
        with self._lock:
            if token in self._closed:
                raise OSError(errno.EBADF, "the file was closed")
            self._users[token] = self._users.get(token, 0) + 1
            found = self._files.get(token)
        if found is not None:
            return found
        try:
            answer, _ = self.ask({"ask": "file", "file": token})
            with self._lock:
                if token in self._closed:  # while the answer was on its way: its slot goes to another file
                    raise OSError(errno.EBADF, "the file was closed")
                found = self._files.get(token)
                if found is None:
                    found = self._files[token] = KnownFile(token, answer, self._ends)
                return found
        except BaseException:
            self._left(token)
            raise

    def leave(self, file: KnownFile) -> None:
        self._left(file.token)

    def _left(self, token: int) -> None:
        with self._lock:
            self._users[token] -= 1
            if self._users[token]:
                return
            del self._users[token]
            if token not in self._closed:
                return
            self._closed.discard(token)
            self._files.pop(token, None)
        self._forgotten(token)

    def forget_region(self, id_: bytes) -> None:
        with self._lock:
            self._turn += 1
            self._regions.pop(id_, None)

    def forget_file(self, token: int) -> None:
        """The mount has closed it. Tokens never come again."""
        with self._lock:
            if token in self._users:
                self._closed.add(token)
                return
            self._files.pop(token, None)
        self._forgotten(token)
