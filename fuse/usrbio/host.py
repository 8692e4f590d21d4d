"""The mount's side of rings: who has what, and which agent serves it.

Agents are processes, so that an application's I/O runs beside the mount's and beside other applications'. Each new
application gets the agent that serves the fewest, or a new one while there are fewer than `agents_max`. An agent that
dies is started again and goes on where its rings stand.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fireflyfs.client.usrbio import layout
from fireflyfs.common.errors import FfsError
from fireflyfs.fuse.inodes import LiveInode
from fireflyfs.fuse.operations.files import length_now
from fireflyfs.fuse.usrbio import messages
from fireflyfs.fuse.usrbio.ends import SLOTS_MAX, Ends
from fireflyfs.fuse.usrbio.links import Link, Links, application_of
from fireflyfs.fuse.usrbio.memory import MemoryOpener
from fireflyfs.fuse.usrbio.messages import Message
from fireflyfs.fuse.usrbio.registrations import Registrations
from fireflyfs.fuse.volume import Volume

log = logging.getLogger(__name__)

AGENTS_MAX: Final = 4
RESTART_S_MAX: Final = 30.0  # between two starts of an agent that keeps dying
RESTART_S_MIN: Final = 0.2
END_S: Final = 10.0  # for an agent to end when the mount does
APPLICATIONS_MAX: Final = 2048  # each is watched through a descriptor


class AgentProcess:
    """One agent, and its applications. `send` may be called by any thread."""

    def __init__(self, command: Sequence[str], number: int, log_file: Path | None) -> None:
        """`number`: among those that live now; each has a log of its own beside the mount's, or its stderr."""
        self.number = number
        self.ends = Ends()
        self.free_slots = list(range(SLOTS_MAX))
        self.pids: set[int] = set()
        self.started_s = time.monotonic()
        self.listener: threading.Thread | None = None
        self.sock, theirs = messages.pair()
        with theirs:
            descriptors = [theirs.fileno(), self.ends.fd]
            arguments = [f"--socket={descriptors[0]}", f"--ends={descriptors[1]}"]
            if log_file is not None:
                arguments.append(f"--log-file={log_file.with_suffix(f'.agent{number}.log')}")
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=descriptors,
                cwd="/",
            )

    def send(self, message: Message, fd: int = -1) -> bool:
        try:
            messages.send(self.sock, message, fd)
        except OSError as exc:
            log.debug("agent %d is gone: %s", self.process.pid, exc)
            return False
        return True

    def forget_file(self, token: int) -> bool:
        return self.send({"do": "forget", "file": token})


class RingHost:
    """Of one mount. Safe to use from all its threads; FfsError and OSError are a caller's errno."""

    def __init__(
        self, volume: Volume, mgmtd: Sequence[str], log_file: Path | None, agents_max: int = AGENTS_MAX
    ) -> None:
        self._volume = volume
        self._command = [sys.executable, "-P", "-m", "fireflyfs.fuse.usrbio.agent", f"--mgmtd={','.join(mgmtd)}"]
        self._command.append(f"--link={volume.options.link}")
        self._log_file = log_file
        self._agents_max = agents_max
        self.files = Registrations(volume)
        self._lock = threading.RLock()
        self._links = Links()
        self._opener = MemoryOpener()
        self._agents: list[AgentProcess] = []
        self._watched: dict[int, int] = {}  # pid of each application: its pidfd
        self._poll = select.epoll()
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll.register(self._wake_r, select.EPOLLIN)
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self.files.run, name="usrbio-files", daemon=True),
            threading.Thread(target=self._watch, name="usrbio-watch", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    # Links

    def make(self, name: bytes, target: bytes, pid: int, uid: int, groups: list[int]) -> Link:
        """Register a region or a ring. OSError as `MemoryOpener.open` and `Links.add`, and ESRCH for a caller that
        cannot be seen."""
        application = application_of(pid)
        with self._lock:
            self._links.check(name, application, uid)
        fd = self._opener.open(target, application, uid, groups)  # the lock is everybody's: not held for what may hang
        with self._lock:
            try:
                if self._ending.is_set():
                    raise OSError(errno.ENODEV, "the mount ends")
                now_ns = self._volume.clock.unix_ns()
                link = self._links.add(name, target, fd, application, uid, groups[0] if groups else 0, now_ns)
            except BaseException:
                os.close(fd)
                raise
            try:
                self._watch_application(application)
                if link.ring:
                    self._serve(self._agent_of(application), link)
            except BaseException:
                self._links.remove(link)
                raise
            return link

    def remove(self, name: bytes) -> None:
        """Take one back. OSError ENOENT."""
        with self._lock:
            link = self._links.named(name)
            if link is None:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            self._remove(link)

    def named(self, name: bytes) -> Link | None:
        with self._lock:
            return self._links.named(name)

    def numbered(self, number: int) -> Link | None:
        with self._lock:
            return self._links.numbered(number)

    def links(self) -> list[Link]:
        """In the order of their numbers."""
        with self._lock:
            return self._links.all()

    def statistics(self) -> dict[str, int]:
        with self._lock:
            return {"iovs": len(self._links), "agents": len(self._agents), "registered": len(self.files)}

    def _remove(self, link: Link) -> None:
        self._links.remove(link)
        if isinstance(link.agent, AgentProcess):
            link.agent.send({"do": "drop", "ring": link.number})
        if not link.ring:
            for agent in self._agents:
                agent.send({"do": "forget_region", "region": link.id.hex()})

    # Applications

    def _watch_application(self, pid: int) -> None:
        if pid in self._watched:
            return
        if len(self._watched) >= APPLICATIONS_MAX:
            raise OSError(errno.ENOSPC, f"{APPLICATIONS_MAX} applications have rings and regions")
        pidfd = os.pidfd_open(pid)
        self._watched[pid] = pidfd
        self._poll.register(pidfd, select.EPOLLIN)

    def _watch(self) -> None:
        """A thread: what dead applications have registered goes."""
        while not self._ending.is_set():
            for fd, _ in self._poll.poll():
                with self._lock:
                    for pid in [pid for pid, pidfd in self._watched.items() if pidfd == fd]:
                        self._ended(pid)

    def _ended(self, pid: int) -> None:
        pidfd = self._watched.pop(pid)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        gone = self._links.of(pid)
        for link in gone:
            self._remove(link)
        for agent in self._agents:
            agent.pids.discard(pid)
        log.info("application %d has ended: %d regions and rings are gone", pid, len(gone))

    # Agents

    def _agent_of(self, pid: int) -> AgentProcess:
        for agent in self._agents:
            if pid in agent.pids:
                return agent
        least = min(self._agents, key=lambda agent: len(agent.pids), default=None)
        if least is None or (least.pids and len(self._agents) < self._agents_max):
            least = self._start_agent()
        least.pids.add(pid)
        return least

    def _start_agent(self) -> AgentProcess:
        agent = self._new_agent()
        self._listen_to(agent)
        return agent

    def _new_agent(self) -> AgentProcess:
        used = {agent.number for agent in self._agents}
        number = next(number for number in range(len(used) + 1) if number not in used)
        agent = AgentProcess(self._command, number, self._log_file)
        self._agents.append(agent)
        log.info("agent %d is process %d", number, agent.process.pid)
        return agent

    def _listen_to(self, agent: AgentProcess, pause_s: float = RESTART_S_MIN) -> None:
        agent.listener = threading.Thread(target=self._listen, args=(agent, pause_s), name="usrbio-agent", daemon=True)
        agent.listener.start()

    def _serve(self, agent: AgentProcess, link: Link) -> None:
        link.agent = agent
        agent.send({"do": "serve", "ring": link.number}, link.fd)

    def _listen(self, agent: AgentProcess, pause_s: float) -> None:
        """A thread for each agent: answers it, and starts another one when it dies."""
        while (came := messages.receive(agent.sock)) is not None:
            message, fd = came
            if fd >= 0:
                os.close(fd)
            if "ask" in message:
                self._answer(agent, message)
            elif message["did"] == "forget":
                self.files.forgotten(message["file"], agent)
            elif message["did"] == "refuse":
                with self._lock:
                    link = self._links.numbered(message["ring"])
                    if link is not None and link.agent is agent:
                        _give_up(link, message["errno"])
        agent.process.wait()
        with self._lock:
            self._agents.remove(agent)
            pids = agent.pids & set(self._watched)
        for known in self.files.of_agent(agent):
            self.files.agent_left(known, agent, died=not self._ending.is_set())
        agent.ends.close()
        agent.sock.close()
        if self._ending.is_set():
            return
        log.warning("agent %d has died (%s)", agent.process.pid, agent.process.returncode)
        lived_s = time.monotonic() - agent.started_s
        pause_s = RESTART_S_MIN if lived_s > RESTART_S_MAX else min(2 * pause_s, RESTART_S_MAX)
        if self._ending.wait(pause_s):
            return
        with self._lock:
            rings = [link for link in self._links.all() if link.agent is agent]
            if not rings or self._ending.is_set():
                return
            heir = self._new_agent()
            heir.pids |= pids
            for link in rings:
                self._serve(heir, link)
        self._listen_to(heir, pause_s)

    def _answer(self, agent: AgentProcess, question: Message) -> None:
        answer: Message = {"re": question["n"]}
        fd = -1
        try:
            if question["ask"] == "region":
                fd, answer["nbytes"] = self._region(bytes.fromhex(question["region"]))
            else:
                answer |= self._file(agent, question)
        except FfsError as exc:
            answer["errno"] = exc.errno
        except OSError as exc:
            answer["errno"] = exc.errno or errno.EIO
        agent.send(answer, fd)
        if fd >= 0:
            os.close(fd)

    def _region(self, id_: bytes) -> tuple[int, int]:
        """(descriptor, bytes)"""
        with self._lock:
            link = self._links.identified(id_)
            if link is None or link.ring:
                raise OSError(errno.EINVAL, "no such region")
            return os.dup(link.fd), link.nbytes

    def _file(self, agent: AgentProcess, question: Message) -> Message:
        known, slot = self.files.resolve(question["file"], agent)
        live = known.live
        self.files.collect(live)
        if question["ask"] == "room":
            return self._room(live, question["end"])
        length = length_now(self._volume, live)
        answer: Message = {"length": length, "fresh_s": self._volume.options.attr_timeout_s}
        if question["ask"] == "file":
            answer |= {
                "inode": live.id,
                "chunk_size": live.file.chunk_size,
                "chains": list(live.file.chains),
                "slot": slot,
                "readable": known.handle.flags & os.O_ACCMODE != os.O_WRONLY,
                "writable": known.handle.writes,
            }
        return answer

    def _room(self, live: LiveInode, end: int) -> Message:
        """Quotas let the file grow to `end`, or QUOTA_EXCEEDED is raised; how far else, and how long that holds."""
        volume = self._volume
        with live.lock:
            volume.ensure_room(live, end)
            room_end, room_s = live.limit.trusted(volume.clock.monotonic_s())
            if room_s <= 0:  # nobody was asked, because it need not grow: that holds while its length is believed
                room_end, room_s = live.length, volume.options.attr_timeout_s
            return {"room_end": max(room_end, live.length), "room_s": room_s}

    def stop(self) -> None:
        """End all agents; what they wrote is recorded when this returns."""
        self._ending.set()
        os.write(self._wake_w, b"x")
        with self._lock:
            agents = list(self._agents)
        for agent in agents:
            with contextlib.suppress(OSError):
                agent.sock.shutdown(socket.SHUT_RDWR)
        end_s = time.monotonic() + END_S
        for agent in agents:
            try:
                agent.process.wait(max(0.0, end_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                agent.process.kill()
                agent.process.wait()
            if agent.listener is not None:
                agent.listener.join(END_S)
        self.files.stop()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(END_S)
        with self._lock:
            for link in self._links.all():
                if link.ring:
                    _give_up(link, errno.ENOLINK)
                self._links.remove(link)
            for pidfd in self._watched.values():
                os.close(pidfd)
            self._watched.clear()
        self._poll.close()
        os.close(self._wake_r)
        os.close(self._wake_w)


def _give_up(ring: Link, number: int) -> None:
    """Tell whoever waits at a ring that nobody serves it, where no agent can say so: seen within a second."""
    with contextlib.suppress(OSError):
        os.pwrite(ring.fd, number.to_bytes(4, "little"), layout.STATE_AT)
