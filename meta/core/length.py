"""When a client's word about a file's length is enough, and what a truncation leaves to do."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fireflyfs.meta.core.records import Flags, Inode, Trim


@dataclass(frozen=True, slots=True)
class Hint:
    """The largest end that a client wrote, and the truncate version that it knew."""

    length: int
    truncate_version: int


def settles(inode: Inode, hint: Hint) -> bool:
    """Whether `hint` can be taken without asking storage: same truncate version, and no trim under way."""
    return hint.truncate_version == inode.truncate_version and not inode.flags & Flags.TRIMMING


def lengthened(inode: Inode, length: int) -> int:
    """A hint, and what storage holds, only ever lengthen."""
    return max(inode.length, length)


def trimmed(inode: Inode, trim: Trim) -> Inode:
    """The inode as it is when nothing is left beyond the trim's end."""
    return replace(
        inode, length=trim.length, truncate_version=trim.truncate_version, flags=inode.flags & ~Flags.TRIMMING
    )


def needs_trim(inode: Inode, length: int, *, open_for_writing: bool) -> bool:
    """Whether chunks may exist beyond `length`. An open writer may have written what nobody recorded yet."""
    return bool(inode.flags & Flags.WRITTEN) and (open_for_writing or length < inode.length)
