"""What a check of the cluster knows, as plain values: a replica's word on a chunk, files, looks, findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Key(NamedTuple):
    """A chunk; sorted as storage lists them."""

    inode: int
    chunk_index: int


class Writer(NamedTuple):
    """Whose update a version is: no two updates have the same."""

    client_id: bytes
    channel: int
    sequence: int


class Content(NamedTuple):
    """What replicas must agree on. Sizes in bytes."""

    version: int
    length: int
    crc32c: int
    chunk_size: int
    named: bool = False  # a block of the KV cache: its index is a hash, its file has no length


class Copy(NamedTuple):
    """One replica's word on a chunk. Writers are only known where the chunk was asked for by name."""

    content: Content | None  # committed; None: nothing is
    writer: Writer | None = None
    pending: int = 0  # a version that is stored and not committed; 0: none
    pending_writer: Writer | None = None
    busy: bool = False  # an update is under way


ABSENT = Copy(None)


class Row(NamedTuple):
    """One chunk on one chain, as the replicas that are being read list it."""

    key: Key
    chain_id: int
    copies: Mapping[int, Copy]  # target id to its word; ABSENT where that replica does not list it


class File(NamedTuple):
    """A regular file, as meta has it."""

    inode: int
    length: int  # bytes; what open writers wrote may not be in it yet
    truncate_version: int
    chunk_size: int
    chains: tuple[int, ...]
    writing: bool = False  # open for writing somewhere
    trimming: bool = False  # a truncation is being carried out
    removed: bool = False  # no name left; its chunks go later

    def chain_of(self, index: int) -> int:
        return self.chains[index % len(self.chains)] if self.chains else 0

    @property
    def chunks(self) -> int:
        """How many chunks there are when none is a hole."""
        return -(-self.length // self.chunk_size) if self.chunk_size else 0


class Suspect(NamedTuple):
    """A chunk to look at again."""

    key: Key
    chain_id: int


class Look(NamedTuple):
    """A fresh look at one chunk: first at all serving replicas, then at meta, and the chain was the same throughout.

    So a file that a look does not show did not exist when the replicas are asked in the next one.
    """

    at_s: float
    chain_version: int
    copies: Mapping[int, Copy]  # of the serving targets, head first
    file: File | None


class Kind(Enum):
    """What may be wrong. The value is what people read; the text says what it means."""

    ORPHAN = "orphan"
    MISPLACED = "misplaced"
    BEYOND_END = "beyond end"
    MISSING = "missing"
    DIFFERS = "differs"
    PENDING = "pending"
    NO_CHAIN = "no chain"
    NOT_SERVING = "not serving"
    UNREAD = "unread"


MEANINGS = {
    Kind.ORPHAN: "a chunk of no file",
    Kind.MISPLACED: "a chunk on a chain that its file's layout does not give it",
    Kind.BEYOND_END: "bytes beyond the end of their file",
    Kind.MISSING: "a chunk that a serving replica lacks",
    Kind.DIFFERS: "a chunk whose serving replicas hold different contents",
    Kind.PENDING: "a version that is neither committed nor given up",
    Kind.NO_CHAIN: "files on a chain that does not exist",
    Kind.NOT_SERVING: "a chain that no replica serves: its files cannot be read",
    Kind.UNREAD: "chunks of a chain that could not be listed",
}


@dataclass(slots=True)
class Finding:
    """Something that is wrong, looked at more than once. A chain as a whole has no key."""

    kind: Kind
    chain_id: int
    text: str  # what was seen, in a few words
    key: Key | None = None
    targets: tuple[int, ...] = ()  # the replicas that are wrong, where that can be told
    version: int = 0  # committed, of a chunk that is to be dropped
    writer: Writer | None = None
    keep_bytes: int = 0  # of that chunk
    decided: bool = True  # whether it can be told what would be right
    repaired: str = ""  # what was done about it; empty: nothing
