"""What is wrong with a chunk, and what would be right: from looks at it, one after the other. Pure.

A finding needs two looks in a row that saw the same: on every serving replica the same versions by the same writers, at
meta the same file, the same chain; and nothing under way in either. An update that began before the first look has
either changed the head by the second one, or still holds its lock (busy), or has left something pending.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from fireflyfs.client.fsck.core.facts import Content, Copy, File, Finding, Key, Kind, Look

PENDING_SETTLE_S = 30.0  # a version is pending for good when it stays for longer than an update may take


class Verdict(Enum):
    """Of a chunk about which nothing was found, or not yet."""

    FINE = "nothing is wrong"
    AGAIN = "look again"


@dataclass(slots=True)
class Memory:
    """What earlier looks at one chunk left."""

    before: Look | None = None  # the last one; None: it was not whole
    pending: frozenset[tuple[int, int, object]] = frozenset()
    pending_since_s: float = 0.0


def problem_of(key: Key, chain_id: int, copies: Mapping[int, Copy], file: File | None) -> Kind | None:
    """What one look shows, whatever is under way."""
    contents = {copy.content for copy in copies.values()}
    if not contents - {None}:
        return None
    if len(contents) > 1:
        return Kind.MISSING if None in contents and len(contents) == 2 else Kind.DIFFERS
    (content,) = contents
    assert content is not None
    if file is None:
        return Kind.ORPHAN
    if file.removed:
        return None
    if file.chain_of(key.chunk_index) != chain_id:
        return Kind.MISPLACED
    if content.named:
        return None
    if not (file.writing or file.trimming) and key.chunk_index * file.chunk_size + content.length > file.length:
        return Kind.BEYOND_END
    return None


def judge(key: Key, chain_id: int, memory: Memory, now: Look | None) -> Finding | Verdict:
    """After another look (None: it was not whole). `memory` is brought up to date."""
    before, memory.before = memory.before, now
    if now is None:
        return Verdict.AGAIN
    problem = problem_of(key, chain_id, now.copies, now.file)
    pending = frozenset((t, copy.pending, copy.pending_writer) for t, copy in now.copies.items() if copy.pending)
    if pending:
        if pending != memory.pending:
            memory.pending, memory.pending_since_s = pending, now.at_s
        if now.at_s - memory.pending_since_s >= PENDING_SETTLE_S:
            return _pending(key, chain_id, now)
        return Verdict.AGAIN
    memory.pending = frozenset()
    if problem is None:
        return Verdict.FINE
    if any(copy.busy for copy in now.copies.values()) or before is None or not _same(before, now):
        return Verdict.AGAIN
    if problem in (Kind.MISSING, Kind.DIFFERS):
        return _different(key, chain_id, problem, now)
    return _superfluous(key, chain_id, problem, now)


def _same(before: Look, now: Look) -> bool:
    return (before.chain_version, before.copies, before.file) == (now.chain_version, now.copies, now.file)


def _superfluous(key: Key, chain_id: int, kind: Kind, now: Look) -> Finding:
    """All replicas agree on a chunk that should not be, or is too long. It can be dropped while it is what was seen."""
    copy = next(iter(now.copies.values()))  # the head's, which is asked to drop it
    content, file = copy.content, now.file
    assert content is not None
    keep = 0
    if kind is Kind.ORPHAN:
        text = f"{content.length} bytes of inode {key.inode}, which is no file"
    elif kind is Kind.MISPLACED:
        assert file is not None
        text = f"{content.length} bytes; the file has this chunk on chain {file.chain_of(key.chunk_index)}"
    else:
        assert file is not None
        keep = max(0, file.length - key.chunk_index * file.chunk_size)
        text = f"{content.length - keep} bytes beyond the file's length {file.length}"
    return Finding(kind, chain_id, text, key, version=content.version, writer=copy.writer, keep_bytes=keep)


def _different(key: Key, chain_id: int, kind: Kind, now: Look) -> Finding:
    wanted = _wanted(key, chain_id, now)
    right = right_content(now.copies.values(), wanted=wanted)
    words = [f"{target} {_said(copy.content)}" for target, copy in now.copies.items()]
    if not wanted:
        words.append("no file has this chunk")
    if right is UNDECIDED:
        words.append("it cannot be told who is right")
        return Finding(kind, chain_id, ", ".join(words), key, decided=False)
    wrong = tuple(target for target, copy in now.copies.items() if copy.content != right)
    return Finding(kind, chain_id, ", ".join(words), key, targets=wrong)


def _pending(key: Key, chain_id: int, now: Look) -> Finding:
    """A follower's pending version that the head knows nothing of is left over; its own the head finishes itself."""
    holders = tuple(target for target, copy in now.copies.items() if copy.pending)
    head = next(iter(now.copies))
    what = ", ".join(f"{target} version {now.copies[target].pending}" for target in holders)
    if head in holders:
        text = f"pending at {what}: the head tries to finish it by itself; look at the log of its server"
        return Finding(Kind.PENDING, chain_id, text, key, decided=False)
    return Finding(Kind.PENDING, chain_id, f"pending at {what}, unknown to the head", key, targets=holders)


class _Undecided(Enum):
    UNDECIDED = "it cannot be told"


UNDECIDED = _Undecided.UNDECIDED


def right_content(copies: Iterable[Copy], *, wanted: bool) -> Content | _Undecided | None:
    """What all replicas of a chunk should hold, from what the serving ones hold, head first; None: nothing.

    A replica commits only what its successor has committed. So of different versions the tail's counts when it is the
    newest; an older one at the tail, or none, means that the tail has lost what it had. A chunk that one replica has
    and another one lacks was lost there (a damaged one is taken out of service), unless nobody wants it.
    """
    contents = [copy.content for copy in copies]
    present = [content for content in contents if content is not None]
    if not wanted and len(present) < len(contents):
        return None
    tail, newest = contents[-1], max(content.version for content in present)
    most, votes = Counter(present).most_common(1)[0]
    if votes * 2 > len(contents) and (tail is None or tail.version <= most.version):
        return most
    if tail is not None and tail.version == newest:
        return tail
    if tail is None and votes == len(present):
        return most
    return UNDECIDED


def _wanted(key: Key, chain_id: int, now: Look) -> bool:
    """Whether the chunk is one that its file may have."""
    file = now.file
    if file is None or file.removed or file.chain_of(key.chunk_index) != chain_id:
        return False
    if any(copy.content is not None and copy.content.named for copy in now.copies.values()):
        return True
    return file.writing or file.trimming or key.chunk_index * file.chunk_size < file.length


def _said(content: Content | None) -> str:
    if content is None:
        return "nothing"
    return f"version {content.version} of {content.length} bytes, checksum {content.crc32c:08x}"
