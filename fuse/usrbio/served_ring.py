"""A ring as its agent has it. The memory is the application's, who may do to it what it likes at any time.

So nothing of it is ever loaded or stored: it is read and written by system calls on its descriptor, which come back
short where a load would have killed the agent. What it says is believed for the application's own I/O only.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import Final

import numpy as np
import numpy.typing as npt

from fireflyfs.client.usrbio import futex, layout
from fireflyfs.client.usrbio.core.batching import ready, runs
from fireflyfs.client.usrbio.layout import RingLayout, parse_header

COMPLETED_MAX: Final = 1 << 62  # no ring gets there: its positions stay numbers of 64 bits


class ServedRing:
    """Owns `fd`. `available` and `take` are for one thread at a time, so are `complete` and `give_up`; `ring_bell` is
    for any. OSError: the ring is of no use any more."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.options = parse_header(os.pread(fd, layout.HEADER.size, 0), os.fstat(fd).st_size)
        self._layout = RingLayout.of(self.options.entries)
        self._map = mmap.mmap(fd, layout.PAGE_BYTES)  # for its address, which futex(2) wants: never touched
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._seq_bytes = bytearray(self.options.entries * layout.SEQ_BYTES)
        self._seq = np.frombuffer(self._seq_bytes, np.uint64)
        # An agent before this one may have ended: what it completed is done, what it had begun is done once more. Where
        # it ended within a completion, the application has what the words say, whatever the header says.
        bell, _, completed = layout.AGENT.unpack(self._read(layout.AGENT.size, layout.CQ_DOORBELL_AT))
        if completed > COMPLETED_MAX:
            raise OSError(errno.EINVAL, f"a ring of {completed} completions")
        self._done = self._head = completed + self._prefix(self._layout.cq_seq, completed)
        self._cq_bell: int = bell

    def _read(self, length: int, at: int) -> bytes:
        found = os.pread(self.fd, length, at)
        if len(found) < length:
            raise OSError(errno.EFAULT, "the ring was cut off")
        return found

    def bell(self) -> int:
        """The submission bell: to be read before the ring is looked at, for `sleep`."""
        return int.from_bytes(self._read(4, layout.SQ_DOORBELL_AT), "little")

    def sleep(self, bell: int, timeout_s: float) -> None:
        """Until the bell is not `bell` any more."""
        futex.wait(self._address + layout.SQ_DOORBELL_AT, bell, timeout_s)

    def ring_bell(self) -> None:
        """Have `sleep` look again."""
        futex.wake(self._address + layout.SQ_DOORBELL_AT)

    def available(self) -> int:
        """I/Os that were published and not taken."""
        slot = self._head % self.options.entries
        word = self._read(8, self._layout.sq_seq + slot * layout.SEQ_BYTES)
        if int.from_bytes(word, "little") != self._head + 1:
            return 0
        return self._prefix(self._layout.sq_seq, self._head)

    def _prefix(self, words_at: int, head: int) -> int:
        """How many words from position `head` on are what they become."""
        if os.preadv(self.fd, [self._seq_bytes], words_at) < len(self._seq_bytes):
            raise OSError(errno.EFAULT, "the ring was cut off")
        return ready(self._seq, head)

    def take(self, count: int) -> npt.NDArray[np.void]:
        """SQE_DTYPE[count]: the oldest ones that were not taken. `complete` gives them back."""
        size = layout.SQE.size
        into = memoryview(bytearray(count * size))
        at = 0
        for slot, length in runs(self._head, count, self.options.entries):
            part = into[at : at + length * size]
            if length and os.preadv(self.fd, [part], self._layout.sqes + slot * size) < len(part):
                raise OSError(errno.EFAULT, "the ring was cut off")
            at += length * size
        self._head += count
        return np.frombuffer(into, layout.SQE_DTYPE)

    def complete(self, results: npt.NDArray[np.int64]) -> None:
        """The oldest ones that were taken have ended, with bytes moved or -errno; they are the application's again."""
        head = self._done
        words = np.arange(head + 1, head + 1 + len(results), dtype=np.uint64)
        for what, start in ((results, self._layout.results), (words, self._layout.cq_seq)):
            raw = np.ascontiguousarray(what).data.cast("B")
            at = 0
            for slot, length in runs(head, len(results), self.options.entries):
                os.pwrite(self.fd, raw[at : at + 8 * length], start + slot * 8)
                at += 8 * length
        self._done = head + len(results)
        self._ring_completion(0)

    def give_up(self, number: int) -> None:
        """Tell whoever waits that nobody serves the ring any more, and why (errno)."""
        self._ring_completion(number)

    def _ring_completion(self, state: int) -> None:
        self._cq_bell = (self._cq_bell + 1) & 0xFFFFFFFF
        os.pwrite(self.fd, layout.AGENT.pack(self._cq_bell, state, self._done), layout.CQ_DOORBELL_AT)
        futex.wake(self._address + layout.CQ_DOORBELL_AT)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
