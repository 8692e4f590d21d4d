"""Setting a file's length: one transaction here, the chunks afterwards (docs/ARCHITECTURE.md, File length)."""

from __future__ import annotations

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import FILE_BYTES_MAX
from fireflyfs.meta.core.length import needs_trim
from fireflyfs.meta.core.records import Flags, Inode, Trim
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.ops.needs import TrimFirst
from fireflyfs.meta.ops.privileges import after_write


def truncate_to(op: Op, inode: Inode, length: int) -> None:
    """Set the length of a regular file; the caller stores `inode`.

    Where chunks may lie beyond it, records a trim and adds the inode to `op.trims`. Raises TrimFirst while an earlier
    trim is unfinished: a longer one recorded over it would bring its bytes back.
    """
    if length > FILE_BYTES_MAX:
        raise error(Code.TOO_BIG)
    if inode.flags & Flags.TRIMMING:
        raise TrimFirst(inode.id)
    written = bool(inode.flags & Flags.WRITTEN)
    if needs_trim(inode, length, open_for_writing=written and op.tree.has_writers(inode.id)):
        inode.truncate_version += 1
        inode.flags |= Flags.TRIMMING
        op.tree.put_trim(inode.id, Trim(length, inode.truncate_version))
        op.trims.append(inode.id)
    inode.length = length
    inode.mtime_ns = inode.ctime_ns = op.now_ns
    after_write(op, inode)
