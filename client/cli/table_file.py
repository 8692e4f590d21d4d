"""Chain tables as files: JSON or CSV, read with every problem named, written so that they read back.

JSON: {"description": "...", "chains": [{"chain_id": 1, "targets": [1001, 2001, 3001]}, ...]}
CSV:  a header line `chain_id,target,target,...`, then one line for each chain, head first.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fireflyfs.client.routing import Routing
from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import REPLICAS_MAX

PROBLEMS_SHOWN = 8
TABLE_FILE_BYTES_MAX = 16 << 20


@dataclass(frozen=True, slots=True)
class ChainRow:
    """One chain as a file has it: targets head first."""

    chain_id: int
    targets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TableFile:
    chains: tuple[ChainRow, ...]
    description: str = ""


def read_table(path: Path) -> TableFile:
    """The table in `path`. Raises CONFIG for what is no table, NO_ENTRY's OSError when there is no such file."""
    size = path.stat().st_size
    if size > TABLE_FILE_BYTES_MAX:
        raise error(Code.CONFIG, f"{path} has {size} bytes, a chain table has at most {TABLE_FILE_BYTES_MAX}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise error(Code.CONFIG, f"{path} is no text: {exc}") from exc
    return parse_json(text, str(path)) if text.lstrip().startswith(("{", "[")) else parse_csv(text, str(path))


def parse_json(text: str, source: str) -> TableFile:
    """Raises CONFIG with what is wrong."""
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as exc:
        raise error(Code.CONFIG, f"{source} is not valid JSON: {exc}") from exc
    if isinstance(data, list):
        data = {"chains": data}
    if not isinstance(data, dict):
        raise error(Code.CONFIG, f"{source} has no `chains`")
    unknown = sorted(set(data) - {"chains", "description", "table_id"})
    if unknown:
        raise error(Code.CONFIG, f"{source}: unknown key {unknown[0]}; known: chains, description, table_id")
    entries = data.get("chains")
    if not isinstance(entries, list):
        raise error(Code.CONFIG, f"{source}: `chains` must be a list of {{chain_id, targets}}")
    rows = []
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict) or set(entry) != {"chain_id", "targets"}:
            raise error(Code.CONFIG, f"{source}: chains[{place}] must have just chain_id and targets")
        targets = entry["targets"]
        if not _is_id(entry["chain_id"]) or not isinstance(targets, list) or not all(map(_is_id, targets)):
            raise error(Code.CONFIG, f"{source}: chains[{place}]: ids must be whole numbers above 0")
        rows.append(ChainRow(entry["chain_id"], tuple(targets)))
    return TableFile(tuple(rows), str(data.get("description", "")))


def parse_csv(text: str, source: str) -> TableFile:
    """Raises CONFIG with the line that is wrong."""
    rows = []
    try:
        lines = list(csv.reader(io.StringIO(text)))
    except csv.Error as exc:
        raise error(Code.CONFIG, f"{source} is not valid CSV: {exc}") from exc
    for number, cells in enumerate(lines, 1):
        cells = [cell.strip() for cell in cells if cell.strip()]
        if not cells or cells[0].startswith("#") or (number == 1 and not cells[0].isdecimal()):
            continue
        if len(cells) < 2 or not all(cell.isascii() and cell.isdecimal() and int(cell) for cell in cells):
            raise error(Code.CONFIG, f"{source}, line {number}: want chain_id,target[,target...], got {cells!r:.80}")
        rows.append(ChainRow(int(cells[0]), tuple(int(cell) for cell in cells[1:])))
    return TableFile(tuple(rows))


def check_chains(rows: Sequence[ChainRow], routing: Routing, *, allow_same_node: bool = False) -> None:
    """Raises CONFIG with all that is wrong with `rows` in this cluster; the first few problems are named."""
    problems = list(_problems(rows, routing, allow_same_node))
    if problems:
        more = f"; and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        raise error(Code.CONFIG, "bad chain table: " + "; ".join(problems[:PROBLEMS_SHOWN]) + more)


def _problems(rows: Sequence[ChainRow], routing: Routing, allow_same_node: bool) -> Iterable[str]:
    if not rows:
        yield "it has no chains"
    owner: dict[int, int] = {}
    seen: set[int] = set()
    for row in rows:
        where = f"chain {row.chain_id}"
        if row.chain_id in seen:
            yield f"{where} stands twice"
        seen.add(row.chain_id)
        if not 0 < row.chain_id < 1 << 32:
            yield f"{where}: a chain id is between 1 and {(1 << 32) - 1}"
        if not 1 <= len(row.targets) <= REPLICAS_MAX:
            yield f"{where} has {len(row.targets)} targets, it may have 1 to {REPLICAS_MAX}"
        if len(row.targets) != len(rows[0].targets):
            yield f"{where} has {len(row.targets)} replicas, chain {rows[0].chain_id} has {len(rows[0].targets)}"
        on_node: dict[int, int] = {}
        for target_id in row.targets:
            if target_id in owner:
                yield f"target {target_id} stands in chains {owner[target_id]} and {row.chain_id}"
            owner[target_id] = row.chain_id
            target = routing.targets.get(target_id)
            if target is None:
                yield f"{where}: mgmtd knows no target {target_id}"
                continue
            if target.chain_id not in (0, row.chain_id):
                yield f"{where}: target {target_id} is already in chain {target.chain_id}"
            if not allow_same_node and target.node_id in on_node and on_node[target.node_id] != target_id:
                yield f"{where}: targets {on_node[target.node_id]} and {target_id} are both on node {target.node_id}"
            on_node[target.node_id] = target_id


def to_json(table: TableFile) -> dict[str, Any]:
    chains = [{"chain_id": row.chain_id, "targets": list(row.targets)} for row in table.chains]
    return {"description": table.description, "chains": chains}


def to_csv(table: TableFile) -> str:
    widest = max((len(row.targets) for row in table.chains), default=0)
    lines = [["chain_id", *["target"] * widest]]
    lines += [[str(row.chain_id), *map(str, row.targets)] for row in table.chains]
    return "".join(",".join(line) + "\n" for line in lines)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 63
