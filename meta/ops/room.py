"""Whether quotas let a file grow where metadata decides it: truncating up, and places to append to."""

from __future__ import annotations

from fireflyfs.common.errors import Code, error
from fireflyfs.meta.core.records import Inode
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.ops.needs import FoldFirst


def require_room(op: Op, inode: Inode, end: int) -> None:
    """Raises QUOTA_EXCEEDED where the file may not get so long; FoldFirst as long as that is not sure."""
    if end > inode.length and end > op.end_max(op.tree, inode, end):
        if not op.folded:
            raise FoldFirst
        raise error(Code.QUOTA_EXCEEDED)
