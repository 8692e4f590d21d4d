"""One non-blocking connection on an event loop: frames in, buffers out. Knows nothing of what the frames mean.

Used by both ends: the server's connections and the asyncio client's. It reads without asyncio's transports, because
payload has to land in memory of our choice (`recv_into`) and leave from where it lies (`sendmsg`).
"""

from __future__ import annotations

import array
import asyncio
import itertools
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import KiB, MiB
from fireflyfs.common.net.frame import HEADER_BYTES, Buffer, Header, check_magic, parse_header
from fireflyfs.common.net.scatter import advance, fill

INPUT_BYTES: Final = 64 * KiB
SMALL_READ_BYTES: Final = 4 * KiB  # when payload follows the frames: what is not read here needs no second copy
IOV_MAX: Final = 512
LINGER_S: Final = 1.0
CORKED_BYTES_MAX: Final = 128 * KiB  # answers held back so that they leave together
CORKED_BESIDE_BYTES_MAX: Final = 4 * MiB  # of payload that went before them: then whoever waits for it is told
LANDING_BYTES_PER_EVENT_MAX: Final = 16 * MiB  # then the loop's other connections get their turn
FDS_PER_READ_MAX: Final = 8
FDS_WAITING_MAX: Final = 16
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(FDS_PER_READ_MAX * struct.calcsize("i"))
# As plain numbers: combining the enum's members costs microseconds each time.
_CLOEXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
_CTRUNC: Final = int(socket.MSG_CTRUNC)


class Wire(Protocol):
    """What carries the frames of a connection in place of its socket; looks like a non-blocking socket.

    Callbacks come on the loop: `on_readable` when bytes are there, until none or no callback is left; `on_writable`
    when some can be sent.
    """

    def look(self) -> bool:
        """Whether bytes can be received."""

    def send(self, data: Buffer, /) -> int: ...

    def sendmsg(self, pieces: Sequence[Buffer], /) -> int: ...

    def recv_into(self, sink: memoryview, /) -> int: ...

    def recvmsg_into(self, sinks: Sequence[memoryview], /) -> tuple[int]: ...

    def on_readable(self, callback: Callable[[], None] | None, /) -> None: ...

    def on_writable(self, callback: Callable[[], None] | None, /) -> None: ...


class Stream:
    """Subclasses say what a frame means (`on_frame`), where its payload lands, and what the end of the stream means.

    Reads pause when `on_frame` says so and go on with `resume`. Writes are queued; `queued_bytes` is what the peer
    has not taken yet, and whoever produces it must stop in time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, *, takes_fds: bool = False) -> None:
        sock.setblocking(False)
        self.loop = loop
        self.sock = sock
        self.closed = False
        self.queued_bytes = 0
        self.moved_at_s = loop.time()  # when bytes last moved, either way
        self.fds: deque[int] = deque()
        self._takes_fds = takes_fds
        self._wire: Wire | None = None  # None: the socket itself
        self._carrier: socket.socket | Wire = sock
        self._fd = sock.fileno()
        self._buffer = bytearray(INPUT_BYTES)
        self._view = memoryview(self._buffer)
        self._end = 0
        self._read_bytes = INPUT_BYTES
        self._sinks: deque[memoryview] = deque()
        self._paused = False
        self._corked = False
        self._writing = False
        self._joining = False  # `_flush_joined` will be called
        self._closing = False
        self._queue: deque[Buffer] = deque()
        self._beside_bytes = 0  # of payload that went another way since the last flush
        self._sent_total = 0
        self._queued_total = 0
        self._after: deque[tuple[int, Callable[[], None]]] = deque()

    # What a subclass answers.

    def on_frame(self, header: Header, table: memoryview, body: memoryview) -> Sequence[memoryview] | None:
        """A frame arrived. Returns where its `data_len` bytes go, or None: not now, offer it again after `resume`.

        `table` and `body` are valid during the call only. An FfsError ends the connection through `on_nonsense`.
        """
        raise TypeError(f"{type(self).__name__} takes no frames")

    def on_data(self) -> None:
        """The payload of the last frame is complete."""

    def on_nonsense(self, exc: FfsError) -> None:
        """The peer broke the protocol; tell it if that makes sense, then close."""
        self.close(exc)

    def on_closed(self, exc: FfsError) -> None:
        """The connection is gone; called once."""

    # Life

    def start(self) -> None:
        self._watch_reads(True)

    def carry_by(self, wire: Wire) -> None:
        """Frames come and go by `wire` from now on. The socket stays: that the peer lives, and its last words."""
        if self.closed:
            return
        if self._queue or self._end:
            raise error(Code.PROTOCOL, "frames on the socket where the queue pair has taken over")
        self._watch_reads(False)
        self._wire = self._carrier = wire
        self.loop.add_reader(self._fd, self._socket_spoke)
        self._watch_reads(True)

    def say_last(self, buffers: Sequence[Buffer]) -> None:
        """Send on the socket, whatever else is queued or carries frames, read nothing more, then close."""
        if self.closed:
            return
        if self._wire is not None:
            self._watch_reads(False)
            self._stop_writing()
            self._wire, self._carrier = None, self.sock
            self._queue.clear()
            self._sent_total = self._queued_total
            self.queued_bytes = 0
            self._release_sent()
        self.send(buffers)
        self.close_after_send()

    def on_last_words(self, data: bytes) -> FfsError:
        """What ends the connection when bytes come on the socket although a wire carries the frames."""
        return error(Code.PROTOCOL, f"{len(data)} bytes on the socket, where the queue pair carries the frames")

    def _socket_spoke(self) -> None:
        wire = self._wire
        if wire is None or self.closed:
            return
        while not self.closed and not self._paused and wire.look():  # what was sent before
            self._readable()
        if not self.closed:
            self._guarded(self._hear)

    def _hear(self) -> None:
        data = self.sock.recv(SMALL_READ_BYTES * 2)
        raise self.on_last_words(data) if data else error(Code.UNAVAILABLE, "connection closed by the peer")

    def _watch_reads(self, on: bool) -> None:
        if self._wire is not None:
            self._wire.on_readable(self._readable if on else None)
        elif on:
            self.loop.add_reader(self._fd, self._readable)
        else:
            self.loop.remove_reader(self._fd)

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            if self._wire is not None:
                self._wire.on_writable(None)
            else:
                self.loop.remove_writer(self._fd)

    def close(self, exc: FfsError) -> None:
        """Close now; what is queued is lost."""
        if self.closed:
            return
        self.closed = True
        self._watch_reads(False)
        self.loop.remove_reader(self._fd)
        self._stop_writing()
        self.sock.close()
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()
        self._queue.clear()
        self._sinks.clear()
        after = [done for _, done in self._after]
        self._after.clear()
        for done in after:
            done()
        self.on_closed(exc)

    def close_after_send(self) -> None:
        """Send what is queued, read nothing more, then close."""
        self._closing = True
        self._paused = True
        self.loop.remove_reader(self._fd)
        if not self._corked and not self.queued_bytes:
            self._linger()

    def _linger(self) -> None:
        """Let the peer read our last words: a close with its bytes unread would reset the connection under them."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            self.close(error(Code.UNAVAILABLE, f"connection lost: {exc.strerror}"))
            return
        self.loop.add_reader(self._fd, self._discard)
        self.loop.call_later(LINGER_S, self.close, error(Code.UNAVAILABLE, "connection closed"))

    def _discard(self) -> None:
        try:
            if self.closed or self.sock.recv_into(self._view):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self.close(error(Code.UNAVAILABLE, "connection closed"))

    def resume(self) -> None:
        """Offer again the frame that `on_frame` did not take, and read on."""
        if self._paused and not self.closed and not self._closing:
            self._paused = False
            self.loop.call_soon(self._resumed)

    @property
    def paused(self) -> bool:
        return self._paused

    def _resumed(self) -> None:
        if self.closed or self._paused:
            return
        self._watch_reads(True)
        self._guarded(self._parse)

    # Reading

    def _readable(self) -> None:
        if not self.closed:
            self._guarded(self._read)

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run a step with the output corked: replies that it causes leave in one system call."""
        self._corked = True
        try:
            step()
        except (BlockingIOError, InterruptedError):
            pass
        except FfsError as exc:
            self.on_nonsense(exc)
        except OSError as exc:
            self.close(error(Code.UNAVAILABLE, f"connection lost: {exc.strerror}"))
        finally:
            self._corked = False
        if self._queue and not self._writing and not self.closed:
            self._flush()

    def _read(self) -> None:
        self.moved_at_s = self.loop.time()
        if self._sinks:
            self._land()
            if self._sinks:
                return
            self._landed()
            if self.closed or self._paused:
                return
        space = self._view[self._end : self._end + self._read_bytes]
        count = self._receive(space)
        if not count:
            raise error(Code.UNAVAILABLE, "connection closed by the peer")
        self._end += count
        self._parse()

    def _receive(self, space: memoryview) -> int:
        if not self._takes_fds:
            return self._carrier.recv_into(space)
        count, ancillary, flags, _ = self.sock.recvmsg_into([space], _ANCILLARY_BYTES, _CLOEXEC)
        if ancillary or flags & _CTRUNC:
            self._take_fds(ancillary, flags)
        return count

    def _take_fds(self, ancillary: list[tuple[int, int, bytes]], flags: int) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self.fds.extend(fds)
        if flags & _CTRUNC or len(self.fds) > FDS_WAITING_MAX:
            raise error(Code.PROTOCOL, "more file descriptors than one connection may send")

    def _parse(self) -> None:
        view, position, end = self._view, 0, self._end
        while end - position >= HEADER_BYTES and not self._paused and not self.closed:
            header = parse_header(view, position)
            table_end = position + HEADER_BYTES + header.table_bytes
            need = table_end + header.body_len - position
            if end - position < need:
                if need > len(view):
                    self._make_room(position, need)
                    return
                break
            body_end = position + need
            sinks = self.on_frame(header, view[position + HEADER_BYTES : table_end], view[table_end:body_end])
            if sinks is None:
                self._paused = True
                self._watch_reads(False)
                break
            position = body_end
            if header.data_len:
                self._sinks.extend(sink for sink in sinks if len(sink))
                position += fill(self._sinks, view[position:end])
                # Payload follows the frames on this connection: read little beyond a header, and land the rest.
                self._read_bytes = SMALL_READ_BYTES if header.data_len > INPUT_BYTES else INPUT_BYTES
                if self._sinks:
                    self._end = 0
                    self._land()
                    if self._sinks:
                        return
                self.on_data()
        if 2 <= end - position < HEADER_BYTES and not self.closed:
            check_magic(view, position)  # another protocol's greeting may be shorter than a header
        if position:
            left = end - position
            if left > 0 and not self.closed:
                view[:left] = view[position:end]
            self._end = max(left, 0)
        if self._end == 0 and len(self._buffer) > INPUT_BYTES:
            self._buffer = bytearray(INPUT_BYTES)
            self._view = memoryview(self._buffer)

    def _make_room(self, position: int, need: int) -> None:
        """A frame that does not fit: give it a buffer of its own size. Its length has been checked."""
        buffer = bytearray(max(INPUT_BYTES, need))
        left = self._end - position
        buffer[:left] = self._view[position : self._end]
        self._buffer = buffer
        self._view = memoryview(buffer)
        self._end = left
        self._read_bytes = max(INPUT_BYTES, need)

    def _land(self) -> None:
        """Receive straight into the sinks, until the socket is empty, they are full, or our turn ends."""
        sinks = self._sinks
        landed = 0
        while sinks and landed < LANDING_BYTES_PER_EVENT_MAX:
            try:
                if len(sinks) == 1:
                    count = self._carrier.recv_into(sinks[0])
                else:
                    count = self._carrier.recvmsg_into(list(itertools.islice(sinks, IOV_MAX)))[0]
            except (BlockingIOError, InterruptedError):
                return
            if not count:
                raise error(Code.UNAVAILABLE, "connection closed by the peer inside a frame")
            landed += count
            advance(sinks, count)

    def _landed(self) -> None:
        self._end = 0
        self.on_data()

    # Writing

    def send(
        self, buffers: Sequence[Buffer], after: Callable[[], None] | None = None, *, beside_bytes: int = 0
    ) -> None:
        """Queue buffers that nobody changes until `after` is called (when they are sent, or the connection is gone).

        `beside_bytes` of payload have been sent another way, and are there before they are.
        """
        if self.closed:
            if after is not None:
                after()
            return
        queue = self._queue
        size = 0
        for buffer in buffers:
            length = len(buffer)
            if length:
                queue.append(buffer)
                size += length
        self.queued_bytes += size
        self._queued_total += size
        if after is not None:
            self._after.append((self._queued_total, after))
        # Much payload leaves at once, while it is still in the processor's cache and its buffer can be used again.
        self._beside_bytes += beside_bytes
        much = self.queued_bytes >= CORKED_BYTES_MAX or self._beside_bytes >= CORKED_BESIDE_BYTES_MAX
        if self._writing or (self._corked and not much):
            return
        if self._wire is None or much:
            self._flush()
        elif not self._joining:  # a message costs more than a turn of the loop: others may join this one
            self._joining = True
            self.loop.call_soon(self._flush_joined)

    def _flush_joined(self) -> None:
        self._joining = False
        if self._queue and not self._writing and not self.closed:
            self._flush()

    def _flush(self) -> None:
        queue = self._queue
        self._beside_bytes = 0
        try:
            while queue:
                if len(queue) == 1:
                    count = self._carrier.send(queue[0])
                else:
                    count = self._carrier.sendmsg(list(itertools.islice(queue, IOV_MAX)))
                self.queued_bytes -= count
                self._sent_total += count
                advance(queue, count)
        except (BlockingIOError, InterruptedError):
            if not self._writing:
                self._writing = True
                if self._wire is not None:
                    self._wire.on_writable(self._writable)
                else:
                    self.loop.add_writer(self._fd, self._writable)
            self._release_sent()
            return
        except FfsError as exc:
            self.close(exc)
            return
        except OSError as exc:
            self.close(error(Code.UNAVAILABLE, f"connection lost: {exc.strerror}"))
            return
        self._stop_writing()
        self._release_sent()
        if self._closing and not self.closed:
            self._linger()

    def _writable(self) -> None:
        if not self.closed:
            self.moved_at_s = self.loop.time()
            self._flush()

    def _release_sent(self) -> None:
        after = self._after
        while after and after[0][0] <= self._sent_total:
            after.popleft()[1]()
