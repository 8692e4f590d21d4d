"""The devices of this process, opened when first needed, and what every connection on one shares.

A protection domain is made for each cluster that this process is a client of: a server reaches only what was exposed
in the domain of its own cluster. Servers keep their buffers in a domain of their own and give no peer any right in it.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import threading
from pathlib import Path
from typing import Final

from fireflyfs.common.errors import Code, error
from fireflyfs.common.net.link_choice import LinkChoice
from fireflyfs.common.net.memory import SharedMemory
from fireflyfs.common.net.rdma.choice import Candidate, Choice, choose
from fireflyfs.common.net.rdma.library import device_names
from fireflyfs.common.net.rdma.queues import QueuePair
from fireflyfs.common.net.rdma.receiving import Receives
from fireflyfs.common.net.rdma.settings import RdmaSettings, settings_from_environment
from fireflyfs.common.net.rdma.verbs import Device, Domain, Region
from fireflyfs.common.net.rdma.wire import Parameters

log = logging.getLogger(__name__)

CONNECTIONS_TOGETHER: Final = 32  # of a client on one shared receive queue
_PACKET_NUMBERS: Final = random.SystemRandom()  # not to be guessed by who could forge packets


class ClientMemory:
    """What one process exposes to the servers of one cluster through one device; safe to use from several threads."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.domain = Domain(device)
        self._receives: list[Receives] = []
        self._lock = threading.RLock()
        self._regions: dict[int, tuple[Region, set[object]]] = {}

    def enter(self) -> Receives:
        """A shared receive queue that one more connection has a place on, until its `leave`. Raises OSError.

        Each is for so few that the completion queue of every connection can hold all that may come out of it.
        """
        with self._lock:
            if all(known.full for known in self._receives):
                self._receives.append(Receives(self.domain, CONNECTIONS_TOGETHER))
            found = next(known for known in self._receives if not known.full)
            found.enter()
            return found

    def expose(self, memory: SharedMemory, user: object) -> Region:
        """Register once for all connections. Raises OSError, also for memory that its owner has closed meanwhile."""
        with self._lock:  # who closes it says so first, and then revokes, which waits for us
            if memory.closed:
                raise OSError(errno.EBADF, "the memory is closed")
            known = self._regions.get(memory.region)
            if known is None:
                known = self._regions[memory.region] = self.domain.register(memory.view, remote=True), set()
            known[1].add(user)
            return known[0]

    def release(self, number: int, user: object) -> None:
        """One connection needs it no longer; the last one deregisters."""
        with self._lock:
            known = self._regions.get(number)
            if known is None:
                return
            known[1].discard(user)
            if not known[1]:
                del self._regions[number]
                known[0].close()

    def revoke(self, number: int) -> None:
        """Its owner closes the memory: no peer may reach it from now on. A transfer under way costs its connection."""
        with self._lock:
            known = self._regions.pop(number, None)
            if known is not None:
                known[0].close()

    def __len__(self) -> int:
        return len(self._regions)


class Adapters:
    """All devices of this process."""

    def __init__(self, settings: RdmaSettings) -> None:
        self.settings = settings
        self._lock = threading.RLock()
        self._devices: dict[str, Device] = {}
        self._names: list[str] | None = None
        self._clients: dict[tuple[str, str], ClientMemory] = {}
        self._connections: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """Devices that may be used; looked for once."""
        with self._lock:
            if self._names is None:
                self._names = [
                    name
                    for name in device_names()
                    if not self.settings.devices or any(d.split(":")[0] == name for d in self.settings.devices)
                ]
            return self._names

    def choose(self, address: str) -> Choice | None:
        """A port for a connection whose socket has our `address`. None: there is none to have now."""
        candidates = []
        with self._lock:
            for name in self.names:
                try:
                    device = self.device(name)
                    for port in device.ports():
                        if self.settings.allows(name, port.number) and port.active:
                            gids = device.gids(port.number)
                            load = self._connections.get(name, 0)
                            candidates.append(Candidate(name, port, gids, near_our_processors(name), load))
                except OSError as exc:
                    log.warning("rdma device %s cannot be used: %s", name, exc)
        return choose(candidates, address=address, gid_index=self.settings.gid_index)

    def device(self, name: str) -> Device:
        """Raises OSError."""
        with self._lock:
            device = self._devices.get(name)
            if device is None:
                device = self._devices[name] = Device(name)
            return device

    def client(self, name: str, cluster_id: str) -> ClientMemory:
        """Raises OSError."""
        with self._lock:
            memory = self._clients.get((name, cluster_id))
            if memory is None:
                memory = self._clients[name, cluster_id] = ClientMemory(self.device(name))
            return memory

    def revoke(self, memory: SharedMemory) -> None:
        with self._lock:
            clients = list(self._clients.values())
        for client in clients:
            client.revoke(memory.region)

    def count(self, name: str, change: int) -> None:
        with self._lock:
            self._connections[name] = self._connections.get(name, 0) + change


def parameters(pair: QueuePair, choice: Choice, device: Device) -> Parameters:
    """What the other end has to know of ours."""
    return Parameters(
        pair.number, _PACKET_NUMBERS.getrandbits(24), choice.gid.gid, choice.port.lid, choice.port.mtu,
        max(device.limits.reads_out, 1), max(device.limits.reads_in, 1),
    )  # fmt: skip


def near_our_processors(name: str) -> bool:
    """Whether the device hangs on a memory node that our processors belong to. Unknown counts as near."""
    try:
        node = int(Path(f"/sys/class/infiniband/{name}/device/numa_node").read_text())
        if node < 0:
            return True
        ours = os.sched_getaffinity(0)
        return bool(ours & _processors(Path(f"/sys/devices/system/node/node{node}/cpulist").read_text()))
    except (OSError, ValueError):
        return True


def _processors(text: str) -> set[int]:
    """ "0-3,8": 0, 1, 2, 3, 8."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


_adapters: Adapters | None = None  # of this process
_adapters_lock = threading.Lock()


def adapters() -> Adapters:
    """This process's. Raises CONFIG for settings that cannot be used."""
    global _adapters
    with _adapters_lock:
        if _adapters is None:
            _adapters = Adapters(settings_from_environment())
        return _adapters


def check_link(link: LinkChoice) -> None:
    """Raises CONFIG when rdma is demanded of a machine that has none."""
    if link is LinkChoice.RDMA and not adapters().names:
        raise error(
            Code.CONFIG,
            "link rdma is demanded, and this machine has no rdma device that can be used: `ffs rdma check` says what "
            "is missing, link auto would take what there is",
        )


def revoke(memory: SharedMemory) -> None:
    """Deregister memory that its owner closes, wherever it was exposed."""
    if _adapters is not None:
        _adapters.revoke(memory)


def _after_fork() -> None:
    """The parent's devices are not ours: look for them anew (`library.abandon_all` keeps them alive)."""
    global _adapters, _adapters_lock
    _adapters_lock = threading.Lock()
    _adapters = None


os.register_at_fork(after_in_child=_after_fork)
