"""One update request on one replica: lock, decide, store, forward, commit.

The order, and why:
1. The data is verified before anything is locked: a damaged request costs nobody anything.
2. All chunks are locked in key order (no deadlock), then the chain version is checked again: a request that waited for
   a lock may have waited through a change of the chain.
3. The update is stored here before it leaves for the successor. The tail shows readers what it has committed; were the
   head killed before it had stored that, and the first of all replicas to return, it would lead without it.
4. This replica commits only what its successor has committed with the same checksum.
One that is cancelled (its server stops) waits for the threads that work on its memory, and leaves what a crash leaves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import crc32c as crc32c_module

from fireflyfs.client.routing import Chain
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.proto.storage_wire import CREATES, UpdateFlag, UpdateKind
from fireflyfs.storage.core import forward, target, versions
from fireflyfs.storage.core.forward import Form
from fireflyfs.storage.core.scrub import Outcome
from fireflyfs.storage.core.target import Public
from fireflyfs.storage.core.versions import Action, Decision
from fireflyfs.storage.engine.interface import ChunkKey, ChunkState, Update, Version
from fireflyfs.storage.service.forwarding import Forwarder
from fireflyfs.storage.service.local_target import INLINE_BYTES_MAX, INLINE_ITEMS_MAX, LocalTarget
from fireflyfs.storage.service.repair import Repairer
from fireflyfs.storage.service.replica import Replicas
from fireflyfs.storage.service.wire import Item, Result, UpdateRequest, failed

log = logging.getLogger(__name__)

FINISH_ROUNDS_MAX = 3
LOCK_WAIT_MAX_S = 30.0
_ONTO_NOTHING = (UpdateKind.WRITE, UpdateKind.PUT)  # what may make a chunk: the head says so to the others

Applied = dict[ChunkKey, Version | Code]


class Updater:
    """Runs updates; the same code for a client's write at the head and a forwarded one further down."""

    def __init__(self, replicas: Replicas, repairer: Repairer) -> None:
        self._replicas = replicas
        self._repairer = repairer
        self.forwarder = Forwarder(replicas)

    async def run(self, request: UpdateRequest, deadline_s: float, *, from_client: bool) -> list[Result]:
        """One result for each item, in order. Raises FfsError when the request as a whole is refused."""
        await self._replicas.catch_up(request.chain_id, request.chain_version)
        local, _ = self._admit(request, from_client)
        if request.data_bytes <= INLINE_BYTES_MAX:
            bad = _damaged(request.items)
        else:
            bad = await local.call(_damaged, request.items)
        writer = request.writer
        earlier: dict[ChunkKey, Result] = {}
        if from_client:
            code, earlier = local.once.begin(writer)
            if code is not Code.OK:
                raise error(code, f"sequence {writer.sequence} of channel {writer.channel}")
        results = dict(earlier) | {key: failed(Code.CHECKSUM) for key in bad}
        todo = [item for item in request.items if item.key not in results]
        if from_client and local.once.is_finished(writer):
            results.update((item.key, Result(Code.OK, request.chain_version, 0, 0, 0)) for item in todo)
            todo = []
        fresh: dict[ChunkKey, Result] = {}
        try:
            if todo:
                with local.under_way():
                    fresh = await self._locked(local, request, todo, deadline_s, from_client)
        finally:
            successes = [(key, result) for key, result in fresh.items() if result.code is Code.OK]
            if from_client:
                local.once.end(writer, successes, finished=not bad and len(successes) == len(todo))
            elif not request.flags & UpdateFlag.RESYNC:
                local.once.note(writer, successes)
        results.update(fresh)
        return [results[item.key] for item in request.items]

    def _admit(self, request: UpdateRequest, from_client: bool) -> tuple[LocalTarget, Chain]:
        local, chain = self._replicas.at(request.chain_id, request.chain_version)
        if from_client:
            if not target.may_serve(local.state, local.public):
                raise error(Code.TARGET_OFFLINE, f"target {local.target_id} does not serve")
            if not forward.is_head(chain, local.target_id):
                raise error(Code.NOT_HEAD, f"target {local.target_id} is not the head of chain {chain.chain_id}")
        elif not target.may_receive(local.state, local.public):
            raise error(Code.TARGET_OFFLINE, f"target {local.target_id} takes no updates")
        elif bool(request.flags & UpdateFlag.SYNCING) is not (local.public is Public.SYNCING):
            raise error(Code.CHAIN_VERSION, f"target {local.target_id} is {local.public.name}")
        return local, chain

    async def _locked(
        self, local: LocalTarget, request: UpdateRequest, items: Sequence[Item], deadline_s: float, from_client: bool
    ) -> dict[ChunkKey, Result]:
        locked = sorted([item.key for item in items])
        if not local.locks.take_now(locked):
            wait_s = min(LOCK_WAIT_MAX_S, max(0.0, deadline_s - self._replicas.clock.monotonic_s()))
            await local.locks.take(locked, wait_s)
        try:
            now, chain = self._admit(request, from_client)
            assert now is local, "a chain has another target of this worker in the same version"
            keys = [item.key for item in items]
            if len(keys) <= INLINE_ITEMS_MAX:
                states = _stat_all(local, keys)
            else:
                states = await local.call(_stat_all, local, keys)
            results: dict[ChunkKey, Result] = {}
            fresh: list[Item] = []
            again: list[Item] = []
            done = local.once.done(request.writer) if from_client else {}
            for item in items:
                if item.key in done:
                    results[item.key] = done[item.key]
                    continue
                state = states[item.key]
                decision = _decide(local, chain, request, item, state, from_client)
                if decision.action is Action.FINISH_FIRST and state is not None:
                    decision, state = await self._finish_first(local, chain, request, item, state, deadline_s)
                if decision.action is Action.APPLY:
                    item.version = decision.version
                    if from_client and state is not None and state.pending is not None:
                        item.whole = True  # it leaves out the number of the one that it replaces
                    if from_client and item.kind in _ONTO_NOTHING:
                        item.length = CREATES if state is None or state.committed is None else 0
                    fresh.append(item)
                elif decision.action is Action.FORWARD:
                    item.version = decision.version
                    item.whole = True
                    again.append(item)
                elif decision.action is Action.REFUSE:
                    results[item.key] = failed(decision.code)
                else:
                    if item.kind is UpdateKind.REMOVE and not from_client:
                        local.note_version(item.key, item.version, chain.version)
                    results[item.key] = _as_it_is(chain, state)
            if fresh or again:
                results.update(await self._store(local, chain, request, fresh, again, states, deadline_s))
            return results
        finally:
            local.locks.give(locked)

    async def _finish_first(
        self,
        local: LocalTarget,
        chain: Chain,
        request: UpdateRequest,
        item: Item,
        state: ChunkState,
        deadline_s: float,
    ) -> tuple[Decision, ChunkState | None]:
        """At the head, over another writer's pending version: finish that, then decide."""
        now: ChunkState | None = state
        replace = False
        for _ in range(FINISH_ROUNDS_MAX):
            if now is not None:
                outcome = await self.finish_locked(local, chain.chain_id, now, deadline_s)
                if outcome is not Code.OK:
                    version = local.chain.version if local.chain is not None else 0
                    pending = now.pending
                    if pending is None or not versions.may_replace_pending(outcome, pending, item.kind, version):
                        return Decision(Action.REFUSE, 0, outcome, "the pending version cannot be finished"), now
                    replace = True
            now = await local.call(local.engine.stat, item.key)
            decision = _decide(local, chain, request, item, now, True, replace_pending=replace)
            if decision.action is not Action.FINISH_FIRST:
                return decision, now
        return Decision(Action.REFUSE, 0, Code.CHUNK_BUSY, "a pending version does not go away"), now

    async def finish_locked(self, local: LocalTarget, chain_id: int, state: ChunkState, deadline_s: float) -> Code:
        """Forward and commit the chunk's pending version. The caller holds the chunk's lock."""
        pending = state.pending
        if pending is None:
            return Code.OK
        self._replicas.count("pending_finished")
        item = Item(state.key, UpdateKind.REPLACE, pending.version, state.chunk_size, pending.length, whole=True)
        outcome = await self.forwarder.forward(local, chain_id, pending.writer, [item], deadline_s)
        answer = outcome[state.key]
        if answer.code is not Code.OK:
            return answer.code
        committed = await self._commit(local, {state.key: pending}, outcome, remember=True)
        result = committed[state.key]
        if result.code is Code.OK:
            local.once.note(pending.writer, [(state.key, result)])
        return result.code

    async def _store(
        self,
        local: LocalTarget,
        chain: Chain,
        request: UpdateRequest,
        fresh: list[Item],
        again: list[Item],
        states: Mapping[ChunkKey, ChunkState | None],
        deadline_s: float,
    ) -> dict[ChunkKey, Result]:
        updates = [
            Update(
                item.key,
                item.kind,
                item.version,
                chain.version,
                item.chunk_size,
                item.length,
                item.extents,
                request.writer,
                item.crc32c,
                item.name,
            )
            for item in fresh
        ]
        size = request.data_bytes
        remember = not request.flags & UpdateFlag.RESYNC  # recovery sends what was done long ago
        hop = forward.next_hop(chain, local.target_id)
        if hop is not None and hop.form is Form.NONE and not again:
            # The tail commits at once, in the same visit. A successor that appears meanwhile misses
            # nothing: its resync begins by waiting for the updates under way (`LocalTarget.drain`).
            applied = await local.call_short(
                size, len(updates), _apply_and_commit, local, updates, chain.version, remember
            )
            for update in await self._mended(local, chain, updates, applied):
                applied.update(await local.call(_apply_and_commit, local, [update], chain.version, remember))
            local.note_removed(applied, chain.version)
            if request.flags & UpdateFlag.SYNCING and Code.NO_SPACE in applied.values():
                local.run_out_of_room()
            for item in fresh:
                if item.kind is UpdateKind.DAMAGED:
                    local.suspect(item.key)  # once this replica serves, another one may have come back that has it
            return {
                key: _result(chain.version, found) if isinstance(found, Version) else failed(found)
                for key, found in applied.items()
            }
        items = fresh + again
        pendings: dict[ChunkKey, Version] = {}
        for item in again:
            state = states[item.key]
            if state is not None and state.pending is not None:
                pendings[item.key] = state.pending
        applied = await _applied(local, updates, size)
        for update in await self._mended(local, chain, updates, applied):
            applied.update(await _applied(local, [update], size))
        results = {key: failed(found) for key, found in applied.items() if isinstance(found, Code)}
        pendings.update((key, found) for key, found in applied.items() if isinstance(found, Version))
        items = [item for item in items if item.key not in results]
        outcome = await self.forwarder.forward(local, chain.chain_id, request.writer, items, deadline_s)
        for key in pendings:
            if outcome[key].code is not Code.OK:
                results[key] = failed(outcome[key].code)
        left = {key: found for key, found in pendings.items() if key not in results}
        results.update(await self._commit(local, left, outcome, remember=remember))
        return results

    async def _mended(
        self, local: LocalTarget, chain: Chain, updates: Sequence[Update], applied: Applied
    ) -> list[Update]:
        """Those that met rot, and can be stored now that their chunk is mended. Nobody has seen them yet.

        Mending may take seconds: where the chain is another one then, the update is refused as one that comes late.
        """
        again: list[Update] = []
        if Code.CHECKSUM not in applied.values():
            return again
        for update in updates:
            if applied[update.key] is not Code.CHECKSUM:
                continue
            try:
                outcome = await self._repairer.mend(local, update.key)
            except FfsError as exc:
                log.warning("chunk %d.%d: cannot be mended: %s", *update.key, exc.message)
                continue
            if outcome not in (Outcome.GOOD, Outcome.REPAIRED):
                local.suspect(update.key)
            elif self._replicas.fenced():
                applied[update.key] = Code.FENCED
            elif local.chain is None or local.chain.version != chain.version:
                applied[update.key] = Code.CHAIN_VERSION
            else:
                again.append(update)
        return again

    async def _commit(
        self,
        local: LocalTarget,
        pendings: Mapping[ChunkKey, Version],
        outcome: Mapping[ChunkKey, Result],
        *,
        remember: bool,
    ) -> dict[ChunkKey, Result]:
        """Commit what the successor has committed, when both hold the same bytes."""
        results: dict[ChunkKey, Result] = {}
        by_version: dict[int, list[tuple[ChunkKey, int]]] = {}
        for key, found in pendings.items():
            answer = outcome[key]
            if answer.crc32c and not found.removed and answer.crc32c != found.crc32c:
                local.diverge(
                    f"chunk {key.inode}.{key.chunk_index} version {found.version}: "
                    f"checksum {found.crc32c:08x} here, {answer.crc32c:08x} further down"
                )
                results[key] = failed(Code.CHECKSUM)
                continue
            by_version.setdefault(answer.chain_version, []).append((key, found.version))
            results[key] = _result(answer.chain_version, found)
        for chain_version, keys in by_version.items():
            try:
                await local.call_short(0, len(keys), _commit_all, local, keys, chain_version, remember)
            except FfsError as exc:
                local.diverge(f"cannot commit: {exc.message}")
                results.update((key, failed(exc.code)) for key, _ in keys)
            else:
                local.note_removed({key: pendings[key] for key, _ in keys}, chain_version)
        return results


def _decide(
    local: LocalTarget,
    chain: Chain,
    request: UpdateRequest,
    item: Item,
    state: ChunkState | None,
    from_client: bool,
    *,
    replace_pending: bool = False,
) -> Decision:
    floor = local.removed.get(item.key, 0)
    if from_client:
        return versions.decide_head(
            state,
            item.kind,
            item.length,
            request.writer,
            replace_pending=replace_pending,
            floor=floor,
            seen=item.seen,
        )
    return versions.decide_replica(
        state,
        item.kind,
        item.version,
        item.crc32c,
        request.writer,
        syncing=bool(request.flags & UpdateFlag.SYNCING),
        chain_version=chain.version,
        floor=floor,
        creates=item.kind in _ONTO_NOTHING and item.length == CREATES,
        built_on=item.base,
    )


def _damaged(items: Sequence[Item]) -> set[ChunkKey]:
    crc32c = crc32c_module.crc32c
    return {item.key for item in items for extent in item.extents if crc32c(extent.data) != extent.crc32c}


def _stat_all(local: LocalTarget, keys: Sequence[ChunkKey]) -> dict[ChunkKey, ChunkState | None]:
    stat = local.engine.stat
    return {key: stat(key) for key in keys}


def _apply(
    local: LocalTarget,
    updates: Sequence[Update],
    store: Callable[..., list[Version]] | None = None,
    *,
    nowait: bool = False,
) -> Applied:
    """What `store` (the engine's `apply`) makes of each chunk, or why not. Raises FfsError only for a failed disk."""
    if not updates:
        return {}
    try:
        versions = (store or local.engine.apply)(updates, nowait=nowait)
        return dict(zip([update.key for update in updates], versions, strict=True))
    except FfsError as exc:
        if exc.code is Code.DISK_FAILED:
            raise
        if len(updates) == 1:
            return {updates[0].key: exc.code}
    # One of them cannot be stored: find out which. Those that are stored already take it again without harm.
    applied: Applied = {}
    for update in updates:
        applied.update(_apply(local, [update], store, nowait=nowait))
    return applied


async def _applied(local: LocalTarget, updates: Sequence[Update], size: int) -> Applied:
    try:
        return await local.call_short(size, len(updates), _apply, local, updates)
    except FfsError as exc:
        return {update.key: exc.code for update in updates}


def _commit_all(
    local: LocalTarget,
    keys: Sequence[tuple[ChunkKey, int]],
    chain_version: int,
    remember: bool,
    *,
    nowait: bool = False,
) -> None:
    local.engine.commit(keys, chain_version, remember=remember, nowait=nowait)


def _apply_and_commit(
    local: LocalTarget, updates: Sequence[Update], chain_version: int, remember: bool, *, nowait: bool = False
) -> Applied:
    def store(updates: Sequence[Update], *, nowait: bool) -> list[Version]:
        return local.engine.apply_committed(updates, chain_version, remember=remember, nowait=nowait)

    return _apply(local, updates, store, nowait=nowait)


def _result(chain_version: int, found: Version) -> Result:
    if found.removed:
        return Result(Code.OK, chain_version, found.version, 0, 0)
    return Result(Code.OK, chain_version, found.version, found.length, found.crc32c)


def _as_it_is(chain: Chain, state: ChunkState | None) -> Result:
    committed = state.committed if state is not None else None
    if committed is None:
        return Result(Code.OK, chain.version, 0, 0, 0)
    return Result(Code.OK, chain.version, committed.version, committed.length, committed.crc32c)
