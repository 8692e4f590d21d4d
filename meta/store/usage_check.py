"""Compares usage records with what is there: each comparison within one snapshot, where both must agree to the byte."""

from __future__ import annotations

from dataclasses import dataclass, field

from fireflyfs.common.errors import Code, error
from fireflyfs.common.ids import ROOT_INODE
from fireflyfs.common.kv.interface import Transaction
from fireflyfs.meta.core import keys
from fireflyfs.meta.core.records import unpack_dentry
from fireflyfs.meta.core.usage import (
    Facts,
    Kind,
    Subject,
    Sums,
    Usage,
    facts_of_record,
    pack_changes,
    summed,
    unpack_usage,
)
from fireflyfs.meta.store import accounts

ENTRIES_AT_ONCE = 20_000  # looked at in one snapshot, unless a single directory has more
DIRECTORIES_AT_ONCE = 2_000
CHANGES_MAX = 100_000  # not folded yet; more are a sign that folding does not keep up


@dataclass(slots=True)
class Look:
    """What a check found. `missing`: what the records lack, of whom they do (negative: have too many)."""

    missing: dict[Subject, Usage] = field(default_factory=dict)
    looked_at: int = 0
    last: int = 0
    more: bool = False
    repairs: bytes = b""  # which was the last repair before this look


def directories(txn: Transaction, after: int) -> Look:
    """Directories with ids after `after`, some of them.

    Of each: its record and its own changes that wait, against its entries and its subdirectories' records.
    """
    waiting = _waiting(txn)
    look = Look(last=after, repairs=txn.get(keys.REPAIRS) or b"")
    entries = 0
    for key, data in txn.scan(keys.inode(after) + b"\0", keys.table(b"I")[1]):
        if entries >= ENTRIES_AT_ONCE or look.looked_at >= DIRECTORIES_AT_ONCE:
            look.more = True
            break
        entries += 1
        directory = keys.id_of(key)
        if facts_of_record(data).is_dir:
            there, seen = _below(txn, directory)
            entries += seen
            look.looked_at += 1
            known = accounts.usage(txn, Kind.DIRECTORY, directory)
            missing = there.minus(known.plus(waiting.get((Kind.DIRECTORY, directory), Usage())))
            if missing != Usage():
                look.missing[Kind.DIRECTORY, directory] = missing
        look.last = directory
    return look


def owners(txn: Transaction) -> Look:
    """All users and groups, against all inodes. Memory: by the number of owners."""
    look = Look(repairs=txn.get(keys.REPAIRS) or b"")
    there = Sums()
    for key, data in txn.scan(*keys.table(b"I")):
        look.looked_at += 1
        facts = facts_of_record(data)
        if facts.counted and keys.id_of(key) != ROOT_INODE:
            one = Usage(facts.bytes, 1)
            there.add(Kind.USER, facts.uid, one)
            there.add(Kind.GROUP, facts.gid, one)
    for subject, change in _waiting(txn).items():
        if subject[0] != Kind.DIRECTORY:
            there.add(*subject, Usage().minus(change))
    for key, data in txn.scan(keys.usage(Kind.USER, 0), keys.table(b"U")[1]):
        there.add(*keys.subject_of(key), Usage().minus(unpack_usage(data)))
    look.missing = there.settled()
    return look


def repair(txn: Transaction, look: Look, key: bytes) -> None:
    """Record what is missing as a change, as if operations had made it (accounts.py says why it is still right).

    Raises BUSY when something else was repaired after the look.
    """
    last = txn.get(keys.REPAIRS) or b""
    if last != look.repairs:
        raise error(Code.BUSY, "usage is being repaired by somebody else")
    txn.put(keys.REPAIRS, (int.from_bytes(last, "big") + 1).to_bytes(8, "big"))
    txn.put(key, pack_changes(look.missing))


def _waiting(txn: Transaction) -> dict[Subject, Usage]:
    found = accounts.waiting(txn, keys.changes_from(0), CHANGES_MAX)
    if len(found) == CHANGES_MAX:
        raise error(Code.OVERLOADED, "changes of usage are made faster than they are folded: try again later")
    return summed(data for _, data in found)


def _below(txn: Transaction, directory: int) -> tuple[Usage, int]:
    """What counts below a directory, by its entries; how many there are."""
    size = inodes = entries = 0
    several: set[int] = set()  # files with another name perhaps, met already
    for key, value in txn.scan(*keys.dentries(directory)):
        entries += 1
        inode_id, _ = unpack_dentry(value)
        data = txn.get(keys.inode(inode_id))
        if data is None:
            raise error(Code.IO_ERROR, f"the entry {key!r} leads to no inode")
        facts = facts_of_record(data)
        if facts.is_dir:
            below = accounts.usage(txn, Kind.DIRECTORY, inode_id)
            size += below.bytes
            inodes += below.inodes
        if facts.counted and facts.at == directory and inode_id not in several:
            if _has_several(txn, facts, inode_id):
                several.add(inode_id)
            size += facts.bytes
            inodes += 1
    return Usage(size, inodes), entries


def _has_several(txn: Transaction, facts: Facts, inode_id: int) -> bool:
    return not facts.is_dir and any(True for _ in txn.scan(*keys.all_names(inode_id), limit=1))
