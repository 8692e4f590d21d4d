"""What the connections of one server share on one device: a domain, buffers, and one queue that all messages come by.

Completions are reaped in batches for all connections: first every message is put where it belongs, then who waits is
called, because what is called may end any connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Protocol

from fireflyfs.common.errors import Code, error
from fireflyfs.common.net.rdma.buffers import RegisteredPool
from fireflyfs.common.net.rdma.credits import SPARE, connections_that_fit
from fireflyfs.common.net.rdma.endpoint import Endpoint
from fireflyfs.common.net.rdma.queues import POLL_MAX, RECEIVED, Completions
from fireflyfs.common.net.rdma.receiving import Receives
from fireflyfs.common.net.rdma.verbs import FATAL, SRQ_LIMIT, Device, Domain

log = logging.getLogger(__name__)

LEVEL: Final = (
    SPARE // 2
)  # receive buffers: fewer are posted only when somebody sends more than it may, or some are lost


class Receiver(Protocol):
    """One connection's end."""

    endpoint: Endpoint

    def settle(self) -> None:
        """Act on what has come or failed."""


class Arrivals:
    """On the server's loop only."""

    def __init__(self, device: Device, loop: asyncio.AbstractEventLoop, connections_max: int) -> None:
        """Raises OSError."""
        self.device = device
        self.domain = Domain(device)
        self.pool = RegisteredPool(self.domain)
        limits = device.limits
        fit = connections_that_fit(min(limits.shared_receives, limits.completions))
        self.receives = Receives(self.domain, min(connections_max, fit))
        self.completions = Completions(device, self.receives.depth, watched=True)
        self._loop = loop
        self._ends: dict[int, Receiver] = {}
        self._touched: dict[Receiver, None] = {}  # in the order in which their messages came
        self._soon = False
        self._blamed = False  # a connection has failed since the queue last ran low
        try:
            self.receives.queue.warn_below(LEVEL)
        except OSError as exc:  # not every device tells
            log.debug("%s does not say when its receive queue runs low: %s", device.name, exc)
        loop.add_reader(self.completions.fd, self._woken)
        if device.events_fd >= 0:
            device.listen(self)
            loop.add_reader(device.events_fd, device.take_events)

    def add(self, end: Receiver) -> None:
        self._ends[end.endpoint.pair.number] = end

    def remove(self, end: Receiver) -> None:
        """Its queue pair moves nothing any more. What it has received is reaped, or its buffers would be lost."""
        self._reap()
        self._blamed |= end.endpoint.failed is not None
        self._ends.pop(end.endpoint.pair.number, None)
        self._touched.pop(end, None)

    def look(self) -> None:
        """For what has come, without having been told."""
        if not self._soon:
            self._soon = True
            self._reap()
            self._settle()

    def _woken(self) -> None:
        """Armed again before completions are taken, or one could be missed."""
        try:
            self.completions.take_event()
            self.completions.rearm()
        except OSError as exc:
            self._lose_all(str(exc))
        self._soon = True  # by us, here
        self._reap()
        self._settle()

    def _reap(self) -> None:
        """Put every message where it belongs; calls nobody."""
        try:
            more = True
            while more:
                found = self.completions.poll()
                more = len(found) == POLL_MAX
                for number, status, length, pair in found:
                    end = self._ends.get(pair)
                    if end is None:  # its connection is gone
                        self.receives.post(number - RECEIVED)
                        continue
                    end.endpoint.arrived(number - RECEIVED, status, length)
                    self._touched[end] = None
        except OSError as exc:
            self._lose_all(str(exc))
        self._settle_soon()

    def _settle_soon(self) -> None:
        if self._touched and not self._soon:
            self._soon = True
            self._loop.call_soon(self._settle)

    def _settle(self) -> None:
        self._soon = False
        while self._touched:
            end = next(iter(self._touched))
            del self._touched[end]
            end.settle()

    # Events

    def on_events(self, names: Sequence[str]) -> None:
        """In any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._happened, names)

    def _happened(self, names: Sequence[str]) -> None:
        if self.domain.closed:
            return
        for name in FATAL.intersection(names):
            self._lose_all(name)
        if SRQ_LIMIT in names:
            self._ran_low()

    def _ran_low(self) -> None:
        """A peer sends more than it was granted: it is found by its messages, now or before. Else buffers are
        missing."""
        self._reap()
        self._settle()
        blamed, self._blamed = self._blamed, False
        try:
            if not blamed:
                log.warning("%s: %s receive buffers posted anew", self.device.name, self.receives.replace_lost())
            self.receives.queue.warn_below(LEVEL)
        except OSError as exc:
            self._lose_all(str(exc))

    def _lose_all(self, why: str) -> None:
        log.error("rdma on %s: %s: all connections end", self.device.name, why)
        for end in list(self._ends.values()):
            end.endpoint.fail(error(Code.UNAVAILABLE, why))
            self._touched[end] = None
        self._settle_soon()

    def close(self) -> None:
        """After the last connection."""
        self._loop.remove_reader(self.completions.fd)
        if self.device.events_fd >= 0:
            self._loop.remove_reader(self.device.events_fd)
        self.pool.close()
        for owned in (self.completions, self.receives, self.domain):
            try:
                owned.close()
            except OSError as exc:  # a request still holds a buffer: it goes with the process
                log.debug("rdma on %s stays in part: %s", self.device.name, exc)
