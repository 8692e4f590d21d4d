"""From a path to its place in the tree."""

from __future__ import annotations

from dataclasses import dataclass

from fireflyfs.common.errors import Code, error
from fireflyfs.common.ids import ROOT_INODE
from fireflyfs.common.limits import SYMLINK_DEPTH_MAX
from fireflyfs.meta.core.paths import components
from fireflyfs.meta.core.permission import EXECUTE, Who, require
from fireflyfs.meta.core.records import Inode
from fireflyfs.meta.store.tree import Tree
from fireflyfs.proto import meta_pb2


@dataclass(slots=True)
class Place:
    """Where a path leads. `parent` is None when the path names an inode itself (an empty path, the root)."""

    parent: Inode | None
    name: bytes  # the last component; may be `.` or `..`
    inode: Inode | None  # None: no such entry
    must_be_dir: bool = False  # a trailing slash


def resolve(tree: Tree, who: Who, at: meta_pb2.PathAt, *, follow: bool | None = None, entry: bool = False) -> Place:
    """Walk `at`, checking execute permission on every directory that is searched.

    `entry`: the name itself is meant, as in unlink and mkdir: a link at the end is never followed, not even before a
    slash, and the caller checks `must_be_dir`. The last component may be missing; everything before it may not.
    Raises NO_ENTRY, NOT_DIRECTORY, ACCESS_DENIED, LINK_LOOP, NAME_TOO_LONG, INVALID, STALE_HANDLE (the starting inode
    is gone).
    """
    path = at.path
    if not path:
        inode = tree.inode(at.dir)
        return Place(None, b"", inode)
    absolute = path[0] == 0x2F
    names, trailing = components(path)
    current = tree.inode(ROOT_INODE) if absolute else _start(tree, at.dir)
    if not names:
        return Place(None, b"", current, True)
    last = at.follow if follow is None else follow
    return _walk(tree, who, current, names, trailing, last and not entry, entry)


def target(tree: Tree, who: Who, at: meta_pb2.PathAt, *, follow: bool | None = None) -> Inode:
    """The existing inode that `at` names. Raises as `resolve`, and NO_ENTRY."""
    inode = resolve(tree, who, at, follow=follow).inode
    if inode is None:
        raise error(Code.NO_ENTRY)
    return inode


def _start(tree: Tree, inode_id: int) -> Inode:
    inode = tree.find(inode_id)
    if inode is None:
        raise error(Code.NO_ENTRY, "the directory that the path starts from is gone")
    return inode


def _walk(tree: Tree, who: Who, current: Inode, names: list[bytes], trailing: bool, follow: bool, entry: bool) -> Place:
    place = depth = 0
    while True:
        if not current.is_dir:
            raise error(Code.NOT_DIRECTORY)
        require(current, who, EXECUTE)
        name = names[place]
        place += 1
        final = place == len(names)
        if name == b".":
            child: Inode | None = current
        elif name == b"..":
            child = current if current.parent == current.id else tree.inode(current.parent)
        else:
            child = tree.child(current.id, name)
        if child is None:
            if not final:
                raise error(Code.NO_ENTRY)
            return Place(current, name, None, trailing)
        if child.is_link and (not final or follow or (trailing and not entry)):
            depth += 1
            if depth > SYMLINK_DEPTH_MAX:
                raise error(Code.LINK_LOOP)
            more, slash = components(child.target)
            if child.target[:1] == b"/":
                current = tree.inode(ROOT_INODE)
            names = more + names[place:]
            trailing = trailing or (final and slash)
            place = 0
            if not names:
                return Place(None, b"", current, True)
            continue
        if final:
            if trailing and not child.is_dir and not entry:
                raise error(Code.NOT_DIRECTORY)
            return Place(current, name, child, trailing)
        current = child
