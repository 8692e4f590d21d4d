"""Which blocks of which requests are loaded and saved in a step of vLLM's scheduler.

No vLLM, no cache, no clock here: what the scheduler says in, lists of hashes and block numbers out. A block's name is
the hash that vLLM itself computed for it, which covers the tokens before it, adapters, images and salts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Transfer(NamedTuple):
    """Blocks of one request, in order."""

    request: str
    hashes: tuple[bytes, ...]
    blocks: tuple[int, ...]  # of the paged cache


class Scheduled(NamedTuple):
    """What the scheduler says of one request of a step."""

    request: str
    blocks: Sequence[int]  # all of them where `whole`, else those that were added
    whole: bool
    computed: int  # tokens whose keys and values are there
    scheduled: int  # tokens that this step adds


@dataclass
class _Request:
    hashes: Sequence[bytes]  # vLLM's own list, which grows as blocks of tokens become full
    blocks: list[int] = field(default_factory=list)
    saved: int = -1  # blocks from the first on that need not be saved, or were; -1: not scheduled yet
    matched_from: int = 0  # the block that the last match began at


class StepPlanner:
    """The requests that are under way. Bounded by the scheduler: it tells of each one's end."""

    def __init__(self, block_size: int, hash_block_size: int) -> None:
        """Tokens of a block and of one hash. Raises ValueError when blocks are no multiple of hashes."""
        if hash_block_size <= 0 or block_size <= 0 or block_size % hash_block_size:
            raise ValueError(f"blocks of {block_size} tokens with a hash for every {hash_block_size}")
        self._block_size = block_size
        self._hashes_per_block = block_size // hash_block_size
        self._requests: dict[str, _Request] = {}
        self._loads: list[Transfer] = []

    def __len__(self) -> int:
        return len(self._requests)

    def hashes(self, hashes: Sequence[bytes], first: int, last: int) -> tuple[bytes, ...]:
        """Of blocks first to last - 1, as far as they are known. A coarse block has its last fine hash: they chain."""
        step = self._hashes_per_block
        last = min(last, len(hashes) // step)
        return tuple(bytes(hashes[(block + 1) * step - 1]) for block in range(first, last))

    def wanted(self, request: str, hashes: Sequence[bytes], tokens: int, computed: int) -> tuple[bytes, ...]:
        """What to look up for a request that is about to be scheduled: its full blocks behind the computed ones.

        The last token is left to be computed: its logits are needed.
        """
        first = computed // self._block_size
        self._request(request, hashes).matched_from = first
        return self.hashes(hashes, first, (tokens - 1) // self._block_size)

    def allocated(self, request: str, hashes: Sequence[bytes], blocks: Sequence[int], external_tokens: int) -> None:
        """vLLM has made room for a request: `external_tokens` of those that were matched are to be loaded."""
        known = self._request(request, hashes)
        if external_tokens <= 0:
            return
        first = known.matched_from
        last = first + external_tokens // self._block_size
        names = self.hashes(hashes, first, last)
        if last > len(blocks) or len(names) < last - first:
            raise ValueError(f"request {request}: {len(blocks)} blocks for {last} to be filled")
        self._loads.append(Transfer(request, names, tuple(blocks[first:last])))
        known.saved = max(known.saved, last)

    def step(self, scheduled: Sequence[Scheduled]) -> tuple[list[Transfer], list[Transfer]]:
        """(loads, saves) of the step that was just scheduled."""
        loads, self._loads = self._loads, []
        saves: list[Transfer] = []
        for item in scheduled:
            known = self._requests.get(item.request)
            if known is None:
                continue
            if item.whole:
                known.blocks = list(item.blocks)
            else:
                known.blocks += item.blocks
            if known.saved < 0:  # what was in the engine's own cache at the beginning was saved by who computed it
                known.saved = item.computed // self._block_size
            full = min((item.computed + item.scheduled) // self._block_size, len(known.blocks))
            names = self.hashes(known.hashes, known.saved, full)
            if names:
                last = known.saved + len(names)
                saves.append(Transfer(item.request, names, tuple(known.blocks[known.saved : last])))
                known.saved = last
        return loads, saves

    def finished(self, request: str) -> None:
        """The request is over: its blocks may be another's from now on."""
        self._requests.pop(request, None)
        self._loads = [load for load in self._loads if load.request != request]

    def _request(self, request: str, hashes: Sequence[bytes]) -> _Request:
        known = self._requests.get(request)
        if known is None:
            known = self._requests[request] = _Request(hashes)
        known.hashes = hashes
        return known
