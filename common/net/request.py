"""One request at the server: the `ServerRequest` of api.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.net.api import Peer
from fireflyfs.common.net.frame import INLINE, Buffer, Header, Segment, pack_failure, pack_reply

if TYPE_CHECKING:
    from fireflyfs.common.net.connection import Connection
    from fireflyfs.common.net.rdma.buffers import RegisteredBuffer
    from fireflyfs.common.net.rdma.server import ServerEnd


class Request:
    """Owned by its connection until `reply` or `fail`; its views die with it."""

    __slots__ = (
        "_buffers", "_connection", "_fetched", "_into", "_out", "_outgoing", "_pulled", "_push", "_push_inline",
        "answered", "body", "deadline_s", "inline", "method", "payload_bytes", "peer", "request_id",
    )  # fmt: skip

    def __init__(
        self,
        connection: Connection,
        header: Header,
        out: list[Segment],
        into: list[Segment],
        payload_bytes: int,
        body: bytes,
        deadline_s: float,
    ) -> None:
        self.method: int = header.method
        self.request_id = header.request_id
        self.body: memoryview = memoryview(body)
        self.peer: Peer = connection.peer
        self.deadline_s: float = deadline_s
        self.payload_bytes = payload_bytes
        self.answered = False
        self.inline: memoryview | None = None  # payload that came with the frame
        self._connection = connection
        self._out = out
        self._into = into
        self._buffers: list[bytearray] = []
        self._pulled: list[memoryview] | None = None
        self._push: list[memoryview] | None = None
        self._push_inline: memoryview | None = None
        self._fetched: RegisteredBuffer | None = None  # rdma: what was read from the client
        self._outgoing: RegisteredBuffer | None = None  # rdma: what is to be written to it

    @property
    def pull_lengths(self) -> Sequence[int]:
        return [segment[1] for segment in self._out]

    @pull_lengths.setter
    def pull_lengths(self, value: Sequence[int]) -> None:
        raise AttributeError("lengths are the client's")

    @property
    def push_lengths(self) -> Sequence[int]:
        return [segment[1] for segment in self._into]

    @push_lengths.setter
    def push_lengths(self, value: Sequence[int]) -> None:
        raise AttributeError("lengths are the client's")

    @property
    def holds_registered(self) -> bool:
        """Whether an rdma buffer has to go back, be it for pieces without a byte."""
        return self._fetched is not None or self._outgoing is not None

    def take_buffer(self, length: int) -> memoryview:
        """Private memory until the answer has left."""
        buffer = self._connection.server.buffers.take(length)
        self._buffers.append(buffer)
        return memoryview(buffer)[:length]

    async def pull(self) -> list[memoryview]:
        mover = self._connection.mover
        if mover is not None and self._pulled is None and self._fetched is None:
            remote = [segment for segment in self._out if segment[0] != INLINE]
            if remote:
                fetched = await mover.pull(remote, self.deadline_s)
                if self.answered:  # failed by another hand meanwhile: nobody would give the buffer back
                    fetched.drop()
                    raise error(Code.CANCELLED, "the request was answered while its payload came")
                self._fetched = fetched
        return self.pull_now()

    def pull_now(self) -> list[memoryview]:
        """What is left of `pull` without a wait: tcp has the bytes, rdma has fetched them, shm copies them here so
        that the client cannot change them."""
        if self._pulled is None:
            if not self._out:
                return []
            regions = self._connection.regions
            fetched = self._fetched
            if fetched is not None:
                shared, private = [], fetched.view
            else:
                shared = [regions.view(*segment) for segment in self._out if segment[0] != INLINE]
                private = self.take_buffer(sum(map(len, shared))) if shared else memoryview(b"")
            pulled, inline, position, start, source = [], self.inline, 0, 0, iter(shared)
            for region, length, _ in self._out:
                if region == INLINE:
                    pulled.append(inline[start : start + length] if inline is not None else private[:0])
                    start += length
                else:
                    piece = private[position : position + length]
                    if fetched is None:
                        piece[:] = next(source)
                    pulled.append(piece)
                    position += length
            self._pulled = pulled
        return self._pulled

    def push_views(self) -> list[memoryview]:
        if self._push is None:
            mover = self._connection.mover
            into = self._into
            view = self._connection.regions.view if mover is None else self._place(mover)
            inline = [length for region, length, _ in into if region == INLINE]
            if not inline:
                self._push = [view(region, length, offset) for region, length, offset in into]
                return self._push
            private = self._push_inline = self.take_buffer(sum(inline))
            push: list[memoryview] = []
            position = 0
            for region, length, offset in into:
                if region == INLINE:
                    push.append(private[position : position + length])
                    position += length
                else:
                    push.append(view(region, length, offset))
            self._push = push
        return self._push

    def _place(self, mover: ServerEnd) -> Callable[[int, int, int], memoryview]:
        """rdma: one registered buffer for all pieces that go to the client's regions, given out in order."""
        remote = [segment for segment in self._into if segment[0] != INLINE]
        mover.check(remote)
        self._outgoing = mover.pool.take(max(sum(segment[1] for segment in remote), 1)) if remote else None
        position = 0

        def view(region: int, length: int, offset: int) -> memoryview:
            nonlocal position
            position += length
            assert self._outgoing is not None
            return self._outgoing.view[position - length : position]

        return view

    def reply(self, body: Buffer = b"", pushed: Sequence[int] = ()) -> None:
        if self.answered:
            raise RuntimeError("request answered twice")
        data: list[memoryview] = []
        data_len = 0
        if pushed:
            self._connection.counts.bytes_in += sum(pushed)
            if len(pushed) > len(self._into):
                raise ValueError(f"{len(pushed)} pieces pushed, {len(self._into)} offered")
            views = self.push_views()
            for (region, room, _), length, view in zip(self._into, pushed, views, strict=False):
                if not 0 <= length <= room:
                    raise ValueError(f"{length} bytes pushed into a piece of {room}")
                if region == INLINE and length:
                    data.append(view if length == room else view[:length])
                    data_len += length
            if self._push_inline is not None and data_len == len(self._push_inline):
                data = [self._push_inline]  # all of it, in order: one piece to send
        head = pack_reply(self.request_id, pushed, len(body), data_len)
        self.answered = True
        # The body may be a view of the request or of a buffer that its owner fills again: take its bytes now.
        answer: list[Buffer] = [head + bytes(body), *data] if body else [head, *data]
        outgoing, mover = self._outgoing, self._connection.mover
        if outgoing is None or mover is None or not pushed:
            self._connection.answer(self, answer)
            return
        into = [(segment, length) for segment, length in zip(self._into, pushed, strict=False) if segment[0] != INLINE]
        try:
            mover.push([s for s, _ in into], [n for _, n in into], outgoing)
        except FfsError as exc:
            answer = [pack_failure(self.request_id, exc.code, exc.message)]
        self._connection.answer(self, answer, sum(pushed))

    def fail(self, code: Code, message: str = "") -> None:
        if self.answered:
            raise RuntimeError("request answered twice")
        self.answered = True
        self._connection.counts.failures += 1
        self._connection.answer(self, [pack_failure(self.request_id, int(code), message)])

    def release(self) -> None:
        """The answer has left: buffers go back to the pool."""
        give = self._connection.server.buffers.give
        for buffer in self._buffers:
            give(buffer)
        self._buffers.clear()
        for registered in (self._fetched, self._outgoing):
            if registered is not None:
                registered.drop()
        self._fetched = self._outgoing = None
        self._pulled = self._push = self._push_inline = self.inline = None
