"""What a write, a truncation or a change of owner takes from a file: set-uid and set-gid bits, security.capability."""

from __future__ import annotations

from fireflyfs.meta.core.permission import without_privilege_bits
from fireflyfs.meta.core.records import Flags, Inode
from fireflyfs.meta.core.xattrs import CAPABILITY
from fireflyfs.meta.ops.context import Op


def drop_capability(op: Op, inode: Inode) -> None:
    """The caller stores `inode`. Costs nothing where there is none."""
    if inode.flags & Flags.CAPABILITY:
        values = op.tree.xattrs(inode)
        values.pop(CAPABILITY, None)
        op.tree.set_xattrs(inode, values)


def after_write(op: Op, inode: Inode) -> None:
    """Bytes of `inode` were changed: root keeps the mode bits, nobody keeps the capability. The caller stores it."""
    if op.who.uid != 0:
        inode.mode = without_privilege_bits(inode, op.who)
    drop_capability(op, inode)
