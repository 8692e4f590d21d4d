"""Who may answer by itself which names of a directory are missing, and how that ends.

A delegation of a directory's names goes to several clients at once, as NFS gives its read delegations (RFC 8881,
section 18.39): each knows all names and hears, before anybody else makes one, that this is over. A holder counts
TERM_S from when it last began to ask whether something was recalled. Whoever wants to make a name marks all holders as
recalled, which none can renew, and waits until they have given back, or for TERM_S and a margin by its own clock:
so no two clocks are compared, and a holder that hangs or is cut off delays others, and does not mislead anybody.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from struct import Struct
from typing import Final

from fireflyfs.common.errors import Code, error

TERM_S: Final = 2.0
MARGIN_S: Final = 0.2  # for clocks that do not go at the same pace
HOLDERS_MAX: Final = 8  # of one directory: all of them must be told before it gets a name
NAMES_MAX: Final = 4096  # of a directory when it is delegated
HELD_MAX: Final = 64  # directories that one client knows, renews or gives back at once

VERSION: Final = 1
_HEAD: Final = Struct("<BB")
_HOLDER: Final = Struct("<16sQB")


@dataclass(frozen=True, slots=True)
class Holder:
    """A client that has the delegation, or was told to give it back.

    `number` tells this grant from any other: a request that comes late renews and returns nothing granted since.
    """

    client_id: bytes
    number: int
    recalled: bool = False


Holders = tuple[Holder, ...]


def pack(holders: Holders) -> bytes:
    records = [_HOLDER.pack(each.client_id, each.number, each.recalled) for each in holders]
    return _HEAD.pack(VERSION, len(holders)) + b"".join(records)


def unpack(data: bytes) -> Holders:
    """Raises VERSION_MISMATCH, or IO_ERROR for a record that makes no sense."""
    if len(data) < _HEAD.size:
        raise _damaged()
    version, count = _HEAD.unpack_from(data)
    if version != VERSION:
        raise error(Code.VERSION_MISMATCH, f"delegations have record version {version}, this release reads {VERSION}")
    if len(data) != _HEAD.size + count * _HOLDER.size:
        raise _damaged()
    return tuple(Holder(client, number, bool(told)) for client, number, told in _HOLDER.iter_unpack(data[_HEAD.size :]))


def _damaged() -> Exception:
    return error(Code.IO_ERROR, "the stored record of delegations is damaged")


def granted(holders: Holders, client_id: bytes, number: int) -> Holders | None:
    """The holders with this one among them, under a new number if it was one before; None: not now."""
    if any(each.recalled for each in holders):
        return None
    others = tuple(each for each in holders if each.client_id != client_id)
    return (*others, Holder(client_id, number)) if len(others) < HOLDERS_MAX else None


def hinders(holders: Holders, client_id: bytes) -> bool:
    """Whether somebody else must be told before this client makes a name."""
    return any(each.client_id != client_id for each in holders)


def recalled(holders: Holders) -> Holders:
    return tuple(replace(each, recalled=True) for each in holders)


def without(holders: Holders, client_id: bytes, number: int) -> Holders:
    return tuple(each for each in holders if (each.client_id, each.number) != (client_id, number))


def still(holders: Holders, client_id: bytes, number: int) -> bool:
    """Whether the client has this one, and was not told to give it back."""
    return Holder(client_id, number) in holders
