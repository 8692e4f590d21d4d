"""What was acknowledged is brought to the disks of all replicas, before anybody is told that it is durable."""

from __future__ import annotations

import asyncio

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.net.api import Call
from fireflyfs.common.net.methods import Method
from fireflyfs.proto import storage_pb2
from fireflyfs.storage.core import forward, target
from fireflyfs.storage.core.target import Public
from fireflyfs.storage.service.replica import Replicas


class Durability:
    """Syncs whole chains: see `sync_chains`."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    async def sync_chains(
        self, request: storage_pb2.SyncChainsRequest, deadline_s: float
    ) -> storage_pb2.SyncChainsReply:
        """Forwarded: this worker's targets only. Otherwise every replica of the chains, each worker asked once."""
        if request.forwarded:
            if len(request.chains) != len(request.chain_versions):
                raise error(
                    Code.INVALID, f"{len(request.chains)} chains, {len(request.chain_versions)} versions of them"
                )
            asked = dict(zip(request.chains, request.chain_versions, strict=True))
            await asyncio.gather(*(self._sync_local(chain_id, version) for chain_id, version in asked.items()))
            return storage_pb2.SyncChainsReply()
        attempt = 0
        while True:
            try:
                await self._sync_everywhere(sorted(set(request.chains)))
                return storage_pb2.SyncChainsReply()
            except FfsError as exc:
                attempt += 1
                pause = forward.backoff_s(attempt)
                if not forward.try_again(exc.code) or self._replicas.clock.monotonic_s() + pause > deadline_s:
                    raise
                await self._replicas.wait_change(pause)

    async def _sync_everywhere(self, chains: list[int]) -> None:
        """Every replica syncs, and says that it knows the chain in the same version: one that this worker does not
        know of could hold what was acknowledged in its page cache only."""
        routing = self._replicas.routing
        here: set[int] = set()
        there: dict[str, tuple[int, list[int]]] = {}
        for chain_id in chains:
            if not routing.chain(chain_id).serving:
                # Nobody to ask is not everybody asked: what was acknowledged may be in the memory of one that is away.
                raise error(Code.TARGET_OFFLINE, f"no replica of chain {chain_id} serves now")
            for target_id, state in routing.chain(chain_id).targets:
                if state not in (Public.SERVING, Public.SYNCING):
                    continue
                if target_id in self._replicas.targets:
                    here.add(chain_id)
                    continue
                address = routing.address(target_id)
                there.setdefault(address.tcp or address.unix, (target_id, []))[1].append(chain_id)

        async def ask(target_id: int, asked: list[int]) -> None:
            versions = [routing.chain(chain_id).version for chain_id in asked]
            request = storage_pb2.SyncChainsRequest(chains=asked, forwarded=True, chain_versions=versions)
            body = request.SerializeToString()
            call = Call(Method.STORAGE_SYNC_CHAINS, body, deadline_s=10.0)
            await self._replicas.link.call(routing.address(target_id), call)

        work = [self._sync_local(chain_id, routing.chain(chain_id).version) for chain_id in sorted(here)]
        work += [ask(target_id, asked) for target_id, asked in there.values()]
        # All are waited for, so that none is left running behind an error.
        for outcome in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _sync_local(self, chain_id: int, chain_version: int) -> None:
        await self._replicas.catch_up(chain_id, chain_version)
        local, _ = self._replicas.at(chain_id, chain_version)
        if not target.may_receive(local.state, local.public):
            raise error(Code.TARGET_OFFLINE, f"target {local.target_id} does not serve")
        await local.call(local.engine.sync)
