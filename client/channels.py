"""Update channels: (client, channel, sequence) names an update, so that a repeated one is done once.

A channel has one request under way, and its sequences grow. The pool is bounded because servers remember the last
request of every channel; the lowest free channel is used first, so that a quiet client uses few.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

CHANNELS_MAX = 256


class ChannelUse(NamedTuple):
    """The right to one request: sent again with the same numbers until it is over."""

    channel: int
    sequence: int


class ChannelPool:
    """Channels of one client. Safe to use from several threads."""

    def __init__(self, channels_max: int = CHANNELS_MAX) -> None:
        self._free = list(range(1, channels_max + 1))
        self._sequences = [0] * (channels_max + 1)
        self._changed = threading.Condition()
        self.channels_max = channels_max

    @contextmanager
    def take(self, count: int) -> Iterator[list[ChannelUse]]:
        """`count` channels (at most `channels_max`) for one request each, all at once: nobody waits holding some."""
        if not 0 < count <= self.channels_max:
            raise ValueError(f"{count} channels of {self.channels_max}")
        with self._changed:
            while len(self._free) < count:
                self._changed.wait()
            uses = []
            for _ in range(count):
                channel = heapq.heappop(self._free)
                self._sequences[channel] += 1
                uses.append(ChannelUse(channel, self._sequences[channel]))
        try:
            yield uses
        finally:
            with self._changed:
                for use in uses:
                    heapq.heappush(self._free, use.channel)
                self._changed.notify_all()
