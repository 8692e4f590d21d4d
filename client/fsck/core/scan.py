"""The first pass: sorted lists of chunks and of files, merged; what looks wrong is handed on to be looked at again.

Every list is read page by page while the cluster changes, so a suspicion here means little; only that nothing wrong is
passed over matters. Memory does not grow with the lists.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

from fireflyfs.client.fsck.core.facts import ABSENT, Copy, File, Key, Row, Suspect
from fireflyfs.client.fsck.core.judge import problem_of

Listed = Iterator[tuple[Key, Copy]]
_KEY = attrgetter("key")


class Lost(Exception):
    """A replica cannot be listed any further: raised by its iterator."""


@dataclass(slots=True)
class ChainUse:
    """Files that need a chain which did not serve when the check began."""

    files: int = 0
    first: int = 0  # an inode of them


@dataclass(slots=True)
class Tally:
    """What was looked at. `on_progress` is called now and then."""

    chunks: int = 0
    copies: int = 0
    files: int = 0
    files_with_holes: int = 0
    unserved: dict[int, ChainUse] = field(default_factory=dict)
    on_progress: Callable[[], None] = lambda: None


PROGRESS_EVERY = 512


def chain_rows(chain_id: int, lists: Mapping[int, Listed], on_lost: Callable[[int, Lost], None]) -> Iterator[Row]:
    """The lists of one chain's replicas as one, in key order. A list that is lost is left out from there on."""
    heads: dict[int, tuple[Key, Copy] | None] = {}

    def step(target: int) -> None:
        try:
            heads[target] = next(lists[target], None)
        except Lost as exc:
            heads.pop(target, None)
            on_lost(target, exc)

    for target in lists:
        step(target)
    while True:
        key = min((head[0] for head in heads.values() if head is not None), default=None)
        if key is None:
            return
        here = [target for target, head in heads.items() if head is not None and head[0] == key]
        copies = dict.fromkeys(heads, ABSENT)
        for target in here:
            head = heads[target]
            assert head is not None
            copies[target] = head[1]
        yield Row(key, chain_id, copies)
        for target in here:
            step(target)


def suspects(
    chains: Iterable[Iterator[Row]], files: Iterator[File], serving: frozenset[int], tally: Tally
) -> Iterator[Suspect]:
    """Join all chains' rows with all files. `serving`: the chains that some replica serves."""
    file = next(files, None)
    found = 0  # chunks of `file` that are where they belong

    def close(done: File) -> None:
        tally.files += 1
        if not done.removed:
            if found < done.chunks and serving.issuperset(done.chains):
                tally.files_with_holes += 1
            if not serving.issuperset(done.chains):
                for chain_id in set(done.chains) - serving:
                    use = tally.unserved.setdefault(chain_id, ChainUse(first=done.inode))
                    use.files += 1
        if tally.files % PROGRESS_EVERY == 0:
            tally.on_progress()

    for row in heapq.merge(*chains, key=_KEY):
        while file is not None and file.inode < row.key.inode:
            close(file)
            file, found = next(files, None), 0
        owner = file if file is not None and file.inode == row.key.inode else None
        if owner is not None and row.chain_id == owner.chain_of(row.key.chunk_index):
            found += row.key.chunk_index < owner.chunks
        tally.chunks += 1
        tally.copies += sum(copy is not ABSENT for copy in row.copies.values())
        if tally.chunks % PROGRESS_EVERY == 0:
            tally.on_progress()
        pending = any(copy.pending for copy in row.copies.values())
        if pending or problem_of(row.key, row.chain_id, row.copies, owner) is not None:
            yield Suspect(row.key, row.chain_id)
    while file is not None:
        close(file)
        file, found = next(files, None), 0
