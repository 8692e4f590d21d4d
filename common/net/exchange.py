"""One blocking connection of a client: requests out, answers in, payload straight into the caller's memory."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import DEADLINE_S_MAX, REGIONS_MAX, KiB
from fireflyfs.common.net import frame
from fireflyfs.common.net.api import Reply
from fireflyfs.common.net.busy_poll import Waiters
from fireflyfs.common.net.counting import Counts
from fireflyfs.common.net.dial import Dialed
from fireflyfs.common.net.frame import HEADER_BYTES, Buffer, Kind
from fireflyfs.common.net.incoming import IOV_MAX, Incoming, MessagesIncoming
from fireflyfs.common.net.memory import SharedMemory
from fireflyfs.common.net.pending import Pending
from fireflyfs.common.net.placing import place
from fireflyfs.common.net.rdma.messages import Messages
from fireflyfs.common.net.scatter import advance
from fireflyfs.common.net.staging import StagingPool

GATHER_BYTES_MAX: Final = 256 * KiB  # requests joined into one system call
# As plain numbers: combining the enum's members costs microseconds each time.
_SEND: Final = int(socket.MSG_DONTWAIT) | int(socket.MSG_NOSIGNAL)
_PEEK: Final = int(socket.MSG_DONTWAIT) | int(socket.MSG_PEEK)
JOINED_BODY_BYTES_MAX: Final = 4 * KiB  # a short body is copied behind its header rather than sent as a piece


class Exchange:
    """Used by one thread at a time. After `broken` is set the connection is of no use any more."""

    def __init__(self, dialed: Dialed, staging: StagingPool | None, waiters: Waiters) -> None:
        self.sock = dialed.sock
        self.name = dialed.name
        self.shares = dialed.shares
        self.link = dialed.link
        self.counts = Counts()
        self._rdma = dialed.rdma
        self.broken: FfsError | None = None
        self.last_used_s = time.monotonic()
        self.withdrawals_seen = 0  # the pool's count of closed memory when this connection last looked
        self._requests_max = dialed.welcome.requests_max
        self._payload_max = dialed.welcome.data_bytes_max
        self._staging = staging if dialed.shares else None
        self._regions: dict[int, SharedMemory] = {}
        self._outstanding: dict[int, Pending] = {}
        self._payload = 0
        self._next_id = 1
        self._carrier: socket.socket | Messages
        if dialed.rdma is None:
            self._carrier = self.sock
            self._incoming = Incoming(self.sock, self.name, waiters, self._outstanding)
        else:
            self._carrier = dialed.rdma.messages
            self._incoming = MessagesIncoming(self.sock, self.name, waiters, self._outstanding, dialed.rdma)
        self._gather: list[Buffer] = []
        self._gathered = 0
        self._waiters = waiters

    # What the pool calls.

    @property
    def in_flight(self) -> int:
        return len(self._outstanding)

    @property
    def landing_bytes(self) -> int:
        """Room for what is still to be received from the socket."""
        return sum([pending.landing_bytes for pending in self._outstanding.values()])

    def interrupt(self) -> None:
        """From another thread: nothing more is to be received."""
        if self._outstanding:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)

    def give_up(self) -> None:
        """Nobody waits for its answers any more, and their memory is the caller's again."""
        self._break(error(Code.CANCELLED, "interrupted"))

    def send(self, pendings: Sequence[Pending]) -> None:
        """Send requests; takes answers meanwhile where bounds or full sockets ask for it. Errors end up in outcomes."""
        try:
            for pending in pendings:
                if pending.outcome is None:
                    self._request(pending)
            self._flush()
        except FfsError as exc:
            self._break(exc)
        except OSError as exc:
            self._break(self._lost(exc))
        except BaseException:
            self._break(error(Code.CANCELLED, "interrupted"))
            raise
        finally:
            if self.broken is not None:
                for pending in pendings:
                    if pending.outcome is None:
                        pending.outcome = self.broken
                        self._release(pending, answered=pending.payload == 0)

    def receive(self) -> None:
        """Take all answers that are still to come."""
        self._waiters.enter(self)
        try:
            while self._outstanding:
                self._receive_one()
        except FfsError as exc:
            self._break(exc)
        except OSError as exc:
            self._break(self._lost(exc))
        except BaseException:
            self._break(error(Code.CANCELLED, "interrupted"))
            raise
        finally:
            self._waiters.leave(self)
        self.last_used_s = time.monotonic()

    def is_stale(self) -> bool:
        """Whether the peer has closed, or said something unasked, while the connection was idle."""
        try:
            self.sock.recv(1, _PEEK)
        except (BlockingIOError, InterruptedError):
            return self._rdma is not None and self._rdma.stale
        except OSError:
            return True
        return True

    def withdraw_closed(self) -> None:
        """Tell the server to unmap memory that was closed here."""
        closed = [region for region, memory in list(self._regions.items()) if memory.closed]
        try:
            for region in closed:
                self._regions.pop(region, None)
                self._withdraw(region)
            self._flush()
        except (FfsError, OSError) as exc:
            self._break(exc if isinstance(exc, FfsError) else self._lost(exc))

    def close(self) -> None:
        if self._rdma is not None:
            self._rdma.close()
        with contextlib.suppress(OSError):  # a child that was forked meanwhile has the socket too: end it for both
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def abandon(self) -> None:
        """In a forked child: the connection is the parent's, and so are the locks around what it uses."""
        if self._rdma is not None:
            self._rdma.abandon()
        self.sock.close()

    def _withdraw(self, region: int) -> None:
        if self._rdma is not None:
            self._rdma.withdraw(region)
        self._gather.append(frame.pack_withdraw(region))

    # Sending

    def _request(self, pending: Pending) -> None:
        call = pending.call
        try:
            out, into, inline = place(pending, self.shares, self._staging, self._know)
            request_id = self._next_id
            head = frame.pack_request(
                call.method, request_id, out, into, len(call.body), frame.deadline_ms(call.deadline_s)
            )
        except FfsError as exc:
            if self.broken is not None:
                raise  # met while an earlier one was being sent
            pending.outcome = exc  # this request cannot be sent; the connection is as good as before
            self._release(pending, answered=True)
            return
        while self._outstanding and (
            len(self._outstanding) >= self._requests_max or self._payload + pending.payload > self._payload_max
        ):
            self._flush()
            if self._outstanding:
                self._receive_one()
        self._next_id = request_id % 0xFFFFFFFE + 1
        if not self._outstanding or pending.deadline_s < self._incoming.earliest_s:
            self._incoming.earliest_s = pending.deadline_s
        self._outstanding[request_id] = pending
        self._payload += pending.payload
        self.counts.requests += 1
        if out:
            self.counts.bytes_out += sum(segment[1] for segment in out)
        body = call.body
        if len(body) <= JOINED_BODY_BYTES_MAX:
            self._gather.append(head + body if body else head)
        else:
            self._gather += (head, body)
        self._gathered += len(head) + len(body)
        if inline:
            self._gather += inline
            self._gathered += sum(map(len, inline))
        if self._gathered > GATHER_BYTES_MAX or len(self._gather) > IOV_MAX:
            self._flush()

    def _know(self, memory: SharedMemory, pending: Pending) -> bool:
        """Register memory with the server for a request; False when the table is full of what is in use."""
        if memory.region in self._regions:
            return True
        if len(self._regions) >= REGIONS_MAX:
            if self._outstanding:
                return False
            named = pending.regions()
            oldest = next((region for region in self._regions if region not in named), None)
            if oldest is None:
                return False
            self._flush()
            del self._regions[oldest]
            self._withdraw(oldest)
        if self._rdma is not None:
            shown = self._rdma.expose(memory)
            if shown is None:
                return False
            self._gather.append(shown)
            self._regions[memory.region] = memory
            return True
        self._flush()
        # The descriptor travels with the frame's first byte: a frame sent in part must be finished, not begun again.
        register = frame.pack_register(memory.region, memory.length)
        anc = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, memory.fd.to_bytes(4, "little"))]
        while True:
            try:
                sent = self.sock.sendmsg([register], anc, _SEND)
                break
            except BlockingIOError:
                self._make_way()
        self._regions[memory.region] = memory
        if sent < len(register):
            self._gather.append(register[sent:])
            self._flush()
        return True

    def _flush(self) -> None:
        if not self._gather:
            return
        gather = self._gather
        self._gather = []
        self._gathered = 0
        if len(gather) == 1:  # the common case: one short request
            try:
                sent = self._carrier.send(gather[0], _SEND)
            except BlockingIOError:
                sent = 0
            if sent == len(gather[0]):
                return
            gather[0] = memoryview(gather[0])[sent:]
        queue: deque[Buffer] = deque(gather)
        while queue:
            try:
                if len(queue) == 1:
                    count = self._carrier.send(queue[0], _SEND)
                else:
                    count = self._carrier.sendmsg(list(itertools.islice(queue, IOV_MAX)), (), _SEND)
            except BlockingIOError:
                self._make_way()
                continue
            advance(queue, count)

    def _make_way(self) -> None:
        """The socket is full. The server may be waiting for us to take answers, so take what is there.

        What it raises breaks the connection: a frame has been sent in part, and anything sent later would be taken for
        the rest of it.
        """
        try:
            self._take_or_wait()
        except FfsError as exc:
            self._break(exc)
            raise

    def _take_or_wait(self) -> None:
        # With nothing outstanding (a first request larger than the socket) the batch's own deadline is not known
        # here; the kernel's user timeout ends a wait for a host that is gone.
        end_s = min((p.deadline_s for p in self._outstanding.values()), default=time.monotonic() + DEADLINE_S_MAX)
        left_s = max(end_s - time.monotonic(), 0.0)
        if self._rdma is not None:
            moved = self._rdma.wait(self.sock, left_s)
            comes = self._rdma.messages.pending
        else:
            poller = select.poll()
            poller.register(self.sock, select.POLLIN | select.POLLOUT)
            events = poller.poll(left_s * 1000)
            moved = bool(events)
            comes = moved and bool(events[0][1] & (select.POLLIN | select.POLLHUP | select.POLLERR))
        if comes:
            self._receive_one()
        elif not moved:
            raise error(Code.TIMEOUT, f"{self.name} did not take the request in time")

    # Receiving

    def _receive_one(self) -> None:
        incoming, expected = self._incoming, self._payload
        incoming.need(HEADER_BYTES, expected)
        header = frame.parse_header(incoming.view, incoming.begin)
        if header.kind != Kind.REPLY:
            incoming.need(HEADER_BYTES + header.body_len, expected)
            if header.kind == Kind.REFUSE:
                body_at = incoming.begin + HEADER_BYTES
                frame.parse_answer(header, incoming.view[body_at : body_at + header.body_len])
            raise error(Code.PROTOCOL, f"{self.name} sent a frame of kind {header.kind} where a reply belongs")
        pending = self._outstanding.get(header.request_id)
        if pending is None:
            raise error(Code.PROTOCOL, f"{self.name} answered request {header.request_id}, which is not outstanding")
        table_bytes = 4 * header.n_into
        total = HEADER_BYTES + table_bytes + header.body_len
        incoming.need(total, expected)
        begin, view = incoming.begin, incoming.view
        body_at = begin + HEADER_BYTES + table_bytes
        text = bytes(view[body_at : begin + total])
        pushed: Sequence[int] = ()
        if header.status:
            if header.data_len:
                raise error(Code.PROTOCOL, "a failure carries payload")
            outcome: Reply | FfsError = error(header.status, text.decode("utf-8", "replace"))
            incoming.begin = begin + total
            self.counts.failures += 1
        else:
            if header.n_into:
                pushed = frame.parse_pushed(header, view[begin + HEADER_BYTES : body_at], pending.rooms)
                self.counts.bytes_in += sum(pushed)
            incoming.begin = begin + total
            if header.data_len or pushed:
                sinks = deque(pending.sinks(text, pushed))
                if sum(map(len, sinks)) != header.data_len:
                    raise error(
                        Code.PROTOCOL,
                        f"{self.name} sent {header.data_len} bytes of payload, its table says otherwise",
                    )
                incoming.land(sinks, header.data_len)
            outcome = Reply(text, pushed)
        del self._outstanding[header.request_id]
        self._payload -= pending.payload
        if not header.status:
            pending.landed(text, pushed)
        pending.outcome = outcome
        self._release(pending, answered=True)

    # Endings

    def _lost(self, exc: OSError) -> FfsError:
        return error(Code.UNAVAILABLE, f"{self.name}: connection lost: {exc.strerror or os.strerror(exc.errno or 5)}")

    def _break(self, exc: FfsError) -> None:
        """The connection ends: so do all calls on it. Over shm the server may still write what they offered."""
        if self.broken is None:
            self.broken = exc
        self.close()  # with rdma, no peer writes there any more once this returns
        self.counts.failures += len(self._outstanding)
        for pending in self._outstanding.values():
            pending.outcome = exc
            self._release(pending, answered=False)
        self._outstanding.clear()
        self._gather = []

    def _release(self, pending: Pending, *, answered: bool) -> None:
        if not answered:
            for memory in pending.shared:
                memory.tainted = True
        staging = pending.staging
        if staging is not None and self._staging is not None:
            pending.staging = pending.spread = None
            pending.staged = []
            if not answered:
                staging.tainted = True
            self._staging.give(staging)
