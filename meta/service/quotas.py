"""Quotas as one server enforces them: known in memory, checked in the transaction that would use more.

What counts is the folded usage, and what this server let through since: so with one server a quota is exact, and each
further one may let through what it commits until the next fold. When the two together say that it is too much, some of
it may be counted twice, or may have gone meanwhile: then the changes are folded, and the operation is tried once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fireflyfs.common.errors import Code, error
from fireflyfs.common.ids import ROOT_INODE
from fireflyfs.common.kv.interface import KvEngine, Transaction, read
from fireflyfs.common.limits import QUOTA_GRANT_BYTES, QUOTAS_MAX
from fireflyfs.meta.core import keys
from fireflyfs.meta.core.records import Inode
from fireflyfs.meta.core.usage import (
    BLOCK_BYTES,
    NO_LIMIT,
    Kind,
    Quota,
    Subject,
    Usage,
    bytes_of,
    facts_of_record,
    rounded,
    unpack_quota,
)
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.ops.needs import FoldFirst
from fireflyfs.meta.store import accounts
from fireflyfs.meta.store.tree import ANCESTORS_MAX, Tree

_NAMES = {Kind.DIRECTORY: "directory", Kind.USER: "user", Kind.GROUP: "group"}


class Quotas:
    """All quotas, as they were a moment ago, and what was let through since usage was folded."""

    def __init__(self, engine: KvEngine) -> None:
        self._engine = engine
        self.any = False  # whether there are quotas at all
        self._quotas: dict[Subject, Quota] = {}
        self._of_directories = False
        self._since: dict[Subject, Usage] = {}  # let through since the fold under way began
        self._before: dict[Subject, Usage] = {}  # the same before that: the fold under way finds it
        self.reload()

    def reload(self) -> None:
        """Read them anew: changed here, or by another server."""

        def body(txn: Transaction) -> dict[Subject, Quota]:
            found = txn.scan(*keys.table(b"Q"), limit=QUOTAS_MAX)
            return {keys.subject_of(key): unpack_quota(value) for key, value in found}

        self._quotas = read(self._engine, body)
        self.any = bool(self._quotas)
        self._of_directories = any(kind == Kind.DIRECTORY for kind, _ in self._quotas)

    def folding(self) -> None:
        """A fold begins, which finds everything that was let through so far."""
        for subject, change in self._since.items():
            self._before[subject] = self._before.get(subject, Usage()).plus(change)
        self._since = {}

    def folded(self) -> None:
        self._before = {}

    def limited(self, tree: Tree, changes: Mapping[Subject, Usage]) -> dict[Subject, Usage]:
        """Of `changes`, what there are quotas for; of directories by the one that has the quota."""
        found: dict[Subject, Usage] = {}
        for (kind, subject), change in changes.items():
            for key in self._above(tree, subject) if kind == Kind.DIRECTORY else ((kind, subject),):
                if key in self._quotas:
                    found[key] = found.get(key, Usage()).plus(change)
        return found

    def of_further_name(self, tree: Tree, inode_id: int, directory: int, left: int) -> dict[Subject, Usage]:
        """What a file of several names would use below quotas that it does not count in: it will, when the names
        elsewhere go, and that nobody refuses. Quotas that the name was below before, in `left`, are not among them."""
        inode = tree.find(inode_id)
        if inode is None or inode.parent == directory:
            return {}
        known = {*self._above(tree, inode.parent), *(self._above(tree, left) if left else ())}
        one = Usage(bytes_of(inode.mode, inode.length), 1)
        return {subject: one for subject in self._of(tree, directory) if subject not in known}

    def asked_of(self, op: Op) -> dict[Subject, Usage]:
        """Of what an operation gains, what there must be room for."""
        gains = dict(op.gains or {})
        if op.enters:
            entered = set(self._of(op.tree, op.enters))
            gains = {subject: change for subject, change in gains.items() if subject in entered}
        for further in op.further_names:
            for subject, change in self.of_further_name(op.tree, *further).items():
                gains[subject] = gains.get(subject, Usage()).plus(change)
        return gains

    def check(self, tree: Tree, gains: Mapping[Subject, Usage], *, folded: bool) -> None:
        """Raises QUOTA_EXCEEDED, or FoldFirst unless that was just done, when one of `gains` is too much."""
        for subject, change in gains.items():
            quota = self._quotas.get(subject)
            if quota is None or (change.bytes <= 0 and change.inodes <= 0):
                continue
            if tree.moved and not folded:
                raise FoldFirst  # what was changed below it lately comes too
            after = self._used(tree, subject).plus(change)
            if (change.bytes > 0 and after.bytes > quota.bytes_max) or (
                change.inodes > 0 and after.inodes > quota.inodes_max
            ):
                if not folded:
                    raise FoldFirst
                kind, name = subject
                raise error(Code.QUOTA_EXCEEDED, f"the quota of {_NAMES[Kind(kind)]} {name} does not allow more")

    def let_through(self, gains: Mapping[Subject, Usage]) -> None:
        """These were committed."""
        for subject, change in gains.items():
            more = Usage(max(0, change.bytes), max(0, change.inodes))
            self._since[subject] = self._since.get(subject, Usage()).plus(more)

    def end_max(
        self, tree: Tree, inode: Inode, wanted_end: int = 0, gains: Mapping[Subject, Usage] | None = None
    ) -> int:
        """How long a file may get, for now, by whoever asked; NO_LIMIT where nothing limits it.

        No more is granted at once than a fixed amount, or what `wanted_end` needs: so the file's owner comes back,
        and what several files may take beyond a quota stays bounded. `gains`: what this transaction uses more already.
        """
        room = self._room(tree, inode, gains or {})
        if room == NO_LIMIT:
            return NO_LIMIT
        now = rounded(inode.length)
        room -= room % BLOCK_BYTES
        return max(inode.length, now + min(room, max(QUOTA_GRANT_BYTES, wanted_end - now)))

    def _room(self, tree: Tree, inode: Inode, gains: Mapping[Subject, Usage]) -> int:
        subjects: list[Subject] = [(Kind.USER, inode.uid), (Kind.GROUP, inode.gid)]
        if inode.nlink and self._of_directories:
            subjects += self._above(tree, inode.parent)
        room = NO_LIMIT
        for subject in subjects:
            quota = self._quotas.get(subject)
            if quota is not None and quota.bytes_max != NO_LIMIT:
                used = self._used(tree, subject).bytes + gains.get(subject, Usage()).bytes
                room = min(room, max(0, quota.bytes_max - used))
        return room

    def tightest(self, tree: Tree, directory: int) -> list[tuple[Quota, Usage]]:
        """The quotas above and of `directory`, with what is used of each."""
        if not self._of_directories:
            return []
        return [(self._quotas[key], self._used(tree, key)) for key in self._of(tree, directory)]

    def _used(self, tree: Tree, subject: Subject) -> Usage:
        used = accounts.usage(tree.txn, *subject, snapshot=True)
        for more in (self._since, self._before):
            if subject in more:
                used = used.plus(more[subject])
        return used

    def _of(self, tree: Tree, directory: int) -> list[Subject]:
        """The directory and those above it, as far as they have quotas."""
        return [subject for subject in self._above(tree, directory) if subject in self._quotas]

    def _above(self, tree: Tree, directory: int) -> Iterable[Subject]:
        """The directory and all above it; looked up without a conflict: a rename is checked by itself."""
        if not self._of_directories:
            return
        for _ in range(ANCESTORS_MAX):
            yield (Kind.DIRECTORY, directory)
            if directory == ROOT_INODE:
                return
            data = tree.txn.get(keys.inode(directory), snapshot=True)
            if data is None:
                return
            directory = facts_of_record(data).at
            if not directory:
                return
