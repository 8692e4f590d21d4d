"""What went over the connections of a data link."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Counts:
    """Of one connection. Bytes are payload as the client sees it: out of its memory, into its memory.

    A failure is an answer that says why not or, at the client, none at all.
    """

    requests: int = 0
    failures: int = 0
    bytes_out: int = 0
    bytes_in: int = 0

    def add(self, other: Counts) -> None:
        self.requests += other.requests
        self.failures += other.failures
        self.bytes_out += other.bytes_out
        self.bytes_in += other.bytes_in


@dataclass(slots=True)
class Traffic(Counts):
    """Of the connections to one peer over one link, those that have ended included."""

    peer: str = ""  # at a server: empty, for all clients together
    link: str = ""  # tcp, shm, rdma
    connections: int = 0
    in_flight: int = 0

    def row(self) -> dict[str, str | int]:
        """For JSON, who and how first."""
        row: dict[str, str | int] = asdict(self)
        first = {"peer": row.pop("peer"), "link": row.pop("link")}
        return first | {"connections": row.pop("connections"), "in_flight": row.pop("in_flight")} | row


class Tally:
    """Adds up connections by peer and link."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Traffic] = {}

    def _of(self, peer: str, link: str) -> Traffic:
        return self._found.setdefault((peer, link), Traffic(peer=peer, link=link))

    def open(self, peer: str, link: str, counts: Counts, in_flight: int) -> None:
        """Add a connection that is in use."""
        traffic = self._of(peer, link)
        traffic.add(counts)
        traffic.connections += 1
        traffic.in_flight += in_flight

    def ended(self, peer: str, link: str, counts: Counts) -> None:
        """Add one that is gone."""
        self._of(peer, link).add(counts)

    def traffic(self) -> list[Traffic]:
        return sorted(self._found.values(), key=lambda traffic: (traffic.peer, traffic.link))


def as_numbers(prefix: str, traffics: Iterable[Traffic]) -> dict[str, int]:
    """Sums over all peers, by name: "link.rdma.bytes_in"."""
    found: dict[str, int] = {}
    for traffic in traffics:
        for name, value in traffic.row().items():
            if isinstance(value, int):
                key = f"{prefix}.{traffic.link}.{name}"
                found[key] = found.get(key, 0) + value
    return found


def connections(traffics: Iterable[Traffic]) -> dict[str, int]:
    """How many there are now over each link that is in use."""
    found: Counter[str] = Counter()
    for traffic in traffics:
        found[traffic.link] += traffic.connections
    return {link: count for link, count in sorted(found.items()) if count}
