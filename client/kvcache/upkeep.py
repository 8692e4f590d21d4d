"""What is done to a namespace as a whole, or not in a hurry: removing blocks, and the servers' counters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from fireflyfs.client.channels import ChannelPool
from fireflyfs.client.kvcache.nodes import Nodes
from fireflyfs.client.kvcache.placement import Placement
from fireflyfs.client.session import ClientContext
from fireflyfs.common.cache_hash import Keys
from fireflyfs.common.errors import FfsError
from fireflyfs.common.limits import UPDATE_ITEMS_MAX
from fireflyfs.common.net.api import Address, Call, Reply
from fireflyfs.common.net.methods import Method
from fireflyfs.proto import storage_pb2

M = TypeVar("M", bound=Message)

ATTEMPTS = 2
SUMMED = ("hits", "misses", "hit_bytes", "evictions", "expired", "damaged")  # over all replicas


class Upkeep:
    """Of one open namespace."""

    def __init__(
        self,
        context: ClientContext,
        nodes: Nodes,
        placement: Placement,
        client_id: bytes,
        channels: ChannelPool,
        timeout_s: float,
    ) -> None:
        self._context = context
        self._nodes = nodes
        self._placement = placement
        self._client_id = client_id
        self._channels = channels
        self._timeout_s = timeout_s

    def delete(self, keys: Sequence[bytes]) -> int:
        """How many blocks went; those of chains that do not answer stay."""
        hashed = Keys(keys)
        by_chain: dict[int, list[bytes]] = {}
        for key, chain in zip(keys, self._placement.chains_of(hashed).tolist(), strict=True):
            by_chain.setdefault(chain, []).append(bytes(key))
        parts = [
            (chain, names[start : start + UPDATE_ITEMS_MAX])
            for chain, names in by_chain.items()
            for start in range(0, len(names), UPDATE_ITEMS_MAX)
        ]
        removed = 0
        while parts:
            now, parts = parts[: self._channels.channels_max], parts[self._channels.channels_max :]
            removed += self._delete(now)
        return removed

    def _delete(self, parts: list[tuple[int, list[bytes]]]) -> int:
        removed = 0
        with self._channels.take(len(parts)) as uses:
            left = list(zip(parts, uses, strict=True))
            for attempt in range(ATTEMPTS):
                routing = self._nodes.routing()
                sent = []
                calls: list[tuple[Address, Call]] = []
                for (chain_id, names), use in left:
                    head = self._nodes.head_of(routing, chain_id)
                    if head is None:
                        continue
                    request = storage_pb2.DropBlocksRequest(
                        chain_id=chain_id,
                        chain_version=head[0].version,
                        inode=self._placement.file.inode,
                        keys=names,
                        client_id=self._client_id,
                        channel=use.channel,
                        sequence=use.sequence,
                    )
                    body = request.SerializeToString()
                    calls.append((head[1], Call(Method.STORAGE_DROP_BLOCKS, body, deadline_s=self._timeout_s)))
                    sent.append(((chain_id, names), use))
                failed = []
                for each, answer in zip(sent, self._nodes.call_many(calls), strict=True):
                    reply = _parsed(answer, storage_pb2.DropBlocksReply)
                    if reply is None:
                        failed.append(each)
                    else:
                        removed += reply.removed
                left = failed
                if not left or attempt + 1 == ATTEMPTS:
                    break
                self._nodes.newer_routing(routing)
        return removed

    def clear(self) -> None:
        """Remove every block. Raises FfsError when some chain cannot be reached."""
        while self._context.storage.remove(self._placement.file).more:
            pass

    def server_stats(self) -> dict[str, int]:
        """Counters of all workers of the namespace's chains; `unanswered`: how many of them said nothing."""
        routing = self._nodes.routing()
        chains = [routing.chains[chain] for chain in self._placement.file.chain_set if chain in routing.chains]
        addresses = {routing.addresses[t] for chain in chains for t in chain.serving if t in routing.addresses}
        request = storage_pb2.BlockStatsRequest(inodes=[self._placement.file.inode])
        body = request.SerializeToString()
        calls = [
            (address, Call(Method.STORAGE_BLOCK_STATS, body, deadline_s=self._timeout_s))
            for address in sorted(addresses, key=lambda address: (address.tcp, address.unix))
        ]
        sums = dict.fromkeys(("blocks", "bytes", "puts", *SUMMED, "unanswered", "loading"), 0)
        for answer in self._nodes.call_many(calls):
            reply = _parsed(answer, storage_pb2.BlockStatsReply)
            if reply is None:
                sums["unanswered"] += 1
                continue
            for row in reply.stats:
                if row.leads:
                    sums["blocks"] += row.blocks
                    sums["bytes"] += row.bytes
                    sums["loading"] += not row.ready
                    sums["puts"] += row.puts
                for name in SUMMED:
                    sums[name] += getattr(row, name)
        return sums


def _parsed(answer: Reply | FfsError, kind: type[M]) -> M | None:
    """The answer as a message; None for an error, and for nonsense."""
    if isinstance(answer, FfsError):
        return None
    message = kind()
    try:
        message.ParseFromString(bytes(answer.body))
    except DecodeError:
        return None
    return message
