"""The cluster as a check sees it: lists of chunks and files read page by page, fresh looks, and what repairs it.

Safe to use from several threads. Memory: `BUFFERED_MAX` listed chunks, however many there are.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from google.protobuf.message import DecodeError

from fireflyfs.client.fsck.core.facts import ABSENT, Content, Copy, File, Finding, Key, Look, Suspect, Writer
from fireflyfs.client.fsck.core.scan import Lost
from fireflyfs.client.routing import Routing, apply_delta
from fireflyfs.client.session import ClientContext
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import UPDATE_ITEMS_MAX
from fireflyfs.common.net.api import Call, Reply
from fireflyfs.common.net.methods import Method
from fireflyfs.proto import meta_pb2, mgmtd_pb2, storage_pb2

BUFFERED_MAX = 200_000  # listed chunks in memory, of all lists together
PAGE_MAX = 1024
PAGE_MIN = 16
LISTS_AT_ONCE = 4  # pages that are being fetched
LOOK_PART = 1024  # chunks of one question to one target
FILES_PART = 512  # files of one question to meta, which answers nobody else meanwhile
CALL_DEADLINE_S = 20.0
LOST_AFTER_S = 30.0  # a serving target that cannot be listed for so long is given up
PAUSE_S = 0.5


class Cluster:
    """The edge between the check and the servers."""

    def __init__(self, context: ClientContext) -> None:
        self._context = context
        self._pool = ThreadPoolExecutor(LISTS_AT_ONCE, thread_name_prefix="fsck")

    def close(self) -> None:
        """Pages under way are waited for."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    # What there is

    def monotonic_s(self) -> float:
        return self._context.clock.monotonic_s()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def chains(self) -> dict[int, tuple[int, ...]]:
        """Chain id to its serving targets, head first, as of now."""
        return {chain_id: chain.serving for chain_id, chain in self._context.routing.current().chains.items()}

    def next_inode(self) -> int:
        """Ids from here on were not given out yet. Raises NOT_PERMITTED for everybody but root."""
        return self._context.meta.list_files(meta_pb2.ListFilesRequest(limit=1)).next_inode

    def files(self) -> Iterator[File]:
        """All regular files in id order."""
        ahead: Future[meta_pb2.ListFilesReply] = self._pool.submit(self._files_after, 0)
        while True:
            reply = ahead.result()
            if reply.more:
                ahead = self._pool.submit(self._files_after, reply.last)
            yield from map(_file, reply.files)
            if not reply.more:
                return

    def _files_after(self, after: int) -> meta_pb2.ListFilesReply:
        return self._context.meta.list_files(meta_pb2.ListFilesRequest(after=after))

    def listed(self, target_id: int, lists: int) -> Iterator[tuple[Key, Copy]]:
        """What a serving target holds, in key order, as one of `lists` that are read together.

        Raises Lost once it does not serve any more, or cannot be read.
        """
        page = max(PAGE_MIN, min(PAGE_MAX, BUFFERED_MAX // (2 * max(lists, 1))))
        ahead = self._pool.submit(self._page, target_id, None, page)
        while True:
            reply = ahead.result()
            if reply.more:
                ahead = self._pool.submit(self._page, target_id, reply.chunks[-1].state.chunk, page)
            for chunk in reply.chunks:
                where = chunk.state.chunk
                yield Key(where.inode, where.index), _copy(chunk)
            if not reply.more:
                return

    def _page(self, target_id: int, after: storage_pb2.ChunkId | None, limit: int) -> storage_pb2.ListChunksReply:
        request = storage_pb2.ListChunksRequest(target_id=target_id, after=after, limit=limit)
        end_s = self.monotonic_s() + LOST_AFTER_S
        while True:
            routing = self._context.routing.current()
            if not any(target_id in chain.serving for chain in routing.chains.values()):
                raise Lost("it left its chain meanwhile")
            try:
                reply = self._ask(routing, [(target_id, request)])[0]
                if isinstance(reply, FfsError):
                    raise reply
                if reply.serving:
                    return reply
                why = "it says that it does not serve"
            except FfsError as exc:
                why = exc.message
            if self.monotonic_s() > end_s:
                raise Lost(why)
            self._context.routing.wait_newer(routing.version, PAUSE_S)

    def _ask(
        self, routing: Routing, questions: Sequence[tuple[int, storage_pb2.ListChunksRequest]]
    ) -> list[storage_pb2.ListChunksReply | FfsError]:
        """All questions to targets at once. Raises TARGET_OFFLINE for a target without an address."""
        calls = [
            (
                routing.address(target_id),
                Call(Method.STORAGE_LIST_CHUNKS, request.SerializeToString(), deadline_s=CALL_DEADLINE_S),
            )
            for target_id, request in questions
        ]
        return [_decoded(answer) for answer in self._context.link.call_many(calls)]

    # A fresh look

    def look(self, suspects: Sequence[Suspect]) -> list[Look | None]:
        """At each chunk: first all serving replicas are asked, then meta. None: a replica did not answer as one that
        serves in the newest version of its chain."""
        routing = self._context.routing.current()
        of_chain: dict[int, list[int]] = {}  # chain id to places in suspects
        for place, suspect in enumerate(suspects):
            of_chain.setdefault(suspect.chain_id, []).append(place)
        copies: dict[int, dict[int, Copy]] = {}
        for chain_id, places in of_chain.items():
            for start in range(0, len(places), LOOK_PART):
                part = places[start : start + LOOK_PART]
                answers = self._copies(routing, chain_id, [suspects[place] for place in part])
                for place, found in zip(part, answers, strict=True):
                    if found is not None:
                        copies[place] = found
        files = self._files_of(sorted({suspects[place].key.inode for place in copies}))
        at_s = self.monotonic_s()
        return [
            Look(at_s, routing.chains[suspect.chain_id].version, copies[place], files.get(suspect.key.inode))
            if place in copies
            else None
            for place, suspect in enumerate(suspects)
        ]

    def _copies(self, routing: Routing, chain_id: int, suspects: Sequence[Suspect]) -> Sequence[dict[int, Copy] | None]:
        chain = routing.chains.get(chain_id)
        if chain is None or not chain.serving:
            return [None] * len(suspects)
        chunks = [storage_pb2.ChunkId(inode=each.key.inode, index=each.key.chunk_index) for each in suspects]
        try:
            answers = self._ask(
                routing,
                [(target, storage_pb2.ListChunksRequest(target_id=target, chunks=chunks)) for target in chain.serving],
            )
        except FfsError:
            return [None] * len(suspects)
        for answer in answers:
            if isinstance(answer, FfsError) or not answer.serving or answer.chain_version != chain.version:
                return [None] * len(suspects)
            if len(answer.chunks) != len(suspects):
                raise error(Code.PROTOCOL, f"{len(answer.chunks)} chunks were answered for {len(suspects)}")
        whole = [answer for answer in answers if not isinstance(answer, FfsError)]
        return [
            {target: _copy(answer.chunks[place]) for target, answer in zip(chain.serving, whole, strict=True)}
            for place in range(len(suspects))
        ]

    def _files_of(self, inodes: Sequence[int]) -> Mapping[int, File]:
        found: dict[int, File] = {}
        for start in range(0, len(inodes), FILES_PART):
            request = meta_pb2.ListFilesRequest(inodes=inodes[start : start + FILES_PART])
            found.update((state.inode, _file(state)) for state in self._context.meta.list_files(request).files)
        return found

    # Repair

    def drop(self, chain_id: int, findings: Sequence[Finding]) -> list[Code]:
        """Remove, or shorten, what was found, each chunk while it is what was seen; a code for each."""
        codes: list[Code] = []
        for start in range(0, len(findings), UPDATE_ITEMS_MAX):
            seen = [_seen(finding) for finding in findings[start : start + UPDATE_ITEMS_MAX]]
            try:
                codes += self._context.storage.drop_chunks(chain_id, seen)
            except FfsError as exc:
                codes += [exc.code] * len(seen)
        return codes

    def resync(self, chain_id: int, target_id: int, timeout_s: float) -> None:
        """Take a serving target out of its chain, and return when it serves again. mgmtd never takes the last one.

        Raises FfsError: mgmtd's refusal, or TIMEOUT.
        """
        mgmtd = self._context.mgmtd
        before = apply_delta(Routing(), mgmtd.routing()).chain(chain_id).version
        request = mgmtd_pb2.UpdateChainRequest(
            chain_id=chain_id,
            target_id=target_id,
            kind=mgmtd_pb2.UPDATE_CHAIN_RESYNC,
            expected_version=before,
        )
        after = mgmtd.update_chain(request).chain_version
        end_s = self.monotonic_s() + timeout_s
        while True:
            routing = self._context.routing.current()
            chain = routing.chains.get(chain_id)
            if chain is not None and chain.version > after and target_id in chain.serving:
                return
            if self.monotonic_s() > end_s:
                raise error(Code.TIMEOUT, f"target {target_id} was not brought up to date within {timeout_s:g} s")
            self._context.routing.wait_newer(routing.version, PAUSE_S)


def _decoded(answer: Reply | FfsError) -> storage_pb2.ListChunksReply | FfsError:
    if isinstance(answer, FfsError):
        return answer
    try:
        return storage_pb2.ListChunksReply.FromString(bytes(answer.body))
    except DecodeError:
        return error(Code.PROTOCOL, "the answer is no ListChunksReply")


def _copy(chunk: storage_pb2.ListedChunk) -> Copy:
    state = chunk.state
    if not state.committed_version and not state.pending_version and not chunk.busy:
        return ABSENT
    content = None
    if state.committed_version:
        content = Content(state.committed_version, state.length, state.crc32c, state.chunk_size, state.named)
    return Copy(
        content,
        _writer(chunk.writer) if chunk.HasField("writer") else None,
        state.pending_version,
        _writer(chunk.pending_writer) if chunk.HasField("pending_writer") else None,
        chunk.busy,
    )


def _writer(writer: storage_pb2.ChunkWriter) -> Writer:
    return Writer(writer.client_id, writer.channel, writer.sequence)


def _file(state: meta_pb2.FileState) -> File:
    return File(
        state.inode,
        state.length,
        state.truncate_version,
        state.chunk_size,
        tuple(state.chains),
        state.writing,
        state.trimming,
        state.removed,
    )


def _seen(finding: Finding) -> storage_pb2.SeenChunk:
    assert finding.key is not None
    writer = finding.writer
    return storage_pb2.SeenChunk(
        chunk=storage_pb2.ChunkId(inode=finding.key.inode, index=finding.key.chunk_index),
        version=finding.version,
        writer=storage_pb2.ChunkWriter(client_id=writer.client_id, channel=writer.channel, sequence=writer.sequence)
        if writer is not None
        else None,
        keep_bytes=finding.keep_bytes,
    )
