"""Setting a file's length: one transaction here, the chunks afterwards (docs/ARCHITECTURE.md, File length)."""

from __future__ import annotations

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import FILE_BYTES_MAX
from fireflyfs.meta.core.length import needs_trim, trimmed
from fireflyfs.meta.core.records import Flags, Inode, Trim
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.ops.needs import TrimFirst
from fireflyfs.meta.ops.privileges import after_write
from fireflyfs.meta.ops.room import require_room


def truncate_to(op: Op, inode: Inode, length: int) -> None:
    """Set the length of a regular file; the caller stores `inode`.

    Where chunks may lie beyond it, records a trim and adds it to `op.trims`; the file has its new length when that is
    done. Whoever saw it before could write there, and the trim would take the bytes. Raises TrimFirst while an
    earlier trim is unfinished: a longer one recorded over it would bring its bytes back.
    """
    if length > FILE_BYTES_MAX:
        raise error(Code.TOO_BIG)
    if inode.flags & Flags.TRIMMING:
        raise TrimFirst(inode.id)
    written = bool(inode.flags & Flags.WRITTEN)
    inode.mtime_ns = inode.ctime_ns = op.now_ns
    after_write(op, inode)
    require_room(op, inode, length)  # now, because a trim may do the lengthening, and nobody asks it
    if needs_trim(inode, length, open_for_writing=written and op.tree.has_writers(inode.id)):
        inode.flags |= Flags.TRIMMING
        op.trims[inode.id] = Trim(length, inode.truncate_version + 1)
        op.tree.put_trim(inode.id, op.trims[inode.id])
    else:
        inode.length = length


def as_told(op: Op, inode: Inode) -> Inode:
    """The inode as the answer to `op` shows it: that is given when its trims are done."""
    trim = op.trims.get(inode.id)
    return trimmed(inode, trim) if trim is not None else inode
