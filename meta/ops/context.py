"""What every operation is given, and what it may leave to be done after its transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fireflyfs.meta.core.permission import Who
from fireflyfs.meta.core.records import Inode, Trim
from fireflyfs.meta.core.usage import NO_LIMIT, Subject, Usage
from fireflyfs.meta.store.tree import Tree

ChooseChains = Callable[[int, int, int], tuple[int, ...]]  # (chain table, stripe size, inode id) -> chain ids

EndMax = Callable[[Tree, Inode, int], int]  # (tree, file, end that is wanted) -> how long quotas let it get


def unlimited(tree: Tree, inode: Inode, wanted_end: int) -> int:
    return NO_LIMIT


@dataclass(slots=True)
class Op:
    """One attempt at one operation: made anew for each run of its transaction.

    `learned` holds what storage said: inode id to (truncate version when asked, end of the last chunk).
    `trims` (what is to be cut off) and `garbage` collect inode ids whose chunks must be seen to once the transaction is
    committed; `files_delta` is how many inodes it adds. `trash`: what loses its last name is kept for a while.
    `granted` collects clients to whom queued locks were given, `regrant` the queues (inode id, kind of lock) that had
    more to give than one transaction holds. `folded`: usage was folded just now, so a quota that says no means it;
    `gains` is what the operation uses more where there are quotas. Of it only what `enters` gains is asked for, if that
    is a directory: a name was replaced there, and removing one is never refused, wherever its file counts then.
    `further_names` got a file that counts elsewhere: (inode id, directory, the directory that the name left, 0: none).
    """

    tree: Tree
    who: Who
    now_ns: int
    new_id: Callable[[], int]
    choose_chains: ChooseChains
    learned: dict[int, tuple[int, int]] = field(default_factory=dict)
    trims: dict[int, Trim] = field(default_factory=dict)
    garbage: list[int] = field(default_factory=list)
    files_delta: int = 0
    trash: bool = False
    granted: set[bytes] = field(default_factory=set)
    regrant: list[tuple[int, int]] = field(default_factory=list)
    end_max: EndMax = unlimited
    folded: bool = False
    gains: Mapping[Subject, Usage] | None = None
    enters: int = 0
    further_names: list[tuple[int, int, int]] = field(default_factory=list)
