"""From pieces to work requests: what lies side by side moves together. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

Local = tuple[int, int, int]  # address, length, lkey


class Piece(NamedTuple):
    """`length` bytes of the peer's registered memory, and where they are or belong here."""

    address: int
    rkey: int
    length: int
    local_address: int
    lkey: int


class Verb(IntEnum):
    """What a work request does."""

    WRITE = 0
    READ = 1
    SEND = 2  # the peer chooses where it lands: address and rkey are 0


class Work(NamedTuple):
    """One work request: a contiguous range of the peer's memory, and pieces of ours in the same order."""

    verb: Verb
    address: int
    rkey: int
    length: int
    local: tuple[Local, ...]


def plan(pieces: Sequence[Piece], *, read: bool, sges_max: int, message_bytes_max: int) -> list[Work]:
    """Join pieces that follow each other in one region of the peer's; split what is longer than a message.

    Order is kept. Pieces that follow each other here as well become one scatter-gather entry.
    """
    verb = Verb.READ if read else Verb.WRITE
    if len(pieces) == 1 and 0 < pieces[0].length <= message_bytes_max:  # the most common, and nothing to join
        at, rkey, length, source, lkey = pieces[0]
        return [Work(verb, at, rkey, length, ((source, length, lkey),))]
    works: list[Work] = []
    local: list[Local] = []
    begin = end = rkey = 0

    def finish() -> None:
        if local:
            works.append(Work(verb, begin, rkey, end - begin, tuple(local)))
            local.clear()

    for piece in pieces:
        at, source, left = piece.address, piece.local_address, piece.length
        while left:
            if local and (at != end or piece.rkey != rkey or end - begin >= message_bytes_max):
                finish()
            if local:
                joins = local[-1][0] + local[-1][1] == source and local[-1][2] == piece.lkey
                if not joins and len(local) >= sges_max:
                    finish()
            if not local:
                begin = end = at
                rkey = piece.rkey
                joins = False
            count = min(left, message_bytes_max - (end - begin))
            if joins:
                address, length, lkey = local[-1]
                local[-1] = (address, length + count, lkey)
            else:
                local.append((source, count, piece.lkey))
            at += count
            end += count
            source += count
            left -= count
    finish()
    return works
