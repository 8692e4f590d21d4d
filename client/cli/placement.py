"""Spreads replicas over nodes. Pure: the same targets give the same chains.

Each target is in one chain, and a chain has no two targets on one node. Of all nodes, those with the most targets left
are taken first (or some would be left over with nobody to pair with); among equals, those that share the fewest chains
with the nodes already chosen, so that what a lost node held is spread evenly over all others, and its recovery too.
Heads are dealt out evenly at the end: as long as one node leads two chains more than another, the lead is handed down
a path of chains from the one to the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from fireflyfs.client.cli.table_file import ChainRow
from fireflyfs.common.errors import Code, error


def spread(targets_of: Mapping[int, Sequence[int]], replicas: int, *, first_chain_id: int = 1) -> list[ChainRow]:
    """Chains of `replicas` targets each, made of `targets_of` (node id to its free target ids).

    Raises CONFIG when not one chain can be made. Targets that cannot be used evenly are left out.
    """
    left = {node: sorted(targets, reverse=True) for node, targets in targets_of.items() if targets}
    if replicas < 1 or len(left) < replicas:
        raise error(
            Code.CONFIG,
            f"chains of {replicas} replicas need free targets on {replicas} nodes, there are {len(left)} such nodes",
        )
    together: Counter[tuple[int, int]] = Counter()
    members: list[list[int]] = []
    while sum(1 for targets in left.values() if targets) >= replicas:
        chosen: list[int] = []
        while len(chosen) < replicas:
            chosen.append(
                min(
                    (node for node, targets in left.items() if targets and node not in chosen),
                    key=lambda node: (-len(left[node]), sum(together[_pair(node, other)] for other in chosen), node),
                )
            )
        for place, node in enumerate(chosen):
            for other in chosen[:place]:
                together[_pair(node, other)] += 1
        # Taken out of what is left as they are chosen; turned into targets when the heads are known.
        members.append(chosen)
        for node in chosen:
            left[node].pop()
    _balance_heads(members)
    free = {node: sorted(targets, reverse=True) for node, targets in targets_of.items()}
    return [
        ChainRow(first_chain_id + place, tuple(free[node].pop() for node in chosen))
        for place, chosen in enumerate(members)
    ]


def _balance_heads(members: list[list[int]]) -> None:
    """Reorder each chain's nodes so that all nodes lead about as many chains. Each pass moves one lead."""
    led = Counter({node: 0 for chosen in members for node in chosen})
    led.update(chosen[0] for chosen in members)
    for most, _ in led.most_common():
        while path := _path_of_leads(members, led, most):
            for chain, node in path:
                members[chain].remove(node)
                members[chain].insert(0, node)
            led[most] -= 1
            led[path[-1][1]] += 1


def _path_of_leads(members: list[list[int]], led: Counter[int], most: int) -> list[tuple[int, int]]:
    """(chain, its new head) steps that take one lead from `most` to a node with at least two fewer; [] when none."""
    steps: dict[int, tuple[int, int]] = {most: (-1, most)}  # node: the chain it would lead, and who leads it now
    queue = [most]
    for node in queue:
        if led[node] <= led[most] - 2:
            path = []
            while node != most:
                chain, before = steps[node]
                path.append((chain, node))
                node = before
            return path[::-1]
        for chain, chosen in enumerate(members):
            if chosen[0] == node:
                for other in chosen[1:]:
                    if other not in steps:
                        steps[other] = (chain, node)
                        queue.append(other)
    return []


def _pair(one: int, other: int) -> tuple[int, int]:
    return (one, other) if one < other else (other, one)
