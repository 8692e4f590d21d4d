"""In which directories a file has names, as far as usage must know it.

A file counts in one directory, `Inode.parent`, in which it has a name. With one name that says it all. From the second
name on each directory that has one has a record with how many, so that, when the last name goes from the directory in
which the file counts, another one is found that has some. With one name left there are none of these records.

A file of several names that an older release made has no such records. When its last name in the directory where it
counts goes, it counts nowhere until the count of all entries, which is asked for anew, has come across another one.
"""

from __future__ import annotations

from fireflyfs.meta.core import keys
from fireflyfs.meta.core.records import Inode
from fireflyfs.meta.core.usage import pack_names, unpack_names
from fireflyfs.meta.store.tree import Tree


def added(tree: Tree, inode: Inode, directory: int) -> None:
    """`inode` was given a name in `directory`; its link count has it already. The caller stores it, as below."""
    if inode.nlink == 1:
        inode.parent, inode.counted = directory, True
    elif inode.counted:
        if inode.nlink == 2:
            _add(tree, inode.id, inode.parent, 1)
        _add(tree, inode.id, directory, 1)


def removed(tree: Tree, inode: Inode, directory: int) -> None:
    """It lost a name in `directory`; its link count is without it."""
    if not inode.nlink or not inode.counted:
        return
    left_there = _add(tree, inode.id, directory, -1)
    if inode.nlink == 1:
        _settle_last(tree, inode)
    elif inode.parent == directory and not left_there:
        _move_home(tree, inode, next(iter(_directories(tree, inode.id, 1)), 0))


def moved(tree: Tree, inode: Inode, source: int, goal: int) -> None:
    """One of its names went from `source` to `goal`."""
    if source == goal:
        return
    if inode.nlink == 1:
        inode.parent, inode.counted = goal, True
        return
    left_there = _add(tree, inode.id, source, -1)
    _add(tree, inode.id, goal, 1)
    if not inode.counted or (inode.parent == source and not left_there):
        inode.parent, inode.counted = goal, True


def found(tree: Tree, inode: Inode, directory: int) -> None:
    """An inode that is in no usage yet has a name in `directory`."""
    inode.counted = True
    if not inode.is_dir:
        inode.parent = directory
        if inode.nlink > 1:
            tree.txn.put(keys.names(inode.id, directory), pack_names(1))


def _settle_last(tree: Tree, inode: Inode) -> None:
    """One name is left, in the one directory that has a record."""
    directories = _directories(tree, inode.id, 3)
    for directory in directories:
        tree.txn.delete(keys.names(inode.id, directory))
    _move_home(tree, inode, directories[0] if len(directories) == 1 else 0)


def _move_home(tree: Tree, inode: Inode, directory: int) -> None:
    inode.parent = directory
    if not directory:
        inode.counted = False
        tree.txn.put(keys.UNCOUNTED, keys.table(b"D")[0])


def _directories(tree: Tree, inode_id: int, limit: int) -> list[int]:
    begin, end = keys.all_names(inode_id)
    return [keys.names_directory(key) for key, _ in tree.txn.scan(begin, end, limit=limit)]


def _add(tree: Tree, inode_id: int, directory: int, change: int) -> int:
    key = keys.names(inode_id, directory)
    before = unpack_names(tree.txn.get(key))
    count = max(0, before + change)
    if count:
        tree.txn.put(key, pack_names(count))
    elif before:
        tree.txn.delete(key)
    return count
