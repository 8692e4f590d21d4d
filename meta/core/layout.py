"""Where a new file's chunks go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, STRIPE_MAX


@dataclass(frozen=True, slots=True)
class LayoutRule:
    """What a directory hands down: chunk size in bytes, how many chains, and the table they come from."""

    chunk_size: int
    stripe_size: int
    chain_table: int


def checked(rule: LayoutRule) -> LayoutRule:
    """Raises INVALID with what would be right."""
    size = rule.chunk_size
    if not CHUNK_BYTES_MIN <= size <= CHUNK_BYTES_MAX or size & (size - 1):
        raise error(Code.INVALID, f"chunk size {size}: a power of two from {CHUNK_BYTES_MIN} to {CHUNK_BYTES_MAX}")
    if not 1 <= rule.stripe_size <= STRIPE_MAX:
        raise error(Code.INVALID, f"stripe size {rule.stripe_size}: 1 to {STRIPE_MAX}")
    if rule.chain_table < 1:
        raise error(Code.INVALID, "chain table: 1 or more")
    return rule


def merged(asked: LayoutRule, inherited: LayoutRule) -> LayoutRule:
    """`asked` with its zeros filled from `inherited`."""
    return checked(
        LayoutRule(
            asked.chunk_size or inherited.chunk_size,
            asked.stripe_size or inherited.stripe_size,
            asked.chain_table or inherited.chain_table,
        )
    )


def choose_chains(table: Sequence[int], stripe_size: int, inode_id: int) -> tuple[int, ...]:
    """`stripe_size` chains of `table` (all of them if it has fewer), round robin by inode id.

    Ids are given out in order, so files made one after another start on the chains one after another, on every
    metadata server, with nothing to remember.
    """
    count = len(table)
    stripe = min(stripe_size, count)
    start = inode_id * stripe % count if stripe < count else inode_id % count
    return tuple(table[(start + place) % count] for place in range(stripe))


def chains_space(members: Sequence[Sequence[int]], sizes: Mapping[int, tuple[int, int]]) -> tuple[int, int]:
    """(capacity, free) in bytes as a writer sees it: each chain holds what its smallest known target holds."""
    capacity = free = 0
    for targets in members:
        known = [sizes[target] for target in targets if target in sizes]
        if known:
            capacity += min(size for size, _ in known)
            free += min(left for _, left in known)
    return capacity, free
