"""Which device, port and GID a connection takes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fireflyfs.common.net.rdma.verbs import Gid, Port

IPV4_MAPPED = "0000:0000:0000:0000:0000:ffff:"
EMPTY = ":".join(["0000"] * 8)


class Candidate(NamedTuple):
    """One active port of one device, as found at the time of choosing."""

    device: str
    port: Port
    gids: Sequence[Gid]
    near: bool  # on the memory node of our processors
    connections: int  # that this process has on the device


class Choice(NamedTuple):
    """What to open."""

    device: str
    port: Port
    gid: Gid


def ipv4_gid(address: str) -> str:
    """The GID of a dotted address; empty for anything else."""
    parts = address.split(".")
    if len(parts) != 4 or not all(part.isdigit() and int(part) < 256 for part in parts):
        return ""
    a, b, c, d = (int(part) for part in parts)
    return f"{IPV4_MAPPED}{a:02x}{b:02x}:{c:02x}{d:02x}"


def pick_gid(gids: Sequence[Gid], *, ethernet: bool, index: int | None = None, wanted: str = "") -> Gid | None:
    """The configured index; else the GID of `wanted`; else RoCE v2 on IPv4, RoCE v2, or the first that is not empty.

    RoCE v1 does not leave its network segment and is taken only by index. InfiniBand ports have no RoCE versions.
    """
    filled = [gid for gid in gids if gid.gid != EMPTY]
    if index is not None:
        return next((gid for gid in filled if gid.number == index), None)
    usable = [gid for gid in filled if gid.roce_v2 or not ethernet]
    return max(usable, key=lambda gid: (gid.gid == wanted, gid.gid.startswith(IPV4_MAPPED), -gid.number), default=None)


def choose(candidates: Sequence[Candidate], *, address: str = "", gid_index: int | None = None) -> Choice | None:
    """The port that owns our socket's address, else one near our processors, else the one with fewest connections."""
    wanted = ipv4_gid(address)
    best: tuple[tuple[bool, bool, int], Choice] | None = None
    for candidate in candidates:
        if not candidate.port.active:
            continue
        gid = pick_gid(candidate.gids, ethernet=candidate.port.ethernet, index=gid_index, wanted=wanted)
        if gid is None:
            continue
        score = (bool(wanted) and gid.gid == wanted, candidate.near, -candidate.connections)
        if best is None or score > best[0]:
            best = score, Choice(candidate.device, candidate.port, gid)
    return best[1] if best is not None else None
