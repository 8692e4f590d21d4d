"""Client leases: who is there, as of a time that the caller passes in. Not durable; see `complete`."""

from __future__ import annotations

from dataclasses import dataclass

from fireflyfs.common.errors import Code, error
from fireflyfs.proto.mgmtd_pb2 import ClientSession

SESSIONS_MAX = 65_536
CLIENT_ID_BYTES = 16
LINKS_MAX = 8
STILL_SHARE = 0.25  # of a lease, without a look at the leases: mgmtd stood still


@dataclass(slots=True)
class _Lease:
    session: ClientSession
    seen_s: float


class LeaseTable:
    """Leases by client id. After a restart of mgmtd it is empty, and `complete` is unset for one lease time: a client
    that is missing then may simply not have called yet.

    Time passes by `expire`, which is called often. If the calls come late, mgmtd stood still and could hear nobody:
    that time counts against no client, as a restart would not.
    """

    def __init__(self, lease_s: float, start_s: float, *, sessions_max: int = SESSIONS_MAX) -> None:
        self._lease_s = lease_s
        self._start_s = start_s
        self._looked_s = start_s  # when leases were last looked at for those that ran out
        self._sessions_max = sessions_max
        self._leases: dict[bytes, _Lease] = {}  # the longest silent first

    def extend(self, session: ClientSession, now_s: float, now_unix_ns: int) -> None:
        """Start or renew a lease. Raises INVALID, or OVERLOADED when too many clients are known."""
        client_id = session.client_id
        if len(client_id) != CLIENT_ID_BYTES:
            raise error(Code.INVALID, f"a client id has {CLIENT_ID_BYTES} bytes, not {len(client_id)}")
        if len(session.links) > LINKS_MAX:
            raise error(Code.INVALID, f"connections over {len(session.links)} links, at most {LINKS_MAX} are known")
        old = self._leases.pop(client_id, None)
        if old is None and len(self._leases) >= self._sessions_max:
            raise error(Code.OVERLOADED, f"{self._sessions_max} clients hold a lease already")
        kept = ClientSession()
        kept.CopyFrom(session)
        kept.start_unix_ns = old.session.start_unix_ns if old else session.start_unix_ns or now_unix_ns
        kept.last_seen_unix_ns = now_unix_ns
        self._leases[client_id] = _Lease(kept, now_s)

    def close(self, client_id: bytes) -> None:
        """The client is going; closing an unknown one is no error."""
        self._leases.pop(client_id, None)

    def expire(self, now_s: float) -> list[ClientSession]:
        """Forget the leases that ran out, and return them."""
        late_s = now_s - self._looked_s
        self._looked_s = now_s
        if late_s > STILL_SHARE * self._lease_s:
            self._start_s += late_s
            for lease in self._leases.values():
                lease.seen_s = min(lease.seen_s + late_s, now_s)
        gone: list[ClientSession] = []
        for client_id, lease in list(self._leases.items()):
            if now_s - lease.seen_s < self._lease_s:
                break
            del self._leases[client_id]
            gone.append(lease.session)
        return gone

    def sessions(self, now_s: float) -> list[ClientSession]:
        """Clients whose lease runs."""
        as_of_s = self._as_of_s(now_s)
        return [lease.session for lease in self._leases.values() if as_of_s - lease.seen_s < self._lease_s]

    def complete(self, now_s: float) -> bool:
        """Whether a client that is not listed has surely lost its lease."""
        return self._as_of_s(now_s) - self._start_s >= self._lease_s

    def _as_of_s(self, now_s: float) -> float:
        return min(now_s, self._looked_s + STILL_SHARE * self._lease_s)
