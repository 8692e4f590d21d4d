"""Which updates of a chain have been answered: an update that is sent twice happens once.

A client numbers the requests of each of its channels and has one under way in each. The table keeps, for each (client,
channel), the last sequence and what each of its chunks was answered; the longest unused channels are forgotten beyond
a bound. What is forgotten here, or lost in a restart, is still known from the writer stored with each chunk's version.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Generic, TypeVar

from fireflyfs.common.errors import Code
from fireflyfs.storage.engine.interface import ChunkKey, Writer

R = TypeVar("R")

CHANNELS_MAX = 16_384
RESULTS_MAX = 262_144  # of all channels together


class _Channel(Generic[R]):
    __slots__ = ("finished", "results", "sequence", "under_way")

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.results: dict[ChunkKey, R] = {}
        self.under_way = False
        self.finished = False  # all of it was done


class ExactlyOnce(Generic[R]):
    """(client, channel) to (sequence, results that were successes)."""

    __slots__ = ("_channels", "_channels_max", "_results", "_results_max")

    def __init__(self, channels_max: int = CHANNELS_MAX, results_max: int = RESULTS_MAX) -> None:
        self._channels: OrderedDict[tuple[bytes, int], _Channel[R]] = OrderedDict()
        self._channels_max = channels_max
        self._results_max = results_max
        self._results = 0

    def __len__(self) -> int:
        return len(self._channels)

    def begin(self, writer: Writer) -> tuple[Code, dict[ChunkKey, R]]:
        """A client's request arrives: (OK, its earlier successes), or (STALE_UPDATE or CHUNK_BUSY, nothing).

        After OK the channel is under way until `end`.
        """
        key = (writer.client_id, writer.channel)
        channel = self._channels.get(key)
        if channel is not None:
            if channel.under_way:
                return Code.CHUNK_BUSY, {}
            if writer.sequence < channel.sequence:
                return Code.STALE_UPDATE, {}
            if writer.sequence == channel.sequence:
                self._channels.move_to_end(key)
                channel.under_way = True
                return Code.OK, channel.results
        channel = self._open(key, writer.sequence)
        channel.under_way = True
        self._shrink()
        return Code.OK, {}

    def done(self, writer: Writer) -> dict[ChunkKey, R]:
        """Successes of this very request so far. To be asked under the chunks' locks: while the request waited for
        them, another one may have finished what its first attempt left pending, and gone on from there."""
        channel = self._channels.get((writer.client_id, writer.channel))
        return channel.results if channel is not None and channel.sequence == writer.sequence else {}

    def is_finished(self, writer: Writer) -> bool:
        """Whether all of this very request was done. It may have named chunks in general (all of a range): those that
        were made since are none of its."""
        channel = self._channels.get((writer.client_id, writer.channel))
        return channel is not None and channel.sequence == writer.sequence and channel.finished

    def end(self, writer: Writer, successes: Iterable[tuple[ChunkKey, R]], *, finished: bool = False) -> None:
        """The request that `begin` let in has been answered; `finished`: nothing of it was refused."""
        channel = self._channels.get((writer.client_id, writer.channel))
        if channel is not None and channel.sequence == writer.sequence:
            channel.under_way = False
            channel.finished = channel.finished or finished
            self._keep(channel, successes)
            self._shrink()

    def note(self, writer: Writer, successes: Iterable[tuple[ChunkKey, R]]) -> None:
        """A forwarded update was committed here: known if this replica becomes head. An older one is ignored."""
        key = (writer.client_id, writer.channel)
        channel = self._channels.get(key)
        if channel is None or channel.sequence < writer.sequence:
            channel = self._open(key, writer.sequence)
        if channel.sequence == writer.sequence:
            self._keep(channel, successes)
            self._channels.move_to_end(key)
            self._shrink()

    def clear(self) -> None:
        """Forget everything: the target was unloaded."""
        self._channels.clear()
        self._results = 0

    def _open(self, key: tuple[bytes, int], sequence: int) -> _Channel[R]:
        old = self._channels.get(key)
        if old is not None:
            self._results -= len(old.results)
        channel = self._channels[key] = _Channel(sequence)
        self._channels.move_to_end(key)
        return channel

    def _keep(self, channel: _Channel[R], successes: Iterable[tuple[ChunkKey, R]]) -> None:
        before = len(channel.results)
        channel.results.update(successes)
        self._results += len(channel.results) - before

    def _shrink(self) -> None:
        # Channels under way are skipped: there are never more of them than requests in flight.
        while len(self._channels) > self._channels_max or self._results > self._results_max:
            oldest = next((key for key, channel in self._channels.items() if not channel.under_way), None)
            if oldest is None:
                return
            self._results -= len(self._channels.pop(oldest).results)
