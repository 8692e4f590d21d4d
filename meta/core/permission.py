"""Who may do what: owner, group and other bits, ACLs, supplementary groups, the sticky bit."""

from __future__ import annotations

import stat
from typing import NamedTuple

from fireflyfs.common.errors import Code, error
from fireflyfs.meta.core.acl import allows
from fireflyfs.meta.core.records import Inode

READ = 4
WRITE = 2
EXECUTE = 1


class Who(NamedTuple):
    """On whose behalf a request runs."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    client_id: bytes = b""

    def in_group(self, gid: int) -> bool:
        return gid == self.gid or gid in self.groups


def may(inode: Inode, who: Who, mask: int) -> bool:
    """Whether `who` has every right of `mask`. Root has all, but executes only what somebody may execute."""
    mode = inode.mode
    if who.uid == 0:
        return not mask & EXECUTE or bool(mode & 0o111) or inode.is_dir
    if who.uid == inode.uid:
        mode >>= 6
    elif inode.acl and mode & stat.S_IRWXG:  # as Linux: an ACL whose mask allows nothing is not looked at
        return allows(inode.acl, inode.uid, inode.gid, who.uid, who.in_group, mask)
    elif who.in_group(inode.gid):
        mode >>= 3
    return mode & mask == mask


def require(inode: Inode, who: Who, mask: int) -> None:
    """Raises ACCESS_DENIED."""
    if not may(inode, who, mask):
        raise error(Code.ACCESS_DENIED)


def require_owner(inode: Inode, who: Who) -> None:
    """Raises NOT_PERMITTED."""
    if who.uid != 0 and who.uid != inode.uid:
        raise error(Code.NOT_PERMITTED)


def require_unlink(parent: Inode, victim: Inode, who: Who) -> None:
    """May `who` take the name of `victim` out of `parent`? Raises ACCESS_DENIED or NOT_PERMITTED (sticky)."""
    require(parent, who, WRITE | EXECUTE)
    if parent.mode & stat.S_ISVTX and who.uid not in (0, parent.uid, victim.uid):
        raise error(Code.NOT_PERMITTED)


def without_privilege_bits(inode: Inode, who: Who) -> int:
    """The mode after `who` wrote, truncated or changed the owner: no set-uid bit; no set-gid bit where the group may
    execute, or where `who` is neither root nor in the group."""
    mode = inode.mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP or (who.uid != 0 and not who.in_group(inode.gid)):
        mode &= ~stat.S_ISGID
    return mode


def child_ownership(parent: Inode, who: Who, mode: int) -> tuple[int, int]:
    """(gid, mode) of something new in `parent`: a set-gid directory gives its group, and the bit to directories."""
    gid = who.gid
    directory = stat.S_ISDIR(mode)
    if parent.mode & stat.S_ISGID:
        gid = parent.gid
        if directory:
            mode |= stat.S_ISGID
    if not directory and mode & stat.S_ISGID and mode & stat.S_IXGRP and who.uid != 0 and not who.in_group(gid):
        mode &= ~stat.S_ISGID
    return gid, mode
