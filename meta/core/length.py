"""When a client's word about a file's length is enough, and what a truncation leaves to do."""

from __future__ import annotations

from dataclasses import dataclass

from fireflyfs.meta.core.records import Flags, Inode


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


@dataclass(frozen=True, slots=True)
class TrimWork:
    """Chunks from `remove_from` go; chunk `shorten_index`, if not None, is cut to `shorten_length` bytes."""

    remove_from: int
    shorten_index: int | None
    shorten_length: int


def trim_work(length: int, chunk_size: int) -> TrimWork:
    full, rest = divmod(length, chunk_size)
    if rest:
        return TrimWork(full + 1, full, rest)
    return TrimWork(full, None, 0)


def needs_trim(inode: Inode, length: int, *, open_for_writing: bool) -> bool:
    """Whether chunks may exist beyond `length`. An open writer may have written what nobody recorded yet."""
    return bool(inode.flags & Flags.WRITTEN) and (open_for_writing or length < inode.length)
