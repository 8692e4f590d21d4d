"""Usage records and the changes that wait to be folded into them, inside one transaction.

A transaction that changes usage leaves one change record under a key of its own: nobody reads it meanwhile, so two
creations in one directory do not meet. Folding (meta/background/usage.py) adds changes to the usage records of the
directory and of all above it, and deletes them, in one transaction.

What always holds, of every directory: its usage record and the changes recorded for itself are together what its
entries are plus the usage records of its subdirectories. Every operation keeps that, and so does folding, in whatever
order; hence a difference that a check finds in one snapshot stays right until it is recorded as a change of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from fireflyfs.common.ids import ROOT_INODE
from fireflyfs.common.kv.interface import TRANSACTION_WRITES_MAX, Transaction
from fireflyfs.meta.core import keys
from fireflyfs.meta.core.records import Inode
from fireflyfs.meta.core.usage import (
    Kind,
    Subject,
    Sums,
    Usage,
    add_inode,
    facts_of,
    facts_of_record,
    is_unchanged,
    of_new,
    pack_changes,
    pack_new,
    pack_usage,
    summed,
    unpack_usage,
)
from fireflyfs.meta.store.tree import Tree

CHANGES_AT_ONCE = 96  # change records folded in one transaction
FOLD_WRITES_MAX = TRANSACTION_WRITES_MAX - 8  # what does not fit is carried on as a change of where it got to


class ChangeKeys:
    """Keys for change records that no other has, later ones behind earlier ones, whatever the clock does.

    `life` is a number that no other life of a server has.
    """

    def __init__(self, life: int) -> None:
        self._life = life
        self._number = 0
        self._last_ns = 0

    def follow(self, other_ns: int) -> None:
        """A change of `other_ns` was folded, and the next ones are looked for behind it: ours come there, also where
        another server's clock is ahead."""
        self._last_ns = max(self._last_ns, other_ns)

    def next(self, now_ns: int) -> bytes:
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._last_ns = max(self._last_ns, now_ns)
        return keys.change(self._last_ns, self._life, self._number)


def usage(txn: Transaction, kind: int, subject: int, *, snapshot: bool = False) -> Usage:
    """As folded."""
    return unpack_usage(txn.get(keys.usage(kind, subject), snapshot=snapshot))


def changes_of(tree: Tree) -> dict[Subject, Usage]:
    """What this transaction does to usage, so far. Drops the usage records of directories that it deletes."""
    written = tree.written
    if not written:
        return {}
    stored = tree.stored
    changed: list[tuple[int, bytes | None, Inode | None]] = []
    for inode_id, inode in written.items():
        data = stored.get(inode_id)
        if (inode is None or data is None or not is_unchanged(data, inode)) and inode_id != ROOT_INODE:
            changed.append((inode_id, data, inode))
    if len(changed) == 1 and changed[0][1] is None and changed[0][2] is not None:
        return of_new(changed[0][2])  # by far the most frequent: worth not being taken apart
    sums = Sums()
    for inode_id, data, inode in changed:
        was = facts_of_record(data) if data is not None else None
        now = facts_of(inode) if inode is not None else None
        if add_inode(sums, was, now):
            assert was is not None
            _move_what_is_below(tree, sums, inode_id, was.at, now.at if now is not None else 0)
        if now is None and was is not None and was.is_dir:
            key = keys.usage(Kind.DIRECTORY, inode_id)
            if tree.txn.get(key) is not None:
                tree.txn.delete(key)
    return sums.settled()


def _only_new(tree: Tree) -> Inode | None:
    """The inode with a name that is all that this transaction adds to usage, at a glance; None: look closer."""
    new = None
    for inode_id, inode in tree.written.items():
        data = tree.stored.get(inode_id)
        if inode is None or (data is None and (new is not None or not inode.nlink)):
            return None
        if data is None:
            new = inode
        elif not is_unchanged(data, inode):
            return None
    return new


def _move_what_is_below(tree: Tree, sums: Sums, directory: int, source: int, goal: int) -> None:
    """What is folded for it leaves one place and comes to the other (0: none); what is not folded yet finds its way."""
    below = usage(tree.txn, Kind.DIRECTORY, directory)
    if source:
        sums.add(Kind.DIRECTORY, source, Usage().minus(below))
    if goal:
        tree.moved = True
        sums.add(Kind.DIRECTORY, goal, below)


def record(tree: Tree, changes: Mapping[Subject, Usage], key: bytes) -> None:
    if changes:
        tree.txn.put(key, pack_changes(changes))


def settle(tree: Tree, change_keys: ChangeKeys, now_ns: int) -> dict[Subject, Usage]:
    """At the end of a transaction whose usage nobody limits; the changes."""
    changes = changes_of(tree)
    if changes:
        record(tree, changes, change_keys.next(now_ns))
    return changes


def settle_unseen(tree: Tree, change_keys: ChangeKeys, now_ns: int) -> None:
    """The same for a caller who does not want to know."""
    new = _only_new(tree)
    if new is not None:
        tree.txn.put(change_keys.next(now_ns), pack_new(new))
    elif tree.written:
        settle(tree, change_keys, now_ns)


def waiting(txn: Transaction, begin: bytes, limit: int) -> list[tuple[bytes, bytes]]:
    """Change records from the key `begin` on, oldest first; not in the conflict set."""
    return list(txn.scan(begin, keys.table(b"C")[1], limit=limit, snapshot=True))


def fold(txn: Transaction, begin: bytes, carry_key: bytes) -> list[bytes]:
    """Fold a batch of changes from the key `begin` on; their keys, none: there are none.

    Reads the parent of every directory on the way up, so a rename of any of them conflicts with it. What another server
    folded meanwhile is a conflict too.
    """
    batch = waiting(txn, begin, CHANGES_AT_ONCE)
    if not batch:
        return []
    txn.add_read_conflict_range(batch[0][0], batch[-1][0] + b"\0")
    for key, _ in batch:
        txn.delete(key)
    tree = Tree(txn)
    carried = Sums()
    folded: dict[Subject, Usage] = {}
    above: dict[int, int] = {}  # a directory's parent; 0: nothing above; -1: there is no such directory
    for (kind, subject), change in summed(value for _, value in batch).items():
        at = subject
        while at >= 0:
            if (kind, at) not in folded and len(batch) + len(folded) >= FOLD_WRITES_MAX:
                carried.add(kind, at, change)
                break
            if kind != Kind.DIRECTORY:
                folded[kind, at] = folded.get((kind, at), Usage()).plus(change)
                break
            if at not in above:
                above[at] = _parent(tree, at)
            if above[at] < 0:
                break
            folded[kind, at] = folded.get((kind, at), Usage()).plus(change)
            at = above[at] or -1
    for (kind, subject), change in folded.items():
        total = usage(txn, kind, subject).plus(change)
        key = keys.usage(kind, subject)
        if total == Usage():
            txn.delete(key)
        else:
            txn.put(key, pack_usage(total))
    record(tree, carried.settled(), carry_key)
    return [key for key, _ in batch]


def _parent(tree: Tree, directory: int) -> int:
    """The directory above; 0 for the root, and for one that was removed: what is in it counts up to there."""
    inode = tree.find(directory)
    if inode is None:
        return -1
    return inode.parent if inode.nlink and directory != ROOT_INODE else 0
