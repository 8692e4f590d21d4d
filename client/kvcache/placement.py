"""Which node is asked for which keys, and the bodies that it is asked with. Pure: no link, no waiting."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fireflyfs.client.routing import Chain, Routing
from fireflyfs.client.striping import FileLayout
from fireflyfs.common.cache_hash import Keys
from fireflyfs.common.net.api import Address
from fireflyfs.proto.storage_wire import CACHE_BLOCK, CACHE_LOOKUP

Rows = npt.NDArray[np.intp]
Chains = npt.NDArray[np.uint32]
_HEADER = struct.Struct("<QII")  # CACHE_HEADER


@dataclass(slots=True)
class NodeRows:
    """Rows of a batch that one worker is asked for."""

    address: Address
    rows: Rows
    targets: set[int]


class Placed(NamedTuple):
    """A batch by worker."""

    nodes: list[NodeRows]
    homeless: list[int]  # rows whose chain nobody can be asked about now
    chains: Chains  # of each row of the batch
    versions: Chains  # of the chains of the rows that are placed


class Placement:
    """A namespace's chains."""

    def __init__(self, file: FileLayout) -> None:
        self.file = file
        self._chains = file.chain_array
        self._count = np.uint64(len(file.chains))

    def chains_of(self, keys: Keys) -> Chains:
        """The chain of each key: where a file with this layout has the chunk of that index."""
        return self._chains[(keys.index % self._count).astype(np.intp)]

    def place(
        self, routing: Routing, chains: Chains, rows: Rows, choose: Callable[[Chain], tuple[int, Address] | None]
    ) -> Placed:
        """`rows` by worker. `choose`: a replica of the chain and where its worker listens, None where there is none."""
        mine = chains[rows] if len(rows) < len(chains) else chains
        versions = np.zeros(len(chains), np.uint32)
        nodes: dict[Address, NodeRows] = {}
        parts: dict[Address, list[Rows]] = {}
        homeless: list[int] = []
        for chain_id in set(mine.tolist()):
            members = rows[mine == chain_id]
            chain = routing.chains.get(chain_id)
            chosen = choose(chain) if chain is not None else None
            if chain is None or chosen is None:
                homeless += members.tolist()
                continue
            target, address = chosen
            versions[members] = chain.version
            node = nodes.get(address)
            if node is None:
                node = nodes[address] = NodeRows(address, members, set())
                parts[address] = []
            node.targets.add(target)
            parts[address].append(members)
        for address, node in nodes.items():
            if len(parts[address]) > 1:
                node.rows = np.concatenate(parts[address])
        return Placed(list(nodes.values()), homeless, chains, versions)

    def lookup_body(self, keys: Keys, placed: Placed, rows: Rows) -> bytes:
        """The body of STORAGE_CACHE_EXISTS."""
        table = np.zeros(len(rows), CACHE_LOOKUP)
        table["index"] = keys.index[rows]
        table["chain_id"] = placed.chains[rows]
        table["chain_version"] = placed.versions[rows]
        table["check"] = keys.check[rows]
        return self._header(len(rows), 0) + table.tobytes()

    def get_body(self, keys: Keys, placed: Placed, rows: Rows, pieces: npt.NDArray[np.uint32], flags: int) -> bytes:
        """The body of STORAGE_CACHE_GET. `pieces`: of each row of the batch, as the flags say."""
        table = np.zeros(len(rows), CACHE_BLOCK)
        table["index"] = keys.index[rows]
        table["chain_id"] = placed.chains[rows]
        table["chain_version"] = placed.versions[rows]
        table["pieces"] = pieces[rows]
        table["key_length"] = keys.length[rows]
        table["key"] = keys.table[rows].view("V64")
        return self._header(len(rows), flags) + table.tobytes()

    def _header(self, rows: int, flags: int) -> bytes:
        return _HEADER.pack(self.file.inode, rows, flags)
