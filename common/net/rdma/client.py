"""The client's end: it exposes memory and posts nothing. The server does all the moving."""

from __future__ import annotations

import logging
import mmap
import os
import weakref

from fireflyfs.common.net.memory import SharedMemory
from fireflyfs.common.net.rdma.adapters import (
    Adapters,
    ClientMemory,
    parameters,
)
from fireflyfs.common.net.rdma.choice import Choice
from fireflyfs.common.net.rdma.verbs import QueuePair
from fireflyfs.common.net.rdma.wire import PROBE_BYTES, Exposed, Parameters, pack_expose, pack_probe

log = logging.getLogger(__name__)


class ClientEnd:
    """One connection's queue pair, and what was exposed through it. Used by one thread at a time.

    When `close` returns, the server can reach nothing of ours through this connection any more.
    """

    def __init__(self, adapters: Adapters, choice: Choice, cluster_id: str) -> None:
        """Raises OSError."""
        self._adapters = adapters
        self._choice = choice
        self._memory: ClientMemory = adapters.client(choice.device, cluster_id)
        self._pair = QueuePair(self._memory.domain, self._memory.completions, 1, 1, remote=True)
        self._shown: set[int] = set()
        self._probe: tuple[mmap.mmap, bytes] | None = None
        self._closed = False
        self.mine: Parameters = parameters(self._pair, choice, self._memory.device)
        adapters.count(choice.device, 1)
        self._token = object()
        # Dropped without `close`: the queue pair must go all the same.
        self._finalizer = weakref.finalize(self, _close_pair_quietly, self._pair)

    @property
    def device(self) -> str:
        return self._choice.device

    def connect(self, theirs: Parameters) -> None:
        """Raises OSError."""
        self._pair.connect(self._choice.port.number, self._choice.gid.number, self.mine, theirs)

    def begin_probe(self) -> tuple[bytes, ProbeMemory]:
        """The PROBE frame, and the memory that the server reads and writes for it. Raises OSError."""
        probe = ProbeMemory(self._memory)
        return pack_probe(probe.address, probe.rkey), probe

    def expose(self, memory: SharedMemory) -> bytes | None:
        """The EXPOSE frame for memory; None when it cannot be registered: it has to travel another way."""
        try:
            region = self._memory.expose(memory, self._token)
        except OSError as exc:
            if not memory.closed:
                log.warning("%s of shared memory cannot be registered with %s: %s", memory.length, self.device, exc)
            return None
        self._shown.add(memory.region)
        return pack_expose(Exposed(memory.region, region.rkey, memory.length, region.address))

    def withdraw(self, number: int) -> None:
        self._shown.discard(number)
        self._memory.release(number, self._token)

    def abandon(self) -> None:
        """In a forked child: all of it is the parent's. Takes no lock, for nobody here would give it back."""
        self._closed = True
        self._finalizer.detach()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._finalizer.detach()
        _close_pair_quietly(self._pair)
        for number in list(self._shown):
            self.withdraw(number)
        self._adapters.count(self._choice.device, -1)


class ProbeMemory:
    """A page with random bytes for the server to read, and room to write them into."""

    def __init__(self, memory: ClientMemory) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._nonce = os.urandom(PROBE_BYTES)
        self._page[:PROBE_BYTES] = self._nonce
        self._region = memory.domain.register(memoryview(self._page), remote=True)
        self.address = self._region.address
        self.rkey = self._region.rkey

    @property
    def moved(self) -> bool:
        """Whether the server has read what was there and written the same behind it."""
        return self._page[PROBE_BYTES : 2 * PROBE_BYTES] == self._nonce

    def close(self) -> None:
        self._region.close()


def _close_pair_quietly(pair: QueuePair) -> None:
    try:
        pair.close()
    except OSError as exc:
        log.warning("a queue pair could not be destroyed: %s", exc)
