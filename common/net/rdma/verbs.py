"""Devices, protection domains and registered memory, over pyverbs (library.py)."""

from __future__ import annotations

import ctypes
import select
import weakref
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

from fireflyfs.common.net.rdma.library import Owned, as_os_error, event_descriptor, library

SRQ_LIMIT: Final = "IBV_EVENT_SRQ_LIMIT_REACHED"
FATAL: Final = frozenset({"IBV_EVENT_DEVICE_FATAL", "IBV_EVENT_SRQ_ERR", "IBV_EVENT_CQ_ERR"})
EVENTS: Final = frozenset({SRQ_LIMIT, *FATAL})
SOFT_ROCE: Final = 0xFFFFFF  # the vendor that the kernel's rxe says


class Limits(NamedTuple):
    """What a device allows; see `ibv_query_device`."""

    queue_pairs: int
    work_requests: int
    sges: int
    sges_read: int
    reads_out: int  # READs in flight that one queue pair may begin
    reads_in: int  # and answer
    regions: int
    completions: int
    shared_receives: int = 0  # of one shared receive queue


class Port(NamedTuple):
    """One active or inactive port."""

    number: int
    active: bool
    mtu: int  # as verbs number it: 1 is 256 bytes, 5 is 4096
    message_bytes_max: int
    lid: int
    ethernet: bool


class Gid(NamedTuple):
    """One entry of a port's table."""

    number: int
    gid: str  # eight groups of four hexadecimal digits
    roce_v2: bool


def address_of(buffer: memoryview) -> tuple[int, Any]:
    """The address of writable bytes, and an export that keeps them from being resized or unmapped."""
    export = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    return ctypes.addressof(export), export


class EventListener(Protocol):
    """Told of asynchronous events."""

    def on_events(self, names: Sequence[str], /) -> None: ...


class Device(Owned):
    """One open device."""

    def __init__(self, name: str) -> None:
        with as_os_error(f"opening {name}"):
            raw, self.events_fd = event_descriptor(lambda: library().device.Context(name=name))
            super().__init__("device", raw)
            attr = self.raw.query_device()
            # Some devices say 0 for what they take as for the rest.
            self.limits = Limits(
                attr.max_qp, attr.max_qp_wr, max(attr.max_sge, 1), max(attr.max_sge_rd or attr.max_sge, 1),
                attr.max_qp_init_rd_atom, attr.max_qp_rd_atom, attr.max_mr, attr.max_cqe,
                attr.max_srq_wr,
            )  # fmt: skip
            self._ports = attr.phys_port_cnt
        # Whether our processor moves the bytes, within the call that posts work requests: nothing goes on meanwhile.
        self.software = attr.vendor_id == SOFT_ROCE
        self.name = name
        self._listeners: weakref.WeakSet[EventListener] = weakref.WeakSet()

    def listen(self, listener: EventListener) -> None:
        """Whoever reads the events tells every listener: `on_events` is called in any thread."""
        self._listeners.add(listener)

    def take_events(self) -> None:
        """Read what has happened to the device, its queues and queue pairs, and tell."""
        names = library().constants
        kinds = {names[name]: name for name in EVENTS if name in names}
        found = []
        poller = select.poll()
        poller.register(self.events_fd, select.POLLIN)
        while poller.poll(0):  # else the next call would wait
            try:
                event = self.raw.get_async_event()
            except library().errors.PyverbsRDMAError:  # somebody else has read it
                break
            found.append(kinds.get(int(event.event_type), ""))
            event.ack()
        if found:
            for listener in list(self._listeners):
                listener.on_events(found)

    def ports(self) -> list[Port]:
        with as_os_error(f"asking {self.name} for its ports"):
            active = library().constants["IBV_PORT_ACTIVE"]
            ethernet = library().constants["IBV_LINK_LAYER_ETHERNET"]
            found = []
            for number in range(1, self._ports + 1):
                attr = self.raw.query_port(number)
                found.append(
                    Port(number, int(attr.state) == active, int(attr.active_mtu), attr.max_msg_sz, attr.lid,
                         int(attr.link_layer) == ethernet)
                )  # fmt: skip
            return found

    def gids(self, port: int) -> list[Gid]:
        with as_os_error(f"asking {self.name} for its GIDs"):
            rows = self.raw.query_gid_table(256)
            return [Gid(row.gid_index, row.gid_str(), int(row.gid_type) == 2) for row in rows if row.port_num == port]


class Domain(Owned):
    """A protection domain: its queue pairs reach its regions and no others."""

    def __init__(self, device: Device) -> None:
        with as_os_error("a protection domain"):
            super().__init__("protection domain", library().pd.PD(device.raw))

    def register(self, buffer: memoryview, *, remote: bool) -> Region:
        """Raises OSError: ENOMEM is the limit of locked memory (`ulimit -l`)."""
        return Region(self, buffer, remote=remote)


class Region(Owned):
    """Registered memory; keeps it mapped until `close`."""

    def __init__(self, domain: Domain, buffer: memoryview, *, remote: bool) -> None:
        names = library().constants
        access = names["IBV_ACCESS_LOCAL_WRITE"]
        if remote:
            access |= names["IBV_ACCESS_REMOTE_READ"] | names["IBV_ACCESS_REMOTE_WRITE"]
        self.length = len(buffer)
        self.address, self._export = address_of(buffer)
        with as_os_error(f"registering {self.length} bytes"):
            raw = library().mr.MR(domain.raw, self.length, access, address=self.address)
        super().__init__("region", raw)
        self.lkey: int = raw.lkey
        self.rkey: int = raw.rkey

    def close(self) -> None:
        super().close()
        self._export = None  # after the region: the pages must not go first
