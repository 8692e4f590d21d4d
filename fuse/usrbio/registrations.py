"""Files that applications have registered, and what agents have written of them. In the mount's process.

A registration belongs to one open file and holds its inode open by itself: when the kernel releases the file, agents
may still be writing, and the inode is let go only when they all have said that they are not.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from dataclasses import dataclass, field
from typing import Final, Protocol

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.fuse import protocol
from fireflyfs.fuse.inodes import FileHandle, LiveInode
from fireflyfs.fuse.usrbio.ends import SLOTS_MAX, Ends
from fireflyfs.fuse.volume import Volume

log = logging.getLogger(__name__)

REGISTRATIONS_MAX: Final = 65_536
REGISTRATIONS_OF_FILE_MAX: Final = 64  # of one open file: a library needs one
RECORD_S: Final = 0.5  # how often what agents wrote is told to meta, where nobody asks for it


class AgentEnd(Protocol):
    """An agent, as far as files concern it."""

    ends: Ends
    free_slots: list[int]  # of `ends`

    def forget_file(self, token: int) -> bool:
        """Ask it to finish what it does with the file and to say so. False: it is gone."""


@dataclass(eq=False)
class Registration:
    """`slots`: in which slot of its table which agent says what it has written; `seen`: up to which counts that is
    known. `recorded`: meta knows it too. After `closing` no agent gets to know the file."""

    token: int
    handle: FileHandle
    truncate_version: int
    slots: dict[AgentEnd, int] = field(default_factory=dict)
    seen: dict[AgentEnd, tuple[int, int]] = field(default_factory=dict)
    recorded: bool = True
    closing: bool = False

    @property
    def live(self) -> LiveInode:
        return self.handle.live


class Registrations:
    """Safe to use from all threads of the mount. Lock order: a live inode's lock, then ours."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._lock = threading.Lock()
        self._by_token: dict[int, Registration] = {}
        self._closing: dict[int, Registration] = {}
        self._by_inode: dict[int, tuple[Registration, ...]] = {}
        self._finished: queue.SimpleQueue[Registration | None] = queue.SimpleQueue()

    def __len__(self) -> int:
        return len(self._by_token)

    def register(self, handle: FileHandle) -> int:
        """A token for the file, which is open. What waits to be stored of it is stored first."""
        volume, live = self._volume, handle.live
        volume.flush(live)
        if volume.table.hold(live.id) is None:
            raise error(Code.BAD_HANDLE)
        try:
            with live.lock:
                if handle.writes:
                    live.writers += 1
                    volume.ensure_session(live)
                with self._lock:
                    if len(self._by_token) >= REGISTRATIONS_MAX:
                        raise error(Code.OVERLOADED, f"{REGISTRATIONS_MAX} files are registered")
                    group = self._by_inode.get(live.id, ())
                    if sum(known.handle is handle for known in group) >= REGISTRATIONS_OF_FILE_MAX:
                        raise error(Code.OVERLOADED, f"{REGISTRATIONS_OF_FILE_MAX} registrations of one open file")
                    token = int.from_bytes(os.urandom(8), "little") or 1
                    made = Registration(token, handle, live.inode.truncate_version)
                    self._by_token[token] = made
                    self._by_inode[live.id] = (*group, made)
            volume.notify(protocol.encode_inval_inode(live.id, -1, 0))  # what the kernel keeps for `attr_timeout_s`
            return token
        except BaseException:
            volume.release(live, writes=handle.writes)
            raise

    def deregister(self, token: int, handle: FileHandle) -> None:
        """By the file's owner. What was written is recorded when this returns."""
        with self._lock:
            known = self._by_token.get(token)
        if known is None or known.handle is not handle:
            raise error(Code.BAD_HANDLE, "no such registration")
        self.record(known.live)
        self._close(known)

    def released(self, handle: FileHandle) -> None:
        """The kernel has no use for the open file any more."""
        for known in self._by_inode.get(handle.live.id, ()):
            if known.handle is handle:
                self._close(known)

    def _close(self, known: Registration) -> None:
        with self._lock:
            if known.closing:
                return
            known.closing = True
            self._by_token.pop(known.token, None)
            self._closing[known.token] = known
            agents = list(known.slots)
        if not agents:
            self._finished.put(known)
        for agent in agents:
            if not agent.forget_file(known.token):
                self.agent_left(known, agent)

    def agent_left(self, known: Registration, agent: AgentEnd, *, died: bool = False) -> None:
        """The agent writes nothing more to the file. One that died may have stored what it could not tell."""
        with known.live.lock:
            self._look(known)
            if died and known.handle.writes:
                known.live.unsure = True
                known.recorded = False
            with self._lock:
                slot = known.slots.pop(agent, None)
                known.seen.pop(agent, None)
                if slot is None:
                    return
                agent.free_slots.append(slot)
                last = known.closing and not known.slots
        if last:
            self._finished.put(known)

    def forgotten(self, token: int, agent: AgentEnd) -> None:
        """The agent has done what `forget_file` asked for."""
        known = self._closing.get(token)
        if known is not None:
            self.agent_left(known, agent)

    def of_agent(self, agent: AgentEnd) -> list[Registration]:
        with self._lock:
            return [known for group in self._by_inode.values() for known in group if agent in known.slots]

    def resolve(self, token: int, agent: AgentEnd) -> tuple[Registration, int]:
        """The file for an agent, and its slot there. Raises BAD_HANDLE for a token that nobody has."""
        with self._lock:
            known = self._by_token.get(token)
            if known is None:  # one that is closing is answered for while the agent finishes what it does with it
                known = self._closing.get(token)
                if known is None or agent not in known.slots:
                    raise error(Code.BAD_HANDLE)
            slot = known.slots.get(agent)
            if slot is None:
                if not agent.free_slots:
                    raise error(Code.OVERLOADED, f"{SLOTS_MAX} files are registered with one agent")
                slot = agent.free_slots.pop()
                agent.ends.clear(slot)
                known.slots[agent] = slot
            return known, slot

    def collect(self, live: LiveInode) -> bool:
        """Learn what agents have written of the file; whether there was anything new."""
        group = self._by_inode.get(live.id)
        if group is None:
            return False
        new = False
        with live.lock:
            for known in group:
                new |= self._look(known)
        return new

    def _look(self, known: Registration) -> bool:
        """Called under the inode's lock."""
        live, new = known.live, False
        with self._lock:
            slots = list(known.slots.items())
        for agent, slot in slots:
            before = known.seen.get(agent, (0, 0))
            found = agent.ends.look(slot, before)
            if found is None:
                continue
            counts, end = found
            known.seen[agent] = counts
            new = True
            if counts[1] != before[1] or known.truncate_version != live.inode.truncate_version:
                live.unsure = True  # some of it failed, or may have been cut off: storage knows what is there
                known.truncate_version = live.inode.truncate_version
            live.written_end = max(live.written_end, end)
            live.mtime_ns = self._volume.clock.unix_ns()
            known.recorded = False
        return new

    def knows(self, inode: int) -> bool:
        """Whether the file is registered."""
        return inode in self._by_inode

    def may_be_written(self, inode: int) -> bool:
        """Whether agents may write the file: nobody may keep its length for a while then."""
        return any(known.handle.writes for known in self._by_inode.get(inode, ()))

    def shortened(self, live: LiveInode) -> None:
        """The file's length was set: agents ask for it before they read."""
        for known in self._by_inode.get(live.id, ()):
            with self._lock:
                slots = list(known.slots.items())
            for agent, slot in slots:
                agent.ends.shortened(slot)

    def record(self, live: LiveInode) -> bool:
        """As `tell_meta`, and the kernel hears that its pages and attributes are old.

        Not to be called where it may hold pages locked, while it reads or writes, nor under the inode's lock, for which
        reading may wait.
        """
        if not self.tell_meta(live):
            return False
        self._volume.notify(protocol.encode_inval_inode(live.id, 0, 0))
        return True

    def tell_meta(self, live: LiveInode) -> bool:
        """Tell meta what agents have written of the file, if it does not know; whether there was anything to tell."""
        self.collect(live)
        untold = [known for known in self._by_inode.get(live.id, ()) if not known.recorded]
        if not untold:
            return False
        volume = self._volume
        with live.lock:
            for known in untold:
                known.recorded = True
            try:
                volume.flush(live)
                volume.record(live, keep=True)
            except BaseException:
                for known in untold:
                    known.recorded = False
                raise
        volume.table.pages_unknown(live.id)
        return True

    def run(self) -> None:
        """A thread's body until `stop`: records what was written, and lets go of inodes."""
        while True:
            try:
                known = self._finished.get(timeout=RECORD_S)
            except queue.Empty:
                self._record_all()
                continue
            if known is None:
                return
            self._let_go(known)

    def _record_all(self) -> None:
        for group in list(self._by_inode.values()):
            try:
                self.record(group[0].live)
            except FfsError as exc:
                log.warning("inode %d: what was written is not recorded yet: %s", group[0].live.id, exc)

    def _let_go(self, known: Registration) -> None:
        live = known.live
        try:
            self.record(live)
        except FfsError as exc:
            log.error("inode %d: what was written was not recorded: %s", live.id, exc)
        with self._lock:
            self._closing.pop(known.token, None)
            left = tuple(other for other in self._by_inode[live.id] if other is not known)
            if left:
                self._by_inode[live.id] = left
            else:
                del self._by_inode[live.id]
        self._volume.release(live, writes=known.handle.writes)

    def stop(self) -> None:
        """The mount ends: agents are gone. What they wrote is recorded by `run` before it returns."""
        with self._lock:
            groups = list(self._by_inode.values())
        for known in (known for group in groups for known in group):
            self._close(known)
            for agent in list(known.slots):
                self.agent_left(known, agent)
        self._finished.put(None)
