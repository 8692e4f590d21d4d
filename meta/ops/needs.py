"""What an operation must know or have done before its transaction can go on: raised, seen to, and run again.

None of them is an error that a client ever sees.
"""

from __future__ import annotations

from dataclasses import dataclass

from fireflyfs.meta.core.records import Inode


@dataclass(slots=True)
class TrimFirst(Exception):
    """A trim of this inode is not finished, and the operation touches its length."""

    inode_id: int


@dataclass(slots=True)
class AskStorage(Exception):
    """The length must be asked of storage; `inode` is as the transaction saw it."""

    inode: Inode


@dataclass(slots=True)
class FoldFirst(Exception):
    """A quota seems to be used up: what was changed lately must be folded into usage before that is sure."""


@dataclass(slots=True)
class RecallFirst(Exception):
    """Other clients know all names of this directory, and must be told before it gets one."""

    inode_id: int


@dataclass(slots=True)
class AskRouting(Exception):
    """A chain table is not in routing as of this version: a newer one may have it."""

    version: int
