"""Sends a stored update to the next replica, along the newest chain, until it is committed there or cannot be.

Ownership: extents point into the memory that the update was pulled into; they are relayed as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from fireflyfs.client.routing import Chain
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.net.api import Call
from fireflyfs.common.net.methods import Method
from fireflyfs.proto.storage_wire import UpdateFlag, UpdateKind
from fireflyfs.storage.core import forward, versions
from fireflyfs.storage.core.forward import Form, Hop
from fireflyfs.storage.core.target import Public
from fireflyfs.storage.engine.interface import ChunkKey, Extent, Writer
from fireflyfs.storage.service.local_target import LocalTarget
from fireflyfs.storage.service.replica import Replicas
from fireflyfs.storage.service.wire import Item, Result, decode_results, encode_update, failed

WHOLE_BYTES_MAX = 16 << 20  # of whole chunks read into memory for one request to a syncing successor
ATTEMPT_S = 20.0


class Forwarder:
    """The way from one replica to the next."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    async def forward(
        self,
        local: LocalTarget,
        chain_id: int,
        writer: Writer,
        items: Sequence[Item],
        deadline_s: float,
    ) -> dict[ChunkKey, Result]:
        """What became of each item further down; with no successor, OK with crc32c 0: this target is the tail.

        The items are pending here. A target that stops serving has no word in it any more: TARGET_OFFLINE, even when it
        is in the chain again. Never raises FfsError.
        """
        term = local.term
        waiting = list(items)
        done: dict[ChunkKey, Result] = {}
        attempt = 0
        clock = self._replicas.clock
        while True:
            why = Code.UNAVAILABLE
            try:
                chain = self._replicas.routing.chain(chain_id)
                hop = forward.next_hop(chain, local.target_id)
                if hop is None or local.term != term or forward.public_state(chain, local.target_id) != Public.SERVING:
                    done.update((item.key, failed(Code.TARGET_OFFLINE)) for item in waiting)
                    return done
                if hop.form is Form.NONE:
                    done.update((item.key, Result(Code.OK, chain.version, item.version, 0, 0)) for item in waiting)
                    return done
                self._replicas.check_fence()
                answers = await self._send(local, chain, hop, writer, waiting, deadline_s)
            except FfsError as exc:
                why = exc.code
                if not forward.try_again(why):
                    done.update((item.key, failed(why)) for item in waiting)
                    return done
            else:
                for item in waiting:
                    answer = answers[item.key]
                    if hop.form is Form.SAME and versions.has_fallen_behind(answer.code):
                        local.diverge(
                            f"chunk {item.key.inode}.{item.key.chunk_index} version {item.version}: "
                            f"target {hop.target_id} has committed another one"
                        )
                        done[item.key] = failed(Code.TARGET_OFFLINE)
                        continue
                    # One that is being brought up to date and has no room leaves the chain by itself.
                    leaves = hop.form is Form.REPLACE and answer.code is Code.NO_SPACE
                    if not leaves and not forward.try_again(answer.code):
                        done[item.key] = answer
                    else:
                        why = answer.code
                waiting = [item for item in waiting if item.key not in done]
                if not waiting:
                    return done
            attempt += 1
            self._replicas.count("forward_retries")
            pause = forward.backoff_s(attempt)
            if clock.monotonic_s() + pause >= deadline_s:
                code = Code.CHECKSUM if why is Code.CHECKSUM else Code.TIMEOUT
                done.update((item.key, failed(code)) for item in waiting)
                return done
            await self._replicas.wait_change(pause)

    async def _send(
        self,
        local: LocalTarget,
        chain: Chain,
        hop: Hop,
        writer: Writer,
        items: Sequence[Item],
        deadline_s: float,
    ) -> dict[ChunkKey, Result]:
        syncing = hop.form is Form.REPLACE
        if not syncing and not any(item.whole for item in items):
            return await self.send_once(local, chain, hop, writer, items, 0, deadline_s)
        flags = UpdateFlag.SYNCING if syncing else 0
        as_they_are = [item for item in items if not syncing and not item.whole]
        whole = [item for item in items if syncing or item.whole]
        answers: dict[ChunkKey, Result] = {}
        if as_they_are:
            answers.update(await self.send_once(local, chain, hop, writer, as_they_are, flags, deadline_s))
        while whole:
            batch: list[Item] = []
            size = 0
            while whole and (not batch or size + whole[0].chunk_size <= WHOLE_BYTES_MAX):
                item = whole.pop(0)
                try:
                    batch.append(await local.call(read_pending, local, item))
                except FfsError as exc:
                    if exc.code is Code.CHECKSUM:
                        # It may be committed nowhere, so nobody can be asked for it. Those who sent it send it to
                        # the replicas that are left.
                        local.diverge(f"chunk {item.key.inode}.{item.key.chunk_index}: its pending version is lost")
                    raise
                size += item.chunk_size
            answers.update(await self.send_once(local, chain, hop, writer, batch, flags, deadline_s))
        return answers

    async def send_once(
        self,
        local: LocalTarget,
        chain: Chain,
        hop: Hop,
        writer: Writer,
        items: Sequence[Item],
        flags: int,
        deadline_s: float,
    ) -> dict[ChunkKey, Result]:
        """One request to `hop`. Raises FfsError; UNAVAILABLE when it stops being the successor meanwhile."""
        body, pieces = encode_update(chain.chain_id, chain.version, writer, flags, items)
        left = min(ATTEMPT_S, deadline_s - self._replicas.clock.monotonic_s())
        if left <= 0:
            raise error(Code.TIMEOUT)
        call = Call(Method.STORAGE_UPDATE, body, out=pieces, deadline_s=left)
        address = self._replicas.routing.address(hop.target_id)
        with self._replicas.until_superseded(local, hop):
            reply = await self._replicas.link.call(address, call)
        return dict(zip([item.key for item in items], decode_results(reply.body, len(items)), strict=True))


def read_pending(local: LocalTarget, item: Item) -> Item:
    """The item as the replacement by, or removal of, the whole chunk that is pending (or committed) here."""
    return read_whole(local, item.key, item.version, pending=True)


def read_whole(local: LocalTarget, key: ChunkKey, version: int, *, pending: bool) -> Item:
    """The chunk's version `version` as one REPLACE or REMOVE. Raises CHUNK_BUSY when that version is not there."""
    state = local.engine.stat(key)
    found = (state.pending if pending else state.committed) if state is not None else None
    if state is None or found is None or found.version != version:
        raise error(Code.CHUNK_BUSY, f"version {version} of chunk {key.inode}.{key.chunk_index} is not here")
    if found.removed:
        return Item(key, UpdateKind.REMOVE, version, state.chunk_size, 0)
    extents: list[Extent] = []
    if found.length:
        data = memoryview(bytearray(found.length))
        result = local.engine.read(key, 0, data, pending=pending)
        if result.length != found.length or result.version != version:
            raise error(Code.CHUNK_BUSY, f"chunk {key.inode}.{key.chunk_index} has changed")
        extents.append(Extent(0, data, result.crc32c))
    crc = extents[0].crc32c if extents else 0
    if extents and crc != found.crc32c:
        raise error(Code.CHECKSUM, f"chunk {key.inode}.{key.chunk_index} does not match its checksum")
    base = state.committed.version if state.committed is not None else 0
    return Item(key, UpdateKind.REPLACE, version, state.chunk_size, found.length, crc, extents, base, name=found.name)
