"""What an operator may ask for: chains, chain tables and configurations, checked before anything changes."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import REPLICAS_MAX

ID_MAX = (1 << 32) - 1
TABLE_CHAINS_MAX = 65_536
CONFIG_BYTES_MAX = 256 * 1024
DESCRIPTION_CHARS_MAX = 1024
PROBLEMS_SHOWN_MAX = 8


def refuse(problems: Sequence[str]) -> None:
    """Raises INVALID with the first problems, if there are any."""
    if problems:
        more = f" (and {len(problems) - PROBLEMS_SHOWN_MAX} more)" if len(problems) > PROBLEMS_SHOWN_MAX else ""
        raise error(Code.INVALID, "; ".join(problems[:PROBLEMS_SHOWN_MAX]) + more)


def chain_problems(
    chains: Sequence[tuple[int, Sequence[int]]],
    node_of_target: Mapping[int, int],
    chain_of_target: Mapping[int, int],
    same_node_allowed: bool = False,
) -> list[str]:
    """What is wrong with chains to be made: (chain id, target ids, head first).

    `chain_of_target` says where targets are members already; a target may be in one chain only, and the targets of a
    chain stand on different nodes, or losing one node would lose more than one replica.
    """
    problems: list[str] = []
    if not chains:
        problems.append("no chain is given")
    taken: dict[int, int] = {}
    seen: set[int] = set()
    for chain_id, targets in chains:
        name = f"chain {chain_id}"
        if not 1 <= chain_id <= ID_MAX:
            problems.append(f"{name}: a chain id is 1 to {ID_MAX}")
        if chain_id in seen:
            problems.append(f"{name} is given twice")
        seen.add(chain_id)
        if not 1 <= len(targets) <= REPLICAS_MAX:
            problems.append(f"{name} has {len(targets)} targets: 1 to {REPLICAS_MAX} are possible")
        nodes: dict[int, int] = {}
        for target_id in targets:
            if target_id not in node_of_target:
                problems.append(f"{name}: target {target_id} is not registered")
                continue
            owner = taken.get(target_id, chain_of_target.get(target_id, chain_id))
            if target_id in taken and owner == chain_id:
                problems.append(f"{name}: target {target_id} is given twice")
                continue
            if owner != chain_id:
                problems.append(f"{name}: target {target_id} is already in chain {owner}")
            taken[target_id] = chain_id
            node_id = node_of_target[target_id]
            if node_id in nodes and not same_node_allowed:
                problems.append(f"{name}: targets {nodes[node_id]} and {target_id} are both on node {node_id}")
            nodes[node_id] = target_id
    return problems


def table_problems(table_id: int, chains: Sequence[int], replicas_of_chain: Mapping[int, int]) -> list[str]:
    """What is wrong with a chain table."""
    problems: list[str] = []
    if not 1 <= table_id <= ID_MAX:
        problems.append(f"a chain table id is 1 to {ID_MAX}, not {table_id}")
    if not 1 <= len(chains) <= TABLE_CHAINS_MAX:
        problems.append(f"a chain table has 1 to {TABLE_CHAINS_MAX} chains, not {len(chains)}")
    seen: set[int] = set()
    sizes: dict[int, int] = {}
    for chain_id in chains:
        if chain_id in seen:
            problems.append(f"chain {chain_id} is given twice")
        elif chain_id not in replicas_of_chain:
            problems.append(f"chain {chain_id} does not exist")
        else:
            sizes.setdefault(replicas_of_chain[chain_id], chain_id)
        seen.add(chain_id)
    if len(sizes) > 1:
        shown = ", ".join(f"chain {chain_id} has {count}" for count, chain_id in sorted(sizes.items()))
        problems.append(f"all chains of a table have the same number of replicas: {shown}")
    return problems


ConfigParser = Callable[[str], object]  # raises FfsError(CONFIG) with every problem


def check_config(content: str, description: str, parser: ConfigParser | None) -> None:
    """Raises CONFIG when `content` is not TOML or the node type's parser refuses it, TOO_LARGE over the bounds."""
    size = len(content.encode())
    if size > CONFIG_BYTES_MAX:
        raise error(Code.TOO_LARGE, f"a configuration has {CONFIG_BYTES_MAX} bytes at most, this one {size}")
    if len(description) > DESCRIPTION_CHARS_MAX:
        raise error(Code.TOO_LARGE, f"a description has {DESCRIPTION_CHARS_MAX} characters at most")
    try:
        tomllib.loads(content)
    except tomllib.TOMLDecodeError as exc:
        raise error(Code.CONFIG, f"the configuration is not valid TOML: {exc}") from exc
    if parser is not None:
        parser(content)
