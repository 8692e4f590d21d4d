"""Which node is asked for which keys, and the bodies that it is asked with. Pure: no link, no waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fireflyfs.client.routing import Chain, Routing
from fireflyfs.client.striping import FileLayout
from fireflyfs.common.cache_hash import Keys
from fireflyfs.common.limits import FRAME_SEGMENTS_MAX, MiB
from fireflyfs.common.net.api import Address
from fireflyfs.proto.storage_wire import CACHE_BLOCK, CACHE_HEADER, CACHE_LOOKUP

GET_ROWS_MAX = 1024
GET_BYTES_MAX = 8 * MiB  # of one request, except for a single larger block

Rows = npt.NDArray[np.intp]


@dataclass(slots=True)
class NodeRows:
    """Rows of a batch that one worker is asked for."""

    address: Address
    rows: Rows
    targets: set[int]


class Placed(NamedTuple):
    """A batch by worker; `homeless`: rows whose chain nobody can be asked about now."""

    nodes: list[NodeRows]
    homeless: list[int]


class Placement:
    """A namespace's chains."""

    def __init__(self, file: FileLayout) -> None:
        self.file = file
        self._chains = file.chain_array
        self._count = np.uint64(len(file.chains))

    def chains_of(self, keys: Keys) -> npt.NDArray[np.uint32]:
        """The chain of each key: where a file with this layout has the chunk of that index."""
        return self._chains[(keys.index % self._count).astype(np.intp)]

    def place(
        self,
        routing: Routing,
        chains: npt.NDArray[np.uint32],
        rows: Rows,
        choose: Callable[[Chain], tuple[int, Address] | None],
    ) -> Placed:
        """`rows` by worker. `choose`: a replica of the chain and where its worker listens, None where there is none."""
        mine = chains[rows]
        nodes: dict[Address, NodeRows] = {}
        parts: dict[Address, list[Rows]] = {}
        homeless: list[int] = []
        for chain_id in set(mine.tolist()):
            members = rows[mine == chain_id]
            chain = routing.chains.get(chain_id)
            chosen = choose(chain) if chain is not None else None
            if chosen is None:
                homeless += members.tolist()
                continue
            target, address = chosen
            node = nodes.get(address)
            if node is None:
                node = nodes[address] = NodeRows(address, members, set())
            node.targets.add(target)
            parts.setdefault(address, []).append(members)
        for address, node in nodes.items():
            if len(parts[address]) > 1:
                node.rows = np.sort(np.concatenate(parts[address]))
        return Placed(list(nodes.values()), homeless)

    def versions_of(self, routing: Routing, chains: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """The version of each row's chain; 0 for one that routing does not have."""
        versions = np.zeros(len(chains), np.uint32)
        for chain_id in set(chains.tolist()):
            chain = routing.chains.get(chain_id)
            if chain is not None:
                versions[chains == chain_id] = chain.version
        return versions

    def lookup_body(
        self, keys: Keys, chains: npt.NDArray[np.uint32], versions: npt.NDArray[np.uint32], rows: Rows
    ) -> bytes:
        """The body of STORAGE_CACHE_EXISTS."""
        table = np.zeros(len(rows), CACHE_LOOKUP)
        table["index"] = keys.index[rows]
        table["chain_id"] = chains[rows]
        table["chain_version"] = versions[rows]
        table["check"] = keys.check[rows]
        return self._header(len(rows)) + table.tobytes()

    def get_body(
        self,
        keys: Keys,
        chains: npt.NDArray[np.uint32],
        versions: npt.NDArray[np.uint32],
        rows: Rows,
        pieces: npt.NDArray[np.uint32],
    ) -> bytes:
        """The body of STORAGE_CACHE_GET. `pieces`: how many the block of each row of the batch has."""
        table = np.zeros(len(rows), CACHE_BLOCK)
        table["index"] = keys.index[rows]
        table["chain_id"] = chains[rows]
        table["chain_version"] = versions[rows]
        table["pieces"] = pieces[rows]
        table["key_length"] = [keys.lengths[row] for row in rows.tolist()]
        table["key"] = keys.table[rows].view("V64")
        return self._header(len(rows)) + table.tobytes()

    def _header(self, rows: int) -> bytes:
        return np.array([(self.file.inode, rows, 0)], CACHE_HEADER).tobytes()


def requests_of(rows: Rows, room: Sequence[int], pieces: Sequence[int]) -> Iterator[Rows]:
    """Rows of one worker, cut into requests within the bounds. `room`: bytes that each row's block may have."""
    start = nbytes = segments = 0
    listed = rows.tolist()
    for end, row in enumerate(listed):
        full = nbytes + room[row] > GET_BYTES_MAX or segments + pieces[row] > FRAME_SEGMENTS_MAX
        if end > start and (full or end - start >= GET_ROWS_MAX):
            yield rows[start:end]
            start, nbytes, segments = end, 0, 0
        nbytes += room[row]
        segments += pieces[row]
    if listed:
        yield rows[start:]
