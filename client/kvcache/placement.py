"""Which node is asked for which keys, and the tables that it is asked with. Pure: no link, no waiting.

Which replica of each chain is asked, and where, is a `Plan`: made when there is news, used for many batches. A batch is
then divided by node in a few operations, however many chains there are.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fireflyfs.client.routing import Chain, Routing
from fireflyfs.client.striping import FileLayout
from fireflyfs.common import native
from fireflyfs.common.cache_hash import Keys
from fireflyfs.common.net.api import Address
from fireflyfs.proto.storage_wire import CACHE_BLOCK, CACHE_LOOKUP

Rows = npt.NDArray[np.intp]
Chains = npt.NDArray[np.uint32]
Table = npt.NDArray[np.void]
Choose = Callable[[Chain], tuple[int, Address] | None]
_HEADER = struct.Struct("<QII")  # CACHE_HEADER


@dataclass(slots=True)
class Node:
    """A worker, and the targets of it that are asked about chains of the namespace."""

    address: Address
    targets: set[int]


class Plan(NamedTuple):
    """Who is asked, by position in the list of the namespace's chains."""

    nodes: list[Node]
    node_of: Rows  # number in `nodes`; -1: nobody can be asked now
    versions: Chains  # of the chains
    places: Chains  # `struct place` of each, for the library in C


class Placed(NamedTuple):
    """A batch by worker."""

    nodes: list[tuple[Node, Rows, bytes | None]]  # with the rows' table, where it was made already
    homeless: list[int]  # rows whose chain nobody can be asked about now
    versions: Chains | None  # of the chain of each row of the batch; None where all tables were made


class Placement:
    """A namespace's chains."""

    def __init__(self, file: FileLayout) -> None:
        self.file = file
        self._count = np.uint64(len(file.chains))

    def positions_of(self, keys: Keys) -> Rows:
        """Where each key's chain stands in the list: as a file with this layout has the chunk of that index."""
        return (keys.index % self._count).astype(np.intp)

    def chains_of(self, keys: Keys) -> Chains:
        return self.file.chain_array[self.positions_of(keys)]

    def plan(self, routing: Routing, choose: Choose) -> Plan:
        """`choose`: a replica of the chain and where its worker listens, None where there is none."""
        nodes: list[Node] = []
        numbers: dict[Address, int] = {}
        asked: dict[int, tuple[int, int]] = {}  # chain to (number of its node, version)
        for chain_id in self.file.chain_set:
            chain = routing.chains.get(chain_id)
            chosen = choose(chain) if chain is not None else None
            if chain is None or chosen is None:
                asked[chain_id] = (-1, 0)
                continue
            target, address = chosen
            number = numbers.setdefault(address, len(nodes))
            if number == len(nodes):
                nodes.append(Node(address, set()))
            nodes[number].targets.add(target)
            asked[chain_id] = (number, chain.version)
        found = [asked[chain_id] for chain_id in self.file.chains]
        node_of = np.array([node for node, _ in found], np.intp)
        versions = np.array([version for _, version in found], np.uint32)
        places = np.empty((len(found), 3), np.uint32)
        places[:, 0], places[:, 1], places[:, 2] = self.file.chain_array, versions, node_of % (len(nodes) + 1)
        return Plan(nodes, node_of, versions, places)

    def lookup_table(self, keys: Keys, positions: Rows) -> Table:
        """CACHE_LOOKUP of each key, without chain versions."""
        table = np.zeros(len(positions), CACHE_LOOKUP)
        table["index"] = keys.index
        table["chain_id"] = self.file.chain_array[positions]
        table["check"] = keys.check
        return table

    def get_table(self, keys: Keys, positions: Rows, pieces: Sequence[int]) -> Table:
        """CACHE_BLOCK of each key, without chain versions."""
        table = np.zeros(len(positions), CACHE_BLOCK)
        table["index"] = keys.index
        table["chain_id"] = self.file.chain_array[positions]
        table["pieces"] = pieces
        table["key_length"] = keys.length
        table["key"] = keys.table.view("V64")
        return table

    def body(self, table: Table, placed: Placed, rows: Rows, flags: int = 0) -> bytes:
        """Of a request for these rows of the batch's table."""
        table["chain_version"] = placed.versions
        return self.body_of(table[rows].tobytes(), len(rows), flags)

    def body_of(self, table: bytes, rows: int, flags: int) -> bytes:
        return _HEADER.pack(self.file.inode, rows, flags) + table


def place(plan: Plan, positions: Rows, rows: Rows) -> Placed:
    """`rows` of a batch by worker, and by chain: as the worker answers for them."""
    chain_of = positions[rows]
    node_of = plan.node_of[chain_of]
    order = np.argsort(node_of * len(plan.node_of) + chain_of, kind="stable")
    by_node, node_of = rows[order], node_of[order]
    ends = np.searchsorted(node_of, np.arange(-1, len(plan.nodes)), side="right").tolist()
    nodes: list[tuple[Node, Rows, bytes | None]] = [
        (node, by_node[begin:end], None)
        for node, begin, end in zip(plan.nodes, ends, ends[1:], strict=False)
        if end > begin
    ]
    return Placed(nodes, by_node[: ends[0]].tolist(), plan.versions[positions])


def arrange(library: native.Blocks, plan: Plan, keys: Keys, rooms: Sequence[int]) -> Placed:
    """As `place` for all keys of a small batch, by the library in C, with their tables (CACHE_BLOCK)."""
    count, nodes = len(rooms), len(plan.nodes)
    address = native.address_of
    rows = bytearray(count * CACHE_BLOCK.itemsize)
    numbers = np.empty(count, np.intp)
    ends = bytearray(4 * nodes)
    room = array("I", rooms)
    library.arrange(
        address(keys.table), address(keys.length), room.buffer_info()[0], count, address(plan.places), len(plan.places),
        nodes, address(rows), address(numbers), address(ends),
    )  # fmt: skip
    placed: list[tuple[Node, Rows, bytes | None]] = []
    begin = 0
    for node, end in zip(plan.nodes, memoryview(ends).cast("I"), strict=True):
        if end > begin:
            table = bytes(rows[begin * CACHE_BLOCK.itemsize : end * CACHE_BLOCK.itemsize])
            placed.append((node, numbers[begin:end], table))
            begin = end
    return Placed(placed, numbers[begin:].tolist() if begin < count else [], None)
